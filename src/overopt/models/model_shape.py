"""A model's sizes from its configuration alone, counted on the meta device, where weights have no memory."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig

#: Architectures by how a layer is built. Each is checked against what autograd keeps (tests/models).
FAMILIES: dict[str, Literal["gpt_neox", "llama"]] = {
    "gpt_neox": "gpt_neox",
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "llama",
}


@dataclass(frozen=True)
class ModelShape:
    """What memory and time of a causal LM depend on.

    Attributes:
        family: how a layer is built.
        hidden: width of the residual stream.
        layers: transformer layers.
        heads: query heads.
        key_value_heads: heads of keys and values.
        head_size: width of a head.
        rotary_size: of it, what is rotated.
        intermediate: width inside the MLP.
        vocabulary: rows of the output head.
        parallel_residual: whether attention and MLP read the same hidden state.
        layer_parameters: parameters of a layer.
        layer_matrices: of them, those of matrices.
        num_parameters: all, each counted once.
        largest_parameter: elements of the largest one.
    """

    family: Literal["gpt_neox", "llama"]
    hidden: int
    layers: int
    heads: int
    key_value_heads: int
    head_size: int
    rotary_size: int
    intermediate: int
    vocabulary: int
    parallel_residual: bool
    layer_parameters: int
    layer_matrices: int
    num_parameters: int
    largest_parameter: int

    @property
    def root_parameters(self) -> int:
        """Parameters outside the layers: embedding, last norm, output head."""
        return self.num_parameters - self.layers * self.layer_parameters

    @property
    def head_parameters(self) -> int:
        """Of the output head, which may be the embedding too."""
        return self.vocabulary * self.hidden


def model_shape(config: PretrainedConfig) -> ModelShape:
    """Sizes of the causal LM that a configuration describes.

    Raises:
        ValueError: an architecture whose layers are not known here.
    """
    if config.model_type not in FAMILIES:
        raise ValueError(
            f"what a layer of {config.model_type!r} keeps for its backward pass is not known; known are "
            f"{', '.join(FAMILIES)}"
        )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    layers = [layer for module in model.modules() if isinstance(module, nn.ModuleList) for layer in module]
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return ModelShape(
        family=FAMILIES[config.model_type],
        hidden=config.hidden_size,
        layers=len(layers),
        heads=heads,
        key_value_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_size=head_size,
        rotary_size=int(head_size * config.rope_parameters.get("partial_rotary_factor", 1.0)),
        intermediate=config.intermediate_size,
        vocabulary=model.get_output_embeddings().weight.shape[0],
        parallel_residual=getattr(config, "use_parallel_residual", False),
        layer_parameters=_count(layers[0].parameters()),
        layer_matrices=_count(m.weight for m in layers[0].modules() if isinstance(m, nn.Linear)),
        num_parameters=_count(model.parameters()),
        largest_parameter=max(parameter.numel() for parameter in model.parameters()),
    )


def forward_flops(model: ModelShape, *, tokens: int, attended: int, targets: int) -> int:
    """Floating-point operations that the mathematics of a forward pass needs; a backward pass needs twice as many.

    Args:
        model: sizes of the model.
        tokens: that go through it.
        attended: pairs of a token and one that it may read.
        targets: tokens that a log-probability is computed for.
    """
    products = 2 * model.layers * model.layer_matrices * tokens
    attention = 4 * model.layers * model.heads * model.head_size * attended
    return products + attention + 2 * model.head_parameters * targets


def _count(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)
