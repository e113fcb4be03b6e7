"""An estimate with its interval, and the ways to one."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

CONFIDENCE = 0.95
LEVEL = 1 - CONFIDENCE
"""Of tests, whose verdicts thereby agree with the intervals."""
TAILS = (LEVEL / 2, 1 - LEVEL / 2)
NORMAL_QUANTILE = 1.959963984540054


class Estimate(NamedTuple):
    """A value with its 95% interval; NaN where there is none, infinity where a side is open."""

    value: float
    low: float = math.nan
    high: float = math.nan


def around(value: float, standard_error: float, quantile: float = NORMAL_QUANTILE) -> Estimate:
    """A value of which the standard error is known.

    >>> [round(end, 2) for end in around(1.0, 0.1)]
    [1.0, 0.8, 1.2]
    """
    half = quantile * standard_error
    return Estimate(value, value - half, value + half)


def t_quantile(degrees_of_freedom: int) -> float:
    """Of Student's distribution, two-sided.

    >>> round(t_quantile(10), 3)
    2.228
    """
    from scipy.special import stdtrit

    return float(stdtrit(degrees_of_freedom, TAILS[1]))


def percentiles(value: float, drawn: Float[np.ndarray, " draw"]) -> Estimate:
    """A value with the percentiles of its resamples, some of which may be infinite; no interval without any."""
    if not len(drawn):
        return Estimate(value)
    # Without interpolation: between a number and infinity there is no mean.
    low, high = np.quantile(drawn, TAILS, method="inverted_cdf")
    return Estimate(value, float(low), float(high))
