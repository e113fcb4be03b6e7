"""What a sequential sweep costs besides its cells' training and evaluation: start-up, data, stores, report.

    python benchmarks/sweep_overhead.py

Runs ``sweeps/beta_grid.py`` from nothing, one cell after another, and divides its wall time, less that of the tasks
that cells share, by the sum of its cells' training and evaluation. What cells share begins with the texts, which are
read before the sweep is started. Training counts from a model's first step to its last, evaluation from opening
policies, judge and prompts to the last checkpoint; processes, imports, trainers, stores and the report are overhead.
"""

import argparse
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import optuna
from tables import machine, write_table

from overopt.embedded.experiment import EVALUATION_SECONDS, EmbeddedExperiment
from overopt.embedded.task_folders import TRAINING_SECONDS
from overopt.sweep.queue import SECONDS

HERE = Path(__file__).parent
SCRIPT = HERE.parent / "sweeps" / "beta_grid.py"


def main() -> None:
    """Run and divide."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("grid", nargs="*", default=["--sizes", "0.7M"], help="options of the grid, after --")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        begin = time.perf_counter()
        EmbeddedExperiment(folder, "", "").fingerprint()
        reading = time.perf_counter() - begin
        command = [sys.executable, SCRIPT, "--name", "overhead", "--out", folder, "--workers", "1"]
        begin = time.perf_counter()
        command += ["--tracking-uri", f"sqlite:///{folder}/mlflow.db", *arguments.grid]
        if code := subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode:
            sys.exit(code)  # the sweep has said why
        wall = time.perf_counter() - begin
        storage = f"sqlite:///{folder}/sweep.db"
        cells = optuna.load_study(study_name="overhead", storage=storage).trials
        shared = optuna.load_study(study_name="overhead: what cells share", storage=storage).trials
    spent = {
        key: math.fsum(t.user_attrs[key] for t in cells) for key in (TRAINING_SECONDS, EVALUATION_SECONDS, SECONDS)
    }
    whole = wall - math.fsum(duration(trial) for trial in shared)
    work = spent[TRAINING_SECONDS] + spent[EVALUATION_SECONDS]
    parts = {
        "training": spent[TRAINING_SECONDS],
        "evaluation": spent[EVALUATION_SECONDS],
        "the rest of the cells' processes": spent[SECONDS] - work,
        "between cells": math.fsum(duration(trial) for trial in cells) - spent[SECONDS],
        "start, end and report": whole - math.fsum(duration(trial) for trial in cells),
        "the whole": whole,
    }
    rows = [
        {"part": part, "s": f"{value:.1f}", "of the whole": f"{value / whole:.1%}"} for part, value in parts.items()
    ]
    title = f"A sequential sweep of {len(cells)} cells, part by part ({' '.join(arguments.grid)})"
    notes = [*machine(), f"the tasks that cells share took another {wall - whole + reading:.0f} s"]
    write_table(arguments.out / "sweep_overhead.md", title, rows, notes)
    print(f"the whole is {whole / work:.3f}x the training and evaluation of its {len(cells)} cells")


def duration(trial: optuna.trial.FrozenTrial) -> float:
    """From claim to end [s]."""
    assert trial.duration is not None  # all trials of a finished sweep have ended
    return trial.duration.total_seconds()


if __name__ == "__main__":
    main()
