"""A claim held against measurements: an estimate, its interval, and a verdict by a rule that is stated with it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float

from overopt.analysis.laws.intervals import Estimate, around, t_quantile
from overopt.evaluation.win_rate import wilson_interval

Verdict = Literal["holds", "does not", "undecided"]


@dataclass(frozen=True)
class Claim:
    """One claim of the paper.

    Attributes:
        source: where the paper makes it.
        text: what it says.
        measure: what was estimated here, and its unit.
        estimate: with a 95% interval; NaN where the grid has nothing to say.
        rule: when the claim holds, and when it does not.
        verdict: by that rule.
        basis: how much stands behind it, or what is missing.
    """

    source: str
    text: str
    measure: str
    estimate: Estimate
    rule: str
    verdict: Verdict
    basis: str


def claims_table(claims: Sequence[Claim]) -> pd.DataFrame:
    """A row a claim: its fields, with the estimate as ``value``, ``low`` and ``high``."""
    return pd.DataFrame([{**asdict(claim), **claim.estimate._asdict()} for claim in claims]).drop(columns="estimate")


def by_interval(
    estimate: Estimate, holds: Callable[[float, float], bool], fails: Callable[[float, float], bool]
) -> Verdict:
    """The verdict that an interval's two ends allow; undecided without an interval."""
    if math.isnan(estimate.low) or math.isnan(estimate.high):
        return "undecided"
    if holds(estimate.low, estimate.high):
        return "holds"
    return "does not" if fails(estimate.low, estimate.high) else "undecided"


def above(limit: float, estimate: Estimate) -> Verdict:
    """Holds where the whole interval lies above a limit, does not where it lies below."""
    return by_interval(estimate, lambda low, _: low > limit, lambda _, high: high < limit)


def below(limit: float, estimate: Estimate) -> Verdict:
    """Holds where the whole interval lies below a limit, does not where it lies above."""
    return by_interval(estimate, lambda _, high: high < limit, lambda low, _: low > limit)


def mean_estimate(values: Sequence[float] | Float[np.ndarray, " value"]) -> Estimate:
    """Mean with Student's interval; without one for fewer than three values."""
    finite = np.asarray(values, float)
    finite = finite[np.isfinite(finite)]
    if len(finite) < 3:
        return Estimate(float(finite.mean()) if len(finite) else math.nan)
    error = float(finite.std(ddof=1)) / math.sqrt(len(finite))
    return around(float(finite.mean()), error, t_quantile(len(finite) - 1))


def share_estimate(count: int, total: int) -> Estimate:
    """A share with Wilson's interval."""
    if total == 0:
        return Estimate(math.nan)
    return Estimate(count / total, *wilson_interval(count / total, total))
