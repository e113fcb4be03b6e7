"""How a model computes: memory against time, the same results."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from overopt.models.grouped_attention import use_grouped_attention


@dataclass(frozen=True)
class ComputeSettings:
    """What training may trade; no setting changes a result beyond rounding.

    Attributes:
        logits_mib: float32 logits held at a time, forward and backward [MiB]; ``.inf`` for all at once.
        activation_checkpointing: keep each layer's input only and compute the layer again in the backward pass:
            about a third more time, a fraction of the memory for activations.
        compile: compile the backbone with torch.compile; needs a C++ compiler on CPUs, and some minutes at first.
        flex_attention: packed rows by FlexAttention instead of SDPA; for GPUs (on CPUs it has no backward pass).

    Raises:
        ValueError: ``logits_mib`` is not positive.
    """

    logits_mib: float = 64.0
    activation_checkpointing: bool = False
    compile: bool = False
    flex_attention: bool = False

    def __post_init__(self) -> None:
        if not self.logits_mib > 0:
            raise ValueError(f"need logits_mib > 0, got {self.logits_mib}; .inf holds all logits at once")

    def apply(self, model: PreTrainedModel) -> None:
        """Set a causal LM or its backbone up to read :class:`overopt.packed_tokens.PackedTokens`."""
        use_grouped_attention(model, flex=self.flex_attention)
        if self.activation_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        if self.compile:
            # In place, so that weights keep their names; shapes differ from batch to batch.
            model.base_model.compile(dynamic=True)


def stage_device() -> str:
    """Where stages without a Trainer compute: on the GPU, where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"
