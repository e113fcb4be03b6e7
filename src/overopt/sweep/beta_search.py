"""Which beta to try next: a Gaussian process over log beta, by what the runs so far have given."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import optuna
from optuna.distributions import FloatDistribution
from optuna.exceptions import ExperimentalWarning

from overopt.embedded.cells import Cell

_STARTS = 3  # runs before the process has something to go by


@dataclass(frozen=True)
class BetaSearch:
    """Looks for the beta whose best checkpoint wins most.

    The same runs always give the same next beta, so that any worker may ask.

    Attributes:
        cell: everything but the beta.
        lowest: beta tried [reward / nat].
        highest: beta tried [reward / nat].
        runs: at most.
        seed: of the search.

    Raises:
        ValueError: bounds that are no range of positive numbers, or fewer runs than the search starts with.
    """

    cell: Cell
    lowest: float
    highest: float
    runs: int
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.lowest < self.highest:
            raise ValueError(f"betas lie between two positive numbers, got {self.lowest:g} to {self.highest:g}")
        if self.runs < _STARTS:
            raise ValueError(f"a search starts with {_STARTS} runs, got a budget of {self.runs}")

    @property
    def space(self) -> FloatDistribution:
        """Of beta."""
        return FloatDistribution(self.lowest, self.highest, log=True)

    def cell_at(self, beta: float) -> Cell:
        """The run at a beta, of three digits: nobody wants more of them in a name."""
        return replace(self.cell, beta=min(max(float(f"{beta:.3g}"), self.lowest), self.highest))

    def first_cells(self) -> list[Cell]:
        """Runs to start with: the middles of equal parts of the range, in log beta."""
        middles = (np.arange(_STARTS) + 0.5) / _STARTS
        return [self.cell_at(beta) for beta in self.lowest * (self.highest / self.lowest) ** middles]

    def next_cell(self, win_rates: Mapping[Cell, float]) -> Cell | None:
        """The next run; none where the budget is spent, or nothing new promises more.

        Args:
            win_rates: of the best checkpoints of all runs so far.
        """
        if len(win_rates) >= self.runs:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            sampler = optuna.samplers.GPSampler(seed=self.seed, n_startup_trials=_STARTS)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for cell, win_rate in win_rates.items():
            study.add_trial(
                optuna.create_trial(params={"beta": cell.beta}, distributions={"beta": self.space}, value=win_rate)
            )
        cell = self.cell_at(study.ask({"beta": self.space}).params["beta"])
        return None if cell in win_rates else cell
