"""The laws on every curve of a study: one table of fits, and one of intervals by where the error comes from.

Columns ``NAME_low`` and ``NAME_high`` of the fits hold 95% intervals that count both other prompts and other runs.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from overopt.analysis.laws.curves import Curve, Curves, R0Setting, curves_of
from overopt.analysis.laws.fitting import LawFit, ManyFits, fit_law, fit_many, leave_one_beta_out_rmse
from overopt.analysis.laws.intervals import Estimate, percentiles
from overopt.analysis.laws.laws import LAWS, Law
from overopt.analysis.laws.orthogonal import fit_orthogonal
from overopt.analysis.laws.resampling import RESAMPLES, Resamples, Source, resample

HEADLINE: Source = "prompts and runs"
"""Where the intervals of the fits table come from."""
# Times the largest distance measured: laws say little beyond their points, and nothing far beyond.
REACH = 2.0
_KEYS = ("objective", "model", "axis", "points", "law")


class Fits(NamedTuple):
    """The fits of a study.

    Attributes:
        table: one row a group, axis, set of points and law; see :func:`fit_points`.
        intervals: objective, model, axis, points, law, quantity, source (of the error), value, low and high; open ends
            are infinite.
        notes: what was left out or cut, and why, in words.
    """

    table: pd.DataFrame
    intervals: pd.DataFrame
    notes: tuple[str, ...]


def fit_points(
    points: pd.DataFrame,
    completions: pd.DataFrame | None = None,
    *,
    r0: R0Setting = "measured",
    errors_in_d: bool = False,
    resamples: int = RESAMPLES,
) -> Fits:
    """Fit every law to every objective and model, each point weighed by 1 / win_rate_se^2.

    Columns of the table: objective, model, axis (kl or forward_kl: which divergence d is the root of), points (final
    or all checkpoints), law, r0; for each coefficient name, name_low, name_high (empty for another law's); rmse
    (unweighted), rmse_leave_one_beta_out, aicc, bic; d_star [sqrt(nats)], peak [win rate], and their intervals (an
    infinite end says that no fall, or no rise, is not ruled out); then r0_setting, num_points and num_betas.

    Args:
        points: rows as :func:`overopt.tracking.tables.read_points` gives them.
        completions: as for :func:`overopt.analysis.laws.curves.curves_of`; without them each point errs by itself.
        r0: win rate at d = 0: the reference's own, a fitted one, or 0 (Eq. 5 as printed).
        errors_in_d: add fits by orthogonal distance regression to the intervals.
        resamples: for the intervals.

    Raises:
        ValueError: columns are missing.
    """
    return fit_curves(curves_of(points, completions), r0=r0, errors_in_d=errors_in_d, resamples=resamples)


def fit_curves(
    curves: Curves, *, r0: R0Setting = "measured", errors_in_d: bool = False, resamples: int = RESAMPLES
) -> Fits:
    """The same for curves that are at hand."""
    rows: list[dict[str, object]] = []
    intervals: list[dict[str, object]] = []
    unmeasured: list[str] = []
    remarks: dict[tuple[str, str], list[str]] = {}
    for curve in curves.curves:
        start = curve.r0(r0)
        if start is not None and not math.isfinite(start):
            if curve.name not in unmeasured:
                unmeasured.append(curve.name)
            continue
        try:
            found = list(_fit_rows(curve, r0, errors_in_d, resamples))
        except ValueError as problem:
            place = f"{curve.points} checkpoints against {curve.axis}"
            remarks.setdefault((curve.name, str(problem)), []).append(place)
            continue
        rows += [row for row, _ in found]
        intervals += [interval for _, of_law in found for interval in of_law]
    notes = [
        *curves.notes,
        *(
            f"{name}: not fitted, since no row at 0 examples gives the reference's own win rate; evaluate the "
            "reference, or fit R0"
            for name in unmeasured
        ),
        *(f"{name}: not fitted: {problem} ({', '.join(places)})" for (name, problem), places in remarks.items()),
    ]
    table = pd.DataFrame(rows, columns=_columns())
    table["r0_setting"] = r0
    columns = [*_KEYS, "quantity", "source", "value", "low", "high"]
    return Fits(table, pd.DataFrame(intervals, columns=columns), tuple(notes))


def fit_one(curve: Curve, law: Law, r0: R0Setting = "measured") -> LawFit:
    """One law on one curve, weighed."""
    return fit_law(law, curve.d, curve.win_rate, r0=curve.r0(r0), weights=curve.weights)


def fit_resamples(law: Law, drawn: Resamples, r0: R0Setting = "measured") -> ManyFits:
    """One law on all resamples of a curve."""
    return fit_many(law, drawn.d, drawn.win_rate, drawn.weights, drawn.r0(r0))


def _fit_rows(
    curve: Curve, r0: R0Setting, errors_in_d: bool, resamples: int
) -> Iterator[tuple[dict[str, object], list[dict[str, object]]]]:
    curve.require_betas()
    drawn = resample(curve, resamples)
    reach = REACH * float(curve.d.max())
    for law in LAWS.values():
        fit = fit_one(curve, law, r0)
        keys = dict(zip(_KEYS, (curve.objective, curve.model, curve.axis, curve.points, law.name), strict=True))
        row: dict[str, object] = {**keys, "r0": fit.r0}
        values = {**{name: e.value for name, e in fit.estimates().items()}, "d_star": fit.d_star().value}
        values["peak"] = fit.r0 + law.peak_gain(fit.coefficients)
        estimates: dict[str, dict[str, Estimate]] = {"profile": fit.profile()}
        if errors_in_d:
            estimates["errors in d"] = fit_orthogonal(law, curve, r0)
        for source, resamples_of_it in drawn.items():
            estimates[source] = resampled_estimates(law, values, fit_resamples(law, resamples_of_it, r0), reach)
        for name, estimate in estimates[HEADLINE].items():
            row |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        row |= {
            "rmse": fit.rmse,
            "rmse_leave_one_beta_out": leave_one_beta_out_rmse(
                law, curve.d, curve.win_rate, curve.beta, r0=curve.r0(r0), weights=curve.weights
            ),
            "aicc": fit.aicc,
            "bic": fit.bic,
            "num_points": len(curve.d),
            "num_betas": len(np.unique(curve.beta)),
        }
        yield (
            row,
            [
                {**keys, "quantity": name, "source": source, **estimate._asdict()}
                for source, found in estimates.items()
                for name, estimate in found.items()
            ],
        )


def resampled_estimates(
    law: Law, values: dict[str, float], many: ManyFits, reach: float = math.inf
) -> dict[str, Estimate]:
    """Percentile intervals of coefficients, ``d_star`` and ``peak`` around measured values.

    A resample without a hump peaks at infinity where it rises on, and at 0 where it only falls; so does one that peaks
    out of reach. The peak's height has no interval where its place has an open end: the hump is not established.

    Args:
        law: the family of curves.
        values: coefficients, ``d_star`` and ``peak`` by name.
        many: the law on resamples.
        reach: largest distance at which a peak can be told from none [sqrt(nats)].
    """
    fitted = np.isfinite(many.coefficients).all(axis=1)
    coefficients, r0 = many.coefficients[fitted], many.r0[fitted]
    estimates = {name: percentiles(values[name], coefficients[:, place]) for place, name in enumerate(law.coefficients)}
    places = peak_places(law, coefficients)
    places[places > reach] = math.inf
    estimates["d_star"] = Estimate(math.nan) if math.isnan(values["d_star"]) else percentiles(values["d_star"], places)
    estimates["peak"] = Estimate(values["peak"])
    low, high = estimates["d_star"].low, estimates["d_star"].high
    if math.isfinite(values["peak"]) and low > 0 and math.isfinite(high):
        humps = (places > 0) & np.isfinite(places)
        gains = np.einsum("fc,fc->f", law.basis(np.where(humps, places, 1.0)), coefficients)
        estimates["peak"] = percentiles(values["peak"], (r0 + gains)[humps])
    return estimates


def peak_places(law: Law, coefficients: Float[np.ndarray, "fit 2"]) -> Float[np.ndarray, " fit"]:
    """Where curves peak [sqrt(nats)]: infinity where they rise on, 0 where they only fall."""
    rise, bend = coefficients[:, 0], law.bends_down * coefficients[:, 1]
    ratios = np.divide(rise, bend, out=np.where(rise > 0, np.inf, -np.inf), where=bend > 0)
    places: Float[np.ndarray, " fit"] = law.peak_at(ratios)
    return places


def _columns() -> list[str]:
    def bracketed(name: str) -> list[str]:
        return [name, f"{name}_low", f"{name}_high"]

    coefficients = dict.fromkeys(
        column for law in LAWS.values() for name in law.coefficients for column in bracketed(name)
    )
    return [
        *_KEYS,
        "r0",
        *coefficients,
        *("rmse", "rmse_leave_one_beta_out", "aicc", "bic", "d_star", "peak"),
        *("d_star_low", "d_star_high", "peak_low", "peak_high", "r0_setting", "num_points", "num_betas"),
    ]
