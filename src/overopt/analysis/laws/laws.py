"""Laws of over-optimization: true quality as a function of how far the policy went from its reference.

``d = sqrt(KL)`` [sqrt(nats)] is the distance, ``R0`` the reference's own win rate (the value at d = 0). Every
law here is ``R0 + gain(d)`` with a gain that is 0 at d = 0 and linear in its coefficients, so that fitting is
linear least squares and cannot depend on a starting point.

The coefficients belong to the curve. None of them is the beta of training: Eq. 5's own beta is called
``beta_fit`` throughout.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


def distance(kl_nats: Float[np.ndarray, "*fit point"]) -> Float[np.ndarray, "*fit point"]:
    """Distance d = sqrt(max(KL, 0)) [sqrt(nats)]; a mean of few responses may be negative, and NaN stays NaN.

    >>> distance(np.array([4.0, 0.0, -0.3]))
    array([2., 0., 0.])
    """
    d: Float[np.ndarray, "*fit point"] = np.sqrt(np.maximum(kl_nats, 0.0))
    return d


@dataclass(frozen=True)
class Law:
    """One family of curves ``R0 + coefficients @ basis(d)``, with two coefficients.

    A curve of the family has a hump where its second term bends it down; where it peaks depends only on
    the ratio of the first coefficient to the strength of that bend. The ratio is what an interval for
    the peak's place is made from.

    Attributes:
        name: the name in tables.
        letter: the letter the law goes by in words, (a) to (d).
        title: what people call it.
        formula: how people write it.
        coefficients: names, in the order of the basis.
        basis: d [sqrt(nats)] -> one column a coefficient.
        bends_down: sign of the second coefficient that gives a hump.
        peak_at: ratio -> d of the peak [sqrt(nats)], never decreasing; 0 where the curve only falls.
    """

    name: str
    letter: str
    title: str
    formula: str
    coefficients: tuple[str, str]
    basis: Callable[[Float[np.ndarray, "*fit point"]], Float[np.ndarray, "*fit point 2"]]
    bends_down: float
    peak_at: Callable[[Float[np.ndarray, " *fit"]], Float[np.ndarray, " *fit"]]

    def gain(
        self, d: Float[np.ndarray, "*fit point"], coefficients: Float[np.ndarray, " 2"]
    ) -> Float[np.ndarray, "*fit point"]:
        """What the policy gains over its reference at distance ``d`` [win rate]."""
        gain: Float[np.ndarray, "*fit point"] = self.basis(d) @ coefficients
        return gain

    def d_star(self, coefficients: Float[np.ndarray, " 2"]) -> float:
        """Where the curve peaks [sqrt(nats)]; NaN where it has no hump at d > 0.

        >>> d_star = log_law.d_star(np.array([0.2, 0.1]))
        >>> bool(np.isclose(d_star, np.e)), bool(np.isclose(log_law.peak_gain(np.array([0.2, 0.1])), 0.1 * np.e))
        (True, True)
        >>> log_law.d_star(np.array([0.2, -0.1]))
        nan
        """
        rise, bend = float(coefficients[0]), self.bends_down * float(coefficients[1])
        return (float(self.peak_at(np.asarray(rise / bend))) if bend > 0 else 0.0) or math.nan

    def peak_gain(self, coefficients: Float[np.ndarray, " 2"]) -> float:
        """Gain at the peak [win rate]; NaN where the curve has no hump at a finite d > 0."""
        d_star = self.d_star(coefficients)
        if not math.isfinite(d_star):
            return math.nan
        return float(self.gain(np.array([d_star]), coefficients)[0])


def _log_basis(d: Float[np.ndarray, "*fit point"]) -> Float[np.ndarray, "*fit point 2"]:
    # d log d goes to 0 with d, where the logarithm alone does not exist.
    return np.stack([d, -d * np.log(np.where(d > 0, d, 1.0))], axis=-1)


def _quadratic_in_d_basis(d: Float[np.ndarray, "*fit point"]) -> Float[np.ndarray, "*fit point 2"]:
    return np.stack([d, d**2], axis=-1)


def _quadratic_in_kl_basis(d: Float[np.ndarray, "*fit point"]) -> Float[np.ndarray, "*fit point 2"]:
    return np.stack([d**2, d**4], axis=-1)


log_law = Law(
    name="log_law",
    letter="a",
    title="log law",
    formula="R0 + d (alpha - beta_fit ln d)",
    coefficients=("alpha", "beta_fit"),
    basis=_log_basis,
    bends_down=1.0,
    # An almost straight curve peaks beyond any distance: infinity rather than an overflow.
    peak_at=lambda ratio: np.where(ratio < 500, np.exp(np.minimum(ratio, 500) - 1), math.inf),
)
"""Eq. 5 with the reference's win rate added: natural logarithm, peak at exp(alpha / beta_fit - 1).

The gain there is beta_fit times d of the peak. Source: Gao et al. 2022 (arXiv:2210.10760), for RL.
"""

quadratic_in_d = Law(
    name="quadratic_in_d",
    letter="b",
    title="quadratic in d",
    formula="R0 + b1 d + b2 d²",
    coefficients=("b1", "b2"),
    basis=_quadratic_in_d_basis,
    bends_down=-1.0,
    peak_at=lambda ratio: np.maximum(ratio, 0.0) / 2,
)
"""A parabola in d. With R0 fixed it is also Gao et al.'s best-of-n law d (alpha - beta d)."""

quadratic_in_kl = Law(
    name="quadratic_in_kl",
    letter="c",
    title="quadratic in KL",
    formula="R0 + c1 KL + c2 KL²",
    coefficients=("c1", "c2"),
    basis=_quadratic_in_kl_basis,
    bends_down=-1.0,
    peak_at=lambda ratio: np.sqrt(np.maximum(ratio, 0.0) / 2),
)
"""A parabola in KL = d^2: the fit that Sec. 3.2 says has twice the error of Eq. 5."""

best_of_n = Law(
    name="best_of_n",
    letter="d",
    title="best-of-n law",
    formula="R0 + d (alpha - beta_fit d)",
    coefficients=("alpha", "beta_fit"),
    basis=lambda d: np.stack([d, -(d**2)], axis=-1),
    bends_down=1.0,
    peak_at=lambda ratio: np.maximum(ratio, 0.0) / 2,
)
"""Gao et al.'s law for best-of-n sampling: (b) in their coefficients, peak at alpha / (2 beta_fit)."""

LAWS: dict[str, Law] = {law.name: law for law in (log_law, quadratic_in_d, quadratic_in_kl, best_of_n)}
COMPARED: dict[str, Law] = {law.name: law for law in (log_law, quadratic_in_d, quadratic_in_kl)}
"""Laws that are not one curve under two names."""


@dataclass(frozen=True)
class SaturatingLaw:
    """A curve that rises and never falls, ``R0 + a (1 - exp(-d / s))`` with a >= 0: no over-optimization.

    Linear in ``a`` alone; ``s`` is looked for on a grid, so that the fit cannot depend on a starting point.
    """

    name: str = "saturating"
    letter: str = "n"
    title: str = "saturating, no fall"
    formula: str = "R0 + a (1 - exp(-d / s))"
    coefficients: tuple[str, str] = ("a", "s")

    def scales(self, largest: float) -> Float[np.ndarray, " scale"]:
        """Values of s to look at [sqrt(nats)], from a step at once to a straight line."""
        scales: Float[np.ndarray, " scale"] = np.geomspace(0.02, 20.0, 121) * largest
        return scales

    def gain(
        self, d: Float[np.ndarray, "*fit point"], coefficients: Float[np.ndarray, " 2"]
    ) -> Float[np.ndarray, "*fit point"]:
        """What the policy gains over its reference at distance ``d`` [win rate]."""
        a, s = coefficients
        gain: Float[np.ndarray, "*fit point"] = -a * np.expm1(-d / s)
        return gain


saturating = SaturatingLaw()
