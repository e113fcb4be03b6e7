"""Tasks that any number of workers share through an Optuna study: each is finished once, whoever dies on the way.

A task is a trial. That a trial leaves WAITING for RUNNING is decided by the storage for one worker alone; a worker's
signs of life keep it RUNNING; without them it becomes FAIL, and :meth:`TaskQueue.refill` makes another. What is missing
is found by looking at what is there, never remembered by a process, so that no death loses a task.
"""

import threading
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.storages import fail_stale_trials as fail_stale
from optuna.trial import FrozenTrial, TrialState

from overopt.sweep.storage import AWAY, patiently
from overopt.tracking.store import one_at_a_time, sqlite_path

State = Literal["waiting", "running", "done", "failed"]
Failure = Literal["error", "died", "stopped", "duplicate"]
"""``error``: the task raised; ``stopped``: somebody stopped its worker, or a store went away; ``duplicate``: another
trial has the task. A trial that was given up says nothing, and died."""
SECONDS = "seconds"
"""Attribute of a trial: how long its process worked; absent where its worker died."""
_TASK, _FAILURE, _REASON, _WORKER = "task", "failure", "reason", "worker"
_LIVE = (TrialState.WAITING, TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED)
_ENDED_WELL = (TrialState.COMPLETE, TrialState.PRUNED)


class Parameters(NamedTuple):
    """A task's parameters as Optuna shows them."""

    values: Mapping[str, Any] = {}
    distributions: Mapping[str, BaseDistribution] = {}


@dataclass(frozen=True)
class TaskState:
    """Where a task stands.

    Attributes:
        name: of the task.
        state: waiting, running, done, or failed for good.
        trials: of the task, in the order they were made.
    """

    name: str
    state: State
    trials: Sequence[FrozenTrial] = ()

    @property
    def reason(self) -> str:
        """Why it failed last."""
        ended = [trial for trial in self.trials if trial.state == TrialState.FAIL]
        return str(ended[-1].user_attrs.get(_REASON, "its process died")) if ended else ""

    @property
    def finished(self) -> FrozenTrial | None:
        """The trial that finished it."""
        return next((trial for trial in self.trials if trial.state in _ENDED_WELL), None)


@dataclass
class TaskQueue:
    """The tasks of one study.

    Attributes:
        storage: of the study.
        name: of the study.
        tasks: all tasks by name, with their parameters.
        max_errors: a task that raised so often has failed for good.
        max_deaths: so has one whose process died so often.
    """

    storage: RDBStorage
    name: str
    tasks: dict[str, Parameters]
    max_errors: int = 3
    max_deaths: int = 10
    study: optuna.Study = field(init=False)

    def __post_init__(self) -> None:
        self.study = open_study(self.storage, self.name)
        self._id = self.study._study_id

    def refill(self) -> dict[str, TaskState]:
        """Give up the dead, queue what is missing, and say where each task stands."""

        def give_up_and_look() -> dict[str, TaskState]:
            with _experimental():
                fail_stale(self.study)
            return self.look()

        states = patiently(give_up_and_look)
        for name, task in states.items():
            if task.finished is not None:
                for trial in task.trials:
                    if trial.state == TrialState.WAITING:
                        self.fail(trial, "duplicate", f"trial {task.finished.number} has done this task")
            if task.state == "waiting" and not any(trial.state == TrialState.WAITING for trial in task.trials):
                parameters = self.tasks[name]
                trial = optuna.create_trial(
                    state=TrialState.WAITING,
                    params=dict(parameters.values),
                    distributions=dict(parameters.distributions),
                    user_attrs={_TASK: name},
                )
                patiently(lambda trial=trial: self.study.add_trial(trial))  # type: ignore[misc]
        return states

    def look(self) -> dict[str, TaskState]:
        """Where each task stands."""
        trials: dict[str, list[FrozenTrial]] = defaultdict(list)
        for trial in self._trials():
            trials[trial.user_attrs.get(_TASK, "")].append(trial)
        return {name: TaskState(name, self._state(trials[name]), trials[name]) for name in self.tasks}

    def strangers(self) -> list[FrozenTrial]:
        """Trials of tasks that others have queued, and this queue does not know."""
        return [trial for trial in self._trials() if trial.user_attrs.get(_TASK) not in self.tasks]

    def _trials(self) -> list[FrozenTrial]:
        trials = patiently(lambda: self.storage.get_all_trials(self._id, deepcopy=False))
        return [trial for trial in trials if trial.user_attrs.get(_FAILURE) != "duplicate"]

    def _state(self, trials: Sequence[FrozenTrial]) -> State:
        states = {trial.state for trial in trials}
        if states & set(_ENDED_WELL):
            return "done"
        if TrialState.RUNNING in states:
            return "running"
        failures = [trial.user_attrs.get(_FAILURE, "died") for trial in trials if trial.state == TrialState.FAIL]
        failed = failures.count("error") >= self.max_errors or failures.count("died") >= self.max_deaths
        return "failed" if failed else "waiting"

    def claim(self, task: TaskState, worker: str) -> FrozenTrial | None:
        """Take a waiting task; ``None`` where another was first."""
        waiting = next((trial for trial in task.trials if trial.state == TrialState.WAITING), None)
        if waiting is None:
            return None
        # Before it runs: a RUNNING trial that never showed life would never be given up.
        patiently(lambda: self.storage.record_heartbeat(waiting._trial_id))
        try:
            # SQLite locks no rows: there, two who look at one time would both find it waiting.
            with one_at_a_time(self.storage.url) if sqlite_path(self.storage.url) else nullcontext():
                if not patiently(lambda: self.storage.set_trial_state_values(waiting._trial_id, TrialState.RUNNING)):
                    return None
        except UpdateFinishedTrialError:
            return None
        patiently(lambda: self.storage.set_trial_user_attr(waiting._trial_id, _WORKER, worker))
        # Two workers that queue at one time queue a task twice; of its trials the first one counts.
        for other in self.look()[task.name].trials:
            if other.number < waiting.number and other.state in _LIVE:
                self.fail(waiting, "duplicate", f"trial {other.number} has this task")
                return None
        return waiting

    @contextmanager
    def alive(self, trial: FrozenTrial) -> Iterator[None]:
        """Show life as long as this lasts."""
        over = threading.Event()
        interval = self.storage.heartbeat_interval

        def beat() -> None:
            while not over.wait(interval):
                try:
                    self.storage.record_heartbeat(trial._trial_id)
                except AWAY:
                    continue  # a storage that restarts; whoever can't beat for the grace period is given up

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def finish(self, trial: FrozenTrial, value: float, attributes: Mapping[str, Any]) -> bool:
        """Mark as done; false where the trial had been given up, and another has or will have the task."""
        return self._end(trial, TrialState.COMPLETE, value, attributes)

    def fail(self, trial: FrozenTrial, failure: Failure, reason: str, seconds: float = 0.0) -> bool:
        """Mark as failed; unless that was for good, the next refill queues the task again."""
        attributes = {_FAILURE: failure, _REASON: reason[:2000], SECONDS: seconds}
        return self._end(trial, TrialState.FAIL, None, attributes)

    def _end(self, trial: FrozenTrial, state: TrialState, value: float | None, attributes: Mapping[str, Any]) -> bool:
        def end() -> bool:
            try:
                for name, attribute in attributes.items():
                    self.storage.set_trial_user_attr(trial._trial_id, name, attribute)
                return self.storage.set_trial_state_values(trial._trial_id, state, None if value is None else [value])
            except UpdateFinishedTrialError:
                # Given up by others; or done a moment ago, when the connection broke before it could say so.
                return self.storage.get_trial(trial._trial_id).state == state

        return patiently(end)


def open_study(storage: RDBStorage, name: str) -> optuna.Study:
    """A study, made by whoever comes first."""
    return patiently(
        lambda: optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
    )


def name_metric(study: optuna.Study, name: str) -> None:
    """What the dashboard writes on its axes."""
    with _experimental():
        study.set_metric_names([name])


@contextmanager
def _experimental() -> Iterator[None]:
    """Optuna's word for interfaces that have stood for years; its warning means nothing to a user."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield
