"""Verdicts to how much a judge prefers what it reads first."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from overopt.evaluation.records import Verdict
from overopt.evaluation.win_rate import bootstrap_interval, wilson_interval


class PositionBias(NamedTuple):
    """How far the share of verdicts for the text read first is from one half.

    Attributes:
        bias: the share minus one half: 0.5 always the first, -0.5 always the second; NaN where no verdict says.
        standard_error: of it.
        low: lower end of the 95% interval: Wilson's where every verdict is for one text, else a bootstrap.
        high: upper end.
        num_verdicts: that say what was preferred of first and second.
    """

    bias: float
    standard_error: float
    low: float
    high: float
    num_verdicts: int


def position_bias(verdicts: Sequence[Verdict], *, seed: int = 0) -> PositionBias:
    """Position bias of the judge that gave these verdicts.

    It is the judge's only where the sample came first at random, or in one of both orders: where it always came first,
    its merits are in the share as well.

    Args:
        verdicts: those without ``first_preferred`` are left out.
        seed: of the bootstrap.

    >>> of_first = [1.0, 1.0, 0.0, 1.0, None]
    >>> position_bias([Verdict("win", 1.0, first_preferred=share) for share in of_first]).bias
    0.25
    """
    values = np.array([v.first_preferred for v in verdicts if v.first_preferred is not None], dtype=np.float64)
    count = len(values)
    if not count:
        return PositionBias(math.nan, math.nan, math.nan, math.nan, 0)
    bare = bool(np.isin(values, (0, 1)).all())
    low, high = wilson_interval(values.mean(), count) if bare else bootstrap_interval(values, seed=seed)
    error = float(values.std(ddof=1)) / math.sqrt(count) if count > 1 else math.nan
    return PositionBias(float(values.mean()) - 0.5, error, low - 0.5, high - 0.5, count)
