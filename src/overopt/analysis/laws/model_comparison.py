"""Which law: errors, criteria, and how often each would be chosen, on these points and on points like them."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from overopt.analysis.laws.curves import Curve, R0Setting
from overopt.analysis.laws.fitting import FITTERS, ManyFits, fit_many, gaussian_log_likelihood, information_criteria
from overopt.analysis.laws.laws import COMPARED, Law, SaturatingLaw, saturating
from overopt.analysis.laws.resampling import RESAMPLES, Resamples, resample

CANDIDATES: dict[str, Law | SaturatingLaw] = {**COMPARED, saturating.name: saturating}
_COLUMNS = ("objective", "model", "axis", "points", "law")


class Comparison(NamedTuple):
    """Laws held against each other.

    Attributes:
        laws: one row a curve and law: objective, model, axis, points, law, num_points, rmse (weighted) [win rate],
            aicc, bic, best_share (of resamples over prompts and runs in which it misses the points least), chosen
            (whether it does so on the points themselves), and chosen_if_true (how often a study like this one would
            choose it, were its fitted curve the truth: noise of the prompts, as :func:`selection_rates` draws it).
        pairs: objective, model ("all" for both: the curves pooled), axis, points, law, other, rmse_ratio, and
            better_share (of resamples in which the law misses less than the other).
    """

    laws: pd.DataFrame
    pairs: pd.DataFrame


def compare_laws(curves: Sequence[Curve], r0: R0Setting = "measured", resamples: int = RESAMPLES) -> Comparison:
    """Compare the laws that are not one curve under two names, and the one that never falls.

    All have two coefficients, so that the least error, Akaike's and Schwarz's criterion choose alike.

    Args:
        curves: that can be fitted; see :meth:`overopt.analysis.laws.curves.Curve.require_betas`.
        r0: win rate at d = 0.
        resamples: for the shares.
    """
    laws: list[dict[str, object]] = []
    pairs: list[dict[str, object]] = []
    pooled: dict[tuple[str, str], list[tuple[ManySquares, int]]] = {}
    for curve in curves:
        keys = dict(zip(_COLUMNS, (curve.objective, curve.model, curve.axis, curve.points), strict=False))
        squares = _squares(curve, r0, resamples)
        rates = selection_rates(curve, r0, resamples)
        best = least_error({name: np.array([rss]) for name, rss in squares.measured.items()})[0]
        wins = pd.Series(least_error(squares.resampled)).value_counts(normalize=True)
        num = len(curve.d)
        for name, rss in squares.measured.items():
            aicc, bic = information_criteria(gaussian_log_likelihood(rss, curve.weights), 2 + (r0 == "fitted"), num)
            laws.append(
                {
                    **keys,
                    "law": name,
                    "num_points": num,
                    "rmse": math.sqrt(rss / num),
                    "aicc": aicc,
                    "bic": bic,
                    "best_share": float(wins.get(name, 0.0)),
                    "chosen": name == best,
                    "chosen_if_true": rates.loc[name, name],
                }
            )
        pairs += [{**keys, **pair} for pair in _pairs(squares)]
        pooled.setdefault((curve.axis, curve.points), []).append((squares, num))
    for (axis, points), found in pooled.items():
        if len(found) > 1:
            keys = dict(zip(_COLUMNS, ("all", "all", axis, points), strict=False))
            pairs += [{**keys, **pair} for pair in _pairs(_sum([squares for squares, _ in found]))]
    return Comparison(pd.DataFrame(laws), pd.DataFrame(pairs))


class ManySquares(NamedTuple):
    """Weighted residual sums of squares by law: on the points, and on each resample."""

    measured: dict[str, float]
    resampled: dict[str, Float[np.ndarray, " resample"]]


def _squares(curve: Curve, r0: R0Setting, resamples: int) -> ManySquares:
    drawn = resample(curve, resamples)["prompts and runs"]
    return ManySquares(
        {name: float(fit.rss[0]) for name, fit in fit_all(as_measured(curve), r0).items()},
        {name: fit.rss for name, fit in fit_all(drawn, r0).items()},
    )


def fit_all(drawn: Resamples, r0: R0Setting) -> dict[str, ManyFits]:
    """Every compared law on every resample."""
    return {name: fit(drawn.d, drawn.win_rate, drawn.weights, drawn.r0(r0)) for name, fit in FITTERS.items()}


def as_measured(curve: Curve) -> Resamples:
    """The points themselves as the one resample."""
    return Resamples(curve.d[None], curve.win_rate[None], np.array([curve.reference_win_rate]), curve.weights[None])


def least_error(squares: Mapping[str, Float[np.ndarray, " resample"]]) -> list[str]:
    """The law that misses each resample least."""
    names, table = list(squares), np.stack(list(squares.values()))
    # What leaves a coefficient open has no error to be compared.
    return [names[place] for place in np.where(np.isfinite(table), table, math.inf).argmin(axis=0)]


def _pairs(squares: ManySquares) -> list[dict[str, object]]:
    return [
        {
            "law": law,
            "other": other,
            "rmse_ratio": math.sqrt(squares.measured[law] / squares.measured[other])
            if squares.measured[other] > 0
            else math.nan,
            "better_share": float(np.mean(squares.resampled[law] < squares.resampled[other])),
        }
        for law in squares.measured
        for other in squares.measured
        if law != other
    ]


def _sum(found: Sequence[ManySquares]) -> ManySquares:
    names = found[0].measured
    return ManySquares(
        {name: math.fsum(squares.measured[name] for squares in found) for name in names},
        {name: np.sum([squares.resampled[name] for squares in found], axis=0) for name in names},
    )


def selection_rates(
    curve: Curve, r0: R0Setting = "measured", resamples: int = RESAMPLES, seed: int = 0
) -> pd.DataFrame:
    """How often a study like this one would choose each law (columns), were another's fitted curve true (rows).

    The fitted curve at the measured distances, with the noise of other prompts and what the points scatter beyond it;
    all laws are fitted again, and the one that misses least is chosen.
    """
    drawn = resample(curve, resamples, seed)["prompts"]
    noise = drawn.win_rate - curve.win_rate
    start = drawn.reference - curve.reference_win_rate
    generator = np.random.default_rng([seed, 3])
    noise = noise + excess_scatter(curve, noise, start, r0) * generator.standard_normal(noise.shape)
    rates = pd.DataFrame(0.0, index=list(FITTERS), columns=list(FITTERS))
    for truth, fit in fit_all(as_measured(curve), r0).items():
        mean = fit.r0[0] + CANDIDATES[truth].gain(curve.d, fit.coefficients[0])
        again = Resamples(drawn.d, mean + noise, curve.reference_win_rate + start, drawn.weights)
        chosen = least_error({name: many.rss for name, many in fit_all(again, r0).items()})
        rates.loc[truth] = pd.Series(chosen).value_counts(normalize=True).reindex(rates.columns, fill_value=0.0)
    return rates


def excess_scatter(
    curve: Curve,
    noise: Float[np.ndarray, "resample point"],
    reference: Float[np.ndarray, " resample"],
    r0: R0Setting = "measured",
) -> float:
    """Standard deviation of points about the curve that fits best, beyond what prompts explain [win rate].

    Training runs differ by more than the luck of their prompts, and no law holds exactly. 0 where prompts alone leave
    as much in one of twenty studies.

    Args:
        curve: as measured.
        noise: deviations by other prompts.
        reference: the same of the reference; nothing with ``r0`` zero.
        r0: win rate at d = 0.
    """
    fits = fit_all(as_measured(curve), r0)
    best = least_error({name: fit.rss for name, fit in fits.items()})[0]
    measured = float(fits[best].rss[0])
    shape = noise.shape
    alone = Resamples(np.broadcast_to(curve.d, shape), noise, reference, np.broadcast_to(curve.weights, shape))
    # Deviations alone, by a law that is linear in its coefficients: what noise leaves about any curve.
    linear = best if best in COMPARED else next(iter(COMPARED))
    start = None if r0 == "fitted" else alone.reference
    explained = fit_many(COMPARED[linear], alone.d, alone.win_rate, alone.weights, start).rss
    explained = explained[np.isfinite(explained)]  # points may leave a coefficient open
    if not len(explained) or not measured > np.quantile(explained, 0.95):
        return 0.0
    freedom = max(len(curve.d) - 2 - (r0 == "fitted"), 1)
    return math.sqrt(max(measured - float(explained.mean()), 0.0) / freedom)
