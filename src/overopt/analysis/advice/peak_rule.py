"""When a run is past its peak, and which of its checkpoints is best: one rule for sweeps, training and advice."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

STANDARD_ERRORS = 2.0
"""How far apart two win rates are before the difference counts, unless told otherwise."""


class Measured(NamedTuple):
    """What a rule must know of a checkpoint.

    Attributes:
        kl_nats: KL(policy || reference) [nats].
        win_rate: NaN where nobody judged.
        win_rate_se: its standard error, where ``wins`` are not known.
        wins: win probability by prompt, the same prompts for all checkpoints; NaN where there is no verdict.
    """

    kl_nats: float
    win_rate: float = math.nan
    win_rate_se: float = math.nan
    wins: Float[np.ndarray, " prompt"] | None = None


class Loss(NamedTuple):
    """By how much one checkpoint wins less than another.

    Attributes:
        mean: difference of their win rates.
        standard_error: of it, taken prompt by prompt where both have the same prompts; NaN where it is not known.
    """

    mean: float
    standard_error: float


def lost_since(best: Measured, newest: Measured) -> Loss:
    """How much win rate went from one checkpoint to another."""
    if best.wins is None or newest.wins is None:
        return Loss(best.win_rate - newest.win_rate, math.hypot(best.win_rate_se, newest.win_rate_se))
    lost = best.wins - newest.wins
    lost = lost[~np.isnan(lost)]
    if len(lost) < 2:
        return Loss(best.win_rate - newest.win_rate, math.nan)
    return Loss(float(lost.mean()), float(lost.std(ddof=1)) / math.sqrt(len(lost)))


@dataclass(frozen=True)
class PeakRule:
    """Which checkpoint of a run counts as its best, and when the run is past it.

    Attributes:
        kl_budget: only checkpoints within it count [nats]; no limit by default.
        standard_errors: a run is past its peak when its win rate has fallen by more than so many standard errors of
            the paired difference below its best; never by default.

    Raises:
        ValueError: a limit that is not positive.
    """

    kl_budget: float | None = None
    standard_errors: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not value > 0:
                raise ValueError(f"{name} is positive, got {value}")

    def best(self, checkpoints: Mapping[int, Measured]) -> int:
        """Examples seen by the trained checkpoint that wins most within the budget; 0, the reference, if none is.

        Where none is judged, the one that is trained most: up to the budget, more training is taken to help.
        """
        within = {seen: c.win_rate for seen, c in checkpoints.items() if seen > 0 and self.allows(c.kl_nats)}
        judged = {seen: rate for seen, rate in within.items() if not math.isnan(rate)}
        return max(judged, key=lambda seen: judged[seen]) if judged else max(within, default=0)

    def past_peak(self, checkpoints: Mapping[int, Measured]) -> bool:
        """Whether training on can't be expected to give a better checkpoint.

        So it is when the newest checkpoint is beyond the budget, as KL grows in training, or loses against the best
        one by more than chance. All are judged on the same prompts, so that the difference is taken prompt by prompt.

        Args:
            checkpoints: by examples seen, the reference at 0.
        """
        newest = max(checkpoints)
        if newest == 0 or self.standard_errors is None:
            return False
        if not self.allows(checkpoints[newest].kl_nats):
            return True
        best = self.best(checkpoints)
        if best == newest:
            return False
        lost = lost_since(checkpoints[best], checkpoints[newest])
        return lost.mean > self.standard_errors * lost.standard_error

    def allows(self, kl_nats: float) -> bool:
        """Whether a divergence is within the budget."""
        return self.kl_budget is None or kl_nats <= self.kl_budget
