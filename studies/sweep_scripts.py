"""The scripts in ``sweeps/``, run as a person would run them."""

import argparse
import math
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import optuna

from overopt.sweep.queue import SECONDS
from overopt.sweep.run import PARENT_ATTRIBUTE, shared_name
from overopt.tracking.store import open_store

SWEEPS = Path(__file__).parents[1] / "sweeps"


def run_script(script: str, *options: object) -> None:
    """Run a script; where it fails, it has said why, and this process ends with its exit code."""
    command = [str(part) for part in (sys.executable, SWEEPS / script, *options)]
    if code := subprocess.run(command, check=False).returncode:
        sys.exit(code)


def sweep_arguments(description: str | None, name: str) -> argparse.Namespace:
    """Options of a study of one sweep: where it is, where results are kept, and what its script is given besides."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/sweeps") / name)
    parser.add_argument("--keep", type=Path, default=None, help="folder for points, tables, figures and the summary")
    parser.add_argument("sweep", nargs="*", help=f"more options of sweeps/{name}.py, after --")
    return parser.parse_args()


class SweepRecord(NamedTuple):
    """What a sweep's trials say.

    Attributes:
        done: trials that ended well.
        hours: that all of them took, one after another.
        commit: that computed them: a sweep takes sittings, and one code.
        run: the study's parent run in MLflow.
    """

    done: int
    hours: float
    commit: str
    run: str


def sweep_record(out: Path, name: str, *, with_shared: bool) -> SweepRecord:
    """Of the cells of a sweep, and of what they share where that counts."""
    storage = f"sqlite:///{out.resolve()}/sweep.db"
    names = [name, shared_name(name)] if with_shared else [name]
    studies = [optuna.load_study(study_name=each, storage=storage) for each in names]
    trials = [trial for study in studies for trial in study.trials]
    run = studies[0].user_attrs[PARENT_ATTRIBUTE]
    parent = open_store(None, create=False).get_run(run)
    return SweepRecord(
        done=sum(trial.state == optuna.trial.TrialState.COMPLETE for trial in trials),
        hours=math.fsum(trial.user_attrs.get(SECONDS, 0.0) for trial in trials) / 3600,
        commit=parent.data.params["git_commit"],
        run=run,
    )
