"""Response log-probabilities in float32; the [token, vocabulary] tensor exists a chunk at a time."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from overopt.models.grouped_attention import hidden_states
from overopt.packed_tokens import PackedTokens

MIB = 2**20


def response_log_probs(
    causal_lm: PreTrainedModel, tokens: PackedTokens, *, logits_mib: float = math.inf
) -> Float[Tensor, " target"]:
    """Log-probability of each response token given all before it [nats], in float32.

    Logits are made at the places that predict a response token, and nowhere else.

    Args:
        causal_lm: any Hugging Face causal LM whose logits are its output embedding of the last hidden state, and
            which :func:`overopt.models.grouped_attention.use_grouped_attention` has been called for.
        tokens: prompts with their responses.
        logits_mib: float32 logits held at a time, forward and backward [MiB]; all at once by default.
    """
    hidden = hidden_states(causal_lm.base_model, tokens)[tokens.predictors]
    head = causal_lm.get_output_embeddings()
    vocabulary = head.weight.shape[0]
    chunk = max(1, int(min(len(hidden), logits_mib * MIB / (4 * vocabulary))))
    if len(hidden) <= chunk:  # what fits at once is kept, and not computed anew in the backward pass
        return -F.cross_entropy(head(hidden).float(), tokens.targets, reduction="none")
    if torch.is_autocast_enabled(hidden.device.type):
        hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
    log_probs: Tensor = _ChunkedLogProbs.apply(  # type: ignore[no-untyped-call]
        hidden, head.weight, head.bias, tokens.targets, chunk
    )
    return log_probs


class LogitsChunk(NamedTuple):
    """Logits of some of a batch's targets.

    Attributes:
        targets: which ones.
        logits: over the whole vocabulary, in each state that one of them is predicted in; float32.
    """

    targets: slice
    logits: Float[Tensor, "target vocabulary"]


def response_logits(
    causal_lm: PreTrainedModel, tokens: PackedTokens, *, logits_mib: float = 64.0
) -> Iterator[LogitsChunk]:
    """All that a model says where it predicts a response token, a chunk at a time; without gradients, unsharded.

    Args:
        causal_lm: as for :func:`response_log_probs`.
        tokens: prompts with their responses.
        logits_mib: float32 logits of a chunk [MiB].
    """
    with torch.inference_mode():
        hidden = hidden_states(causal_lm.base_model, tokens)[tokens.predictors]
    head = causal_lm.get_output_embeddings()
    chunk = max(1, int(logits_mib * MIB / (4 * head.weight.shape[0])))
    for part in _slices(len(hidden), chunk):
        with torch.inference_mode():
            logits = head(hidden[part]).float()
        yield LogitsChunk(part, logits)


class _ChunkedLogProbs(torch.autograd.Function):
    """log softmax(hidden @ weight.T + bias) at the targets, a chunk of tokens at a time.

    The backward pass computes a chunk's logits anew, which costs one more product with the weight and keeps memory
    independent of tokens and vocabulary. The weight's gradient is summed over chunks in float32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Float[Tensor, "target hidden"],
        weight: Float[Tensor, "vocabulary hidden"],
        bias: Float[Tensor, " vocabulary"] | None,
        targets: Int[Tensor, " target"],
        chunk: int,
    ) -> Float[Tensor, " target"]:
        ctx.chunk = chunk
        cast_weight, cast_bias = _cast(hidden.dtype, weight, bias)
        log_probs = torch.empty(len(targets), device=hidden.device, dtype=torch.float32)
        normalisers = torch.empty_like(log_probs)
        for part in _slices(len(targets), chunk):
            logits = F.linear(hidden[part], cast_weight, cast_bias).float()
            torch.logsumexp(logits, dim=1, out=normalisers[part])
            log_probs[part] = logits.gather(1, targets[part, None]).squeeze(1) - normalisers[part]
        ctx.save_for_backward(hidden, weight, bias, targets, normalisers)
        return log_probs

    @staticmethod
    def backward(ctx: Any, grad: Float[Tensor, " target"]) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, normalisers = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and needs_bias else None
        cast_weight, cast_bias = _cast(hidden.dtype, weight, bias)
        for part in _slices(len(targets), ctx.chunk):
            # d log p(y) / d logits = onehot(y) - softmax(logits), in the memory of the logits.
            logits = F.linear(hidden[part], cast_weight, cast_bias).float()
            signal = logits.sub_(normalisers[part, None]).exp_()
            signal.mul_(-grad[part, None]).scatter_add_(1, targets[part, None], grad[part, None])
            if grad_bias is not None:
                grad_bias += signal.sum(dim=0)
            signal = signal.to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(signal, cast_weight, out=grad_hidden[part])
            if grad_weight is not None:
                if hidden.dtype == torch.float32:
                    grad_weight.addmm_(signal.T, hidden[part])
                else:
                    grad_weight += signal.T @ hidden[part]
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            None,
            None,
        )


def _cast(
    dtype: torch.dtype, weight: Float[Tensor, "vocabulary hidden"], bias: Float[Tensor, " vocabulary"] | None
) -> tuple[Tensor, Tensor | None]:
    """The head in the hidden states' precision, as autocast would have it: once, not once a chunk."""
    return weight.to(dtype), None if bias is None else bias.to(dtype)


def _slices(length: int, chunk: int) -> list[slice]:
    return [slice(first, min(first + chunk, length)) for first in range(0, length, chunk)]
