"""Workers: each takes a task, has it done in a process of its own, and tells the queue."""

import os
import socket
import threading
import time
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from typing import Any

from optuna.trial import FrozenTrial

from overopt.run_evaluations import BEST_WIN_RATE
from overopt.sweep.board import Board
from overopt.sweep.queue import SECONDS, TaskQueue, TaskState
from overopt.sweep.task_process import Outcome, Place, TaskProcess

_POLL = 1.0  # between looks at the queue, for those who wait [s]


@dataclass
class Worker:
    """Takes tasks until none is left.

    Attributes:
        board: the tasks.
        context: what processes are forked from.
        place: where this worker's tasks compute.
        number: among the workers of this process.
        stopping: set by whoever wants it to stop.
        task: name of what it does now.
    """

    board: Board
    context: ForkServerContext
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
        process = TaskProcess(self.context, self.board.experiment, self.board.grid, name, self.place)
        while (outcome := process.wait(_POLL)) is None:
            if self.stopping.is_set():
                process.stop()
        return outcome

    def _tell(self, queue: TaskQueue, trial: FrozenTrial, outcome: Outcome) -> None:
        seconds = round(outcome.seconds, 3)
        if outcome.result is not None:
            attributes: dict[str, Any] = {**outcome.result, SECONDS: seconds}
            queue.finish(trial, outcome.result.get(BEST_WIN_RATE, 0.0), attributes)
        elif self.stopping.is_set() or outcome.stopped:
            queue.fail(trial, "stopped", outcome.error or "stopped", seconds)
        elif outcome.error is not None:
            queue.fail(trial, "error", outcome.error, seconds)
        else:
            queue.fail(trial, "died", "its process died", seconds)
            time.sleep(_POLL)
