"""What may be added to a preference objective against over-optimization, each term from its paper.

Three places take one: the link between policy and implicit reward (:data:`LINKS`), the margin
(:func:`lost_likelihood`), and the loss (:data:`LIKELIHOOD_LOSSES`). :func:`clip_reward_margin` goes with the
chi-squared link. The length term of Park et al. 2024 is part of
:func:`overopt.objectives.preference.preference_logit`.
"""

import math
from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from overopt.objectives.likelihood import ResponseLikelihood

#: Of the exponent in :func:`chi_squared_link`, as in the experiments of Huang et al.: e^-88 is hardly a float32 any
#: more, and with e^20 = 5e8 sums and squares stay finite.
LOWEST_EXPONENT, HIGHEST_EXPONENT = -88.0, 20.0


def log_link(log_ratio: Float[Tensor, " response"]) -> Float[Tensor, " response"]:
    """The log-ratio itself, log z at z = pi/pi_ref [nats]: the link of a KL penalty, so of all published objectives.

    Source: Rafailov et al. 2023, Eq. 5 (arXiv:2305.18290).
    """
    return log_ratio


def chi_squared_link(log_ratio: Float[Tensor, " response"]) -> Float[Tensor, " response"]:
    """phi(z) = z + log z at z = pi/pi_ref: the link of a penalty on KL and chi-squared divergence together; 1 at z = 1.

    Its slope in the log-ratio is z + 1, so a response that the policy raises above the reference soon has a large
    implicit reward and is pushed no further; for responses that it gives up it is the logarithm. ``beta * phi`` takes
    the place of ``beta * log z``, so beta keeps its unit but not its effect: at z = 1 a step moves a margin twice as
    far as DPO's.

    A ratio of sequences overflows soon. Its logarithm is therefore clipped to [-88, 20] in the exponential, where
    the slope is then 1, that of the logarithm.

    Args:
        log_ratio: log pi/pi_ref, summed over a response's tokens [nats].

    Source: Huang et al. 2024 (arXiv:2407.13399), chi-PO with their alpha = gamma = 1.

    >>> import torch
    >>> chi_squared_link(torch.tensor([0.0, -200.0]))
    tensor([   1., -200.])
    """
    return log_ratio.clamp(LOWEST_EXPONENT, HIGHEST_EXPONENT).exp() + log_ratio


LINKS: dict[str, Callable[[Float[Tensor, " response"]], Float[Tensor, " response"]]] = {
    "log": log_link,
    "chi_squared": chi_squared_link,
}


def clip_reward_margin(logit: Float[Tensor, " pair"], *, max_reward: float) -> Float[Tensor, " pair"]:
    """The logit, clipped to +-2 max_reward; no gradient beyond.

    Rewards between 0 and R differ by R at most; chi-PO allows the margins that it estimates twice that.

    Args:
        logit: difference of implicit rewards, from :func:`overopt.objectives.preference.preference_logit`.
        max_reward: the largest reward R, > 0 [reward].

    Raises:
        ValueError: ``max_reward`` is not positive and finite.

    Source: Huang et al. 2024, Algorithm 1, ``clip_{2 R_max}`` (arXiv:2407.13399).
    """
    if not 0 < max_reward < math.inf:
        raise ValueError(f"need finite max_reward > 0, got {max_reward=}")
    return logit.clamp(-2 * max_reward, 2 * max_reward)


def lost_likelihood(chosen_log_ratio: Float[Tensor, " pair"]) -> Float[Tensor, " pair"]:
    """max(0, log pi_ref/pi) of the chosen response: how far it has fallen below the reference [nats], if it has.

    DPO-positive takes lambda times it off the margin, inside the sigmoid and under beta: ``z = beta * (margin - lambda
    * lost_likelihood)``. Below the reference a chosen log-ratio counts 1 + lambda times, so that a margin which grows
    because both responses fall soon lowers the logit; at and above it nothing changes. At step 0 every chosen response
    sits on the bend, where the gradient is taken as 0, but for rounding, which then decides on which side.

    Args:
        chosen_log_ratio: log pi/pi_ref of the chosen response [nats].

    Source: Pal et al. 2024, "Smaug: Fixing failure modes of preference optimisation with DPO-positive"
    (arXiv:2402.13228).
    """
    return F.relu(-chosen_log_ratio)


def mean_token_loss(chosen: ResponseLikelihood) -> Float[Tensor, " pair"]:
    """-log pi(y|x) / |y| of the chosen response: the mean over its own tokens [nats / token].

    Each pair then counts alike, however long its responses. TRL's ``rpo_alpha`` divides by the tokens of the whole
    batch instead: there long responses weigh more.

    Source: Pang et al. 2024, "Iterative reasoning preference optimization" (arXiv:2404.19733), whose weight is 1.
    In its third version; an earlier one divides by the prompt's tokens too.
    """
    # A response of one token to an empty prompt has no prediction: nothing of nothing.
    return chosen.negative_log_likelihood / chosen.response_tokens.clamp(min=1)


def response_loss(chosen: ResponseLikelihood) -> Float[Tensor, " pair"]:
    """-log pi(y|x) of the chosen response, summed over its tokens [nats].

    The weight is what Liu et al. write ``eta * beta``, with chosen responses as the policy that pessimism leans on;
    their code multiplies so as well. Elsewhere ``eta`` alone stands for it.

    Source: Liu et al. 2024, "Provably mitigating overoptimization in RLHF: your SFT loss is implicitly an adversarial
    regularizer" (arXiv:2405.16436).
    """
    return chosen.negative_log_likelihood


LIKELIHOOD_LOSSES: dict[str, Callable[[ResponseLikelihood], Float[Tensor, " pair"]]] = {
    "token": mean_token_loss,
    "response": response_loss,
}
