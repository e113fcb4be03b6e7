"""Workers: each takes a task, has it done in a process of its own, and tells the queue."""

import os
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext
from typing import Any

from optuna.trial import FrozenTrial

from overopt.embedded import BEST_WIN_RATE, Cell, EmbeddedExperiment, Task
from overopt.sweep.queue import TaskQueue, TaskState
from overopt.sweep.task_process import Outcome, Place, TaskProcess

_POLL = 1.0  # between looks at the queue, for those who wait [s]


@dataclass
class Board:
    """All tasks of a sweep, in two studies: cells, and what cells share.

    The shared ones have a study of their own, so that the cells' one shows nothing but cells.

    Attributes:
        cells: queue of the cells.
        shared: queue of what they share.
        plan: all tasks, in an order in which each comes after what it needs.
        states: as last seen.
    """

    cells: TaskQueue
    shared: TaskQueue
    plan: Mapping[str, Task]
    states: dict[str, TaskState] = field(default_factory=dict)

    def queue_of(self, name: str) -> TaskQueue:
        """The queue that has a task."""
        return self.cells if name in self.cells.tasks else self.shared

    def refresh(self) -> None:
        """Give up the dead, queue what is missing, look."""
        self.states = {**self.shared.refill(), **self.cells.refill()}

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
        return [
            self.states[name]
            for name, task in self.plan.items()
            if self.states[name].state == "waiting" and all(self.states[need].state == "done" for need in task.needs)
        ]


@dataclass
class Worker:
    """Takes tasks until none is left.

    Attributes:
        board: the tasks.
        context: what processes are forked from.
        experiment: that they belong to.
        grid: its cells.
        place: where this worker's tasks compute.
        number: among the workers of this process.
        stopping: set by whoever wants it to stop.
        task: name of what it does now.
    """

    board: Board
    context: ForkServerContext
    experiment: EmbeddedExperiment
    grid: Sequence[Cell]
    place: Place
    number: int
    stopping: threading.Event
    task: str | None = None
    failure: BaseException | None = None

    @property
    def name(self) -> str:
        """What trials say of who has them."""
        return f"{socket.gethostname()}:{os.getpid()}:{self.number}"

    def run(self) -> None:
        """Work until everything is done, has failed, or somebody says stop."""
        try:
            while not self.stopping.is_set():
                self.board.refresh()
                if self.board.over:
                    return
                if not any(self._take(task) for task in self.board.ready()):
                    self.stopping.wait(_POLL)
        except BaseException as error:
            self.failure = error
            self.stopping.set()

    def _take(self, task: TaskState) -> bool:
        if self.stopping.is_set():
            return True
        queue = self.board.queue_of(task.name)
        trial = queue.claim(task, self.name)
        if trial is None:
            return False
        self.task = task.name
        with queue.alive(trial):
            outcome = self._have_done(task.name)
            self._tell(queue, trial, outcome)
        self.task = None
        return True

    def _have_done(self, name: str) -> Outcome:
        process = TaskProcess(self.context, self.experiment, self.grid, name, self.place)
        while (outcome := process.wait(_POLL)) is None:
            if self.stopping.is_set():
                process.stop()
        return outcome

    def _tell(self, queue: TaskQueue, trial: FrozenTrial, outcome: Outcome) -> None:
        if outcome.result is not None:
            attributes: dict[str, Any] = {**outcome.result, "seconds": round(outcome.seconds, 3)}
            queue.finish(trial, outcome.result.get(BEST_WIN_RATE, 0.0), attributes)
        elif self.stopping.is_set() or outcome.stopped:
            queue.fail(trial, "stopped", outcome.error or "stopped")
        elif outcome.error is not None:
            queue.fail(trial, "error", outcome.error)
        else:
            queue.fail(trial, "died", "its process died")
            time.sleep(_POLL)
