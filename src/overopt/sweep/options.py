"""How a sweep is run and what it trains, as options of the scripts in ``sweeps/``."""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import jsonargparse
import yaml

from overopt.embedded.recipe import Recipe
from overopt.sweep.cluster_jobs import JobOptions, Launcher


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
        job: start workers as jobs of a cluster, and watch them; they work here by default.
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
    job: JobOptions | None = None

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
    group = parser.add_argument_group("workers as jobs of a cluster")
    job = JobOptions("slurm")
    group.add_argument(
        "--launcher", choices=get_args(Launcher), help="slurm, or local: jobs on this machine, as a trial"
    )
    group.add_argument("--jobs", type=int, default=job.jobs, help="how many, each with --workers workers")
    group.add_argument(
        "--job-minutes", type=int, default=job.minutes, help="time limit; at its end a job is queued again"
    )
    group.add_argument(
        "--job-settings", nargs="+", default=[], metavar="KEY=VALUE", help="partition=gpu, gpus_per_node=8, mem_gb=64"
    )


def options_of(arguments: argparse.Namespace) -> SweepOptions:
    """What :func:`add_options` has read."""
    here = {name: getattr(arguments, name) for name in SweepOptions.__dataclass_fields__ if name != "job"}
    settings = tuple(arguments.job_settings)
    job = arguments.launcher and JobOptions(arguments.launcher, arguments.jobs, arguments.job_minutes, settings)
    return SweepOptions(**here, job=job)


def add_recipe_options(parser: argparse.ArgumentParser) -> None:
    """The options that change the recipe."""
    group = parser.add_argument_group("what is trained")
    group.add_argument("--preset", type=Path, help="YAML of a recipe, as conf/sweep/ has them; the embedded default")
    group.add_argument("--prompts", type=int, help="held-out prompts; the preset's by default, as all below")
    group.add_argument("--steps", type=int, help="optimiser steps of an alignment")
    group.add_argument("--source", help="of the texts, as overopt data-report has it")
    group.add_argument("--path", help="file or folder of the source")


def recipe_of(arguments: argparse.Namespace) -> Recipe:
    """What :func:`add_recipe_options` has read."""
    given = {
        "evaluation_prompts": arguments.prompts,
        "align_steps": arguments.steps,
        "source": arguments.source,
        "path": arguments.path,
    }
    recipe = Recipe() if arguments.preset is None else read_preset(arguments.preset)
    return replace(recipe, **{name: value for name, value in given.items() if value is not None})


def read_preset(file: Path) -> Recipe:
    """A recipe from a YAML file of its settings; those that it leaves out are the embedded default's.

    Raises:
        ValueError: no such file, no such setting, or a value that does not fit.
    """
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Recipe, "recipe")
    try:
        settings = yaml.safe_load(file.read_text()) or {}
        if not isinstance(settings, dict):
            raise ValueError(f"{file} is no preset: expected a mapping of settings, such as align_steps: 256")
        recipe: Recipe = parser.instantiate(parser.parse_object({"recipe": settings})).recipe
    except (OSError, yaml.YAMLError, jsonargparse.ArgumentError) as error:
        raise ValueError(f"{file} is no preset: {' '.join(str(error).split())}") from error
    return recipe
