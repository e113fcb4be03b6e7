"""Do objectives, or sizes, share a law's coefficients; and how coefficients move with model size."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from overopt.analysis.laws.curves import OBJECTIVE_NAMES, Curve, R0Setting
from overopt.analysis.laws.fit_tables import fit_one, fit_resamples
from overopt.analysis.laws.fitting import gaussian_log_likelihood, information_criteria
from overopt.analysis.laws.intervals import LEVEL, TAILS
from overopt.analysis.laws.laws import COMPARED, Law
from overopt.analysis.laws.resampling import RESAMPLES, resample


def shared_fits(curves: Sequence[Curve], resamples: int = RESAMPLES) -> pd.DataFrame:
    """Each law on several curves at once, with coefficients of their own or in common, each from its measured R0.

    Columns: scope ("objectives of MODEL", "sizes of OBJECTIVE" or "all curves"), law, shared (none, a coefficient's
    name, or both), num_curves, num_points, num_coefficients, rmse (weighted) [win rate], aicc, bic, p_value (of equal
    coefficients, by resampled prompts and runs; 1 where none is shared), and preferred: of what is not rejected at 5%,
    the one with fewest coefficients, and among those the least error. AICc and BIC take points as independent, which
    prompts in common make them not, and so see differences where there are none.

    Args:
        curves: of one axis and set of points; those that can't be fitted are left out.
        resamples: for the p-values.
    """
    rows: list[dict[str, object]] = []
    kept = [curve for curve in curves if curve.can_be_fitted()]
    drawn = {id(curve): resample(curve, resamples)["prompts and runs"] for curve in kept}
    for law in COMPARED.values():
        measured = {id(curve): fit_one(curve, law).coefficients for curve in kept}
        resampled = {key: fit_resamples(law, one).coefficients for key, one in drawn.items()}
        for scope, group in _scopes(kept).items():
            own = np.array([measured[id(curve)] for curve in group])
            others = np.array([resampled[id(curve)] for curve in group])
            fits, likely = [], []
            for name, shared in _sharings(law).items():
                columns = list(shared)
                p_value = _p_equal(own[:, columns], others[:, :, columns])
                fit = _fit_together(law, group, shared)
                fits.append({"scope": scope, "law": law.name, "shared": name, **fit, "p_value": p_value})
                if p_value >= LEVEL:
                    likely.append((fit["num_coefficients"], fit["rmse"], name))
            preferred = min(likely)[-1]
            rows += [{**fit, "preferred": fit["shared"] == preferred} for fit in fits]
    return pd.DataFrame(rows)


def _p_equal(measured: Float[np.ndarray, "curve kind"], drawn: Float[np.ndarray, "curve resample kind"]) -> float:
    """Wald's test that all curves have the same coefficients; 1 where there are none to compare."""
    from scipy.special import chdtrc

    if not measured.shape[1]:
        return 1.0
    differences = (measured[1:] - measured[0]).ravel()
    moved = np.moveaxis(drawn[1:] - drawn[0], 1, 0).reshape(drawn.shape[1], -1)
    moved = moved[np.isfinite(moved).all(axis=1)]
    covariance = np.cov(moved, rowvar=False).reshape(len(differences), len(differences))
    return float(chdtrc(len(differences), differences @ np.linalg.pinv(covariance) @ differences))


def _scopes(curves: Sequence[Curve]) -> dict[str, list[Curve]]:
    scopes: dict[str, list[Curve]] = {}
    for curve in curves:
        scopes.setdefault(f"objectives of {curve.model}", []).append(curve)
        scopes.setdefault(f"sizes of {OBJECTIVE_NAMES.get(curve.objective, curve.objective)}", []).append(curve)
        scopes.setdefault("all curves", []).append(curve)
    return {name: group for name, group in scopes.items() if len(group) > 1}


def _sharings(law: Law) -> dict[str, tuple[bool, bool]]:
    """Which coefficients are in common, by name."""
    first, second = law.coefficients
    return {"none": (False, False), first: (True, False), second: (False, True), "both": (True, True)}


def _fit_together(law: Law, curves: Sequence[Curve], shared: tuple[bool, bool]) -> dict[str, float | int]:
    """Least squares over all curves; the scatter about the curves is in common."""
    number = np.repeat(np.arange(len(curves)), [len(curve.d) for curve in curves])
    basis = law.basis(np.concatenate([curve.d for curve in curves]))
    gain = np.concatenate([curve.win_rate - curve.reference_win_rate for curve in curves])
    root_weights = np.sqrt(np.concatenate([curve.weights for curve in curves]))
    of_curve = number[:, None] == np.arange(len(curves))
    design = np.concatenate(
        [basis[:, [column]] * (1.0 if common else of_curve) for column, common in enumerate(shared)], axis=1
    )
    design = design * root_weights[:, None]
    scale = np.linalg.norm(design, axis=0)
    scale[scale == 0] = 1.0
    solution = np.linalg.lstsq(design / scale, gain * root_weights, rcond=1e-10)[0]
    rss = float(np.sum((gain * root_weights - design / scale @ solution) ** 2))
    num = len(gain)
    aicc, bic = information_criteria(gaussian_log_likelihood(rss, root_weights**2), design.shape[1], num)
    return {
        "num_curves": len(curves),
        "num_points": num,
        "num_coefficients": design.shape[1],
        "rmse": math.sqrt(rss / num),
        "aicc": aicc,
        "bic": bic,
    }


def size_trends(
    curves: Sequence[Curve],
    num_parameters: dict[str, int],
    r0: R0Setting = "measured",
    resamples: int = RESAMPLES,
) -> pd.DataFrame:
    """How an objective's coefficients move with model size: least-squares slopes over log10 of the parameters.

    Columns: objective, law, coefficient, slope, low, high (95%, other prompts and other runs; a slope is in units of
    the coefficient for each factor of ten in parameters) and num_models.

    Args:
        curves: of one axis and set of points, that can be fitted.
        num_parameters: of each model.
        r0: win rate at d = 0.
        resamples: for the intervals.
    """
    rows = []
    for objective in dict.fromkeys(curve.objective for curve in curves):
        sized = [curve for curve in curves if curve.objective == objective and curve.model in num_parameters]
        logs = np.log10([num_parameters[curve.model] for curve in sized])
        if len(np.unique(logs)) < 2:
            continue
        to_slope = (logs - logs.mean()) / ((logs - logs.mean()) ** 2).sum()
        drawn = [resample(curve, resamples)["prompts and runs"] for curve in sized]
        for law in COMPARED.values():
            measured = np.array([fit_one(curve, law, r0).coefficients for curve in sized])
            resampled = np.array([fit_resamples(law, one, r0).coefficients for one in drawn])
            slopes = np.einsum("m,mrc->rc", to_slope, resampled)
            low, high = np.nanquantile(slopes, TAILS, axis=0)
            rows += [
                {
                    "objective": objective,
                    "law": law.name,
                    "coefficient": name,
                    "slope": float(to_slope @ measured[:, column]),
                    "low": float(low[column]),
                    "high": float(high[column]),
                    "num_models": len(sized),
                }
                for column, name in enumerate(law.coefficients)
            ]
    return pd.DataFrame(rows)
