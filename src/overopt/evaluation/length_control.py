"""Verdicts and length differences to the win rate at equal length."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import norm

from overopt.evaluation.records import Verdict

Coefficients = Float64[np.ndarray, " coefficient"]
Covariance = Float64[np.ndarray, "coefficient coefficient"]

_Z = float(norm.ppf(0.975))
_LARGEST_CONDITION = 1e9


class LengthControlledWinRate(NamedTuple):
    """Win rate that a logistic model gives at zero length difference.

    Attributes:
        win_rate: at zero length difference; NaN, like the rest, where :attr:`note` says why there is none.
        standard_error: of it, by the delta method.
        low: lower end of the 95% interval, built on the logit scale.
        high: upper end.
        length_coefficient: logits that tanh(difference / :attr:`length_scale`) = 1 is worth; positive where the judge
            likes length. NaN where all texts are as long as their opponents.
        length_coefficient_low: lower end of its 95% interval.
        length_coefficient_high: upper end.
        length_scale: standard deviation of the length differences [their unit].
        num_readable: readable verdicts.
        note: why there is no number, in words; empty where there is one.
    """

    win_rate: float
    standard_error: float
    low: float
    high: float
    length_coefficient: float
    length_coefficient_low: float
    length_coefficient_high: float
    length_scale: float
    num_readable: int
    note: str = ""


def length_controlled_win_rate(
    verdicts: Sequence[Verdict], length_differences: Sequence[float] | Sequence[int]
) -> LengthControlledWinRate:
    """What the win rate would be, were every sample as long as its opponent.

    The logit of the win probability is an intercept plus a coefficient times tanh(difference / its standard deviation),
    fitted to readable verdicts; the intercept is the logit at zero difference. Ties and graded verdicts enter as the
    fractions they are (Papke and Wooldridge 1996), so that the covariance is the sandwich (HC0), which does not take
    them for coin flips. It holds for many prompts and takes the standard deviation of the differences for known.

    AlpacaEval 2 differs: its model also has a term for how hard each instruction is, which takes the verdicts on many
    models to estimate; it is regularised, by an L1 penalty and by verdicts on the baseline told to be brief or wordy;
    length is in characters, and its code takes baseline minus model, so that the coefficient has the other sign. It
    gives no interval, and a number wherever there are verdicts: here there is none where wins and losses are separable
    or where every sample is longer (or shorter) than its opponent.

    Args:
        verdicts: one a prompt.
        length_differences: length of the sample minus its opponent's, one a verdict, in any unit: words, say.

    Raises:
        ValueError: no verdicts, another number of differences, or a difference that is no number.

    Source: Dubois et al. 2024 (arXiv:2404.04475).

    The longer of two wins in three of four cases, whichever it is: at equal length there is nothing between them.

    >>> longer, shorter = [Verdict("win", 1.0)] * 3 + [Verdict("loss", 0.0)], [Verdict("win", 1.0)]
    >>> shorter += [Verdict("loss", 0.0)] * 3
    >>> rate = length_controlled_win_rate(longer * 3 + shorter, [10.0] * 12 + [-10.0] * 4)
    >>> round(rate.win_rate, 3), rate.length_coefficient > 0
    (0.5, True)
    """
    differences = np.asarray(length_differences, dtype=np.float64)
    if not verdicts:
        raise ValueError("no verdicts to count")
    if len(differences) != len(verdicts):
        raise ValueError(f"need one length difference a verdict, got {len(differences)} for {len(verdicts)} verdicts")
    if not np.isfinite(differences).all():
        raise ValueError(f"need finite length differences, got {differences[~np.isfinite(differences)][0]}")
    readable = [verdict.win_probability is not None for verdict in verdicts]
    values = np.array([v.win_probability for v in verdicts if v.win_probability is not None], dtype=np.float64)
    differences = differences[readable]
    if len(values) < 3:
        # Two coefficients go through two verdicts exactly, with a standard error of zero.
        return _no_number(len(values), "fewer than three readable verdicts")
    scale = float(differences.std(ddof=1))
    if not differences.min() <= 0 <= differences.max():
        # The model would go on beyond the data, and a flat tanh with it, to any number at all.
        how = "longer" if differences.min() > 0 else "shorter"
        return _no_number(len(values), f"every sample is {how} than its opponent: none says how it is at equal length")
    features = length_feature(differences)[:, None] if differences.any() else np.empty((len(values), 0))
    if note := _separation(values, features):
        return _no_number(len(values), note)
    coefficients, covariance = _logistic_fit(np.hstack([np.ones((len(values), 1)), features]), values)
    if not np.isfinite(covariance).all():
        return _no_number(len(values), "the logistic model could not be fitted")
    errors = np.sqrt(np.diag(covariance))
    lows, highs = coefficients - _Z * errors, coefficients + _Z * errors
    win_rate, low, high = (float(expit(logit)) for logit in (coefficients[0], lows[0], highs[0]))
    return LengthControlledWinRate(
        win_rate=win_rate,
        standard_error=float(win_rate * (1 - win_rate) * errors[0]),
        low=low,
        high=high,
        length_coefficient=float(coefficients[1]) if features.size else math.nan,
        length_coefficient_low=float(lows[1]) if features.size else math.nan,
        length_coefficient_high=float(highs[1]) if features.size else math.nan,
        length_scale=scale,
        num_readable=len(values),
    )


def length_feature(length_differences: Float64[np.ndarray, " verdict"]) -> Float64[np.ndarray, " verdict"]:
    """tanh(difference / its standard deviation): a text twice as long does not count twice.

    The standard deviation has n - 1 in its denominator; the mean is not taken off, for zero is to mean equal length.
    """
    feature: Float64[np.ndarray, " verdict"] = np.tanh(length_differences / length_differences.std(ddof=1))
    return feature


def _separation(values: Float64[np.ndarray, " verdict"], features: Float64[np.ndarray, "verdict feature"]) -> str:
    """Why the likelihood has no maximum, in words; empty where it has one. Source: Albert and Anderson 1984."""
    # A fraction counts as both a win and a loss at its place.
    if not (values > 0).any():
        return "every verdict is a loss: the logistic model has no finite fit"
    if not (values < 1).any():
        return "every verdict is a win: the logistic model has no finite fit"
    if not features.size:
        return ""
    wins, losses = features[values > 0], features[values < 1]
    if wins.min() < losses.max() and losses.min() < wins.max():
        return ""
    return "length alone tells wins from losses: the logistic model has no finite fit"


def _logistic_fit(
    design: Float64[np.ndarray, "verdict coefficient"], values: Float64[np.ndarray, " verdict"]
) -> tuple[Coefficients, Covariance]:
    """Quasi-likelihood estimate and its HC0 covariance; this is NaN where the search found no maximum."""

    def loss(coefficients: Coefficients) -> float:
        logits = design @ coefficients
        return float(np.mean(np.logaddexp(0, logits) - values * logits))

    def gradient(coefficients: Coefficients) -> Coefficients:
        of_loss: Coefficients = (expit(design @ coefficients) - values) @ design / len(values)
        return of_loss

    def hessian(coefficients: Coefficients) -> Covariance:
        share = expit(design @ coefficients)
        of_loss: Covariance = (design * (share * (1 - share))[:, None]).T @ design / len(values)
        return of_loss

    start = np.zeros(design.shape[1])
    found = minimize(loss, start, jac=gradient, hess=hessian, method="trust-exact", options={"gtol": 1e-6})
    coefficients = np.asarray(found.x, dtype=np.float64)
    no_fit = coefficients, np.full((len(start), len(start)), math.nan)
    # On the brink of separation, a maximum there is drowns in rounding.
    if np.linalg.cond(hessian(coefficients)) > _LARGEST_CONDITION:
        return no_fit
    # Rounding hides smaller changes of the loss; Newton steps, which do not look at it, go the rest of the way.
    for _ in range(3):
        coefficients = coefficients - np.linalg.solve(hessian(coefficients), gradient(coefficients))
    if not np.abs(gradient(coefficients)).max() < 1e-12:
        return no_fit
    scores = design * (values - expit(design @ coefficients))[:, None]
    influence = scores @ np.linalg.inv(hessian(coefficients)) / len(values)
    # A product of a matrix with itself: no rounding makes a variance negative.
    return coefficients, influence.T @ influence


def _no_number(num_readable: int, note: str) -> LengthControlledWinRate:
    nan = math.nan
    return LengthControlledWinRate(nan, nan, nan, nan, nan, nan, nan, nan, num_readable, note)
