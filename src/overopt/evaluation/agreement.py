"""Two lists of verdicts on the same comparisons to how far they agree."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64
from scipy.stats import norm

from overopt.evaluation.records import Verdict
from overopt.evaluation.win_rate import wilson_interval

CHOICES = ("win", "loss", "tie")


class Agreement(NamedTuple):
    """How far two judges, or a judge and people, agree on the same comparisons.

    Attributes:
        share: of comparisons with the same choice; NaN where both read none.
        low: lower end of its 95% interval (Wilson's).
        high: upper end.
        kappa: Cohen's: 1 is full agreement, 0 what chance gives at the same shares of wins, losses and ties. NaN where
            both made one and the same choice throughout, or read none.
        kappa_standard_error: asymptotic. 0 at full agreement, where it says nothing.
        kappa_low: lower end of the 95% interval, at least -1.
        kappa_high: upper end, at most 1.
        num_compared: comparisons that both read.
        num_left_out: comparisons that one or the other did not.
        unreadable_by_first: of them, those that the first could not be read on, or refused.
        unreadable_by_second: and the second; one may be in both.
    """

    share: float
    low: float
    high: float
    kappa: float
    kappa_standard_error: float
    kappa_low: float
    kappa_high: float
    num_compared: int
    num_left_out: int
    unreadable_by_first: int
    unreadable_by_second: int


def agreement(first: Sequence[Verdict], second: Sequence[Verdict]) -> Agreement:
    """Agreement of two lists of verdicts, their comparisons in the same order.

    A label by people is a verdict, too. Graded verdicts count as the choice that they lean to, see :func:`choice`.

    Args:
        first: verdicts of one judge.
        second: verdicts of the other.

    Raises:
        ValueError: the lists differ in length, or are empty.

    >>> win, loss = Verdict("win", 1.0), Verdict("graded", 0.2)
    >>> found = agreement([win, win, loss, loss], [win, win, loss, win])
    >>> found.share, found.kappa
    (0.75, 0.5)
    """
    if len(first) != len(second):
        raise ValueError(f"need verdicts on the same comparisons, got {len(first)} and {len(second)}")
    if not first:
        raise ValueError("no verdicts to compare")
    choices = [(choice(a), choice(b)) for a, b in zip(first, second, strict=True)]
    table = np.zeros((len(CHOICES), len(CHOICES)), dtype=np.int64)
    for a, b in choices:
        if a is not None and b is not None:
            table[CHOICES.index(a), CHOICES.index(b)] += 1
    num_compared = int(table.sum())
    share = float(np.trace(table)) / num_compared if num_compared else math.nan
    low, high = wilson_interval(share, num_compared) if num_compared else (math.nan, math.nan)
    kappa, error = cohens_kappa(table)
    half_width = float(norm.ppf(0.975)) * error
    kappa_low, kappa_high = np.clip([kappa - half_width, kappa + half_width], -1, 1)  # keeps NaN, as min and max do not
    return Agreement(
        share=share,
        low=low,
        high=high,
        kappa=kappa,
        kappa_standard_error=error,
        kappa_low=float(kappa_low),
        kappa_high=float(kappa_high),
        num_compared=num_compared,
        num_left_out=len(choices) - num_compared,
        unreadable_by_first=sum(a is None for a, _ in choices),
        unreadable_by_second=sum(b is None for _, b in choices),
    )


def choice(verdict: Verdict) -> str | None:
    """``win`` above one half, ``loss`` below, ``tie`` at exactly one half; ``None`` where there is no verdict."""
    if verdict.win_probability is None:
        return None
    if verdict.win_probability == 0.5:
        return "tie"
    return "win" if verdict.win_probability > 0.5 else "loss"


def cohens_kappa(table: Int64[np.ndarray, "choice choice"]) -> tuple[float, float]:
    """Kappa of a table of counts, and its standard error; NaN where chance alone agrees always.

    A choice that nobody made adds nothing to either. Source: Cohen 1960; Fleiss, Cohen and Everitt 1969.

    Args:
        table: counts, one judge's choices down, the other's across.
    """
    count = table.sum()
    if count == 0:
        return math.nan, math.nan
    shares: Float64[np.ndarray, "choice choice"] = table / count
    rows, columns = shares.sum(axis=1), shares.sum(axis=0)
    by_chance = float(rows @ columns)
    if by_chance == 1:
        return math.nan, math.nan
    kappa = (float(np.trace(shares)) - by_chance) / (1 - by_chance)
    # Influence of a comparison in each cell, squared and averaged.
    of_cells = np.eye(len(table)) - (1 - kappa) * (columns[:, None] + rows[None, :])
    variance = float((shares * of_cells**2).sum()) - (kappa - by_chance * (1 - kappa)) ** 2
    # Rounding may take it below zero at full agreement.
    return kappa, math.sqrt(max(0.0, variance) / count) / (1 - by_chance)
