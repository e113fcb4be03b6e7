"""Memory of a training step on one device, in bytes, by part and by phase of the step; from sizes alone.

A step runs micro-batch after micro-batch, each forward and backward, gradients accumulating; then it updates. Which
phase needs most depends on the model and the forward pass: all are computed, and the largest is the peak.
"""

from dataclasses import asdict, dataclass
from typing import NamedTuple

from overopt.models.activation_memory import (
    FLOAT32,
    ComputeTypes,
    Device,
    LogitsMemory,
    after_layers_bytes,
    angles_bytes,
    layer_bytes,
    layer_input_bytes,
    layer_temporaries_bytes,
    logits_memory,
    mask_bytes,
)
from overopt.models.compute import ComputeSettings
from overopt.models.model_shape import ModelShape
from overopt.packed_tokens import PassShape

#: Of what a forward pass frees on a CPU, the share that the C library does not give out again before the heap is
#: trimmed at the pass's end: it takes the hole that fits best, which is rarely one that is in memory. Measured 0.5 to
#: 0.9, over packed and padded rows of Pythia's layers and Llama's.
HEAP_HOLES = 0.6


@dataclass(frozen=True)
class StepSetting:
    """How a step is computed.

    Attributes:
        types: in which types.
        compute: memory against time.
        optimizer_states: elements that the optimiser keeps for each parameter: 1 for RMSprop, 2 for AdamW.
        device: kind of device.
        shards: devices that weights, gradients and optimiser states are divided among by FSDP2.
        replicas: devices that each hold all of it (DDP).
        offloaded: shards lie in the host's memory.
        several_passes: whether a step has more than one micro-batch a device, so that gradients are there when the
            next one begins.
        log_probs: whether the model gives log-probabilities; a reward model does not.
    """

    types: ComputeTypes
    compute: ComputeSettings = ComputeSettings()
    optimizer_states: int = 1
    device: Device = "cuda"
    shards: int = 1
    replicas: int = 1
    offloaded: bool = False
    several_passes: bool = True
    log_probs: bool = True

    @property
    def gathers(self) -> bool:
        """Whether weights come to the device layer by layer: from others, or from the host."""
        return self.shards > 1 or self.offloaded


@dataclass(frozen=True)
class Parts:
    """Memory by what it holds [bytes].

    Attributes:
        weights: as they are kept between steps.
        gradients: summed over micro-batches.
        optimizer: the optimiser's states.
        activations: what autograd keeps for the backward pass.
        logits: of response tokens, a chunk at a time, with what their log-probabilities and gradients take.
        passing: what comes and goes: gathered weights, gradients on their way, temporary results; on CPUs, the holes
            that they leave in the heap.
    """

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    logits: int = 0
    passing: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return sum(asdict(self).values())


class Phase(NamedTuple):
    """A moment of a step and what is in memory then."""

    name: str
    parts: Parts


def step_phases(model: ModelShape, sizes: PassShape, setting: StepSetting) -> list[Phase]:
    """What a device holds in the phases of a step.

    Args:
        model: sizes of the model.
        sizes: of the largest forward pass.
        setting: how the step is computed.
    """
    types = setting.types
    shard = -(-model.num_parameters // setting.shards) * types.master
    here = 0 if setting.offloaded else shard
    weights, optimizer = here, setting.optimizer_states * here
    gradients = here + (shard if setting.replicas > 1 else 0)  # DDP's buckets hold a copy
    before = gradients if setting.several_passes else 0
    of_layers, again = _layers(model, sizes, setting)
    kept = of_layers + after_layers_bytes(model, sizes, types)
    logits = _logits(model, sizes, setting)
    gathered = _Gathered.of(model, setting)
    # The last layer's outputs and sums come before the logits.
    outputs = (3 if model.family == "gpt_neox" else 1) * layer_input_bytes(model, sizes, types) + mask_bytes(sizes)
    forward = gathered.forward + _heap_holes(model, sizes, setting) + max(0, outputs - logits.forward)
    backward = gathered.backward + _layer_gradients(model, sizes, types)

    def phase(name: str, gradients: int, activations: int, logits: int, passing: int) -> Phase:
        return Phase(name, Parts(weights, gradients, optimizer, activations, logits, passing))

    return [
        phase("end of the forward pass", before, kept, logits.forward, forward),
        phase("backward through the output head", before, kept, logits.backward, gathered.forward),
        phase("backward through the last layer", before, of_layers + again, 0, backward),
        phase("end of the backward pass", gradients, 0, 0, gathered.end + _embedding_gradient(model, setting)),
        phase("the optimiser's update", gradients, 0, 0, _update(model, setting)),
    ]


def peak(phases: list[Phase]) -> Phase:
    """The phase that needs most."""
    return max(phases, key=lambda phase: phase.parts.total)


def evaluation_bytes(model: ModelShape, prompts: int, tokens: int) -> int:
    """What sampling takes at least, in float32: a policy, its reference, and keys and values of all tokens [bytes].

    Args:
        model: sizes of the policy.
        prompts: sampled side by side.
        tokens: room for each: the longest prompt and a whole response.
    """
    cache = 2 * model.layers * model.key_value_heads * model.head_size * prompts * tokens
    return FLOAT32 * (2 * model.num_parameters + cache)


def _layers(model: ModelShape, sizes: PassShape, setting: StepSetting) -> tuple[int, int]:
    """Kept of all layers, and of the one that is computed again in the backward pass."""
    angles = angles_bytes(model, sizes, setting.types)
    layer = layer_bytes(model, sizes, setting.types, setting.device)
    if not setting.compute.activation_checkpointing:
        return angles + model.layers * layer, 0
    inputs = model.layers * layer_input_bytes(model, sizes, setting.types)
    return angles + mask_bytes(sizes) + inputs, layer


def _logits(model: ModelShape, sizes: PassShape, setting: StepSetting) -> LogitsMemory:
    if not setting.log_probs:
        return LogitsMemory()
    return logits_memory(model, sizes.targets, setting.compute.logits_mib, setting.types)


def _heap_holes(model: ModelShape, sizes: PassShape, setting: StepSetting) -> int:
    """What a forward pass has freed on a CPU and is still in memory at its end."""
    if setting.device != "cpu":
        return 0
    freed = layer_temporaries_bytes(model, sizes, setting.types)
    if setting.compute.activation_checkpointing:  # a layer leaves a hole that the next one's tensors fit
        return int(HEAP_HOLES * (freed + layer_bytes(model, sizes, setting.types, setting.device)))
    return int(HEAP_HOLES * model.layers * freed)


def _layer_gradients(model: ModelShape, sizes: PassShape, types: ComputeTypes) -> int:
    """The MLP's, where a layer's backward pass begins: of its output, its inner states, and a weight."""
    inner = model.intermediate * (1 if model.family == "gpt_neox" else 2)
    states = sizes.tokens * (model.hidden * types.residual + inner * types.products)
    weight = model.hidden * model.intermediate * (types.products + (types.master if types.casts_weights else 0))
    return states + weight


def _embedding_gradient(model: ModelShape, setting: StepSetting) -> int:
    """Dense, as large as the embedding, and added to what is there."""
    if setting.gathers:
        return 0  # is among what is gathered
    return model.head_parameters * setting.types.weights


def _update(model: ModelShape, setting: StepSetting) -> int:
    """The root of the squared gradients' average: of all parameters at once on GPUs, of one at a time on CPUs."""
    if setting.offloaded:
        return 0
    elements = model.num_parameters if setting.device == "cuda" else model.largest_parameter
    return -(-elements // setting.shards) * setting.types.master


@dataclass(frozen=True)
class _Gathered:
    """What FSDP2 gathers and reduces, layer by layer and for the root [bytes].

    The root (embedding, last norm, output head) stays gathered from the forward pass to the end of the backward pass.
    While a layer computes, the next one is on its way.
    """

    forward: int
    backward: int
    end: int

    @classmethod
    def of(cls, model: ModelShape, setting: StepSetting) -> "_Gathered":
        if not setting.gathers:
            return cls(0, 0, 0)
        each = setting.types.weights
        layer, root = model.layer_parameters, model.root_parameters
        summed = FLOAT32 + FLOAT32 / setting.shards  # gradients are reduced in float32: all of them in, a shard out
        return cls(
            # A layer's weights, and the next one's: as they arrive, and copied out.
            forward=(root + 3 * layer) * each,
            # The root's weights and the head's gradient; a layer's weights, those of the next, its gradients as
            # they were computed and as they are summed.
            backward=(root + model.head_parameters + 3 * layer) * each + int(layer * summed),
            end=2 * root * each + int(root * summed),
        )
