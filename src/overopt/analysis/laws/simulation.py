"""Sweeps whose truth is known, with a verdict for every prompt and checkpoint: what an analysis is tried on."""

import numpy as np
from jaxtyping import Float

from overopt.analysis.laws.curves import Curve, Outcomes
from overopt.analysis.laws.model_comparison import CANDIDATES

REFERENCE = 0.42
"""Win rate of the reference."""
DISTANCES = np.outer(np.linspace(4.6, 0.9, 7), np.linspace(0.35, 1.0, 5)).ravel()
"""Of seven runs with five checkpoints each [sqrt(nats)]."""
TRUTHS = {
    "log_law": np.array([0.15, 0.08]),
    "quadratic_in_d": np.array([0.12, -0.024]),
    "quadratic_in_kl": np.array([0.03, -0.0013]),
    "saturating": np.array([0.15, 1.0]),
}
"""Coefficients of each law that is compared, with a hump or a plateau inside the distances."""


def true_means(law: str) -> Float[np.ndarray, " point"]:
    """Win rates at the distances, where a law holds."""
    means: Float[np.ndarray, " point"] = REFERENCE + CANDIDATES[law].gain(DISTANCES, TRUTHS[law])
    return means


def simulated_curve(
    means: Float[np.ndarray, " point"],
    *,
    d: Float[np.ndarray, " point"] = DISTANCES,
    reference: float = REFERENCE,
    num_prompts: int = 256,
    shared: float = 0.3,
    checkpoints: int = 5,
    seed: int = 0,
) -> Curve:
    """Runs with equally many checkpoints each; a win where prompt and chance together exceed what the mean asks for.

    Args:
        means: true win rates.
        d: where they hold [sqrt(nats)], run by run, checkpoints in the order of training.
        reference: true win rate of the reference.
        num_prompts: behind each win rate.
        shared: part of the luck that all policies have in common on a prompt, from 0 to 1.
        checkpoints: of each run; a run has a beta of its own, falling with its number.
        seed: of the verdicts.

    Raises:
        ValueError: distances that are not so many whole runs.
    """
    from scipy.special import ndtri

    if len(d) % checkpoints or len(d) != len(means):
        raise ValueError(f"need a mean for each distance and whole runs of {checkpoints}, got {len(d)}, {len(means)}")
    generator = np.random.default_rng(seed)
    of_prompt = generator.standard_normal((num_prompts, 1))
    luck = shared**0.5 * of_prompt + (1 - shared) ** 0.5 * generator.standard_normal((num_prompts, len(d) + 1))
    wins = (luck < ndtri(np.append(means, reference))).astype(float)
    rates = wins.mean(axis=0)
    runs = np.repeat(np.arange(len(d) // checkpoints), checkpoints)
    return Curve(
        objective="dpo",
        model="simulated",
        axis="kl",
        points="all",
        divergence=d**2,
        divergence_se=np.zeros_like(d),
        win_rate=rates[:-1],
        win_rate_se=np.sqrt(rates[:-1] * (1 - rates[:-1]) / (num_prompts - 1)),
        beta=0.01 * 2.0**runs,
        run=runs,
        examples_seen=np.tile(np.arange(1, checkpoints + 1) * 1000, len(d) // checkpoints),
        reference_win_rate=float(rates[-1]),
        outcomes=Outcomes(wins[:, :-1], np.tile(d**2, (num_prompts, 1)), wins[:, -1]),
    )
