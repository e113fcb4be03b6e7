"""Best-of-n from one pool against brute force: weights, expected maximum, KL, and the bound.

    make best-of-n-checks

Policies whose responses can be listed, with random probabilities and scores, ties among them. Exact values come from
every sequence of n draws, or from n's distribution function; pools are drawn from the policies.
"""

import argparse
import itertools
import math
from pathlib import Path

import numpy as np
from kept import keep_summary

from overopt.evaluation.best_of_n import (
    best_of_n_distribution,
    estimated_kl,
    exact_kl,
    kl_bound,
    mean_over_prompts,
    rank_weights,
    selection_weights,
)

BAR = 1e-9
# A mean over this many pools may be off by so many standard errors.
STANDARD_ERRORS = 4.0


def policy(generator: np.random.Generator, responses: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and scores; of few whole numbers, so that some tie."""
    return generator.dirichlet(np.ones(responses)), generator.integers(0, responses, responses).astype(float)


def by_every_draw(probabilities: np.ndarray, scores: np.ndarray, n: int) -> np.ndarray:
    """Best-of-n's distribution by all sequences of n draws."""
    chosen = np.zeros(len(scores))
    for draws in map(list, itertools.product(range(len(scores)), repeat=n)):
        best = [place for place in draws if scores[place] == max(scores[draws])]
        np.add.at(chosen, best, probabilities[draws].prod() / len(best))
    return chosen


def listed(generator: np.random.Generator, num_policies: int) -> tuple[float, float, float]:
    """Largest differences in expected maximum and KL [nats] from all sequences, and how far KL gets above the bound."""
    maximum = kl = above = 0.0
    for _ in range(num_policies):
        probabilities, scores = policy(generator, 5)
        for n in (1, 2, 3, 4):
            chosen = by_every_draw(probabilities, scores, n)
            maximum = max(maximum, abs(chosen @ scores - best_of_n_distribution(probabilities, scores, n) @ scores))
            there = chosen > 0
            brute = float((chosen[there] * np.log(chosen[there] / probabilities[there])).sum())
            kl = max(kl, abs(brute - exact_kl(probabilities, scores, n)))
        for n in (2, 8, 64, 1000):
            above = max(above, exact_kl(probabilities, scores, n) - kl_bound(n))
    return maximum, kl, above


def weights_off(pools: tuple[int, ...]) -> float:
    """Largest relative error of a weight against a ratio of whole numbers."""
    errors = []
    for pool in pools:
        for n in (1, 2, 64, pool // 2):
            weights = rank_weights(pool, n)
            for rank in (n, (n + pool) // 2, pool):
                exact = math.comb(rank - 1, n - 1) / math.comb(pool, n)
                if exact > 1e-290:  # others are no normal number
                    errors.append(abs(weights[rank - 1] / exact - 1))
    return max(errors)


def pools_off(generator: np.random.Generator, num_pools: int) -> tuple[float, float, int]:
    """How far means over pools are from what is exact.

    Returns:
        Of the expected maximum and of another score, the largest distance [standard errors]; of the estimated KL, the
        largest share of the gap between exact KL and bound. And of how many means.
    """
    distances: list[float] = []
    gaps: list[float] = []
    probabilities, scores = policy(generator, 12)
    gold = generator.normal(size=12)
    for n in (2, 8, 32):
        draws = generator.choice(12, (num_pools, 64), p=probabilities)
        weights = np.stack([selection_weights(row, n) for row in scores[draws]])
        chosen = best_of_n_distribution(probabilities, scores, n)
        for values in (scores, gold):
            estimate = mean_over_prompts((weights * values[draws]).sum(axis=1))
            distances.append(abs(estimate.mean - chosen @ values) / estimate.standard_error)
        estimates = [estimated_kl(scores[row], np.log(probabilities[row]), row.tolist(), n) for row in draws]
        exact = exact_kl(probabilities, scores, n)
        gaps.append(abs(np.mean(estimates) - exact) / (kl_bound(n) - exact))
    return max(distances), max(gaps), len(distances)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policies", type=int, default=20, help="random policies that are listed")
    parser.add_argument("--pools", type=int, default=2000, help="pools of 64 that are drawn from one")
    parser.add_argument("--keep", type=Path, default=None, help="folder for the summary")
    options = parser.parse_args()
    generator = np.random.default_rng(0)
    maximum, kl, above = listed(generator, options.policies)
    weights = weights_off((100, 1000, 5000))
    off, gap, count = pools_off(generator, options.pools)
    holds = max(maximum, kl, above, weights) < BAR and off < STANDARD_ERRORS
    lines = [
        f"weights of pools of 100 to 5,000 against ratios of whole numbers: relative error {weights:.1e} at most",
        f"{count} means over {options.pools} pools of 64: {off:.1f} standard errors from exact values at most",
        f"estimated KL, over the same pools: off by {gap:.1%} of the gap between the exact KL and the bound at most",
        f"{options.policies} listed policies, n of 1 to 4: expected maximum off by {maximum:.1e}, KL by {kl:.1e} nats; "
        f"KL above log n - (n-1)/n by {max(above, 0):.1e} ({'below' if holds else 'NOT below'} {BAR:g}, "
        f"pools within {STANDARD_ERRORS:g} standard errors)",
    ]
    if options.keep is not None:
        keep_summary(options.keep, lines)
    print("\n".join(lines))
    if not holds:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
