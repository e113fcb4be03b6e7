"""Where all tasks of a sweep stand, and what could be done next."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from overopt.embedded.cells import Cell, StudyCell
from overopt.embedded.experiment import EmbeddedExperiment
from overopt.embedded.plan import plan
from overopt.sweep.beta_search import BetaSearch
from overopt.sweep.queue import Parameters, TaskQueue, TaskState


@dataclass
class Board:
    """All tasks of a sweep, in two studies: cells, and what cells share.

    The shared ones have a study of their own, so that the cells' one shows nothing but cells.

    Attributes:
        experiment: that the tasks belong to.
        cells: queue of the cells.
        shared: queue of what they share.
        grid: the cells; a search adds to them.
        search: proposes more of them, when all are done.
        states: of all tasks, as last seen.
    """

    experiment: EmbeddedExperiment
    cells: TaskQueue
    shared: TaskQueue
    grid: list[StudyCell]
    search: BetaSearch | None = None
    states: Mapping[str, TaskState] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.plan = plan(self.experiment, self.grid)

    def queue_of(self, name: str) -> TaskQueue:
        """The queue that has a task."""
        return self.cells if name in self.cells.tasks else self.shared

    def refresh(self) -> None:
        """Give up the dead, queue what is missing, look, and go on searching."""
        with self._lock:
            self.states = {**self.shared.refill(), **self.cells.refill()}
            if self.search is not None and (found := self._found(self.search)):
                # New objects rather than changed ones: others may be reading the old.
                self.grid = [*self.grid, *found]
                self.plan = plan(self.experiment, self.grid)
                self.cells.tasks = {**self.cells.tasks, **parameters_of(found, self.search)}
                self.states = {**self.states, **self.cells.refill()}

    def _found(self, search: BetaSearch) -> list[Cell]:
        """Cells that other workers have added, or else the next one."""
        others = {search.cell_at(trial.params["beta"]) for trial in self.cells.strangers()}
        if others:
            return sorted(others, key=lambda cell: cell.beta)
        cells = [cell for cell in self.grid if isinstance(cell, Cell)]
        finished = {cell: self.states[cell.name].finished for cell in cells}
        values = {
            cell: trial.value for cell, trial in finished.items() if trial is not None and trial.value is not None
        }
        cell = search.next_cell(values) if len(values) == len(cells) else None
        return [] if cell is None else [cell]

    def blocked(self, name: str) -> bool:
        """Whether a needed task has failed for good."""
        return any(self.states[need].state == "failed" for need in self.plan[name].needs)

    @property
    def over(self) -> bool:
        """Whether nothing is left that could be done."""
        return all(
            task.state in ("done", "failed") or (task.state == "waiting" and self.blocked(name))
            for name, task in self.states.items()
        )

    def ready(self) -> list[TaskState]:
        """What could be done now, in the plan's order."""
        states = self.states
        return [
            states[name]
            for name, task in self.plan.items()
            if states[name].state == "waiting" and all(states[need].state == "done" for need in task.needs)
        ]


def parameters_of(cells: Sequence[StudyCell], search: BetaSearch | None = None) -> dict[str, Parameters]:
    """Cells as Optuna shows them, by name; what all have in common is no part of that, but beta always is.

    Args:
        cells: the grid.
        search: whose space beta has, whatever has been tried of it.
    """
    space: dict[str, BaseDistribution] = {}
    parameters = {cell.name: cell.parameters for cell in cells}
    for name in dict.fromkeys(name for values in parameters.values() for name in values):
        values = sorted({of_cell[name] for of_cell in parameters.values() if of_cell.get(name) is not None})
        if name == "beta" and search is not None:
            space[name] = search.space
        elif not values or (len(values) == 1 and name != "beta"):
            continue
        elif isinstance(values[0], str):
            space[name] = CategoricalDistribution(values)
        elif isinstance(values[0], int):
            space[name] = IntDistribution(values[0], values[-1])
        else:
            space[name] = FloatDistribution(values[0], values[-1], log=values[0] > 0)

    def of(cell: StudyCell) -> Parameters:
        values = {name: value for name in space if (value := parameters[cell.name].get(name)) is not None}
        return Parameters(values, {name: space[name] for name in values})

    return {cell.name: of(cell) for cell in cells}
