"""A sweep from beginning to end: what every script in ``sweeps/`` calls."""

import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from multiprocessing.context import ForkServerContext

import optuna
import torch
from mlflow import MlflowClient
from optuna.storages import RDBStorage
from rich.console import Console
from rich.live import Live

from overopt.analysis.page.report import ReportPaths
from overopt.analysis.store_report import report_from_store
from overopt.checkpoints.checkpoint_names import checkpoint_path
from overopt.checkpoints.stage_folder import remove_unfinished
from overopt.embedded.cells import BestOfN, Cell, PolicyGradientCell, StudyCell
from overopt.embedded.experiment import EmbeddedExperiment
from overopt.embedded.plan import plan
from overopt.embedded.recipe import Recipe
from overopt.run_evaluations import BEST_EXAMPLES_SEEN, BEST_N, BEST_WIN_RATE
from overopt.sweep.beta_search import BetaSearch
from overopt.sweep.board import Board, parameters_of
from overopt.sweep.cluster_jobs import JobsGoOnError, cancel, submit, wait_for
from overopt.sweep.definition import code_fingerprint, require_same
from overopt.sweep.live_view import best_cell, best_trial, failed_tasks, view
from overopt.sweep.options import SweepOptions
from overopt.sweep.queue import SECONDS, Parameters, TaskQueue, name_metric, open_study
from overopt.sweep.storage import open_storage
from overopt.sweep.task_process import Place, remove_left_folders, start_server
from overopt.sweep.worker import Worker
from overopt.tracking.runs import (
    FAILURE_TAG,
    NAME_TAG,
    PARENT_TAG,
    find_run,
    finishing,
    require_run,
    set_tags,
    start_run,
)
from overopt.tracking.store import driver_url, one_at_a_time, open_store, resolve_tracking_uri, shown_uri
from overopt.tracking.study_view import keep_study_view

PARENT_ATTRIBUTE = "parent_run"
"""Of a study: the id of its run in the tracking store."""
_LOOK = 1.0  # between pictures of the board [s]
_PATIENCE = 60.0  # with jobs that have nothing left to do [s]


def run_sweep(
    cells: Sequence[StudyCell], recipe: Recipe, options: SweepOptions, search: BetaSearch | None = None
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
    if all(isinstance(cell, BestOfN) for cell in cells):
        raise ValueError("a sweep's report needs a policy that is trained: best-of-n alone is overopt best-of-n")
    # Refuses cells that the recipe has no room for, before anything is written.
    plan(EmbeddedExperiment(options.folder, "", "", recipe), cells)
    if options.dry_run:
        _print_plan(console, cells, recipe, options, search)
        return None
    context = start_server() if options.job is None else None
    uri = resolve_tracking_uri(options.tracking_uri)
    if options.job is not None:
        options.job.require_reach(options.storage_url, uri)
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
        name_metric(study, BEST_WIN_RATE)
        experiment.study = parent = parent_run(client, options.name, study)
    if options.job is None:
        _say_where_to_look(console, client, parent, options)
    board = _board(storage, experiment, cells, options, search)
    try:
        with finishing(client, parent):
            board.refresh()
            if context is not None:
                stopped = _work_here(board, context, options, console)
            else:
                here = replace(options, out=options.folder, storage=options.storage_url, tracking_uri=uri, job=None)
                stopped = _work_in_jobs(board, partial(run_sweep, list(cells), recipe, here, search), options, console)
            for task in failed_tasks(board):
                _record_failure(client, parent, task.name, task.reason)
            if stopped is not None:
                raise KeyboardInterrupt from stopped
            for name in [*board.plan, "cache", "report"]:
                remove_unfinished(options.folder / name)
            remove_left_folders()
            return _conclude(board, client, console, options)
    except JobsGoOnError:
        client.update_run(parent, status="RUNNING")  # until the jobs end it themselves
        raise


def shared_name(name: str) -> str:
    """Of the study of what a study's cells share."""
    return f"{name}: what cells share"


def parent_run(client: MlflowClient, name: str, study: optuna.Study) -> str:
    """The study's run in the tracking store, made by whoever comes first."""
    known = study.user_attrs.get(PARENT_ATTRIBUTE)
    if known is None:
        known = start_run(client, name, "study")
        study.set_user_attr(PARENT_ATTRIBUTE, known)
    require_run(client, known)
    return str(known)


def _board(
    storage: RDBStorage,
    experiment: EmbeddedExperiment,
    cells: Sequence[StudyCell],
    options: SweepOptions,
    search: BetaSearch | None,
) -> Board:
    parameters = parameters_of(cells, search)
    shared = {name: Parameters() for name in plan(experiment, cells) if name not in parameters}

    def queue(name: str, tasks: dict[str, Parameters]) -> TaskQueue:
        return TaskQueue(storage, name, tasks, options.max_errors, options.max_deaths)

    of_cells, of_shared = queue(options.name, parameters), queue(shared_name(options.name), shared)
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
        console.print(f"best:          {best_cell(board)}", soft_wrap=True)
        console.print(f"checkpoint:    {_best_policy(board)}", soft_wrap=True)
    _say_where_to_look(console, client, experiment.study, options)
    console.print(f"{done} of {len(names)} cells done, in {_cell_seconds(board):.0f} s of summed cell time")
    if failures := failed_tasks(board):
        raise ValueError(
            f"{len(failures)} task(s) failed for good, the first one {failures[0].name} ({failures[0].reason}); its "
            f"output is in {options.folder / 'logs' / (failures[0].name + '.txt')}"
        )
    return report


def _say_where_to_look(console: Console, client: MlflowClient, study: str, options: SweepOptions) -> None:
    console.print(f"dashboard:     optuna-dashboard {shown_uri(options.storage_url)}", soft_wrap=True)
    for line in keep_study_view(client, study):
        console.print(f"compare runs:  {line}", soft_wrap=True)


def _best_policy(board: Board) -> str:
    best = best_trial(board)
    assert best is not None  # some cell is done
    name, told = best[0], best[1].user_attrs
    folder = board.experiment.out
    reference = folder / board.plan[name].needs[0] / "checkpoints/last.ckpt"
    if BEST_N in told:
        return f"{reference}, of whose samples the best is taken"
    # Without a checkpoint within the KL budget, the reference is the best policy.
    seen = int(told[BEST_EXAMPLES_SEEN])
    return str(checkpoint_path(folder / name / "checkpoints", seen) if seen else reference)


def _work_here(
    board: Board, context: ForkServerContext, options: SweepOptions, console: Console
) -> BaseException | None:
    """Let workers do it all; gives what somebody stopped them by."""
    stopping = threading.Event()
    workers = [Worker(board, context, place, number, stopping) for number, place in enumerate(_places(options))]
    threads = [threading.Thread(target=worker.run, name=f"worker {worker.number}") for worker in workers]
    for thread in threads:
        thread.start()

    def wait() -> bool:
        for thread in threads:
            thread.join(_LOOK / len(threads))
        return any(thread.is_alive() for thread in threads)

    stopped = _watch(board, workers, wait, stopping.set, console)
    for worker in workers:
        if worker.failure is not None:
            raise worker.failure
    return stopped


def _work_in_jobs(
    board: Board, work: Callable[[], object], options: SweepOptions, console: Console
) -> BaseException | None:
    """Submit jobs and watch them do it all; gives what somebody stopped jobs of this machine by."""
    assert options.job is not None
    folder = options.folder / "jobs"
    jobs = submit(options.job, work, options.name, folder)
    numbers, launcher = " ".join(job.job_id for job in jobs), options.job.launcher
    console.print(f"{launcher} jobs {numbers}, their output in {folder}", soft_wrap=True)
    left = threading.Event()

    def wait() -> bool:
        if left.is_set():
            return False
        time.sleep(_LOOK)
        board.refresh()
        return not board.over and not all(job.done() for job in jobs)

    stopped = _watch(board, [], wait, left.set, console)
    if stopped is not None and launcher == "slurm":
        console.print(f"the jobs go on; this ends them: scancel {numbers}", soft_wrap=True)
        raise JobsGoOnError
    if stopped is None and not board.over:
        raise ValueError(
            f"all jobs have ended and tasks are left: {folder} says why; start the same command again to go on"
        )
    if stopped is None:
        wait_for(jobs, _PATIENCE)  # they write their reports
    cancel(jobs)
    wait_for(jobs, _PATIENCE)
    return stopped


def _watch(
    board: Board, workers: Sequence[Worker], wait: Callable[[], bool], stop: Callable[[], None], console: Console
) -> BaseException | None:
    """Show the board as long as there is something to wait for; gives what somebody stopped it by."""
    began, stopped = time.monotonic(), None
    with Live(console=console, auto_refresh=False, transient=False) as live:
        going = True
        while going:
            try:
                live.update(view(board, workers, began), refresh=console.is_terminal)
                going = wait()
            except (KeyboardInterrupt, SystemExit) as request:
                stopped = request
                stop()
        live.update(view(board, workers, began), refresh=True)
    if not console.is_terminal:
        console.print()  # which ends the last picture's line
    return stopped


def _places(options: SweepOptions) -> list[Place]:
    gpus = torch.cuda.device_count()  # which does not begin to use them
    # A cluster may have given this job some of the machine's.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
    count = options.workers or max(1, gpus * options.cells_per_gpu)
    if gpus and count > gpus * options.cells_per_gpu:
        raise ValueError(
            f"{count} workers on {gpus} GPU(s) need --cells-per-gpu {-(-count // gpus)}, got {options.cells_per_gpu}"
        )
    threads = max(1, torch.get_num_threads() // count)
    return [Place(threads, visible[number % gpus] if gpus else None) for number in range(count)]


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
    console: Console, cells: Sequence[StudyCell], recipe: Recipe, options: SweepOptions, search: BetaSearch | None
) -> None:
    tasks = plan(EmbeddedExperiment(options.folder, "", "", recipe), cells)
    names = {cell.name for cell in cells}
    shared = [name for name in tasks if name not in names]
    for name, task in tasks.items():
        console.print(f"{name}" + (f"  after {', '.join(task.needs)}" if name in shared and task.needs else ""))
    more = "" if search is None else f", and up to {search.runs - len(cells)} more, as those before them suggest,"
    parts = [f"{len(cells)} cells{more} after {len(shared)} tasks that they share"]
    if any(isinstance(cell, Cell) for cell in cells):
        parts.append(f"{recipe.align_steps} steps of {recipe.align_batch_size} pairs an alignment")
    if any(isinstance(cell, PolicyGradientCell) for cell in cells):
        parts.append(f"{recipe.rl_steps} steps of {recipe.rl_prompts} prompts a policy gradient")
    parts.append(f"{recipe.evaluation_prompts} held-out prompts a checkpoint")
    console.print("; ".join(parts), soft_wrap=True)
    console.print(f"storage {shown_uri(options.storage_url)}, folder {options.folder}", soft_wrap=True)
