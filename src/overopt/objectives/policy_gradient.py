"""Policy-gradient losses for Eq. 3: expected reward less ``beta`` times KL(policy || reference).

The exact gradient, for responses y that the policy draws, any baseline b that does not depend on y, and r the reward:

    grad J = E[(r(y) - beta * log_ratio(y) - b) * grad log pi(y)],   log_ratio = log pi - log pi_ref

(the gradient of the log pi inside ``log_ratio`` has expectation zero). A response is one action here, as in Ahmadian et
al. 2024: log-probabilities and log-ratios are sums over its tokens, end of text included. Only PPO's ratio is taken
token by token. Rewards are neither whitened nor clipped: either would change what ``beta`` means.

Where the KL goes:

- into the reward (:func:`kl_penalised_reward`), so that the baseline covers it too. At the optimum of Eq. 3 this reward
  is the same for all responses to a prompt, and with a leave-one-out baseline every sample's gradient vanishes there;
- into the loss as a penalty, of which the *gradient* must be right, not the value. Schulman's k1 to k3 are unbiased, or
  nearly so, as values. Differentiated as they stand, on samples of the policy, they give the gradients of:

  ==== ========================= ==========================================
  k1   log_ratio                 nothing: E[grad log pi] = 0
  k2   log_ratio^2 / 2           KL(policy || reference): what Eq. 3 wants
  k3   exp(-log_ratio) - 1 + ... KL(reference || policy): another objective
  ==== ========================= ==========================================

  Hence :func:`kl_k2_loss`; :func:`kl_k3_loss` is k3 with the score-function term that it lacks. Both are of whole
  responses. Their sums over *tokens* would leave out what a token does to the divergence of those after it.

Sources: Ahmadian et al. 2024 (arXiv:2402.14740) and Kool et al. 2019 on the leave-one-out baseline; Williams 1992 on
REINFORCE; Schulman et al. 2017 (arXiv:1707.06347) on the clipped surrogate; Schulman 2020, "Approximating KL
divergence", on k1 to k3; Tang and Munos 2025 (arXiv:2506.09477) on the gradients of KL estimators.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Rewards = Float[Tensor, "prompt sample"]


def leave_one_out_advantages(rewards: Rewards) -> Rewards:
    """Each response's reward less the mean reward of the *other* responses to its prompt: RLOO.

    The baseline does not depend on the response it is subtracted for, so the gradient stays unbiased; the mean over all
    responses would shrink it by (samples - 1) / samples.

    Args:
        rewards: of responses drawn independently from one policy, at least two a prompt.

    Raises:
        ValueError: fewer than two responses a prompt.

    >>> leave_one_out_advantages(torch.tensor([[1.0, 2.0, 6.0]]))
    tensor([[-3.0000, -1.5000,  4.5000]])
    """
    samples = rewards.shape[1]
    if samples < 2:
        raise ValueError(f"a leave-one-out baseline needs at least 2 responses a prompt, got {samples}")
    return (rewards - rewards.mean(dim=1, keepdim=True)) * (samples / (samples - 1))


def plain_advantages(rewards: Rewards) -> Rewards:
    """The rewards themselves, without a baseline: REINFORCE. Unbiased, and noisy as far as rewards are from zero."""
    return rewards


#: What is subtracted from rewards, by objective. PPO has no value function here: its baseline is RLOO's.
ADVANTAGES: dict[str, Callable[[Rewards], Rewards]] = {
    "rloo": leave_one_out_advantages,
    "reinforce": plain_advantages,
    "ppo": leave_one_out_advantages,
}


def kl_penalised_reward(rewards: Rewards, log_ratios: Rewards, *, beta: float) -> Rewards:
    """Reward less ``beta`` times the log-ratio: the integrand of Eq. 3, whose mean estimates its value.

    Args:
        rewards: of each response.
        log_ratios: log pi/pi_ref of each response, summed over tokens [nats]; no gradient goes through them.
        beta: price of divergence from the reference, >= 0 [reward / nat].

    Raises:
        ValueError: ``beta`` is negative or not finite.
    """
    if not 0 <= beta < math.inf:
        raise ValueError(f"need finite beta >= 0, got {beta=}")
    return rewards - beta * log_ratios.detach()


def score_function_loss(
    log_probs: Float[Tensor, " response"], advantages: Float[Tensor, " response"]
) -> Float[Tensor, " response"]:
    """-advantage * log pi(y): its gradient, not its value, has a meaning. Williams 1992.

    Args:
        log_probs: of responses drawn from this very policy, summed over tokens [nats]; the gradient goes through them.
        advantages: constants.
    """
    return -advantages.detach() * log_probs


def clipped_loss(
    log_probs: Float[Tensor, " target"],
    drawn_log_probs: Float[Tensor, " target"],
    advantages: Float[Tensor, " target"],
    *,
    clip_range: float,
) -> Float[Tensor, " target"]:
    """-min(ratio * A, clip(ratio) * A) of each *token*: PPO's clipped surrogate.

    At a ratio of 1 its gradient, summed over a response's tokens, is that of :func:`score_function_loss`, hence
    unbiased; further away it is a bound on the first-order improvement, and has no gradient where a token has already
    moved by ``clip_range`` in the direction that its advantage asks for.

    Args:
        log_probs: of sampled tokens under the policy in training [nats].
        drawn_log_probs: the same under the policy that drew them, constants [nats].
        advantages: of each token: here, of the response that it belongs to.
        clip_range: ratios are clipped to 1 - clip_range and 1 + clip_range, in (0, 1).

    Raises:
        ValueError: ``clip_range`` is out of range.

    Source: Schulman et al. 2017 (arXiv:1707.06347), Eq. 7.

    >>> clipped_loss(torch.tensor([2.0]).log(), torch.zeros(1), torch.ones(1), clip_range=0.2)
    tensor([-1.2000])
    """
    if not 0 < clip_range < 1:
        raise ValueError(f"need 0 < clip_range < 1, got {clip_range=}")
    ratio = (log_probs - drawn_log_probs.detach()).exp()
    advantages = advantages.detach()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip_range, 1 + clip_range) * advantages)


def kl_k2_loss(log_ratios: Float[Tensor, " response"]) -> Float[Tensor, " response"]:
    """log_ratio^2 / 2 [nats^2]: its expected gradient is that of KL(policy || reference).

    For grad (log_ratio^2 / 2) = log_ratio * grad log pi(y), the score-function gradient of the KL without a baseline.
    Its value is not the KL.

    Args:
        log_ratios: log pi/pi_ref of responses drawn from the policy, summed over tokens [nats]; the gradient goes
            through them.

    Source: Schulman 2020; Tang and Munos 2025 (arXiv:2506.09477).
    """
    return log_ratios.square() / 2


def kl_k3_loss(
    log_ratios: Float[Tensor, " response"], log_probs: Float[Tensor, " response"]
) -> Float[Tensor, " response"]:
    """k3 with its score-function term: expected gradient that of KL(policy || reference).

    For KL = E[k3] under any policy, so its gradient is E[grad k3 + k3 * grad log pi]; the first term alone, which
    differentiating k3 gives, is that of KL(reference || policy). Heavy-tailed as k3 is: a response that the policy
    finds far less likely than the reference does counts exp(-log_ratio).

    Args:
        log_ratios: log pi/pi_ref of responses drawn from the policy, summed over tokens [nats]; with gradient.
        log_probs: log pi of the same responses [nats]; with gradient.

    Source: as for :func:`kl_k2_loss`.
    """
    k3 = torch.expm1(-log_ratios) + log_ratios
    return k3 + k3.detach() * (log_probs - log_probs.detach())
