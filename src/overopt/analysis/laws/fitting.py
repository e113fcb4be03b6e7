"""Laws fitted to evaluated checkpoints: least squares in closed form, one curve or thousands at a time.

A fit's own intervals are the classical ones of a linear model, and those of the profile likelihood: points
taken as independent, with the scatter about the curve as the error. Checkpoints of one run share weights and all
points share prompts, so they are optimistic; R0, where it is measured, enters as if it were exact. Intervals that know
better are made from resamples (:mod:`overopt.analysis.laws.fit_tables`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from overopt.analysis.laws.intervals import Estimate, around, t_quantile
from overopt.analysis.laws.laws import COMPARED, Law, saturating

# Of a scaled normal matrix: below it a coefficient is left open.
_SINGULAR = 1e-12


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
        bic: Schwarz's criterion, likewise.
    """

    law: Law
    r0: float
    coefficients: Float[np.ndarray, " 2"]
    covariance: Float[np.ndarray, "3 3"]
    degrees_of_freedom: int
    rmse: float
    log_likelihood: float
    aicc: float
    bic: float

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
        return around(value, math.sqrt(gradient @ self.covariance @ gradient), t_quantile(self.degrees_of_freedom))

    def d_star(self) -> Estimate:
        """Where the curve peaks [sqrt(nats)], by Fieller's exact interval for a ratio.

        An upper end of infinity says that the points do not rule out a curve that never falls, a lower
        end of 0 that they do not rule out one that never rises. All NaN where the curve has no hump.

        Source: Fieller 1954, "Some problems in interval estimation".
        """
        return self._place(t_quantile(self.degrees_of_freedom))

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

    def profile(self) -> dict[str, Estimate]:
        """Profile-likelihood intervals of the coefficients, ``d_star`` and ``peak``.

        Values that some curve of the family has whose log-likelihood, at its own best scatter, is within half a
        chi-squared quantile of the best one's. NaN ends where the curve has no hump; open ends as in :meth:`d_star`.
        """
        points = self.degrees_of_freedom + (3 if self.covariance[0, 0] > 0 else 2)
        # RSS may grow by the factor exp(quantile / n); covariance is RSS / freedom times the inverse curvature.
        quantile = math.sqrt(self.degrees_of_freedom * math.expm1(_CHI_SQUARED / points))
        intervals = {}
        for column, name in enumerate(self.law.coefficients, start=1):
            error = math.sqrt(self.covariance[column, column])
            intervals[name] = around(float(self.coefficients[column - 1]), error, quantile)
        intervals["d_star"] = place = self._place(quantile)
        height = self.r0 + self.law.peak_gain(self.coefficients)
        intervals["peak"] = Estimate(height)
        if math.isfinite(height) and math.isfinite(place.high) and place.low > 0:
            intervals["peak"] = Estimate(height, *self._heights(place, quantile))
        return intervals

    def _heights(self, place: Estimate, quantile: float) -> tuple[float, float]:
        """Lowest and highest peak of all curves within the quantile, by the place of their peak."""
        fixed = 0 if self.covariance[0, 0] > 0 else 1  # R0
        curvature = np.linalg.inv(self.covariance[fixed:, fixed:])
        best = np.append(self.r0, self.coefficients)[fixed:]
        d = np.geomspace(place.low, place.high, 101)
        # All curves that peak at d: R0 + t * direction, where the direction's slope at d is zero.
        step = 1e-5 * d
        slope = (self.law.basis(d + step) - self.law.basis(d - step)) / (2 * step[:, None])
        direction = np.stack([-slope[:, 1], slope[:, 0]], axis=1)
        span = np.zeros((len(d), 2, 3))
        span[:, 0, 0], span[:, 1, 1:] = 1.0, direction
        height = np.stack([np.ones_like(d), np.einsum("pc,pc->p", direction, self.law.basis(d))], axis=1)[:, fixed:]
        span = span[:, fixed:, fixed:]
        normal = span @ curvature @ np.swapaxes(span, 1, 2)
        center = np.linalg.solve(normal, (span @ curvature @ best)[..., None])[..., 0]
        nearest = np.einsum("pi,pij,pj->p", center, normal, center)
        left = quantile**2 - (best @ curvature @ best - nearest)
        inside = left >= 0
        middle = np.einsum("pi,pi->p", height, center) + fixed * self.r0
        spread = np.einsum("pi,pi->p", height, np.linalg.solve(normal, height[..., None])[..., 0])
        half = np.sqrt(np.maximum(left, 0) * spread)
        if not inside.any():
            return math.nan, math.nan
        return float((middle - half)[inside].min()), float((middle + half)[inside].max())

    def _place(self, quantile: float) -> Estimate:
        d_star = self.law.d_star(self.coefficients)
        if math.isnan(d_star):
            return Estimate(math.nan)
        # The peak's place is an increasing function of the ratio, so the ratio's interval carries over.
        signs = np.array([1.0, self.law.bends_down])
        low, high = fieller_interval(
            signs * self.coefficients, self.covariance[1:, 1:] * np.outer(signs, signs), quantile
        )
        return Estimate(d_star, *self.law.peak_at(np.array([low, high])).tolist())


_CHI_SQUARED = 3.841458820694124  # 95%, one degree of freedom


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

    log_likelihood = gaussian_log_likelihood(weighted_squares, weights)
    aicc, bic = information_criteria(log_likelihood, num_columns, num_points)
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
        aicc=aicc,
        bic=bic,
    )


def gaussian_log_likelihood(weighted_squares: float, weights: Float[np.ndarray, " point"]) -> float:
    """At the scatter that fits best; infinity where points are met exactly.

    Args:
        weighted_squares: residual sum of squares.
        weights: of the points, with mean 1.
    """
    num_points = len(weights)
    variance = weighted_squares / num_points
    if variance == 0:
        return math.inf
    constant = num_points * (math.log(2 * math.pi * variance) + 1)
    return float(np.log(weights).sum() - constant) / 2


def information_criteria(log_likelihood: float, num_coefficients: int, num_points: int) -> tuple[float, float]:
    """AICc and BIC, the scatter counted as a parameter; AICc is NaN where its correction does not exist."""
    fitted = num_coefficients + 1
    correction = 2 * fitted * (fitted + 1) / (num_points - fitted - 1) if num_points > fitted + 1 else math.nan
    return 2 * fitted - 2 * log_likelihood + correction, fitted * math.log(num_points) - 2 * log_likelihood


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


class ManyFits(NamedTuple):
    """One law fitted to many sets of points; NaN where points leave a coefficient open.

    Attributes:
        r0: value at d = 0 [win rate].
        coefficients: in the order of the law's.
        rss: weighted residual sum of squares.
    """

    r0: Float[np.ndarray, " fit"]
    coefficients: Float[np.ndarray, "fit 2"]
    rss: Float[np.ndarray, " fit"]


def fit_many(
    law: Law,
    d: Float[np.ndarray, "fit point"],
    value: Float[np.ndarray, "fit point"],
    weights: Float[np.ndarray, "fit point"],
    r0: Float[np.ndarray, " fit"] | None,
) -> ManyFits:
    """Weighted least squares, all sets of points at once.

    Args:
        law: the family of curves.
        d: distances from the reference [sqrt(nats)].
        value: what was measured there [win rate].
        weights: relative, such as 1 / se^2.
        r0: value at d = 0, held fixed; ``None`` fits it.
    """
    basis = law.basis(d)
    if r0 is None:
        basis = np.concatenate([np.ones((*d.shape, 1)), basis], axis=-1)
    target = value if r0 is None else value - r0[:, None]
    solution, rss = _least_squares(basis, target, weights)
    if r0 is None:
        return ManyFits(solution[:, 0], solution[:, 1:], rss)
    return ManyFits(r0, solution, rss)


def _least_squares(
    basis: Float[np.ndarray, "fit point column"],
    target: Float[np.ndarray, "fit point"],
    weights: Float[np.ndarray, "fit point"],
) -> tuple[Float[np.ndarray, "fit column"], Float[np.ndarray, " fit"]]:
    """Solutions of scaled normal equations, and weighted residual sums of squares."""
    weighted = basis * weights[..., None]
    normal = np.swapaxes(weighted, 1, 2) @ basis
    scale = np.sqrt(np.einsum("fcc->fc", normal))
    scale = np.where(scale > 0, scale, 1.0)
    normal = normal / (scale[:, :, None] * scale[:, None, :])
    open_ = np.linalg.det(normal) < _SINGULAR
    normal[open_] = np.eye(normal.shape[-1])
    moments = np.einsum("fpc,fp->fc", weighted, target) / scale
    solution = np.linalg.solve(normal, moments[..., None])[..., 0] / scale
    solution[open_] = math.nan
    residuals = target - np.einsum("fpc,fc->fp", basis, solution)
    return solution, np.einsum("fp,fp->f", weights, residuals**2)


def fit_saturating(
    d: Float[np.ndarray, "fit point"],
    value: Float[np.ndarray, "fit point"],
    weights: Float[np.ndarray, "fit point"],
    r0: Float[np.ndarray, " fit"] | None,
) -> ManyFits:
    """The best curve that never falls, of :class:`overopt.analysis.laws.laws.SaturatingLaw`; arguments as above.

    Where a falling curve would fit better, the best one that does not is flat: a = 0.
    """
    found = ManyFits(np.full(len(d), math.nan), np.full((len(d), 2), math.nan), np.full(len(d), math.inf))
    for s in saturating.scales(float(d.max())):
        rise = saturating.gain(d, np.array([1.0, s]))
        if r0 is None:
            center = np.einsum("fp,fp->f", weights, rise) / weights.sum(axis=1)
            start = np.einsum("fp,fp->f", weights, value) / weights.sum(axis=1)
        else:
            center, start = np.zeros(len(d)), r0
        bent, target = rise - center[:, None], value - start[:, None]
        squares = np.einsum("fp,fp->f", weights, bent**2)
        a = np.divide(np.einsum("fp,fp->f", weights, bent * target), squares, out=np.zeros(len(d)), where=squares > 0)
        a = np.maximum(a, 0.0)
        rss = np.einsum("fp,fp->f", weights, (target - a[:, None] * bent) ** 2)
        better = rss < found.rss
        found.rss[better] = rss[better]
        found.r0[better] = (start - a * center)[better]
        found.coefficients[better] = np.stack([a, np.full(len(d), s)], axis=1)[better]
    return found


Fitter = Callable[
    [
        Float[np.ndarray, "fit point"],
        Float[np.ndarray, "fit point"],
        Float[np.ndarray, "fit point"],
        Float[np.ndarray, " fit"] | None,
    ],
    ManyFits,
]
FITTERS: dict[str, Fitter] = {
    **{name: partial(fit_many, law) for name, law in COMPARED.items()},
    saturating.name: fit_saturating,
}
"""Of the laws that are compared, the one that never falls among them, by name."""
