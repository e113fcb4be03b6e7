"""The objective of supervised fine-tuning: negative log-likelihood of responses."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class ResponseLikelihood(NamedTuple):
    """Sums, not means, so that batches and devices can be added before the division.

    Attributes:
        negative_log_likelihood: -log pi(y|x), summed over the response's tokens [nats].
        response_tokens: tokens in that sum, end-of-text included where the response has one.
    """

    negative_log_likelihood: Float[Tensor, " response"]
    response_tokens: Int[Tensor, " response"]


def response_negative_log_likelihood(
    token_log_probs: Float[Tensor, " token"], responses: Int[Tensor, " token"], num_responses: int
) -> ResponseLikelihood:
    """Negative log-likelihood and length of each response; prompt and padding are not among the tokens.

    Args:
        token_log_probs: log pi(y_t | x, y_<t) of the responses' tokens [nats].
        responses: the number of the response that each token belongs to.
        num_responses: how many there are.

    Returns:
        One sum and one count per response. Nats per token over a set is the sum of the sums over the sum
        of the counts, never a mean of per-response or per-batch means.

    >>> nll, tokens = response_negative_log_likelihood(torch.tensor([-1.0, -2.0, -0.5]), torch.tensor([0, 0, 1]), 2)
    >>> (nll.sum() / tokens.sum()).item()
    1.1666666269302368
    """
    nll = token_log_probs.new_zeros(num_responses).index_add(0, responses, -token_log_probs)
    tokens = responses.new_zeros(num_responses).index_add(0, responses, torch.ones_like(responses))
    return ResponseLikelihood(nll, tokens)
