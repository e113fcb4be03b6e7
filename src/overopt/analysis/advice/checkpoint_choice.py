"""Which checkpoint to ship, with the luck of the one that was picked taken off.

All checkpoints answer the same prompts, so that differences are taken prompt by prompt. Those that can't be told from
the one that wins most are candidates. Among them the data say little, and the curve says more: they are ranked by their
win rate drawn half-way or less to the fitted curve, and of those that cost at most a tolerance the one nearest to the
reference is taken. The nearest of all candidates would not do: what can't be told apart need not be equal, and on 256
prompts it gives up a third of the gain (simulated).

Sources: Efron and Morris 1975, "Data Analysis Using Stein's Estimator and its Generalizations"; Efron 1983,
"Estimating the error rate of a prediction rule", for the optimism of a choice.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from overopt.analysis.advice.peak_rule import STANDARD_ERRORS
from overopt.analysis.advice.predicted_peak import fitted_levels
from overopt.analysis.laws.curves import Curve
from overopt.analysis.laws.intervals import Estimate, around
from overopt.analysis.laws.model_comparison import as_measured, excess_scatter
from overopt.analysis.laws.resampling import RESAMPLES, prompt_deviations, resample

TOLERANCE = 0.01
"""Of win rate, given up for a policy nearer to the reference."""
# At most so much weight for the fitted curve: it is never exact.
_MOST_CURVE = 0.5


class Choice(NamedTuple):
    """A point of a curve, and how it was found.

    Attributes:
        pick: number of the point; ``None`` where the reference is to be shipped.
        best: the one that wins most within the budget, by measurement; ``None`` where no point is within it.
        alike: points that can't be told from ``best``, and do beat the reference.
        expected: win rate of ``pick`` on fresh prompts: as measured, less the optimism of picking it.
        gain: of ``best`` over the reference, paired, as measured; NaN without a best.
        reaches_target: whether some point wins more than the target, beyond chance; ``None`` without a target.
    """

    pick: int | None
    best: int | None
    alike: Int[np.ndarray, " point"]
    expected: Estimate
    gain: Estimate
    reaches_target: bool | None = None


def choose_checkpoint(
    curve: Curve,
    *,
    kl_budget: float | None = None,
    target: float | None = None,
    tolerance: float = TOLERANCE,
    resamples: int = RESAMPLES,
) -> Choice:
    """Choose among all checkpoints of a curve.

    Args:
        curve: with a reference's win rate, and errors.
        kl_budget: only checkpoints within it count [nats].
        target: a win rate that is enough: of the checkpoints that reach it beyond chance, the nearest is taken.
        tolerance: win rate that may be given up for a policy nearer to the reference.
        resamples: of the prompts.
    """
    moved = prompt_deviations(curve, resamples)
    rates, kl = curve.win_rate, curve.divergence
    errors = _paired_errors(moved.win_rate)
    own = moved.win_rate.std(axis=0)
    over_reference = moved.win_rate - moved.reference[:, None]
    scale = np.maximum(over_reference.std(axis=0), 1e-12)
    gains = rates - curve.reference_win_rate
    critical = _critical(over_reference / scale)
    allowed = np.ones(len(kl), dtype=bool) if kl_budget is None else kl <= kl_budget
    nothing = Choice(None, None, np.array([], dtype=int), Estimate(math.nan), Estimate(math.nan))
    if not allowed.any():
        return nothing
    best = int(np.where(allowed, rates, -math.inf).argmax())
    nothing = nothing._replace(best=best, gain=around(float(gains[best]), float(scale[best])))
    if target is not None:
        nothing = nothing._replace(reaches_target=False)
    allowed &= gains > critical * scale
    if not allowed.any():
        return nothing
    enough = np.zeros_like(allowed)
    if target is not None:
        enough = allowed & (rates - _critical(moved.win_rate / np.maximum(own, 1e-12)) * own >= target)
    if enough.any():
        pick = int(np.where(enough, kl, math.inf).argmin())
        expected = around(float(rates[pick]), float(own[pick]))
        return nothing._replace(pick=pick, alike=np.flatnonzero(enough), expected=expected, reaches_target=True)

    scatter = excess_scatter(curve, moved.win_rate, moved.reference)
    weight = np.maximum(scatter**2 / np.maximum(scatter**2 + own**2, 1e-12), 1 - _MOST_CURVE)
    others = resample(curve, resamples)["prompts"]
    levels = np.concatenate([fitted_levels(as_measured(curve)), fitted_levels(others)])
    measured = np.concatenate([rates[None], others.win_rate])
    levels = np.where(np.isfinite(levels), levels, measured)  # where points leave a law open
    picks, alike = _picks(measured, levels, weight, errors, kl, allowed, tolerance)
    pick = int(picks[0])
    again = picks[1:]
    optimism = float(np.mean(others.win_rate[np.arange(len(again)), again] - rates[again]))
    expected = around(float(rates[pick]) - max(optimism, 0.0), float(own[pick]))
    return nothing._replace(pick=pick, alike=np.flatnonzero(alike), expected=expected)


def _critical(deviations: Float[np.ndarray, "resample point"]) -> float:
    """What the largest of so many deviations, in standard errors, exceeds in 5% of cases by chance alone."""
    return float(np.quantile(deviations.max(axis=1), 0.95))


def _picks(
    rates: Float[np.ndarray, "draw point"],
    levels: Float[np.ndarray, "draw point"],
    weight: Float[np.ndarray, " point"],
    errors: Float[np.ndarray, "point point"],
    kl: Float[np.ndarray, " point"],
    allowed: Bool[np.ndarray, " point"],
    tolerance: float,
) -> tuple[Int[np.ndarray, " draw"], Bool[np.ndarray, " point"]]:
    """The rule on many draws at once; and of the first draw, the points that can't be told from its best."""
    best = np.where(allowed, rates, -math.inf).argmax(axis=1)
    gaps = rates[np.arange(len(rates)), best][:, None] - rates
    alike = allowed & (gaps <= STANDARD_ERRORS * errors[best])
    steadied = np.where(alike, levels + weight * (rates - levels), -math.inf)
    near = steadied >= steadied.max(axis=1, keepdims=True) - tolerance
    return np.where(near, kl, math.inf).argmin(axis=1), alike[0]


def _paired_errors(moved: Float[np.ndarray, "resample point"]) -> Float[np.ndarray, "point point"]:
    """Standard error of each difference of two points."""
    covariance = np.atleast_2d(np.cov(moved, rowvar=False))
    variances = np.diag(covariance)
    errors: Float[np.ndarray, "point point"] = np.sqrt(
        np.maximum(variances[:, None] + variances[None] - 2 * covariance, 0.0)
    )
    return errors
