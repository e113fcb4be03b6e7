"""A curve that follows its points where a law does not: the log law, and local averages of what it misses.

The law alone has two coefficients: how steeply it falls is fixed by where it peaks, so that a policy which falls more
steeply pulls the peak's height and place with it (on a curve like our grids' DPO by 0.03 win rate and a third of the
way). Averages alone know nothing of the reference and need many checkpoints. Here the law carries the curve through the
reference and across gaps, and where there are points, the weighted mean of what it misses is added. Left-out betas of
our grids are predicted with a tenth less error than by the law, mean over curves; more averaging would predict them a
little better still, and flatten peaks.

Sources: Glad 1998, "Parametrically guided non-parametric regression"; Tukey 1977, "Exploratory Data Analysis"
(twicing: what averages miss is averaged again, which takes most of their flattening away).
"""

import numpy as np
from jaxtyping import Float

from overopt.analysis.laws.curves import APART
from overopt.analysis.laws.fitting import fit_law
from overopt.analysis.laws.laws import log_law

BANDWIDTH = 0.2
"""Of the averages, a Gaussian in log d: points within about a fifth of the distance count, whatever the distance."""
PASSES = 3
MINIMUM_POINTS = 3
# Weight of the law among the points: decides where there are none.
_LAW_WEIGHT = 0.1
# Where a policy has not moved, relative to the largest distance: the logarithm needs a place for it.
_NEAREST = 1e-3


def local_curve(
    d: Float[np.ndarray, " point"], gain: Float[np.ndarray, " point"], places: Float[np.ndarray, " place"]
) -> Float[np.ndarray, " place"]:
    """The curve of gains over the reference, 0 at d = 0.

    Args:
        d: distances of the points from the reference [sqrt(nats)].
        gain: what was measured there, less the reference's own [win rate, or logits of a reward].
        places: distances at which the curve is wanted [sqrt(nats)].

    Raises:
        ValueError: fewer than three points, or all of them at one distance.
    """
    positive = d[d > 0]
    if len(d) < MINIMUM_POINTS or len(positive) < 2 or not np.ptp(positive) > APART * positive.max():
        raise ValueError(f"{len(d)} checkpoints, at least {MINIMUM_POINTS} at several distances needed for a curve")
    law = fit_law(log_law, d, gain, r0=0.0)
    floor = _NEAREST * float(d.max())
    at_points, at_places = (_averages(np.maximum(d, floor), np.maximum(where, floor)) for where in (d, places))
    fitted, curve = law.predict(d), law.predict(places)
    for _ in range(PASSES):
        missed = gain - fitted
        fitted, curve = fitted + at_points @ missed, curve + at_places @ missed
    return curve


def _averages(d: Float[np.ndarray, " point"], places: Float[np.ndarray, " place"]) -> Float[np.ndarray, "place point"]:
    """Weights of the points in the mean at each place; what is left to 1 is the law's."""
    away = (np.log(places)[:, None] - np.log(d)[None, :]) / BANDWIDTH
    weights = np.exp(-(away**2) / 2)
    shares: Float[np.ndarray, "place point"] = weights / (weights.sum(axis=1, keepdims=True) + _LAW_WEIGHT)
    return shares
