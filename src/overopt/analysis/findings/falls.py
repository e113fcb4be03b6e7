"""Is the fall after the peak real: a test for over-optimization that assumes no law.

Points are ordered by distance. The mean of the furthest two, tenth or fifth of them is held against that of every
window of a fifth among the nearer ones; the largest difference, in standard errors, is the statistic. Under any curve
that never falls it is at most what it is under a flat one, so that drawing noise about a flat curve gives a valid
p-value, which counts that the windows were picked. The noise is that of other prompts, shared by the points, and what
points scatter beyond it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from overopt.analysis.laws.curves import Curve
from overopt.analysis.laws.intervals import TAILS, Estimate
from overopt.analysis.laws.model_comparison import excess_scatter
from overopt.analysis.laws.resampling import prompt_deviations

DRAWS = 4000
_SMALLEST_WINDOW = 2
_DIP_SE = 2.0


@dataclass(frozen=True)
class FallTest:
    """The fall of one curve.

    Attributes:
        curve: in words.
        drop: mean win rate of the best window less that of the furthest points, with a 95% interval that does not
            count that the window was picked.
        p_value: of no fall.
        num_furthest: points in the mean of the furthest.
        best_d: mean distance of the best window [sqrt(nats)].
        furthest_d: mean distance of the furthest points [sqrt(nats)].
        num_points: that were used.
        num_transients: checkpoints left out, because training recovered from their dip.
    """

    curve: Curve
    drop: Estimate
    p_value: float
    num_furthest: int
    best_d: float
    furthest_d: float
    num_points: int
    num_transients: int


def fall_test(curve: Curve, draws: int = DRAWS, seed: int = 0) -> FallTest:
    """Test one curve.

    Raises:
        ValueError: too few points for two windows, all at one distance, or with no standard error and no verdicts.
    """
    if curve.outcomes is None and not np.isfinite(curve.win_rate_se).all():
        raise ValueError(f"{curve.name}: win rates without standard errors, which a fall is measured by")
    if not np.ptp(curve.d) > 0:
        raise ValueError(f"{curve.name}: all points lie at one distance")
    moved = prompt_deviations(curve, draws, seed)
    transient = transients(curve, moved.win_rate)
    kept = np.flatnonzero(~transient)
    kept = kept[np.argsort(curve.d[kept], kind="stable")]
    window = max(_SMALLEST_WINDOW, math.ceil(len(kept) / 5))
    if len(kept) < 2 * window:
        raise ValueError(f"{len(kept)} points, at least {2 * _SMALLEST_WINDOW} needed to see a fall")
    scatter = excess_scatter(curve, moved.win_rate, moved.reference)
    generator = np.random.default_rng([seed, 4])
    noise = moved.win_rate[:, kept] + scatter * generator.standard_normal((draws, len(kept)))

    rows, places = [], []
    for furthest in sorted({_SMALLEST_WINDOW, max(_SMALLEST_WINDOW, math.ceil(len(kept) / 10)), window}):
        for start in range(len(kept) - window - furthest + 1):
            contrast = np.zeros(len(kept))
            contrast[start : start + window] = 1 / window
            contrast[-furthest:] -= 1 / furthest
            rows.append(contrast)
            places.append((start, furthest))
    contrasts = np.array(rows)
    moved_contrasts = noise @ contrasts.T
    errors = np.maximum(moved_contrasts.std(axis=0), 1e-12)
    differences = contrasts @ curve.win_rate[kept]
    best = int((differences / errors).argmax())
    beyond = (moved_contrasts / errors).max(axis=1) >= differences[best] / errors[best]
    low, high = differences[best] - np.quantile(moved_contrasts[:, best], TAILS[::-1])
    d, (start, furthest) = curve.d[kept], places[best]
    return FallTest(
        curve=curve,
        drop=Estimate(float(differences[best]), float(low), float(high)),
        p_value=float((1 + beyond.sum()) / (1 + draws)),
        num_furthest=furthest,
        best_d=float(d[start : start + window].mean()),
        furthest_d=float(d[-furthest:].mean()),
        num_points=len(kept),
        num_transients=int(transient.sum()),
    )


def transients(curve: Curve, noise: Float[np.ndarray, "draw point"]) -> Bool[np.ndarray, " point"]:
    """Checkpoints in a dip that training recovers from: a later one of the run, no nearer, wins significantly more.

    Such a dip is the optimiser's, and no over-optimization (it is seen where the learning rate has just warmed up).
    """
    dips = np.zeros(len(curve.d), dtype=bool)
    for run in np.unique(curve.run):
        of_run = np.flatnonzero(curve.run == run)
        for place in of_run:
            later = of_run[
                (curve.examples_seen[of_run] > curve.examples_seen[place])
                & (curve.divergence[of_run] >= curve.divergence[place])
            ]
            gains = curve.win_rate[later] - curve.win_rate[place]
            errors = (noise[:, later] - noise[:, [place]]).std(axis=0)
            dips[place] = bool((gains > _DIP_SE * errors).any()) and _has_dipped(curve, of_run, int(place))
    return dips


def _has_dipped(curve: Curve, of_run: np.ndarray, place: int) -> bool:
    """Whether it lies below where its run came from: an earlier checkpoint, or the reference."""
    earlier = of_run[curve.examples_seen[of_run] < curve.examples_seen[place]]
    before = [curve.reference_win_rate, *curve.win_rate[earlier]]
    return bool(curve.win_rate[place] < np.nanmax(before)) if np.isfinite(before).any() else True


def fall_tests(curves: Sequence[Curve], draws: int = DRAWS) -> pd.DataFrame:
    """All curves, with p-values that count how many were tested (Holm).

    Columns: objective, model, axis, points, drop, drop_low, drop_high, p_value, p_holm, num_furthest, best_d,
    furthest_d, num_points, num_transients. Curves with too few points are left out.
    """
    rows = []
    for curve in curves:
        try:
            found = fall_test(curve, draws)
        except ValueError:
            continue
        rows.append(
            {
                "objective": curve.objective,
                "model": curve.model,
                "axis": curve.axis,
                "points": curve.points,
                "drop": found.drop.value,
                "drop_low": found.drop.low,
                "drop_high": found.drop.high,
                "p_value": found.p_value,
                "num_furthest": found.num_furthest,
                "best_d": found.best_d,
                "furthest_d": found.furthest_d,
                "num_points": found.num_points,
                "num_transients": found.num_transients,
            }
        )
    table = pd.DataFrame(rows)
    if len(table):
        table.insert(list(table).index("p_value") + 1, "p_holm", holm(table["p_value"].to_numpy(float)))
    return table


def holm(p_values: Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """P-values corrected for their number: the chance that any of them is wrong stays below the level.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".

    >>> holm(np.array([0.01, 0.04, 0.03])).tolist()
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values)
    corrected = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1))
    result = np.empty_like(p_values)
    result[order] = np.minimum(corrected, 1.0)
    return result
