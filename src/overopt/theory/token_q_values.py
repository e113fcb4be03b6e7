"""Soft Q- and V-values that a policy implies, token by token: the paper's App. D (Eq. 8-12).

A state is a prompt with the response so far, s_t = (x, y_<t); an action is the next token. Where a policy is optimal
for some reward r under the price beta of divergence from its reference, it satisfies

    Q(s_t, y_t) = r(s_t, y_t) + beta log pi_ref(y_t | s_t) + V(s_t+1),  V = 0 after the end of text     (8)
    V(s)        = beta log sum_a exp(Q(s, a) / beta)                                                    (9)
    pi(a | s)   = exp((Q(s, a) - V(s)) / beta)                                                          (10)

Two misprints of the paper are mended. Its Eq. 10 divides Q alone by beta, which does not normalise. In its Eq. 11 the
bootstrapping term sums over the actions of s_t; the V that Eq. 8 brings in is the next state's, so the sum is over the
tokens that may follow y_t. Eq. 10 is then solved for Q:

    Q(s, a) = V(s) + beta log pi(a | s),    r(s_t, y_t) = V(s_t) - V(s_t+1) + beta log pi / pi_ref (y_t | s_t).

**Gauge.** Any V, a number a state, goes with any policy: it shifts Q by as much, and Eq. 8 says which reward makes up
for it. So a policy and its reference fix Q only up to a shift per state, and one must say which is meant:

- ``sparse``, the default: V = 0 at the prompt, and rewards at the end of text only. Then V(s_t) = beta log_ratio(y_<t),
  the implicit reward so far, and the one reward is beta log_ratio(y). (V(x) = 0 says that the partition function is 1.)
- ``dense``: V = 0 in every state; the reward of a token is beta times its log-ratio.
- ``logits``: Q = beta times the logits, as App. D has it ("the logits represent Q-values"), V = beta logsumexp of them.
  A softmax doesn't see a shift of all logits, so nothing in training fixes this V.

On the gauge depend Q, V, and the reward of each token. Not on it: the advantage Q - V = beta log pi; the sum of a
finished response's rewards less V(x), which is beta log_ratio(y); the shares of the bootstrapping term's mass; and all
differences of values within a state, such as those that :func:`value_above_mean` and its kin give.

**Bootstrapping.** V(s) is a sum over all tokens, those among them that no response in the data ever took after that
prefix. The mass of action a in it is exp((Q - V) / beta) = pi(a | s), hence the share of unseen tokens is pi of them.

**Optimism.** The paper says that by Eq. 12 a smaller beta is more optimistic. That depends on what stays fixed. With
the reference's share taken out of Q, reward-to-go R(s, a) = Q(s, a) - beta log pi_ref(a | s) = r + V(next state),
Eq. 9 is V = beta log E_{a ~ pi_ref} exp(R / beta): at fixed R it falls with beta, from max R (beta -> 0) to E_ref R
(beta -> infinity), and the claim holds. At fixed Q, as Eq. 12 is written, V grows with beta: from max Q without bound,
V - max Q being at most beta log(number of tokens). Two policies trained at two betas share neither R nor Q.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from overopt.packed_tokens import TokenIds


class TokenValues(NamedTuple):
    """Soft values along one response [reward].

    Attributes:
        q_values: Q(s_t, y_t) of each token.
        values: V(s_t) of the state that each token is taken in.
        next_values: V(s_t+1), the bootstrapping term of Eq. 11; 0 after the end of text.
        rewards: r(s_t, y_t), which makes Eq. 8 hold.
    """

    q_values: Float[Tensor, " token"]
    values: Float[Tensor, " token"]
    next_values: Float[Tensor, " token"]
    rewards: Float[Tensor, " token"]


Gauge = Callable[[Float[Tensor, " token"], Float[Tensor, " token"], float], Float[Tensor, " token+1"]]
"""Log-ratios of a response's tokens and logsumexp of the logits in each state [nats], beta -> V of each state and of
the one after the last token, as if the text went on there."""


def sparse_gauge(
    log_ratios: Float[Tensor, " token"], log_normalisers: Float[Tensor, " token"], beta: float
) -> Float[Tensor, " token+1"]:
    """V of rewards at the end of text only: the implicit reward so far."""
    return beta * torch.cat([log_ratios.new_zeros(1), log_ratios.cumsum(dim=0)])


def dense_gauge(
    log_ratios: Float[Tensor, " token"], log_normalisers: Float[Tensor, " token"], beta: float
) -> Float[Tensor, " token+1"]:
    """V = 0 everywhere: each token is rewarded at once."""
    return log_ratios.new_zeros(len(log_ratios) + 1)


def logits_gauge(
    log_ratios: Float[Tensor, " token"], log_normalisers: Float[Tensor, " token"], beta: float
) -> Float[Tensor, " token+1"]:
    """V where Q = beta * logits; NaN after the last token, for whose next state there are no logits."""
    return beta * torch.cat([log_normalisers, log_normalisers.new_full((1,), torch.nan)])


GAUGES: dict[str, Gauge] = {"sparse": sparse_gauge, "dense": dense_gauge, "logits": logits_gauge}


def token_values(
    log_probs: Float[Tensor, " token"],
    reference_log_probs: Float[Tensor, " token"],
    log_normalisers: Float[Tensor, " token"],
    *,
    beta: float,
    finished: bool,
    gauge: str = "sparse",
) -> TokenValues:
    """Soft values along one response (Eq. 8 and 10); in the precision of what it is given.

    Args:
        log_probs: log pi of each of the response's tokens [nats].
        reference_log_probs: log pi_ref of the same [nats].
        log_normalisers: logsumexp of the policy's logits in each state [nats]; read by gauge ``logits`` alone.
        beta: price of divergence, > 0 [reward / nat].
        finished: whether the last token is the end of text, after which V = 0. Otherwise the text goes on, by an
            unknown reward: the last token's ``next_values`` is the gauge's, NaN for ``logits``, and so its reward.
        gauge: a name in :data:`GAUGES`.

    Raises:
        ValueError: beta is not positive, or an unknown gauge.

    >>> log_half = torch.tensor([0.5, 0.5]).log()
    >>> values = token_values(log_half, 2 * log_half, log_half, beta=2.0, finished=True)
    >>> [round(float(v), 3) for v in (values.values[1], values.rewards[0], values.rewards[1])]  # 2 log 2, 0, 4 log 2
    [1.386, 0.0, 2.773]
    """
    require_beta(beta)
    if gauge not in GAUGES:
        raise ValueError(f"no gauge {gauge!r}; there are {', '.join(GAUGES)}")
    log_ratios = log_probs - reference_log_probs
    states = GAUGES[gauge](log_ratios, log_normalisers, beta)
    values, next_values = states[:-1], states[1:].clone()
    if finished:
        next_values[-1] = 0
    return TokenValues(
        q_values=values + beta * log_probs,
        values=values,
        next_values=next_values,
        rewards=values - next_values + beta * log_ratios,
    )


def soft_maximum(
    values: Float[Tensor, "*state action"], beta: float, log_weights: Float[Tensor, "*state action"] | None = None
) -> Float[Tensor, "*state"]:
    """Eq. 9 with weights, beta log sum_a w_a exp(values_a / beta) [reward].

    Args:
        values: of each action [reward].
        beta: > 0 [reward / nat].
        log_weights: such as log pi_ref [nats]; 0 by default.

    Raises:
        ValueError: beta is not positive.

    >>> soft_maximum(torch.tensor([0.0, 0.0]), 2.0).item() / 2.0 == torch.tensor(2.0).log().item()
    True
    """
    require_beta(beta)
    exponents = values / beta
    return beta * torch.logsumexp(exponents if log_weights is None else exponents + log_weights, dim=-1)


def unseen_share(log_probs: Float[Tensor, "state token"], seen: Bool[Tensor, "state token"]) -> Float[Tensor, " state"]:
    """Share of the bootstrapping term's mass on tokens that the data never took in that state.

    A sum over the unseen, not 1 minus a sum over the seen: a small share keeps its digits.

    Args:
        log_probs: log pi(a | s) over the whole vocabulary [nats].
        seen: tokens that some response of the data took after the same prefix.

    >>> unseen_share(torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[True, False, False]])).tolist()
    [0.5]
    """
    return log_probs.masked_fill(seen, -torch.inf).exp().sum(dim=1)


def value_above_mean(
    log_probs: Float[Tensor, "state token"], reference_log_probs: Float[Tensor, "state token"], beta: float
) -> Float[Tensor, " state"]:
    """V(s) - E_{a ~ pi_ref} R(s, a) = beta KL(pi_ref || pi) in the state, >= 0 [reward]: the optimism of V.

    How much more the soft value promises than the reward-to-go of the reference's own tokens.

    Args:
        log_probs: log pi(a | s) over the whole vocabulary [nats].
        reference_log_probs: log pi_ref of the same [nats].
        beta: > 0 [reward / nat].
    """
    return beta * (reference_log_probs.exp() * (reference_log_probs - log_probs)).sum(dim=1)


def value_below_max(
    log_probs: Float[Tensor, "state token"], reference_log_probs: Float[Tensor, "state token"], beta: float
) -> Float[Tensor, " state"]:
    """max_a R(s, a) - V(s) = beta max_a log pi/pi_ref, >= 0 [reward]; arguments as :func:`value_above_mean`."""
    return beta * (log_probs - reference_log_probs).amax(dim=1)


def value_above_max_q(log_probs: Float[Tensor, "state token"], beta: float) -> Float[Tensor, " state"]:
    """V(s) - max_a Q(s, a) = -beta max_a log pi(a | s) [reward]: what Eq. 12 neglects.

    Between 0 and beta log(vocabulary).
    """
    return -beta * log_probs.amax(dim=1)


def values_at_fixed_reward(
    log_probs: Float[Tensor, "state token"],
    reference_log_probs: Float[Tensor, "state token"],
    beta: float,
    other_betas: Sequence[float],
) -> Float[Tensor, "state beta"]:
    """V(s) - E_ref R(s, a) if the price were another and reward-to-go R stayed [reward]: falls with the price.

    Args:
        log_probs: log pi(a | s) over the whole vocabulary [nats].
        reference_log_probs: log pi_ref of the same [nats].
        beta: that R is worked out with, > 0 [reward / nat].
        other_betas: prices to take V at, > 0 [reward / nat].

    Raises:
        ValueError: a beta is not positive.
    """
    above = beta * (log_probs - reference_log_probs)  # R - V at this beta, whatever the gauge
    mean = (reference_log_probs.exp() * above).sum(dim=1)
    return torch.stack([soft_maximum(above, other, reference_log_probs) - mean for other in other_betas], dim=1)


def values_at_fixed_q(
    log_probs: Float[Tensor, "state token"], beta: float, other_betas: Sequence[float]
) -> Float[Tensor, "state beta"]:
    """V(s) - max_a Q(s, a) if the price were another and Q stayed [reward]: grows with the price.

    Arguments and errors as :func:`values_at_fixed_reward`.
    """
    advantages = beta * log_probs  # Q - V at this beta, whatever the gauge
    largest = advantages.amax(dim=1)
    return torch.stack([soft_maximum(advantages, other) - largest for other in other_betas], dim=1)


def seen_tokens(response: TokenIds, data: Sequence[TokenIds]) -> list[set[int]]:
    """For each place of a response, the tokens that responses of the data took after the same prefix.

    Args:
        response: token ids; in the data or not.
        data: all responses to the same prompt, as token ids.

    Returns:
        As many sets as the response has tokens; empty where no response of the data has this prefix.

    >>> import numpy as np
    >>> data = [np.array([5, 6, 0]), np.array([5, 8]), np.array([9])]
    >>> seen_tokens(np.array([5, 6, 7]), data)
    [{9, 5}, {8, 6}, {0}]
    >>> seen_tokens(np.array([9, 6, 7]), data)
    [{9, 5}, set(), set()]
    """
    seen = []
    alike = list(data)
    for place, token in enumerate(response.tolist()):
        longer = [other for other in alike if len(other) > place]
        seen.append({int(other[place]) for other in longer})
        alike = [other for other in longer if other[place] == token]
    return seen


def require_beta(beta: float) -> None:
    """Raise a ValueError unless beta is positive and finite."""
    if not 0 < beta < float("inf"):
        raise ValueError(f"need a positive beta, got {beta=}")
