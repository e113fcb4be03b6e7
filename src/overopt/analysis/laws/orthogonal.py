"""Fits that count errors in the distance too: orthogonal distance regression.

Source: Boggs, Byrd and Schnabel 1987, "A stable and efficient algorithm for nonlinear orthogonal distance regression".
"""

import math

import numpy as np
from jaxtyping import Float

from overopt.analysis.laws.curves import Curve, R0Setting
from overopt.analysis.laws.fitting import fit_law
from overopt.analysis.laws.intervals import Estimate, around
from overopt.analysis.laws.laws import Law


def distance_se(curve: Curve) -> Float[np.ndarray, " point"]:
    """Standard errors of distances [sqrt(nats)]: of the root of a mean, by the delta method away from 0."""
    errors = curve.divergence_se
    bounded = np.sqrt(errors)  # what the root of an error is, where the mean itself is about 0
    result: Float[np.ndarray, " point"] = np.minimum(errors / (2 * np.maximum(curve.d, 1e-12)), bounded)
    return result


def fit_orthogonal(law: Law, curve: Curve, r0: R0Setting = "measured") -> dict[str, Estimate]:
    """Coefficients with 95% intervals, and ``d_star`` and ``peak`` without.

    Errors of points are taken as independent. Starts from the least-squares fit, to which it comes back as the errors
    in d vanish.

    Raises:
        ValueError: points without standard errors of win rate and divergence, or that leave a coefficient open.
    """
    from odrpack import odr_fit

    errors = distance_se(curve)
    if not (np.isfinite(curve.win_rate_se) & (curve.win_rate_se > 0) & (errors > 0)).all():
        raise ValueError(f"{curve.name}: errors in d need a standard error of each win rate and divergence")
    start = fit_law(law, curve.d, curve.win_rate, r0=curve.r0(r0), weights=curve.weights)
    held = curve.r0(r0)

    def value(d: Float[np.ndarray, " point"], free: Float[np.ndarray, " free"]) -> Float[np.ndarray, " point"]:
        base, coefficients = (free[0], free[1:]) if held is None else (held, free)
        # A distance is moved by the search, and may not become negative.
        gained: Float[np.ndarray, " point"] = base + law.gain(np.maximum(d, 0.0), coefficients)
        return gained

    first = start.coefficients if held is not None else np.append(start.r0, start.coefficients)
    found = odr_fit(value, curve.d, curve.win_rate, first, weight_x=errors**-2, weight_y=curve.win_rate_se**-2)
    if not found.success:
        raise ValueError(f"{curve.name}: orthogonal distance regression of {law.name} ended with: {found.stopreason}")
    coefficients, sd = found.beta[-2:], found.sd_beta[-2:]
    base = float(found.beta[0]) if held is None else held
    estimates = {
        name: around(float(b), float(s)) for name, b, s in zip(law.coefficients, coefficients, sd, strict=True)
    }
    estimates["d_star"] = Estimate(law.d_star(coefficients), math.nan, math.nan)
    estimates["peak"] = Estimate(base + law.peak_gain(coefficients), math.nan, math.nan)
    return estimates
