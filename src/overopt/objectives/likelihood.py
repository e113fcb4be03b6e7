"""The objective of supervised fine-tuning: negative log-likelihood of responses."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class ResponseLikelihood(NamedTuple):
    """Sums, not means, so that batches and devices can be added before the division.

    Attributes:
        negative_log_likelihood: -log pi(y|x), summed over the response's tokens [nats].
        response_tokens: tokens in that sum, end-of-text included where the response has one.
    """

    negative_log_likelihood: Float[Tensor, " sequence"]
    response_tokens: Int[Tensor, " sequence"]


def response_negative_log_likelihood(
    token_log_probs: Float[Tensor, "sequence token"], response_mask: Bool[Tensor, "sequence token"]
) -> ResponseLikelihood:
    """Negative log-likelihood and length of each response; prompt and padding count for nothing.

    Args:
        token_log_probs: log pi(y_t | x, y_<t) at the position of y_t [nats]; any value, NaN and infinities
            included, where the mask is false.
        response_mask: true on the response's tokens.

    Returns:
        One sum and one count per sequence. Nats per token over a set is the sum of the sums over the sum
        of the counts, never a mean of per-sequence or per-batch means.

    >>> token_log_probs = torch.tensor([[-9.0, -1.0, -2.0], [-9.0, -0.5, -7.0]])
    >>> response_mask = torch.tensor([[False, True, True], [False, True, False]])
    >>> nll, tokens = response_negative_log_likelihood(token_log_probs, response_mask)
    >>> (nll.sum() / tokens.sum()).item()
    1.1666666269302368
    """
    # Selecting, not multiplying by the mask: 0 * inf is NaN.
    selected = torch.where(response_mask, token_log_probs, 0.0)
    return ResponseLikelihood(-selected.sum(dim=-1), response_mask.sum(dim=-1))
