"""Curves whose law is known, with every prompt's verdict: prompts are shared by all points, as in a real sweep."""

import numpy as np
from scipy.stats import norm

from overopt.analysis.curves import Curve, Outcomes
from overopt.analysis.laws import COMPARED, distance, saturating

R0 = 0.42
BETAS = np.array([0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0])
TRUTHS = {
    "log_law": np.array([0.15, 0.08]),
    "quadratic_in_d": np.array([0.12, -0.024]),
    "quadratic_in_kl": np.array([0.03, -0.0013]),
    "saturating": np.array([0.15, 1.0]),
}
LAWS_BY_NAME = {**COMPARED, saturating.name: saturating}


def true_curve(law: str, *, num_prompts: int = 256, shared: float = 0.3, seed: int = 0) -> Curve:
    """Seven betas, five checkpoints, one verdict a prompt and point.

    Args:
        law: whose curve is the truth.
        num_prompts: each win rate's.
        shared: part of a verdict's luck that all points have in common with their prompt.
        seed: of the verdicts.
    """
    d = np.outer(np.linspace(4.6, 0.9, 7), np.linspace(0.35, 1.0, 5)).ravel()
    means = R0 + LAWS_BY_NAME[law].gain(d, TRUTHS[law])
    return curve_with(d, means, num_prompts=num_prompts, shared=shared, seed=seed)


def curve_with(
    d: np.ndarray, means: np.ndarray, *, num_prompts: int = 256, shared: float = 0.3, seed: int = 0
) -> Curve:
    """A curve with given win rates: a win where prompt and chance together exceed what the mean asks for."""
    generator = np.random.default_rng(seed)
    of_prompt = generator.standard_normal((num_prompts, 1))
    luck = shared**0.5 * of_prompt + (1 - shared) ** 0.5 * generator.standard_normal((num_prompts, len(d) + 1))
    wins = (luck < norm.ppf(np.append(means, R0))).astype(float)
    runs = np.repeat(np.arange(7), 5)[: len(d)]
    rates = wins.mean(axis=0)
    return Curve(
        objective="dpo",
        model="pythia-1b",
        axis="kl",
        points="all",
        divergence=d**2,
        divergence_se=np.zeros_like(d),
        win_rate=rates[:-1],
        win_rate_se=np.sqrt(rates[:-1] * (1 - rates[:-1]) / (num_prompts - 1)),
        beta=BETAS[runs],
        run=runs,
        examples_seen=np.tile(np.arange(1, 6) * 1000, 7)[: len(d)],
        reference_win_rate=float(rates[-1]),
        outcomes=Outcomes(wins[:, :-1], np.tile(distance(d**2) ** 2, (num_prompts, 1)), wins[:, -1]),
    )
