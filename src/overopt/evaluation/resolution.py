"""Number of prompts to the smallest difference that they can resolve, and back.

A difference is resolved where a two-sided test at a level finds it with a given power. Normal approximation throughout.
Every verdict has a standard deviation: sqrt(p (1 - p)) for won-or-lost verdicts at win rate p, hence at most one half,
which is the default; less for ties and graded verdicts.

With 256 prompts, a win rate is known to 6 points either way, and two policies on prompts of their own must be 12 points
apart:

>>> round(half_width(256), 3), round(smallest_difference(256), 3)
(0.061, 0.124)
>>> prompts_for_difference(0.05)
1570
"""

import math

from scipy.stats import norm


def half_width(num_prompts: int, *, standard_deviation: float = 0.5, level: float = 0.95) -> float:
    """Half the width of a win rate's interval.

    Args:
        num_prompts: verdicts behind the rate.
        standard_deviation: of a verdict.
        level: of the interval.

    Raises:
        ValueError: an argument that is out of range.
    """
    _require(num_prompts=num_prompts, standard_deviation=standard_deviation)
    _require_share(level=level)
    return float(norm.ppf(0.5 + level / 2)) * standard_deviation / math.sqrt(num_prompts)


def smallest_difference(
    num_prompts: int, *, standard_deviation: float = 0.5, level: float = 0.95, power: float = 0.8
) -> float:
    """Smallest difference of two policies' win rates on different prompts that can be told from none.

    Both rates are given the variance of their mean, which is the larger: the difference is on the safe side.

    Args:
        num_prompts: of each policy.
        standard_deviation: of a verdict: sqrt(p (1 - p)) where both rates are about p.
        level: one minus how often a difference is found where there is none.
        power: how often the difference is found.

    Returns:
        The difference; infinite where even 1 would go unfound.

    Raises:
        ValueError: an argument that is out of range.
    """
    return _resolved(num_prompts, math.sqrt(2) * standard_deviation, level, power, largest=1.0)


def prompts_for_difference(
    difference: float, *, standard_deviation: float = 0.5, level: float = 0.95, power: float = 0.8
) -> int:
    """Prompts that each of two policies needs for :func:`smallest_difference` to be this."""
    return _needed(difference, math.sqrt(2) * standard_deviation, level, power, largest=1.0)


def smallest_distance_from_half(
    num_prompts: int, *, standard_deviation: float = 0.5, level: float = 0.95, power: float = 0.8
) -> float:
    """Smallest distance of a win rate from one half at which it can be told from that.

    Arguments and errors as in :func:`smallest_difference`; infinite where even one half would go unfound.
    """
    return _resolved(num_prompts, standard_deviation, level, power, largest=0.5)


def prompts_for_distance_from_half(
    distance: float, *, standard_deviation: float = 0.5, level: float = 0.95, power: float = 0.8
) -> int:
    """Prompts for :func:`smallest_distance_from_half` to be this."""
    return _needed(distance, standard_deviation, level, power, largest=0.5)


def smallest_paired_difference(
    num_prompts: int, *, standard_deviation: float, level: float = 0.95, power: float = 0.8
) -> float:
    """Smallest difference of two policies' win rates on the same prompts that can be told from none.

    Two policies find the same prompts hard, so that pairs resolve more than :func:`smallest_difference` does:

    >>> round(smallest_paired_difference(256, standard_deviation=0.4), 3)
    0.07

    Args:
        num_prompts: which both have verdicts on.
        standard_deviation: of one policy's win probability minus the other's on the same prompt, over prompts.
        level: one minus how often a difference is found where there is none.
        power: how often the difference is found.

    Returns:
        The difference; infinite where even 1 would go unfound.

    Raises:
        ValueError: an argument that is out of range.
    """
    return _resolved(num_prompts, standard_deviation, level, power, largest=1.0)


def prompts_for_paired_difference(
    difference: float, *, standard_deviation: float, level: float = 0.95, power: float = 0.8
) -> int:
    """Prompts for :func:`smallest_paired_difference` to be this."""
    return _needed(difference, standard_deviation, level, power, largest=1.0)


def _resolved(num_prompts: int, standard_deviation: float, level: float, power: float, largest: float) -> float:
    _require(num_prompts=num_prompts, standard_deviation=standard_deviation)
    difference = _quantiles(level, power) * standard_deviation / math.sqrt(num_prompts)
    return difference if difference <= largest else math.inf


def _needed(difference: float, standard_deviation: float, level: float, power: float, largest: float) -> int:
    _require(difference=difference, standard_deviation=standard_deviation)
    if difference > largest:
        raise ValueError(f"need a difference of win rates of at most {largest:g}, got {difference:g}")
    return math.ceil((_quantiles(level, power) * standard_deviation / difference) ** 2)


def _quantiles(level: float, power: float) -> float:
    """Standard errors that a difference must measure: for the test to be sharp, and for it to be passed."""
    _require_share(level=level, power=power)
    return float(norm.ppf(0.5 + level / 2) + norm.ppf(power))


def _require(**positive: float | int) -> None:
    for name, value in positive.items():
        if not 0 < value < math.inf:
            raise ValueError(f"need {name} > 0, got {value}")


def _require_share(**shares: float) -> None:
    for name, value in shares.items():
        if not 0 < value < 1:
            raise ValueError(f"need a {name} between 0 and 1, such as 0.95 or 0.8, got {value}")
