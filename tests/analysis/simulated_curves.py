"""Simulated sweeps of seven runs with five checkpoints each."""

import numpy as np

from overopt.analysis.laws.curves import Curve
from overopt.analysis.laws.laws import COMPARED, saturating
from overopt.analysis.laws.simulation import simulated_curve

R0 = 0.42
D = np.outer(np.linspace(4.6, 0.9, 7), np.linspace(0.35, 1.0, 5)).ravel()
TRUTHS = {
    "log_law": np.array([0.15, 0.08]),
    "quadratic_in_d": np.array([0.12, -0.024]),
    "quadratic_in_kl": np.array([0.03, -0.0013]),
    "saturating": np.array([0.15, 1.0]),
}
LAWS_BY_NAME = {**COMPARED, saturating.name: saturating}


def true_curve(law: str, *, num_prompts: int = 256, shared: float = 0.3, seed: int = 0) -> Curve:
    """A curve that follows a law."""
    means = R0 + LAWS_BY_NAME[law].gain(D, TRUTHS[law])
    return curve_with(D, means, num_prompts=num_prompts, shared=shared, seed=seed)


def curve_with(
    d: np.ndarray, means: np.ndarray, *, num_prompts: int = 256, shared: float = 0.3, seed: int = 0
) -> Curve:
    """A curve with given win rates."""
    return simulated_curve(d, means, reference=R0, num_prompts=num_prompts, shared=shared, seed=seed)
