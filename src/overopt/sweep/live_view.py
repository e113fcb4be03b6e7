"""What a person at a terminal sees of a sweep: done, running, failed; the best so far; the time left."""

import time
from collections.abc import Sequence

from optuna.trial import FrozenTrial, TrialState
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from overopt.run_evaluations import BEST_EXAMPLES_SEEN, BEST_KL, BEST_N, BEST_WIN_RATE
from overopt.sweep.board import Board
from overopt.sweep.queue import SECONDS, TaskState
from overopt.sweep.worker import Worker


def view(board: Board, workers: Sequence[Worker], began: float) -> RenderableType:
    """The picture of this moment.

    Args:
        board: the tasks, as last seen.
        workers: of this process.
        began: :func:`time.monotonic` of the beginning.
    """
    states = [board.states[name] for name in board.cells.tasks if name in board.states]
    counts = {state: sum(task.state == state for task in states) for state in ("done", "running", "waiting", "failed")}
    head = Table.grid(padding=(0, 2))
    head.add_row(
        ProgressBar(total=max(len(states), 1), completed=counts["done"], width=30),
        Text(", ".join(f"{count} {state}" for state, count in counts.items() if count or state == "done")),
        Text(f"{_clock(time.monotonic() - began)} gone, {_left(board)} left"),
    )
    running = Table.grid(padding=(0, 2))
    for name, task in board.states.items():
        if task.state != "running":
            continue
        here = any(worker.task == name for worker in workers)
        trial = next(trial for trial in task.trials if trial.state == TrialState.RUNNING)
        since = "" if trial.datetime_start is None else _clock(time.time() - trial.datetime_start.timestamp())
        where = "here" if here else str(trial.user_attrs.get("worker", "elsewhere")).partition(":")[0]
        running.add_row("running", name, since, where)
    lines: list[RenderableType] = [head, running]
    if best := best_cell(board):
        lines.append(Text(f"best so far: {best}"))
    lines += [Text(f"failed for good: {task.name}: {task.reason}", style="red") for task in failed_tasks(board)]
    return Group(*lines)


def best_trial(board: Board) -> tuple[str, FrozenTrial] | None:
    """Name and trial of the finished cell that wins most."""
    finished = {name: trial for name in board.cells.tasks if (trial := board.states[name].finished) is not None}
    return max(finished.items(), key=lambda named: named[1].value or 0.0, default=None)


def best_cell(board: Board) -> str:
    """The same in words."""
    if (best := best_trial(board)) is None:
        return ""
    name, told = best[0], best[1].user_attrs
    where = f"the best of {told[BEST_N]:.0f}" if BEST_N in told else f"after {told[BEST_EXAMPLES_SEEN]:.0f} examples"
    return f"{name}: win rate {told[BEST_WIN_RATE]:.3f} at KL {told[BEST_KL]:.1f} nats, {where}"


def failed_tasks(board: Board) -> list[TaskState]:
    """Tasks that failed for good; those that wait for one of them are not among them."""
    return [task for task in board.states.values() if task.state == "failed"]


def _left(board: Board) -> str:
    """By the mean of what is done, and as many at a time as run now."""
    cells = [board.states[name] for name in board.cells.tasks if name in board.states]
    took = [trial.user_attrs[SECONDS] for task in cells if (trial := task.finished) is not None]
    if not took:
        return "?"
    rest = sum(task.state in ("waiting", "running") for task in cells)
    at_a_time = max(1, sum(task.state == "running" for task in cells))
    return _clock(sum(took) / len(took) * rest / at_a_time)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
