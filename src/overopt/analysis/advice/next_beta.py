"""Which beta to try next: the one whose run ends where the curve peaks.

Over the betas of a sweep, log KL at the end of a run is close to a straight line in log beta. Between two betas that
were tried it is interpolated, beyond them the line goes on for a short way; its scatter, and the interval of the peak,
say how well a beta can be aimed.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from overopt.analysis.advice.predicted_peak import PredictedPeak
from overopt.analysis.laws.curves import MINIMUM_BETAS, Curve
from overopt.analysis.laws.intervals import NORMAL_QUANTILE

# A run counts as ended after this share of the examples of the longest.
_WHOLE = 0.95
# So far beyond the betas that were tried, as a factor.
_FURTHEST = 3.0
# Two betas nearer than this factor end at KLs that their scatter hardly tells apart.
_NARROW = 1.5


@dataclass(frozen=True)
class NextBeta:
    """What to train next, if anything.

    Attributes:
        beta: to try [reward / nat]; ``None`` where another one is not worth its run, or can't be aimed.
        low: of the betas that may end at ``kl_nats``, by a 95% interval; NaN where none was aimed.
        high: the other end.
        kl_nats: where the run should end [nats]; NaN likewise.
        reason: why, in words.
    """

    beta: float | None
    low: float
    high: float
    kl_nats: float
    reason: str


def _none(reason: str, kl_nats: float = math.nan) -> NextBeta:
    return NextBeta(None, math.nan, math.nan, kl_nats, reason)


def propose_beta(
    curve: Curve, peak: PredictedPeak, *, reached: float, resolution: float, kl_budget: float | None = None
) -> NextBeta:
    """Propose a beta.

    Args:
        curve: all checkpoints.
        peak: of the curve.
        reached: win rate to be had already, on fresh prompts.
        resolution: standard error of a win rate: a smaller gain would not be seen.
        kl_budget: where a run may end at most [nats].
    """
    ends = run_ends(curve)
    betas, log_kl = ends.by_beta()
    if len(betas) < MINIMUM_BETAS:
        return _none(
            f"{len(betas)} beta{'s' * (len(betas) != 1)} trained to the end and ended beyond 0 nats, {MINIMUM_BETAS} "
            "needed to aim another: let more runs finish"
        )
    line = _Line.through(np.log(betas), log_kl)
    if line.slope >= 0:
        return _none("KL at the end of a run does not fall as beta grows here, so no beta can be aimed")
    aim, why = _aim(curve, peak, kl_budget, line.scatter)
    if peak.exists and aim == peak.kl_nats.value:
        top, bound = peak.win_rate.high, "at most "
        if math.isnan(top):
            top, bound = peak.win_rate.value, "about "
        if top - reached < resolution:
            return _none(
                f"another beta is not worth its run: the law's peak ({bound}{top:.3f}) is not above what you have "
                f"({reached:.3f} expected) by more than one standard error of a win rate ({resolution:.3f}); "
                "more prompts would tell more than more runs",
                aim,
            )
    center = line.beta_at(math.log(aim))
    low, high = (math.log(x) for x in _aims(peak, aim, kl_budget))
    spread = NORMAL_QUANTILE * line.scatter / -line.slope
    lowest = math.exp(line.beta_at(high) - spread)
    highest = math.exp(line.beta_at(low) + spread)
    known = np.log(betas)
    smallest, largest = known[0] - math.log(_FURTHEST), known[-1] + math.log(_FURTHEST)
    chosen = min(max(center, smallest), largest)
    below, above = known[known <= chosen], known[known > chosen]
    if len(below) and len(above):
        left, right = below[-1], above[0]
        if right - left < math.log(_NARROW):
            return _none(
                f"another beta is not worth its run: {math.exp(left):.3g} and {math.exp(right):.3g}, on both sides of "
                f"the one that should end there, have been tried",
                aim,
            )
        middle, nearest = (left + right) / 2, left if chosen - left < right - chosen else right
        if abs(chosen - nearest) < (right - left) / 4:
            if not math.log(lowest) <= middle <= math.log(highest):
                return _none(
                    f"another beta is not worth its run: {math.exp(nearest):.3g} has been tried, and ends about there",
                    aim,
                )
            chosen = middle
            why += f"; midway between {math.exp(left):.3g} and {math.exp(right):.3g}, which have been tried"
    else:
        # Not on top of the outermost beta.
        edge = known[0] if not len(below) else known[-1]
        away = max(abs(chosen - edge), math.log(_NARROW))
        chosen = edge - away if not len(below) else edge + away
    return NextBeta(float(f"{math.exp(chosen):.2g}"), lowest, highest, aim, why)


@dataclass(frozen=True)
class RunEnds:
    """Where the runs of a curve ended that were trained to the end.

    Attributes:
        beta: of each run.
        kl_nats: at its last checkpoint.
    """

    beta: Float[np.ndarray, " run"]
    kl_nats: Float[np.ndarray, " run"]

    def by_beta(self) -> tuple[Float[np.ndarray, " beta"], Float[np.ndarray, " beta"]]:
        """Betas in order, and the mean log KL of each, seeds together; runs that ended at no distance left out."""
        moved = self.kl_nats > 0
        betas = np.unique(self.beta[moved])
        log_kl = np.array([np.log(self.kl_nats[moved & (self.beta == beta)]).mean() for beta in betas])
        return betas, log_kl


def run_ends(curve: Curve) -> RunEnds:
    """The last checkpoint of each run that saw as many examples as the longest, or nearly."""
    last = np.array([curve.examples_seen[curve.run == run].max() for run in curve.run])
    ends = (curve.examples_seen == last) & (last >= _WHOLE * curve.examples_seen.max())
    return RunEnds(curve.beta[ends], curve.divergence[ends])


@dataclass(frozen=True)
class _Line:
    """Log KL by log beta.

    Attributes:
        log_beta: in order.
        log_kl: at the end of its runs.
        slope: of the line through all.
        scatter: standard deviation of an end about its neighbours' line.
    """

    log_beta: Float[np.ndarray, " beta"]
    log_kl: Float[np.ndarray, " beta"]
    slope: float
    scatter: float

    @classmethod
    def through(cls, log_beta: Float[np.ndarray, " beta"], log_kl: Float[np.ndarray, " beta"]) -> "_Line":
        slope, _ = np.polyfit(log_beta, log_kl, 1)
        # Each inner beta against the line between its neighbours: what interpolation misses, the noise of three ends.
        x, y = log_beta, log_kl
        share = (x[1:-1] - x[:-2]) / (x[2:] - x[:-2])
        missed = y[1:-1] - (y[:-2] + share * (y[2:] - y[:-2]))
        noise = missed**2 / (1 + share**2 + (1 - share) ** 2)
        return cls(log_beta, log_kl, float(slope), math.sqrt(float(noise.mean())))

    def beta_at(self, log_kl: float) -> float:
        """Log beta of a run that ends there: between the betas around it, or on the line beyond the outermost one."""
        crossings = []
        for place in range(len(self.log_beta) - 1):
            (x, y), (next_x, next_y) = ((float(self.log_beta[i]), float(self.log_kl[i])) for i in (place, place + 1))
            if y != next_y and min(y, next_y) <= log_kl <= max(y, next_y):
                crossings.append(x + (log_kl - y) / (next_y - y) * (next_x - x))
        if crossings:
            return float(np.mean(crossings))  # several where the scatter turns the order around
        edge = 0 if log_kl > self.log_kl.max() else -1
        return float(self.log_beta[edge] + (log_kl - self.log_kl[edge]) / self.slope)


def _aim(curve: Curve, peak: PredictedPeak, kl_budget: float | None, scatter: float) -> tuple[float, str]:
    """Where the run should end [nats], and why."""
    furthest, nearest = float(curve.divergence.max()), float(curve.divergence[curve.divergence > 0].min())
    if peak.exists:
        aim, why = peak.kl_nats.value, "its run should end where the curve peaks"
    elif math.isinf(peak.kl_nats.value):
        aim, why = 2 * furthest, "no peak within reach: it should go further than any run so far"
    else:
        aim, why = nearest / 2, "the curve only falls: it should stay nearer than any checkpoint so far"
    # A run that aims at the budget itself ends beyond it as often as not.
    if kl_budget is not None and aim > (within := kl_budget * math.exp(-scatter)):
        return within, "its run should end within the budget, its scatter counted"
    return aim, why


def _aims(peak: PredictedPeak, aim: float, kl_budget: float | None) -> tuple[float, float]:
    """The interval around the aim [nats]; open ends of the peak's are a factor of two."""
    if not peak.exists or aim != peak.kl_nats.value:
        return aim, aim
    low = peak.kl_nats.low if peak.kl_nats.low > 0 else aim / 2
    high = peak.kl_nats.high if math.isfinite(peak.kl_nats.high) else 2 * aim
    return min(low, aim), max(aim, high if kl_budget is None else min(high, kl_budget))
