"""Terms that are added to a direct alignment loss, and what each makes of the freedom that the loss leaves.

A policy is a share for each connected component of the preferences and a distribution within each. The loss sees the
latter only, by its log-ratios. The best shares at given log-ratios are unique for each term here (of NLL, for prompts
with preferences) and have a closed form: so the freedom is gone, and what is left to minimise over is what the loss
sees too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from overopt.theory.response_set import ResponseSet, group_logsumexp


class Profile(NamedTuple):
    """A regulariser at its best shares, as a function of the log-ratios within components.

    Attributes:
        value: the term, mean over prompts or preferences [nats; chi-squared has no unit].
        gradient: by the log-ratio of each entry.
        hessian: likewise.
        log_shares: log of each component's share of its prompt; -inf where the best share is 0, NaN where the term
            doesn't see it.
    """

    value: float
    gradient: Float[np.ndarray, " response"]
    hessian: Float[np.ndarray, "response response"]
    log_shares: Float[np.ndarray, " component"]


@dataclass(frozen=True)
class Regulariser:
    """One term, in two forms that know nothing of each other.

    Attributes:
        of_policy: the term itself, of normalised log probabilities; for autograd.
        profile: at its best shares.
    """

    of_policy: Callable[[ResponseSet, Float[Tensor, "*policy response"]], Float[Tensor, "*policy"]]
    profile: Callable[[ResponseSet, Float[np.ndarray, " response"]], Profile]


def nll_of_chosen(responses: ResponseSet, log_policy: Float[Tensor, "*policy response"]) -> Float[Tensor, "*policy"]:
    """Mean negative log-likelihood of chosen responses [nats / preference]."""
    return -log_policy[..., torch.as_tensor(responses.chosen)].mean(-1)


def on_policy_kl(responses: ResponseSet, log_policy: Float[Tensor, "*policy response"]) -> Float[Tensor, "*policy"]:
    """KL(policy || reference) [nats], mean over prompts: the expectation over all responses, not an estimate."""
    log_ratio = log_policy - torch.as_tensor(responses.log_reference)
    return (log_policy.exp() * log_ratio).sum(-1) / responses.num_prompts


def chi_squared(responses: ResponseSet, log_policy: Float[Tensor, "*policy response"]) -> Float[Tensor, "*policy"]:
    """Chi-squared divergence of the policy from the reference, mean over prompts.

    Half the reference's expectation of (pi/pi_ref - 1)^2: the convention of Huang et al. 2024 (arXiv:2407.13399), half
    of Pearson's. They bring it in by another link function in the margin (:mod:`overopt.theory.chi_po`); here it is a
    term of its own, like the other two.
    """
    log_reference = torch.as_tensor(responses.log_reference)
    return ((2 * log_policy - log_reference).exp().sum(-1) / responses.num_prompts - 1) / 2


def _nothing(responses: ResponseSet, log_policy: Float[Tensor, "*policy response"]) -> Float[Tensor, "*policy"]:
    return log_policy.new_zeros(log_policy.shape[:-1])


def _none_profile(responses: ResponseSet, log_ratio: Float[np.ndarray, " response"]) -> Profile:
    number = responses.num_responses
    return Profile(0.0, np.zeros(number), np.zeros((number, number)), np.full(responses.components.number, np.nan))


def _nll_profile(responses: ResponseSet, log_ratio: Float[np.ndarray, " response"]) -> Profile:
    """Best shares: each component's part of a prompt's preferences, so none for what nobody has chosen."""
    components = responses.components
    log_within, within = _within(responses, log_ratio)
    share_of_all = np.bincount(components.label[responses.chosen], minlength=components.number)
    of_prompt = np.bincount(components.prompt_of, share_of_all, minlength=responses.num_prompts)[components.prompt_of]
    with np.errstate(divide="ignore", invalid="ignore"):
        log_shares = np.log(share_of_all / of_prompt)  # 0 / 0, hence NaN, for a prompt without preferences
    weight = (share_of_all / responses.num_preferences)[components.label]
    counts = np.bincount(responses.chosen, minlength=responses.num_responses) / responses.num_preferences
    value = -float((log_within + log_shares[components.label])[responses.chosen].mean())
    hessian = np.diag(weight * within) - _same(components.label) * np.outer(weight * within, within)
    return Profile(value, weight * within - counts, hessian, log_shares)


def _kl_profile(responses: ResponseSet, log_ratio: Float[np.ndarray, " response"]) -> Profile:
    """Best shares: in proportion to the reference's share times exp(-KL within the component)."""
    label = responses.components.label
    log_within, within = _within(responses, log_ratio)
    log_reference_shares = group_logsumexp(responses.log_reference, label, responses.components.number)
    relative = log_within - (responses.log_reference - log_reference_shares[label])
    kl = np.bincount(label, within * relative, minlength=responses.components.number)
    excess = within * (relative - kl[label])
    hessian = np.diag(excess + within) - _same(label) * (
        np.outer(within, excess) + np.outer(excess, within) + np.outer(within, within)
    )
    return _mean_over_prompts(responses, _shared(responses, kl - log_reference_shares, excess, hessian))


def _chi_squared_profile(responses: ResponseSet, log_ratio: Float[np.ndarray, " response"]) -> Profile:
    """Best shares: in inverse proportion to the sum of (distribution within)^2 / reference."""
    label = responses.components.label
    log_within, within = _within(responses, log_ratio)
    log_squares = 2 * log_within - responses.log_reference
    cost = group_logsumexp(log_squares, label, responses.components.number)
    tilted = np.exp(log_squares - cost[label])
    same = _same(label)
    hessian = 4 * (np.diag(tilted) - same * np.outer(tilted, tilted)) - 2 * (
        np.diag(within) - same * np.outer(within, within)
    )
    shared = _shared(responses, cost, 2 * (tilted - within), hessian)
    # Half of (exp(cost) - 1), of each prompt.
    size = np.exp(shared.costs) / 2
    by_entry = size[responses.prompt_of]
    squared = _same(responses.prompt_of) * np.outer(shared.gradient, shared.gradient)
    return _mean_over_prompts(
        responses,
        _Shared(
            size - 0.5,
            by_entry * shared.gradient,
            by_entry[:, None] * (shared.hessian + squared),
            shared.log_shares,
        ),
    )


class _Shared(NamedTuple):
    costs: Float[np.ndarray, " prompt"]
    gradient: Float[np.ndarray, " response"]
    hessian: Float[np.ndarray, "response response"]
    log_shares: Float[np.ndarray, " component"]


def _shared(responses: ResponseSet, cost: np.ndarray, gradient: np.ndarray, hessian: np.ndarray) -> _Shared:
    """-log sum exp(-cost) over the components of each prompt, and shares in proportion to exp(-cost)."""
    components = responses.components
    total = group_logsumexp(-cost, components.prompt_of, responses.num_prompts)
    log_shares = -cost - total[components.prompt_of]
    share = np.exp(log_shares)[components.label]
    first = share * gradient
    spread = _same(components.label) * np.outer(first, gradient) - _same(responses.prompt_of) * np.outer(first, first)
    return _Shared(-total, first, share[:, None] * hessian - spread, log_shares)


def _mean_over_prompts(responses: ResponseSet, shared: _Shared) -> Profile:
    number = responses.num_prompts
    return Profile(float(shared.costs.mean()), shared.gradient / number, shared.hessian / number, shared.log_shares)


def _within(responses: ResponseSet, log_ratio: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    label = responses.components.label
    weights = responses.log_reference + log_ratio
    log_within = weights - group_logsumexp(weights, label, responses.components.number)[label]
    return log_within, np.exp(log_within)


def _same(label: np.ndarray) -> np.ndarray:
    return np.asarray(np.equal.outer(label, label))


REGULARISERS: dict[str, Regulariser] = {
    "none": Regulariser(_nothing, _none_profile),
    "nll": Regulariser(nll_of_chosen, _nll_profile),
    "kl": Regulariser(on_policy_kl, _kl_profile),
    "chi_squared": Regulariser(chi_squared, _chi_squared_profile),
}
