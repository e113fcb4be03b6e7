"""Laws fitted to evaluated checkpoints: least squares in closed form, with intervals.

Intervals are the classical ones of a linear model: Student's t with the scatter about the curve as the
error, points taken as independent. Checkpoints of one run share weights and all points share prompts, so
they are optimistic; R0, where it is measured, enters as if it were exact.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from overopt.analysis.laws import LAWS, Law, distance

CONFIDENCE = 0.95
# Two coefficients, and one beta more so that a curve can be checked at all.
MINIMUM_BETAS = 3

R0Setting = Literal["measured", "fitted", "zero"]
AXES = {"kl": "kl_nats", "forward_kl": "forward_kl_nats"}
POINT_SETS = ("final", "all")


class Estimate(NamedTuple):
    """A value with its 95% interval; NaN where there is none, infinity where a side is open."""

    value: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True)
class LawFit:
    """A law fitted to points.

    Attributes:
        law: the family of curves.
        r0: value at d = 0 [win rate].
        coefficients: in the order of ``law.coefficients``.
        covariance: of r0, then the coefficients; zero in r0's row and column where it was given.
        degrees_of_freedom: points less fitted numbers.
        rmse: root mean square distance of the points from the curve, unweighted [win rate].
        log_likelihood: Gaussian, at the fitted scatter.
        aicc: Akaike's criterion corrected for few points, the scatter counted as a parameter; NaN where
            the correction does not exist (too few points). Comparable between laws on the same points.
    """

    law: Law
    r0: float
    coefficients: Float[np.ndarray, " 2"]
    covariance: Float[np.ndarray, "3 3"]
    degrees_of_freedom: int
    rmse: float
    log_likelihood: float
    aicc: float

    def predict(self, d: Float[np.ndarray, " point"]) -> Float[np.ndarray, " point"]:
        """The curve at distances ``d`` [sqrt(nats)] -> [win rate]."""
        return self.r0 + self.law.gain(d, self.coefficients)

    def estimates(self) -> dict[str, Estimate]:
        """Each coefficient of the law by name, with its interval."""
        return {
            name: self._interval(float(value), row)
            for name, value, row in zip(self.law.coefficients, self.coefficients, np.eye(3)[1:], strict=True)
        }

    def _interval(self, value: float, gradient: Float[np.ndarray, " 3"]) -> Estimate:
        half = _t_quantile(self.degrees_of_freedom) * math.sqrt(gradient @ self.covariance @ gradient)
        return Estimate(value, value - half, value + half)

    def d_star(self) -> Estimate:
        """Where the curve peaks [sqrt(nats)], by Fieller's exact interval for a ratio.

        An upper end of infinity says that the points do not rule out a curve that never falls, a lower
        end of 0 that they do not rule out one that never rises. All NaN where the curve has no hump.

        Source: Fieller 1954, "Some problems in interval estimation".
        """
        d_star = self.law.d_star(self.coefficients)
        if math.isnan(d_star):
            return Estimate(math.nan)
        # The peak's place is an increasing function of the ratio, so the ratio's interval carries over.
        signs = np.array([1.0, self.law.bends_down])
        low, high = fieller_interval(
            signs * self.coefficients,
            self.covariance[1:, 1:] * np.outer(signs, signs),
            _t_quantile(self.degrees_of_freedom),
        )
        return Estimate(d_star, self.law.peak_at(low), self.law.peak_at(high))

    def peak(self) -> Estimate:
        """Height of the curve's hump [win rate], by the delta method.

        At a maximum the slope in d is zero, so the height moves with the coefficients only through the
        basis there. No interval where that of :meth:`d_star` is open: the hump is not established.
        """
        d_star = self.d_star()
        value = self.r0 + self.law.peak_gain(self.coefficients)
        if not (math.isfinite(value) and math.isfinite(d_star.high) and d_star.low > 0):
            return Estimate(value)
        return self._interval(value, np.append(1.0, self.law.basis(np.array([d_star.value]))[0]))


def _t_quantile(degrees_of_freedom: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(degrees_of_freedom, (1 + CONFIDENCE) / 2))


def fieller_interval(
    pair: Float[np.ndarray, " 2"], covariance: Float[np.ndarray, "2 2"], quantile: float
) -> tuple[float, float]:
    """Confidence interval for ``pair[0] / pair[1]`` of two jointly normal estimates.

    The set of ratios that the estimates do not reject, or, where it falls into two, the part that holds
    their own ratio. A side is infinite where the denominator could as well be zero.

    >>> [round(end, 3) for end in fieller_interval(np.array([2.0, 1.0]), np.diag([0.01, 0.0]), 2.0)]
    [1.8, 2.2]
    >>> fieller_interval(np.array([2.0, 1.0]), np.diag([0.0, 1.0]), 2.0)[1]
    inf
    """
    # Not rejected: (numerator - ratio * denominator)^2 <= quantile^2 * variance of the same, a quadratic.
    (a, b), variances = pair, quantile**2 * covariance
    square = b**2 - variances[1, 1]
    half_linear = a * b - variances[0, 1]
    constant = a**2 - variances[0, 0]
    discriminant = half_linear**2 - square * constant
    if discriminant <= 0 or square == 0:  # with square > 0 the discriminant is never negative
        return (float(a / b),) * 2 if square > 0 else (-math.inf, math.inf)
    first, second = sorted((half_linear + sign * math.sqrt(discriminant)) / square for sign in (-1, 1))
    if square > 0:
        return float(first), float(second)
    return (float(second), math.inf) if a / b >= second else (-math.inf, float(first))


def fit_law(
    law: Law,
    d: Float[np.ndarray, " point"],
    value: Float[np.ndarray, " point"],
    *,
    r0: float | None,
    weights: Float[np.ndarray, " point"] | None = None,
) -> LawFit:
    """Fit one law by (weighted) least squares.

    Args:
        law: the family of curves.
        d: distances from the reference [sqrt(nats)].
        value: what was measured there [win rate].
        r0: value at d = 0, held fixed; ``None`` fits it.
        weights: relative, such as 1 / se^2; their common scale does not matter.

    Raises:
        ValueError: numbers that are not finite, too few points, or points that leave a coefficient open.
    """
    weights = np.ones_like(d) if weights is None else weights / weights.mean()
    if not (np.isfinite(d).all() and np.isfinite(value).all() and np.isfinite(weights).all()):
        raise ValueError(f"{law.name}: distances, values and weights must be finite")
    design = law.basis(d)
    offset = 0.0 if r0 is None else r0
    if r0 is None:
        design = np.column_stack([np.ones_like(d), design])
    num_points, num_columns = design.shape
    freedom = num_points - num_columns
    if freedom < 1:
        raise ValueError(f"{law.name}: {num_points} points, at least {num_columns + 1} needed")

    # Columns of unit length: d^4 and 1 differ by orders of magnitude.
    root_weights = np.sqrt(weights)
    weighted = design * root_weights[:, None]
    scale = np.linalg.norm(weighted, axis=0)
    if (scale == 0).any():
        raise ValueError(f"{law.name}: the points lie at distance 0 and leave its coefficients open")
    scaled, _, rank, _ = np.linalg.lstsq(weighted / scale, (value - offset) * root_weights, rcond=1e-10)
    if rank < num_columns:
        raise ValueError(f"{law.name}: the points lie at too few distances for its coefficients")
    solution = scaled / scale
    residuals = value - offset - design @ solution
    weighted_squares = float(weights @ residuals**2)
    inverse_r = np.linalg.inv(np.linalg.qr(weighted / scale, mode="r")) / scale[:, None]
    covariance = inverse_r @ inverse_r.T * weighted_squares / freedom

    log_likelihood = _gaussian_log_likelihood(weighted_squares, weights)
    fitted = num_columns + 1  # the scatter too
    correction = 2 * fitted * (fitted + 1) / (num_points - fitted - 1) if num_points > fitted + 1 else math.nan
    with_r0 = np.zeros((3, 3))
    with_r0[-num_columns:, -num_columns:] = covariance
    return LawFit(
        law=law,
        r0=float(solution[0]) if r0 is None else r0,
        coefficients=solution[-2:],
        covariance=with_r0,
        degrees_of_freedom=freedom,
        rmse=float(np.sqrt(np.mean(residuals**2))),
        log_likelihood=log_likelihood,
        aicc=2 * fitted - 2 * log_likelihood + correction,
    )


def _gaussian_log_likelihood(weighted_squares: float, weights: Float[np.ndarray, " point"]) -> float:
    num_points = len(weights)
    variance = weighted_squares / num_points
    if variance == 0:
        return math.inf
    constant = num_points * (math.log(2 * math.pi * variance) + 1)
    return float(np.log(weights).sum() - constant) / 2


def leave_one_beta_out_rmse(
    law: Law,
    d: Float[np.ndarray, " point"],
    value: Float[np.ndarray, " point"],
    beta: Float[np.ndarray, " point"],
    *,
    r0: float | None,
    weights: Float[np.ndarray, " point"] | None = None,
) -> float:
    """Error at points of a beta that the fit has not seen, each beta left out once [win rate].

    NaN where the other betas leave a coefficient open.
    """
    squares = []
    for left_out in np.unique(beta):
        seen = beta != left_out
        try:
            fit = fit_law(law, d[seen], value[seen], r0=r0, weights=None if weights is None else weights[seen])
        except ValueError:
            return math.nan
        squares.append((value[~seen] - fit.predict(d[~seen])) ** 2)
    return float(np.sqrt(np.mean(np.concatenate(squares))))


class Fits(NamedTuple):
    """The fits of a study.

    Attributes:
        table: one row a group, axis, set of points and law; see :func:`fit_table`.
        notes: what was left out or cut, and why, in words.
    """

    table: pd.DataFrame
    notes: tuple[str, ...]


def fit_table(points: pd.DataFrame, *, r0: R0Setting = "measured", weighted: bool = False) -> pd.DataFrame:
    """The table of :func:`fit_points` without its notes."""
    return fit_points(points, r0=r0, weighted=weighted).table


def fit_points(points: pd.DataFrame, *, r0: R0Setting = "measured", weighted: bool = False) -> Fits:
    """Fit every law to every objective and model.

    Columns: objective, model, axis (kl or forward_kl: which divergence d is the root of), points (final
    or all checkpoints), law, r0; for each coefficient name, name_low, name_high (empty for another law's);
    rmse, rmse_leave_one_beta_out, aicc; d_star [sqrt(nats)], peak [win rate], and their intervals (an
    infinite end says that no fall, or no rise, is not ruled out); then r0_setting, num_points and
    num_betas.

    Rows at ``examples_seen`` 0 are the reference: they give R0 and are not points of the fit.

    Args:
        points: rows as :func:`overopt.tracking.tables.read_points` gives them.
        r0: win rate at d = 0: the reference's own, a fitted one, or 0 (Eq. 5 as printed).
        weighted: weigh each point by 1 / win_rate_se^2.
    """
    require_columns(points, ["objective", "model", "beta", "examples_seen", "run_id", "win_rate"])
    if weighted:
        require_columns(points, ["win_rate_se"])
    rows: list[dict[str, object]] = []
    notes: list[str] = []
    for (objective, model), group in points.groupby(["objective", "model"], sort=True):
        name = group_name(str(objective), str(model))
        if len(group.groupby("run_id")["examples_seen"].max().unique()) > 1:
            notes.append(f"{name}: its runs end after different numbers of examples")
        reference = group[group["examples_seen"] == 0]["win_rate"].mean()
        if r0 == "measured" and not math.isfinite(reference):
            notes.append(
                f"{name}: not fitted, since no row at 0 examples gives the reference's own win rate; "
                "evaluate the reference, or fit R0"
            )
            continue
        start = {"measured": float(reference), "fitted": None, "zero": 0.0}[r0]
        remarks: dict[str, list[str]] = {}
        for axis, column in AXES.items():
            if column not in group:
                continue
            for which, selected in _point_sets(group):
                place = f"{which} checkpoints against {axis}"
                kept, cut = _finite_rows(selected, column, weighted)
                for remark in cut:
                    remarks.setdefault(remark, []).append(place)
                try:
                    rows += [
                        {"objective": objective, "model": model, "axis": axis, "points": which, **row}
                        for row in _fit_rows(kept, column, start, weighted)
                    ]
                except ValueError as problem:
                    remarks.setdefault(f"not fitted: {problem}", []).append(place)
        notes += [f"{name}: {remark} ({', '.join(places)})" for remark, places in remarks.items()]
    table = pd.DataFrame(rows, columns=_fit_columns())
    table["r0_setting"] = r0
    return Fits(table, tuple(notes))


def group_name(objective: str, model: str) -> str:
    """How a curve is called in words: 'DPO, gpt_neox-0.5M'.

    >>> group_name("dpo", "pythia-1b")
    'DPO, pythia-1b'
    """
    return f"{OBJECTIVE_NAMES.get(objective, objective)}, {model}"


OBJECTIVE_NAMES = {"dpo": "DPO", "ipo": "IPO", "slic": "SLiC"}


def require_columns(points: pd.DataFrame, columns: list[str]) -> None:
    """Refuse a table that lacks columns.

    Raises:
        ValueError: naming the missing ones.
    """
    if missing := [column for column in columns if column not in points]:
        raise ValueError(f"the points table lacks {', '.join(missing)}; it has {', '.join(points.columns)}")


def final_checkpoints(points: pd.DataFrame) -> pd.DataFrame:
    """Each run's last evaluated checkpoint."""
    last = points.groupby("run_id")["examples_seen"].transform("max")
    return points[points["examples_seen"] == last]


def _point_sets(group: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    trained = group[group["examples_seen"] > 0]
    yield "final", final_checkpoints(trained)
    yield "all", trained


def _finite_rows(selected: pd.DataFrame, column: str, weighted: bool) -> tuple[pd.DataFrame, list[str]]:
    needed = [column, "win_rate", *(["win_rate_se"] if weighted else [])]
    finite = np.isfinite(selected[needed].to_numpy(float)).all(axis=1)
    notes = []
    if missing := int((~finite).sum()):
        notes.append(f"{missing} of {len(selected)} points left out: {' or '.join(needed)} is missing")
    kept = selected.iloc[np.flatnonzero(finite)]
    if negative := int((kept[column] < 0).sum()):
        notes.append(f"{negative} of {len(kept)} points have a negative mean {column}, taken as distance 0")
    return kept, notes


def _fit_rows(kept: pd.DataFrame, column: str, r0: float | None, weighted: bool) -> Iterator[dict[str, object]]:
    betas = kept["beta"].to_numpy(float)
    num_betas = len(np.unique(betas))
    if num_betas < MINIMUM_BETAS:
        raise ValueError(f"{num_betas} distinct beta{'s' * (num_betas != 1)}, {MINIMUM_BETAS} needed")
    d = distance(kept[column].to_numpy(float))
    value = kept["win_rate"].to_numpy(float)
    weights = 1 / kept["win_rate_se"].to_numpy(float) ** 2 if weighted else None
    for law in LAWS.values():
        fit = fit_law(law, d, value, r0=r0, weights=weights)
        row: dict[str, object] = {"law": law.name, "r0": fit.r0}
        for name, estimate in {**fit.estimates(), "d_star": fit.d_star(), "peak": fit.peak()}.items():
            row |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        yield row | {
            "rmse": fit.rmse,
            "rmse_leave_one_beta_out": leave_one_beta_out_rmse(law, d, value, betas, r0=r0, weights=weights),
            "aicc": fit.aicc,
            "num_points": len(d),
            "num_betas": num_betas,
        }


def _fit_columns() -> list[str]:
    def bracketed(name: str) -> list[str]:
        return [name, f"{name}_low", f"{name}_high"]

    coefficients = [column for law in LAWS.values() for name in law.coefficients for column in bracketed(name)]
    return [
        *("objective", "model", "axis", "points", "law", "r0"),
        *coefficients,
        *("rmse", "rmse_leave_one_beta_out", "aicc", "d_star", "peak"),
        *("d_star_low", "d_star_high", "peak_low", "peak_high", "r0_setting", "num_points", "num_betas"),
    ]
