"""Best-of-n: the best of n samples by a proxy reward, for every n at once from one pool of samples a prompt.

The best of n is the best of n drawn from the pool without replacement, over all subsets: an average over what any
number of redrawn subsets would only estimate.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int64
from scipy.special import gammaln


def require_pool(pool: int, ns: Sequence[int]) -> None:
    """Raise a ValueError where the best of some n can't be had from so many samples."""
    if not ns or min(ns) < 1:
        raise ValueError(f"best-of-n needs n of 1 or more, got {', '.join(map(str, ns)) or 'none'}")
    if max(ns) > pool:
        raise ValueError(
            f"the best of {max(ns)} can't be had from a pool of {pool} samples: draw a larger pool, or leave that n out"
        )


def rank_weights(pool: int, n: int) -> Float64[np.ndarray, " rank"]:
    """P(the i-th lowest of a pool is the highest of n drawn from it without replacement): C(i-1, n-1) / C(pool, n).

    In log space: the binomials themselves leave float64 at a pool of about a thousand.

    Source: Nakano et al. 2021 (arXiv:2112.09332), App. I.

    Raises:
        ValueError: ``n`` is not between 1 and ``pool``.

    >>> rank_weights(4, 2).round(4).tolist()  # none, 1, 2 and 3 of 6 pairs
    [0.0, 0.1667, 0.3333, 0.5]
    """
    require_pool(pool, [n])
    below = np.arange(pool)
    weights = np.zeros(pool)
    possible = below >= n - 1
    weights[possible] = np.exp(_log_binomial(below[possible], n - 1) - _log_binomial(np.array(pool), n))
    # Of a large pool the logarithms' rounding, some 1e-12, is left.
    return np.asarray(weights / weights.sum())


def _log_binomial(total: Int64[np.ndarray, "*shape"], chosen: int) -> Float64[np.ndarray, "*shape"]:
    return np.asarray(gammaln(total + 1.0) - gammaln(chosen + 1.0) - gammaln(total - chosen + 1.0))


def selection_weights(proxy: Float[np.ndarray, " sample"], n: int) -> Float64[np.ndarray, " sample"]:
    """P(each sample of a pool is the one that best-of-n returns), in the order given; samples that tie share theirs.

    Args:
        proxy: what samples are chosen by.
        n: of best-of-n.

    Raises:
        ValueError: ``n`` is not between 1 and the number of samples, or a proxy reward is no number.

    >>> selection_weights(np.array([3.0, 1.0, 3.0]), 2).round(4).tolist()
    [0.5, 0.0, 0.5]
    """
    if not np.isfinite(proxy).all():
        raise ValueError(
            "a proxy reward is no finite number, so that the best sample is unknown: has the model diverged?"
        )
    weights = rank_weights(len(proxy), n)
    _, tie_of, sizes = np.unique(proxy, return_inverse=True, return_counts=True)
    of_ties = np.bincount(tie_of, weights[np.argsort(np.argsort(proxy, kind="stable"))])
    return np.asarray(of_ties[tie_of] / sizes[tie_of])


class PromptMean(NamedTuple):
    """A mean over prompts.

    Attributes:
        mean: NaN where no prompt says anything.
        standard_error: over prompts, the pools' own noise included; NaN for fewer than two prompts.
    """

    mean: float
    standard_error: float


def mean_over_prompts(values: Float[np.ndarray, " prompt"]) -> PromptMean:
    """Mean and standard error of a number a prompt.

    >>> mean_over_prompts(np.array([1.0, 3.0]))
    PromptMean(mean=2.0, standard_error=1.0)
    """
    if not len(values):
        return PromptMean(math.nan, math.nan)
    error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return PromptMean(float(values.mean()), float(error))


def expected_under_selection(
    weights: Float[np.ndarray, "prompt sample"], values: Float[np.ndarray, "prompt sample"]
) -> PromptMean:
    """Expected value of what best-of-n returns, by :func:`selection_weights`.

    Of the proxy itself that is the expected maximum. Unbiased for any value of a sample. Of values that are NaN (a
    verdict that can't be read) nothing is known: the mean is over the others' weights, a ratio over all prompts, with
    the standard error of its linearisation.
    """
    known = ~np.isnan(values)
    if known.all():
        return mean_over_prompts((weights * values).sum(axis=1))
    totals, shares = (weights * np.where(known, values, 0.0)).sum(axis=1), (weights * known).sum(axis=1)
    if not shares.sum():
        return PromptMean(math.nan, math.nan)
    mean = totals.sum() / shares.sum()
    residual = mean_over_prompts((totals - mean * shares) / shares.mean())
    return PromptMean(float(mean), residual.standard_error)


def kl_bound(n: int) -> float:
    """KL(best-of-n || base policy), log n - (n-1)/n [nats], if no two responses tie and none has much probability.

    Otherwise the KL is smaller, never larger. Source: Stiennon et al. 2020 (arXiv:2009.01325), App. G.3; that it is a
    bound, Beirami et al. 2024 (arXiv:2401.01879).

    >>> kl_bound(1), round(kl_bound(64), 4)
    (0.0, 3.1745)
    """
    if n < 1:
        raise ValueError(f"best-of-n needs n of 1 or more, got {n}")
    return math.log(n) - (n - 1) / n


def best_of_n_distribution(
    probabilities: Float[np.ndarray, " response"], proxy: Float[np.ndarray, " response"], n: int
) -> Float64[np.ndarray, " response"]:
    """Probability of each response under best-of-n of a policy whose responses can be listed.

    All of n draws are at most s with probability F(s)^n; responses of one score share in proportion to their own
    probability, as ties among the n drawn are broken by chance.

    Args:
        probabilities: of the base policy, of all responses to a prompt.
        proxy: what samples are chosen by.
        n: of best-of-n.

    >>> best_of_n_distribution(np.array([0.5, 0.25, 0.25]), np.array([0.0, 1.0, 1.0]), 2).tolist()
    [0.25, 0.375, 0.375]
    """
    _, score_of = np.unique(proxy, return_inverse=True)
    masses = np.bincount(score_of, probabilities)
    highest = np.cumsum(masses) / masses.sum()
    selected = np.diff(highest**n, prepend=0.0)
    with np.errstate(invalid="ignore"):
        shares = np.where(probabilities > 0, probabilities / masses[score_of], 0.0)
    return np.asarray(selected[score_of] * shares)


def exact_kl(probabilities: Float[np.ndarray, " response"], proxy: Float[np.ndarray, " response"], n: int) -> float:
    """KL(best-of-n || base policy) [nats] where responses can be listed; see :func:`best_of_n_distribution`."""
    chosen = best_of_n_distribution(probabilities, proxy, n)
    there = chosen > 0
    return float((chosen[there] * np.log(chosen[there] / probabilities[there])).sum())


def estimated_kl(
    proxy: Float[np.ndarray, " sample"],
    log_probs: Float[np.ndarray, " sample"],
    responses: Sequence[object],
    n: int,
) -> float:
    """KL(best-of-n || base policy) of one prompt [nats], from a pool: the bound less a correction by log-probabilities.

    Where responses of a score s have the mass m and those below it F, best-of-n has the constant ratio
    ((F + m)^n - F^n) / m to the base policy on them; the bound integrates log(n u^(n-1)) over that stretch of quantiles
    instead, which is more, by Jensen. The difference is averaged over what best-of-n returns. F is estimated by the
    share of the pool below s, m by the summed probabilities of the pool's distinct responses of that score.

    Never above the bound. Biased: upwards, as responses of a score that the pool missed are missing in m; and either
    way by the error of F, of order 1/sqrt(pool), in a correction that is itself small where m is.

    Args:
        proxy: what samples are chosen by.
        log_probs: of each sample under the base policy, summed over tokens [nats].
        responses: what samples are, to tell equal ones.
        n: of best-of-n.
    """
    weights = selection_weights(proxy, n)
    scores, score_of = np.unique(proxy, return_inverse=True)
    below = np.searchsorted(np.sort(proxy), scores) / len(proxy)
    firsts = list({response: place for place, response in reversed(list(enumerate(responses)))}.values())
    masses = np.bincount(score_of[firsts], np.exp(log_probs[firsts]), minlength=len(scores))
    # The pool's share below and the mass at a score are estimates of different kinds; together they are 1 at most.
    below = np.minimum(below, 1 - np.minimum(masses, 1.0))
    return kl_bound(n) - float(weights @ _jensen_gap(below, np.minimum(masses, 1.0), n)[score_of])


def _jensen_gap(
    below: Float[np.ndarray, " score"], mass: Float[np.ndarray, " score"], n: int
) -> Float64[np.ndarray, " score"]:
    """Mean of log(n u^(n-1)) over u from F to F + m by density n u^(n-1), less the log of that density's own mean.

    With G(u) = u^n log u, whose difference over the stretch is n times the integral of u^(n-1) log u plus u^n / n.
    """
    if n == 1:
        return np.zeros(len(mass))
    top = np.minimum(below + mass, 1.0)
    # By logarithms: u^n of a pool's low ranks leaves float64. d = log of top^n - below^n.
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(top > 0, below / top, 0.0)
        kept = -np.expm1(n * np.log(ratio))  # 1 - (F/top)^n
        # Mean of log(u / top) by that density, and then of log(n u^(n-1)).
        tail = np.where(ratio > 0, ratio**n * np.log(ratio), 0.0)
        mean_log = -tail / kept - 1 / n
        mean_of_log = math.log(n) + (n - 1) * (np.log(top) + mean_log)
        log_of_mean = n * np.log(top) + np.log(kept) - np.log(mass)
        gap = mean_of_log - log_of_mean
    # Of a mass below rounding the difference is noise around (n-1)^2 (m/F)^2 / 24.
    small = (top > 0) & (mass < 1e-4 * top / n)
    return np.maximum(np.where(small | ~np.isfinite(gap), 0.0, gap), 0.0)
