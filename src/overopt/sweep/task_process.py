"""A task in a process of its own, without paying for imports each time.

A server process imports everything once and computes nothing; each task's process is a fork of it. A process whose
worker died ends itself.
"""

import atexit
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import psutil

from overopt.embedded.cells import StudyCell
from overopt.embedded.experiment import EmbeddedExperiment
from overopt.embedded.plan import plan
from overopt.sweep.shared_files import fetch, publish

_SOCKETS = "overopt-sweep-"
_SIGNALS = "overopt.sweep.ignored_signals"
# By MLflow, Lightning's logger and transformers, when they are first used: each task would wait for them.
_IMPORTED_LATE = (
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.db.utils",
    "mlflow.tracing.provider",
    "opentelemetry.sdk.metrics",
    "alembic.command",
    "transformers.models.gpt_neox.modeling_gpt_neox",
)
_PATIENCE = 20.0  # of a task that was told to stop [s]


@dataclass(frozen=True)
class Place:
    """Where a task computes.

    Attributes:
        threads: of a CPU.
        device: its GPU, as ``CUDA_VISIBLE_DEVICES`` names it; none on a CPU.
    """

    threads: int
    device: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a task.

    Attributes:
        result: what it told; where it is done.
        error: its error, in one line; a clean stop or a death have none.
        stopped: it was told to stop, or a store went away.
        seconds: from the start of its work to its end.
    """

    result: Mapping[str, float] | None = None
    error: str | None = None
    stopped: bool = False
    seconds: float = 0.0


def start_server() -> ForkServerContext:
    """The server that tasks are forked from; it imports while the caller goes on."""
    from multiprocessing import forkserver

    remove_left_folders()
    process = psutil.Process()
    folder = Path(tempfile.mkdtemp(prefix=f"{_SOCKETS}{process.pid}-{process.create_time():.0f}-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    # Where the server's socket is. A killed process leaves multiprocessing's own, whose name says nothing of its owner.
    multiprocessing.current_process()._config["tempdir"] = str(folder)  # type: ignore[attr-defined]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([_SIGNALS, __name__, *_IMPORTED_LATE])
    forkserver.ensure_running()
    return context


def remove_left_folders() -> None:
    """Remove the folders of sockets that killed workers of this machine have left."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_SOCKETS}*"):
        pid, created = folder.name.removeprefix(_SOCKETS).split("-")[:2]
        try:
            alive = f"{psutil.Process(int(pid)).create_time():.0f}" == created
        except psutil.NoSuchProcess:
            alive = False
        if not alive:
            shutil.rmtree(folder, ignore_errors=True)


class TaskProcess:
    """One task under way.

    Args:
        context: from :func:`start_server`.
        experiment: that the task belongs to.
        cells: of the experiment.
        name: of the task.
        place: where it computes.
    """

    def __init__(
        self,
        context: ForkServerContext,
        experiment: EmbeddedExperiment,
        cells: Sequence[StudyCell],
        name: str,
        place: Place,
    ) -> None:
        self._receiver, sender = context.Pipe(duplex=False)
        self._process: ForkServerProcess = context.Process(
            target=run_task, args=(experiment, cells, name, place, sender), name=name
        )
        self._process.start()
        sender.close()

    def wait(self, seconds: float) -> Outcome | None:
        """What became of it, or ``None`` after some seconds; an outcome without result and error is a death."""
        if not wait([self._receiver], timeout=seconds):
            return None
        try:
            outcome: Outcome = self._receiver.recv()
        except EOFError:
            outcome = Outcome()
        self._process.join()
        return outcome

    def stop(self) -> None:
        """Tell it to stop, and after a while end it."""
        if self._process.is_alive():
            self._process.terminate()
            self._process.join(_PATIENCE)
            if self._process.is_alive():
                self._process.kill()
        self._process.join()


def run_task(
    experiment: EmbeddedExperiment, cells: Sequence[StudyCell], name: str, place: Place, sender: "Connection[Any, Any]"
) -> None:
    """What a task's process does: the task, with its output in the log of its folder."""
    threading.Thread(target=_end_with_worker, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the worker's to tell
    signal.signal(signal.SIGTERM, _stop)
    if place.device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = place.device  # before CUDA is asked for anything
    import torch

    torch.set_num_threads(place.threads)
    log = experiment.out / "logs" / f"{name}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    with log.open("a", buffering=1, encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            task = plan(experiment, cells)[name]
            for need in task.needs:
                fetch(experiment.tasks.client, experiment.study, experiment.out / need)
            result = task.run()
            if name not in {cell.name for cell in cells}:
                publish(experiment.tasks.client, experiment.study, experiment.out / name)
            outcome = Outcome(result=dict(result), seconds=time.perf_counter() - begin)
        except BaseException as error:
            traceback.print_exc()
            stopped = isinstance(error, (KeyboardInterrupt, SystemExit)) or _is_away(error)
            text = str(error).strip().splitlines()
            reason = f"{type(error).__name__}: {text[0] if text else ''}"
            outcome = Outcome(error=reason, stopped=stopped, seconds=time.perf_counter() - begin)
    sender.send(outcome)
    sender.close()


def _stop(*_: object) -> None:
    raise SystemExit(143)


def _is_away(error: BaseException) -> bool:
    """Whether a store that could not be reached is behind an error."""
    from sqlalchemy.exc import DBAPIError

    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, DBAPIError) or "can't be reached" in str(seen) or "OperationalError" in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _end_with_worker() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)  # nobody would learn what became of it; the next worker goes on from its checkpoints
