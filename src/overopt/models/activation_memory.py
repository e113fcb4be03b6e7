"""What autograd keeps of a forward pass for its backward pass, in bytes, from sizes alone.

Derived from the operations that the code runs, storage by storage, and checked in the tests against the storages that
autograd really saves. Parameters themselves are not counted here; casts of them are.
"""

from dataclasses import dataclass
from typing import Literal

from overopt.models.model_shape import ModelShape
from overopt.packed_tokens import PassShape

FLOAT32 = 4
MIB = 2**20

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class ComputeTypes:
    """In which types a model computes [bytes an element].

    Attributes:
        master: of weights, gradients and optimiser states as they are kept.
        weights: of the weights as layers see them.
        residual: of the hidden states between layers.
        products: of what goes into matrix products and attention.
        float32_norms: whether layer norms cast what they read to float32, as autocast has it on GPUs.
    """

    master: int
    weights: int
    residual: int
    products: int
    float32_norms: bool

    @property
    def casts_weights(self) -> bool:
        """Whether each product casts its weight, and keeps the cast: Lightning's autocast has no cache of casts."""
        return self.weights != self.products


def compute_types(precision: str, *, sharded: bool, device: Device) -> ComputeTypes:
    """Types under one of Lightning's precisions.

    Args:
        precision: Lightning's name.
        sharded: whether FSDP2 gathers weights; for ``bf16-mixed`` it gathers them in bfloat16.
        device: kind of device.

    Raises:
        ValueError: a precision whose memory is not known here.
    """
    if precision in ("32-true", "32", "None"):
        return ComputeTypes(4, 4, 4, 4, False)
    if precision == "bf16-mixed" and sharded:
        return ComputeTypes(4, 2, 2, 2, device == "cuda")
    if precision in ("bf16-mixed", "16-mixed"):
        return ComputeTypes(4, 4, 4, 2, False)
    if precision in ("bf16-true", "16-true"):
        return ComputeTypes(2, 2, 2, 2, False)
    raise ValueError(
        f"memory under trainer.precision={precision} is not known; known are 32-true, bf16-mixed, 16-mixed, "
        "bf16-true, 16-true"
    )


def layer_bytes(model: ModelShape, sizes: PassShape, types: ComputeTypes, device: Device) -> int:
    """Kept of one transformer layer."""
    of_family = _neox_layer if model.family == "gpt_neox" else _llama_layer
    kept = of_family(model, sizes, types) + _attention(model, sizes, types, device)
    return kept + (types.products * model.layer_matrices if types.casts_weights else 0)


def angles_bytes(model: ModelShape, sizes: PassShape, types: ComputeTypes) -> int:
    """Cosines and sines of the rotary angles, which all layers read."""
    return 2 * sizes.tokens * model.rotary_size * types.residual


def mask_bytes(sizes: PassShape) -> int:
    """Of the mask that all layers read; each makes one of its own type of it."""
    return sizes.groups * sizes.longest**2 if sizes.masked else 0


def after_layers_bytes(model: ModelShape, sizes: PassShape, types: ComputeTypes) -> int:
    """Kept of the last norm, and the hidden states that predict."""
    norm = _norm(model, sizes, types) if model.family == "llama" else _norm_inputs(model, sizes, types, 1)
    return norm + sizes.targets * model.hidden * types.products


def layer_temporaries_bytes(model: ModelShape, sizes: PassShape, types: ComputeTypes) -> int:
    """Made and freed again in a layer's forward pass, all of it added up; exact in one type, without autocast."""
    width, key_width = model.heads * model.head_size, model.key_value_heads * model.head_size
    # For queries and for keys: two products with the angles, the rotated half and its negative, and the sum.
    rotated = (model.heads + model.key_value_heads) * model.rotary_size * 9 // 2
    if model.family == "gpt_neox":
        elements = rotated + 3 * model.hidden  # the outputs of attention and of the MLP, and a sum of them
        if sizes.one_row:
            elements += 3 * width + 2 * width  # the product of queries, keys and values, then queries and keys whole
    else:
        # Squares in two norms with their means, and two outputs; then queries, keys and values as they were made.
        elements = rotated + 4 * model.hidden + 4 + width + 2 * key_width
        if not sizes.one_row:  # rotated queries are kept, and where they are not repeated, keys and values
            elements -= width + (0 if _repeats(model, sizes) else 2 * key_width)
    grid = sizes.groups * sizes.longest if sizes.one_row else 0
    repeated = 2 * grid * key_width if _repeats(model, sizes) else 0  # keys and values before they are repeated
    return (sizes.tokens * elements + repeated) * types.residual


def _repeats(model: ModelShape, sizes: PassShape) -> bool:
    """Whether keys and values are repeated for the queries that share them: SDPA shares them without a mask only."""
    return sizes.masked and model.key_value_heads < model.heads


def layer_input_bytes(model: ModelShape, sizes: PassShape, types: ComputeTypes) -> int:
    """Kept of a layer under activation checkpointing."""
    return sizes.tokens * model.hidden * types.residual


def _neox_layer(model: ModelShape, sizes: PassShape, types: ComputeTypes) -> int:
    """Norms' inputs and statistics; the inputs of four products; GELU's input."""
    norms = _norm_inputs(model, sizes, types, 1 if model.parallel_residual else 2)
    if types.float32_norms and model.parallel_residual:
        norms *= 2  # each norm has a cast of its own
    statistics = 2 * 2 * sizes.tokens * FLOAT32
    products = 3 * model.hidden + 2 * model.intermediate
    return norms + statistics + sizes.tokens * products * types.products


def _norm_inputs(model: ModelShape, sizes: PassShape, types: ComputeTypes, number: int) -> int:
    bytes_each = FLOAT32 if types.float32_norms else types.residual
    return number * sizes.tokens * model.hidden * bytes_each


def _llama_layer(model: ModelShape, sizes: PassShape, types: ComputeTypes) -> int:
    """Two norms, the inputs of seven products, and what the gate multiplies."""
    norms = 2 * _norm(model, sizes, types)
    # What three and two products read together is cast by each for itself, where a cast is needed.
    readers = 3 + 2 if types.residual != types.products else 2
    attended = model.heads * model.head_size
    return norms + sizes.tokens * (readers * model.hidden + attended + 4 * model.intermediate) * types.products


def _norm(model: ModelShape, sizes: PassShape, types: ComputeTypes) -> int:
    """Llama's: its input in float32, one over its size, and the normalised state that the weight multiplies."""
    return sizes.tokens * (model.hidden * (FLOAT32 + types.residual) + FLOAT32)


def _attention(model: ModelShape, sizes: PassShape, types: ComputeTypes, device: Device) -> int:
    """Queries, keys, values, and what came out, in the grid where attention runs; the mask as it is added."""
    slots = sizes.groups * sizes.longest
    width = model.heads * model.head_size
    key_width = model.key_value_heads * model.head_size
    if sizes.masked:
        key_width = width  # keys and values are repeated for the queries that share them
    states = width + 2 * key_width
    if sizes.one_row:
        states += width  # the output in the grid; the row's own is the next product's input
    elif model.family == "gpt_neox":
        # Values are a view of the product that made queries and keys too; and the output, its heads foremost as
        # those of queries and keys are, is copied for the next product.
        states += 3 * width
    normalisers = slots * model.heads * FLOAT32
    row = sizes.longest if device == "cpu" else -(-sizes.longest // 16) * 16
    mask = sizes.groups * sizes.longest * row * types.products if sizes.masked else 0
    return slots * states * types.products + normalisers + mask


@dataclass(frozen=True)
class LogitsMemory:
    """Of the log-probabilities of response tokens [bytes].

    Attributes:
        kept: between forward and backward pass.
        forward: at most, in the forward pass.
        backward: at most, in the backward pass, the output head's gradient included.
    """

    kept: int = 0
    forward: int = 0
    backward: int = 0


def logits_memory(model: ModelShape, targets: int, logits_mib: float, types: ComputeTypes) -> LogitsMemory:
    """As :func:`overopt.models.log_probs.response_log_probs` computes them, all at once or in chunks."""
    chunk = max(1, int(min(targets, logits_mib * MIB / (FLOAT32 * model.vocabulary))))
    logits = chunk * model.vocabulary
    low = types.products if types.products != FLOAT32 else 0
    cast = low * model.head_parameters if types.casts_weights else 0
    # The weight's gradient in the type of the product, and in that of the sum where it is another.
    gradient = (FLOAT32 + low) * model.head_parameters
    if targets <= chunk:
        # Logits beside their log-softmax, which is kept; then two gradients beside it, of which one is left.
        kept = logits * FLOAT32 + cast
        return LogitsMemory(
            kept=kept,
            forward=kept + logits * FLOAT32,
            backward=cast + max(3 * logits * FLOAT32, logits * FLOAT32 + gradient),
        )
    states = targets * (model.hidden * types.products + FLOAT32)  # their gradients, and the normalisers
    return LogitsMemory(
        kept=targets * FLOAT32,
        forward=cast + 2 * logits * FLOAT32,  # logits, and their exponentials for the sum
        backward=cast + logits * (FLOAT32 + low) + gradient + states,
    )
