"""Workers as jobs of a cluster, through submitit."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from submitit import AutoExecutor, Job
from submitit.helpers import Checkpointable

from overopt.tracking.store import sqlite_path

Launcher = Literal["slurm", "local"]


class JobsGoOnError(KeyboardInterrupt):
    """Somebody stopped watching jobs, which go on without."""


@dataclass(frozen=True)
class JobOptions:
    """Where workers run, when not here.

    Attributes:
        launcher: ``slurm``, or ``local``: jobs on this machine, as a trial of it.
        jobs: how many; each has ``--workers`` workers.
        minutes: time limit of a job; one that reaches it, or is preempted, is queued again.
        settings: of submitit, ``KEY=VALUE`` such as ``partition=gpu``, ``gpus_per_node=8`` or ``mem_gb=64``.

    Raises:
        ValueError: no jobs, no time, or a setting that is none.
    """

    launcher: Launcher
    jobs: int = 1
    minutes: int = 24 * 60
    settings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if min(self.jobs, self.minutes) < 1:
            raise ValueError(f"need at least 1, got --jobs {self.jobs}, --job-minutes {self.minutes}")
        if bad := [setting for setting in self.settings if not setting.partition("=")[2]]:
            raise ValueError(f"--job-settings are KEY=VALUE, such as partition=gpu; got {bad[0]!r}")

    def require_reach(self, *urls: str) -> None:
        """Refuse stores that other machines can't share.

        Raises:
            ValueError: one of them is an SQLite file, whose locks hold on one machine.
        """
        if self.launcher == "slurm" and (files := [url for url in urls if sqlite_path(url)]):
            raise ValueError(
                f"jobs on many machines share no SQLite file such as {files[0]}: give --storage postgresql://... and "
                "--tracking-uri postgresql://... or http://..."
            )


@dataclass
class SweepJob(Checkpointable):  # type: ignore[misc]
    """What a job does; preempted, it is queued again and goes on with what is left.

    Attributes:
        work: a whole sweep, with workers here.
    """

    work: Callable[[], object]

    def __call__(self) -> None:
        """Work."""
        try:
            self.work()
        except KeyboardInterrupt as stop:
            # submitit asks for a job to be queued again by its own exit code.
            raise stop.__cause__ or stop from None


def submit(options: JobOptions, work: Callable[[], object], name: str, folder: Path) -> list[Job[None]]:
    """Submit the jobs.

    Args:
        options: where and how many.
        work: of each; picklable.
        name: of the jobs.
        folder: of their output, which all machines share.

    Raises:
        ValueError: there is no such cluster here, or it has no such setting.
    """
    settings: dict[str, Any] = {}
    generic = AutoExecutor._typed_parameters()
    for setting in options.settings:
        key, _, value = setting.partition("=")
        settings[key if key in generic else f"slurm_{key}"] = int(value) if value.isdigit() else value
    try:
        executor = AutoExecutor(folder, cluster=options.launcher)
        executor.update_parameters(name=name, timeout_min=options.minutes, **settings)
        return [executor.submit(SweepJob(work)) for _ in range(options.jobs)]
    except (RuntimeError, NameError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"no jobs could be submitted to {options.launcher} ({reason})") from None


def wait_for(jobs: Sequence[Job[None]], patience: float) -> None:
    """Wait for the end of jobs, for some seconds at most."""
    deadline = time.monotonic() + patience
    while not all(job.done() for job in jobs) and time.monotonic() < deadline:
        time.sleep(0.1)


def cancel(jobs: Sequence[Job[None]]) -> None:
    """End the jobs that have not ended."""
    for job in jobs:
        if not job.done():
            job.cancel()
