"""A small sweep in a process of its own, and what it leaves."""

import os
import subprocess
import sys
from pathlib import Path

import optuna
import pandas as pd
from mlflow import MlflowClient


def start(texts, folder, *more):
    """In a folder, with everything it writes; on one thread, whose number rounds."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, Path(__file__).with_name("small_sweep.py"), texts, "--out", folder / "out"]
    command += ["--tracking-uri", f"sqlite:///{folder}/mlflow.db", "--heartbeat", "1", "--grace", "4", *more]
    return subprocess.Popen(
        [str(part) for part in command],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def points(folder):
    table = pd.read_csv(folder / "out" / "report" / "points.csv")
    return table.drop(columns="run_id")


def runs(uri):
    client = MlflowClient(uri)
    return client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])


def study(storage):
    return optuna.load_study(study_name="small", storage=storage)


def unfinished(folder):
    return [path for path in folder.rglob("*") if path.name.endswith((".tmp", ".partial", ".lock"))]
