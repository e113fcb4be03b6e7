"""Verdicts to a win rate with its standard error and 95% interval."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import norm

from overopt.evaluation.records import Verdict

_BOOTSTRAP_RESAMPLES = 2000


class WinRate(NamedTuple):
    """Share of prompts where the judge prefers the sample; a tie counts one half.

    Attributes:
        win_rate: the share, over readable verdicts; NaN where there is none.
        standard_error: of the share.
        low: lower end of the 95% interval: Wilson's for won-or-lost verdicts, a bootstrap over prompts
            where verdicts are graded or tied.
        high: upper end.
        tie_share: ties among readable verdicts.
        unreadable_share: unreadable among all verdicts.
        num_readable: readable verdicts.
    """

    win_rate: float
    standard_error: float
    low: float
    high: float
    tie_share: float
    unreadable_share: float
    num_readable: int


def win_rate(verdicts: Sequence[Verdict], *, seed: int = 0) -> WinRate:
    """Win rate of a list of verdicts, one a prompt.

    Raises:
        ValueError: there are no verdicts.

    >>> rate = win_rate([Verdict("win", 1.0), Verdict("tie", 0.5), Verdict("unreadable", None)])
    >>> rate.win_rate, rate.tie_share, round(rate.unreadable_share, 3)
    (0.75, 0.5, 0.333)
    """
    if not verdicts:
        raise ValueError("no verdicts to count")
    readable = [verdict for verdict in verdicts if verdict.win_probability is not None]
    unreadable_share = (len(verdicts) - len(readable)) / len(verdicts)
    if not readable:
        return WinRate(math.nan, math.nan, math.nan, math.nan, math.nan, unreadable_share, 0)
    values = np.array([verdict.win_probability for verdict in readable], dtype=np.float64)
    ties = sum(verdict.kind == "tie" for verdict in readable)
    bare = all(verdict.kind in ("win", "loss") for verdict in readable)
    low, high = wilson_interval(values.mean(), len(values)) if bare else bootstrap_interval(values, seed=seed)
    return WinRate(
        win_rate=float(values.mean()),
        standard_error=float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan,
        low=low,
        high=high,
        tie_share=ties / len(readable),
        unreadable_share=unreadable_share,
        num_readable=len(readable),
    )


def wilson_interval(share: float, count: int, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share of ``count`` yes-or-no answers. Source: Wilson 1927.

    >>> [round(end, 4) for end in wilson_interval(0.5, 256)]
    [0.4392, 0.5608]
    """
    z = float(norm.ppf(0.5 + level / 2))
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    # None and all have their own share for an end, which rounding would miss.
    low, high = (centre - half if share > 0 else 0.0), (centre + half if share < 1 else 1.0)
    return max(0.0, float(low)), min(1.0, float(high))


def bootstrap_interval(values: np.ndarray, *, seed: int, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of the mean, resampling prompts."""
    generator = np.random.default_rng(seed)
    means = [generator.choice(values, len(values)).mean() for _ in range(_BOOTSTRAP_RESAMPLES)]
    low, high = np.quantile(means, [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)
