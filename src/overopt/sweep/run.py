"""A sweep from beginning to end: what every script in ``sweeps/`` calls."""

import argparse
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from multiprocessing.context import ForkServerContext
from pathlib import Path

import optuna
import torch
from mlflow import MlflowClient
from optuna.storages import RDBStorage
from rich.console import Console
from rich.live import Live

from overopt.analysis.report import ReportPaths
from overopt.analysis.store_report import keep_report, report_from_store
from overopt.checkpoints.stage_folder import remove_unfinished
from overopt.embedded import Cell, EmbeddedExperiment, Recipe
from overopt.modules.checkpoint_schedule import checkpoint_path
from overopt.run_evaluations import BEST_EXAMPLES_SEEN
from overopt.sweep.beta_search import BetaSearch
from overopt.sweep.board import Board, parameters_of
from overopt.sweep.definition import code_fingerprint, require_same
from overopt.sweep.live_view import best_cell, best_trial, failed_tasks, view
from overopt.sweep.queue import SECONDS, Parameters, TaskQueue, open_study
from overopt.sweep.storage import open_storage
from overopt.sweep.task_process import Place, remove_left_folders, start_server
from overopt.sweep.worker import Worker
from overopt.tracking.runs import FAILURE_TAG, NAME_TAG, PARENT_TAG, find_run, require_run, set_tags, start_run
from overopt.tracking.store import driver_url, one_at_a_time, open_store, resolve_tracking_uri, shown_uri

_PARENT = "parent_run"


@dataclass(frozen=True)
class SweepOptions:
    """How a sweep is run; none of it changes its results.

    Attributes:
        name: of study, parent run and folder.
        storage: SQLAlchemy URL of Optuna's storage; ``OUT/sweep.db`` by default.
        out: folder for everything but the tracking store; ``outputs/sweeps/NAME`` by default.
        tracking_uri: MLflow store.
        workers: of this process, each with one task at a time; one a GPU, or one on a CPU, by default.
        cells_per_gpu: workers that share a GPU.
        max_errors: a task that raised so often has failed for good.
        max_deaths: so has one whose process died so often.
        heartbeat: seconds between signs of life.
        grace: seconds without one after which others take over.
        dry_run: print cells and plan, and stop.
    """

    name: str
    storage: str | None = None
    out: Path | None = None
    tracking_uri: str | None = None
    workers: int | None = None
    cells_per_gpu: int = 1
    max_errors: int = 3
    max_deaths: int = 10
    heartbeat: int = 10
    grace: int = 60
    dry_run: bool = False

    def __post_init__(self) -> None:
        numbers = {name: value for name, value in vars(self).items() if isinstance(value, int) and name != "dry_run"}
        if low := {name: value for name, value in numbers.items() if value < 1}:
            found = ", ".join(f"--{name.replace('_', '-')} {value}" for name, value in low.items())
            raise ValueError(f"need at least 1, got {found}")
        if self.grace <= self.heartbeat:
            raise ValueError(f"--grace is longer than --heartbeat, got {self.grace} and {self.heartbeat} seconds")

    @property
    def folder(self) -> Path:
        """Of everything but the tracking store."""
        return (self.out or Path("outputs/sweeps") / self.name).resolve()

    @property
    def storage_url(self) -> str:
        """Of Optuna's storage."""
        return self.storage or f"sqlite:///{self.folder / 'sweep.db'}"


def add_options(parser: argparse.ArgumentParser, name: str) -> None:
    """The options that all sweeps have."""
    group = parser.add_argument_group("how it is run")
    defaults = SweepOptions(name)
    group.add_argument("--name", default=name, help="of study, parent run and folder")
    group.add_argument("--storage", help="Optuna storage: sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE")
    group.add_argument("--out", type=Path, help="folder for checkpoints and completions; outputs/sweeps/NAME")
    group.add_argument("--tracking-uri", help="MLflow store; MLFLOW_TRACKING_URI, or SQLite in mlruns/")
    group.add_argument("--workers", type=int, help="tasks at a time; one a GPU, or one on a CPU")
    group.add_argument("--cells-per-gpu", type=int, default=defaults.cells_per_gpu, help="workers that share a GPU")
    group.add_argument("--max-errors", type=int, default=defaults.max_errors, help="then a task has failed for good")
    group.add_argument("--max-deaths", type=int, default=defaults.max_deaths, help="the same for killed processes")
    group.add_argument("--heartbeat", type=int, default=defaults.heartbeat, help="seconds between signs of life")
    group.add_argument("--grace", type=int, default=defaults.grace, help="seconds without one until others take over")
    group.add_argument("--dry-run", action="store_true", help="print cells and plan, and stop")


def options_of(arguments: argparse.Namespace) -> SweepOptions:
    """What :func:`add_options` has read."""
    return SweepOptions(**{name: getattr(arguments, name) for name in SweepOptions.__dataclass_fields__})


def add_recipe_options(parser: argparse.ArgumentParser) -> None:
    """The options that change the recipe."""
    group = parser.add_argument_group("what is trained")
    recipe = Recipe()
    group.add_argument("--prompts", type=int, default=recipe.evaluation_prompts, help="held-out prompts")
    group.add_argument("--steps", type=int, default=recipe.align_steps, help="optimiser steps of a cell")
    group.add_argument("--source", default=recipe.source, help="of the texts, as overopt data-report has it")
    group.add_argument("--path", help="file or folder of the source")


def recipe_of(arguments: argparse.Namespace) -> Recipe:
    """What :func:`add_recipe_options` has read."""
    return replace(
        Recipe(),
        evaluation_prompts=arguments.prompts,
        align_steps=arguments.steps,
        source=arguments.source,
        path=arguments.path,
    )


def run_sweep(
    cells: Sequence[Cell], recipe: Recipe, options: SweepOptions, search: BetaSearch | None = None
) -> ReportPaths | None:
    """Do all cells, or as many as others leave, and report.

    Args:
        cells: the grid, or what a search starts with.
        recipe: of everything else.
        options: how it is run.
        search: proposes more cells when these are done.

    Returns:
        The report; ``None`` after a dry run, or where no cell finished.

    Raises:
        ValueError: a storage or store that can't be reached, or a study that was made with something else; before
            any training.
        KeyboardInterrupt: somebody stopped it, by Ctrl-C or SIGTERM; started again, it goes on.
    """
    console = Console()
    if len({cell.name for cell in cells}) != len(cells) or not cells:
        raise ValueError(f"a grid is cells that differ, got {len(cells)}, {len({cell.name for cell in cells})} of them")
    if options.dry_run:
        _print_plan(console, cells, recipe, options, search)
        return None
    context = start_server()
    uri = resolve_tracking_uri(options.tracking_uri)
    client = open_store(uri, create=True)
    storage = open_storage(options.storage_url, options.heartbeat, options.grace)
    experiment = EmbeddedExperiment(options.folder, uri, "", recipe)
    definition = {
        "cells": sorted(cell.name for cell in cells),
        "search": None if search is None else asdict(search),
        "recipe": asdict(recipe),
        "code": code_fingerprint(),
        "data": experiment.fingerprint(),
    }
    with one_at_a_time(driver_url(options.storage_url)):  # who else may be starting
        study = open_study(storage, options.name)
        require_same(study, definition)
        experiment.study = parent = parent_run(client, options.name, study)
    client.update_run(parent, status="RUNNING")
    board = _board(storage, experiment, cells, options, search)
    board.refresh()
    finished = _work(board, context, options, console)
    for task in failed_tasks(board):
        _record_failure(client, parent, task.name, task.reason)
    if not finished:
        client.set_terminated(parent, "KILLED")
        raise KeyboardInterrupt
    for name in [*board.plan, "cache", "report"]:
        remove_unfinished(options.folder / name)
    remove_left_folders()
    client.set_terminated(parent, "FAILED" if failed_tasks(board) else "FINISHED")
    return _conclude(board, client, console, options)


def parent_run(client: MlflowClient, name: str, study: optuna.Study) -> str:
    """The study's run in the tracking store, made by whoever comes first."""
    known = study.user_attrs.get(_PARENT)
    if known is None:
        known = start_run(client, name, "study")
        study.set_user_attr(_PARENT, known)
    require_run(client, known)
    return str(known)


def _board(
    storage: RDBStorage,
    experiment: EmbeddedExperiment,
    cells: Sequence[Cell],
    options: SweepOptions,
    search: BetaSearch | None,
) -> Board:
    parameters = parameters_of(cells, search)
    shared = {name: Parameters() for name in experiment.tasks(cells) if name not in parameters}

    def queue(name: str, tasks: dict[str, Parameters]) -> TaskQueue:
        return TaskQueue(storage, name, tasks, options.max_errors, options.max_deaths)

    of_cells, of_shared = queue(options.name, parameters), queue(f"{options.name}: what cells share", shared)
    return Board(experiment, of_cells, of_shared, list(cells), search)


def _conclude(board: Board, client: MlflowClient, console: Console, options: SweepOptions) -> ReportPaths | None:
    """Report what was done, say where to look, and raise where something failed for good."""
    experiment = board.experiment
    names = board.cells.tasks
    done = sum(board.states[name].state == "done" for name in names)
    report = None
    if done:
        report = report_from_store(
            options.folder / "report", study=experiment.study, tracking_uri=experiment.tracking_uri
        )
        keep_report(client, experiment.study, report)
        console.print(f"best:          {best_cell(board)}", soft_wrap=True)
        console.print(f"checkpoint:    {_best_checkpoint(board)}", soft_wrap=True)
    console.print(f"dashboard:     optuna-dashboard {shown_uri(options.storage_url)}", soft_wrap=True)
    uri = shown_uri(experiment.tracking_uri)
    console.print(f"compare runs:  mlflow ui --backend-store-uri {uri}", soft_wrap=True)
    console.print(f"{done} of {len(names)} cells done, in {_cell_seconds(board):.0f} s of summed cell time")
    if failures := failed_tasks(board):
        raise ValueError(
            f"{len(failures)} task(s) failed for good, the first one {failures[0].name} ({failures[0].reason}); its "
            f"output is in {options.folder / 'logs' / (failures[0].name + '.txt')}"
        )
    return report


def _best_checkpoint(board: Board) -> Path:
    best = best_trial(board)
    assert best is not None  # some cell is done
    name, seen = best[0], int(best[1].user_attrs[BEST_EXAMPLES_SEEN])
    # Without a checkpoint within the KL budget, the reference is the best policy.
    folder, needs = board.experiment.out, board.plan[name].needs
    return checkpoint_path(folder / name / "checkpoints", seen) if seen else folder / needs[0] / "checkpoints/last.ckpt"


def _work(board: Board, context: ForkServerContext, options: SweepOptions, console: Console) -> bool:
    """Let workers do it all; false where somebody stopped them."""
    stopping = threading.Event()
    workers = [Worker(board, context, place, number, stopping) for number, place in enumerate(_places(options))]
    threads = [threading.Thread(target=worker.run, name=f"worker {worker.number}") for worker in workers]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    interrupted = False
    with Live(console=console, auto_refresh=False, transient=False) as live:
        while any(thread.is_alive() for thread in threads):
            try:
                live.update(view(board, workers, began), refresh=console.is_terminal)
                for thread in threads:
                    thread.join(1.0 / len(threads))
            except (KeyboardInterrupt, SystemExit):
                interrupted = True
                stopping.set()
        live.update(view(board, workers, began), refresh=True)
    if not console.is_terminal:
        console.print()  # which ends the last picture's line
    for worker in workers:
        if worker.failure is not None:
            raise worker.failure
    return not interrupted


def _places(options: SweepOptions) -> list[Place]:
    gpus = torch.cuda.device_count()  # which does not begin to use them
    count = options.workers or max(1, gpus * options.cells_per_gpu)
    if gpus and count > gpus * options.cells_per_gpu:
        raise ValueError(
            f"{count} workers on {gpus} GPU(s) need --cells-per-gpu {-(-count // gpus)}, got {options.cells_per_gpu}"
        )
    threads = max(1, torch.get_num_threads() // count)
    return [Place(threads, number % gpus if gpus else None) for number in range(count)]


def _record_failure(client: MlflowClient, parent: str, name: str, reason: str) -> None:
    """A run for what failed for good, so that the report tells of it."""
    tags = {PARENT_TAG: parent, NAME_TAG: name}
    run_id = find_run(client, tags) or start_run(client, name, "align", tags={PARENT_TAG: parent})
    set_tags(client, run_id, {FAILURE_TAG: reason})
    client.set_terminated(run_id, "FAILED")


def _cell_seconds(board: Board) -> float:
    """Of all trials, those that were interrupted included; what a killed worker did last is not known."""
    trials = (trial for name in board.cells.tasks for trial in board.states[name].trials)
    return math.fsum(trial.user_attrs.get(SECONDS, 0.0) for trial in trials)


def _print_plan(
    console: Console, cells: Sequence[Cell], recipe: Recipe, options: SweepOptions, search: BetaSearch | None
) -> None:
    plan = EmbeddedExperiment(options.folder, "", "", recipe).tasks(cells)
    names = {cell.name for cell in cells}
    shared = [name for name in plan if name not in names]
    for name, task in plan.items():
        console.print(f"{name}" + (f"  after {', '.join(task.needs)}" if name in shared and task.needs else ""))
    more = "" if search is None else f", and up to {search.runs - len(cells)} more, as those before them suggest,"
    console.print(
        f"{len(cells)} cells{more} after {len(shared)} tasks that they share; {recipe.align_steps} steps of "
        f"{recipe.align_batch_size} pairs and {recipe.evaluation_prompts} prompts a checkpoint each",
        soft_wrap=True,
    )
    console.print(f"storage {shown_uri(options.storage_url)}, folder {options.folder}", soft_wrap=True)
