"""Stage ``token-q``: soft values of aligned checkpoints, token by token, as tables, figures and metrics."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow import MlflowClient

from overopt.analysis.figures.style import drawing, write_figures
from overopt.analysis.figures.token_q import (
    draw_heat_map,
    draw_over_betas,
    draw_over_training,
    draw_values_against_beta,
    heat_map_texts,
    last_checkpoints,
)
from overopt.checkpoints.checkpoint_names import named_checkpoints, run_folder
from overopt.checkpoints.format import ModelCheckpoint, read_model_checkpoint
from overopt.checkpoints.whole_file import whole_file
from overopt.data.datamodule import PreferenceDataModule, data_of_checkpoint
from overopt.experiment import open_policy
from overopt.models.policy import Policy
from overopt.progress import progress_bar
from overopt.theory.soft_bellman import check_tree
from overopt.theory.token_q_values import GAUGES
from overopt.theory.tree_mdp import TreeMDP
from overopt.theory_stages.token_q_measurements import BETA_FACTORS, Part, ResponseKind, TokenMeasurer
from overopt.theory_stages.token_q_tables import mean_and_error, summarise
from overopt.tracking.runs import log_artifact, log_metrics, require_run, set_tags
from overopt.tracking.store import open_store

RUN_KEYS = ["run", "run_id", "objective", "beta"]
CHECKPOINT_KEYS = [*RUN_KEYS, "examples_seen", "checkpoint"]
ARTIFACTS = "token_q"


@dataclass(frozen=True)
class TokenQSettings:
    """What is measured; see :func:`overopt.stages.token_q`.

    Raises:
        ValueError: no prompt, no or doubled kinds of responses, or an unknown gauge.
    """

    num_prompts: int = 64
    responses: tuple[ResponseKind, ...] = ("chosen", "rejected", "sampled")
    part: Part = "train"
    gauge: str = "sparse"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_prompts < 1:
            raise ValueError(f"need at least one prompt, got num_prompts={self.num_prompts}")
        if not self.responses or len(set(self.responses)) < len(self.responses):
            raise ValueError(f"name each kind of response once, got {' '.join(self.responses) or 'none'}")
        if self.gauge not in GAUGES:
            raise ValueError(f"no gauge {self.gauge!r}; there are {', '.join(GAUGES)}")


@dataclass(frozen=True)
class AlignedRun:
    """The checkpoints of one aligned policy.

    Attributes:
        label: tells it from the others, such as ``dpo-beta0.1``.
        paths: its checkpoints, by examples seen.
        first: the content of the first one, without weights; all share objective, reference and data.
        run_id: MLflow run to log to; empty without one.
    """

    label: str
    paths: tuple[Path, ...]
    first: ModelCheckpoint
    run_id: str

    @property
    def beta(self) -> float:
        """Price of divergence that it was trained at [reward / nat]."""
        return float(self.first.training["beta"])

    @property
    def other_betas(self) -> list[float]:
        """Prices that V of the last checkpoint is taken at too [reward / nat]."""
        return [self.beta * factor for factor in BETA_FACTORS]

    @property
    def keys(self) -> dict[str, Any]:
        """What its rows have in common."""
        objective = self.first.training["objective"]
        return {"run": self.label, "run_id": self.run_id, "objective": objective, "beta": self.beta}


def measure_token_q(
    locations: Sequence[Path],
    settings: TokenQSettings,
    out: Path | None,
    run_id: str | None,
    tracking_uri: str | None,
) -> None:
    """Stage ``token-q``; see :func:`overopt.stages.token_q`."""
    runs = open_runs(locations, run_id)
    out = out or run_folder(runs[0].paths[0]) / "token_q"
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; --out names a folder")
    client = open_store(tracking_uri, create=False) if any(run.run_id for run in runs) else None
    for run in runs:
        if client is not None and run.run_id:
            require_run(client, run.run_id)
    tokens: dict[str, pd.DataFrame] = {}
    curves: list[pd.DataFrame] = []
    prompts: dict[str, str] = {}
    with progress_bar() as progress:
        total = sum(1 + len(run.paths) for run in runs) * settings.num_prompts
        task = progress.add_task("reading tokens", total=total)
        measurers: dict[str, TokenMeasurer] = {}
        for run in runs:
            measurer = _measurer(run, settings, measurers)
            prompts |= {prompt.prompt.prompt_id: prompt.prompt.text for prompt in measurer.prompts}
            rows = []
            for examples_seen, location, policy in _policies(run, measurer.reference):
                key = {**run.keys, "examples_seen": examples_seen, "checkpoint": location}
                try:
                    measured = measurer.measure(
                        policy,
                        run.beta,
                        lambda number: progress.advance(task, number),
                        other_betas=run.other_betas if location == str(run.paths[-1]) else (),
                    )
                except ValueError as error:
                    raise ValueError(f"{location}: {error}") from error
                rows.append(measured.tokens.assign(**key))
                curves.append(measured.curves.assign(**key))
            tokens[run.label] = pd.concat(rows, ignore_index=True)
            _write_parquet(_tokens_path(out, run.label), tokens[run.label])
    table = pd.concat(tokens.values(), ignore_index=True)
    summary = summarise(table, [*CHECKPOINT_KEYS, "response"])
    values_at_betas = mean_and_error(pd.concat(curves), [*CHECKPOINT_KEYS, "response", "other_beta"])
    tables = {"summary.csv": summary, "values_at_betas.csv": values_at_betas}
    for name, content in tables.items():
        with whole_file(out / name) as file:
            file.write(content.to_csv(index=False).encode())
    figures = _write_figures(out, table, prompts, summary, values_at_betas)
    if client is not None:
        for run in runs:
            _record(client, run, settings, summary, out, [out / name for name in tables], figures)
    print_summary(summary)
    residual = check_tree(TreeMDP(), runs[0].beta, settings.seed).bellman
    print(f"largest residual of the soft Bellman equation on the tree of Fig. 6: {residual:.1e}")
    recorded = ", ".join(run.run_id for run in runs if run.run_id)
    print(f"tables and figures in {out}" + (f", metrics in run {recorded}" if recorded else ""))


def open_runs(locations: Sequence[Path], run_id: str | None = None) -> list[AlignedRun]:
    """The runs whose checkpoints are at these places, one a place.

    Args:
        locations: .ckpt files, or folders of examples-*.ckpt files.
        run_id: MLflow run to log to; those that trained the checkpoints by default.

    Raises:
        ValueError: no place, the same twice, no aligned policy there, or one run id for several runs.
    """
    if not locations:
        raise ValueError("name a .ckpt file of an aligned policy, or a folder of examples-*.ckpt; several, for curves")
    if repeated := [str(place) for place, count in Counter(map(Path.resolve, locations)).items() if count > 1]:
        raise ValueError(f"{repeated[0]} is named twice")
    if run_id is not None and len(locations) > 1:
        raise ValueError(f"--run-id is one run, and {len(locations)} places are named: leave one of them out")
    opened = [_checkpoints(location) for location in locations]
    names = [f"{first.training['objective']}-beta{first.training['beta']:g}" for _, first in opened]
    numbers: Counter[str] = Counter()
    runs = []
    for name, (paths, first) in zip(names, opened, strict=True):
        numbers[name] += 1
        label = name if names.count(name) == 1 else f"{name}-{numbers[name]}"
        runs.append(AlignedRun(label, paths, first, run_id or first.training.get("run_id") or ""))
    return runs


def _checkpoints(location: Path) -> tuple[tuple[Path, ...], ModelCheckpoint]:
    paths = named_checkpoints(location)
    first = read_model_checkpoint(paths[0])
    if first.training["stage"] != "align":
        raise ValueError(
            f"{paths[0]} was written by stage {first.training['stage']!r}; only aligned policies have a reference, "
            "and a beta that their values are in"
        )
    return tuple(paths), replace(first, weights={})  # which may be gigabytes


def _measurer(run: AlignedRun, settings: TokenQSettings, known: dict[str, TokenMeasurer]) -> TokenMeasurer:
    """The measurer of a run's reference and data: one for all runs that share them."""
    reference = run.first.training["reference"]
    key = f"{reference} {sorted(run.first.data.items())}"
    if key not in known:
        data: PreferenceDataModule = data_of_checkpoint(run.first, reference)
        data.setup("predict")
        known[key] = TokenMeasurer(
            data,
            open_policy(reference),
            part=settings.part,
            num_prompts=settings.num_prompts,
            responses=settings.responses,
            gauge=settings.gauge,
            seed=settings.seed,
        )
    return known[key]


def _policies(run: AlignedRun, reference: Policy) -> Iterator[tuple[int, str, Policy]]:
    """Examples seen, place and policy: the reference, then each checkpoint, one in memory at a time."""
    yield 0, str(run.first.training["reference"]), reference
    first = _identity(run.first)
    for path in run.paths:
        checkpoint = read_model_checkpoint(path)
        for name, value in _identity(checkpoint).items():
            if value != first[name]:
                raise ValueError(f"{path} is of another run than {run.paths[0]}: {name} {value}, not {first[name]}")
        yield int(checkpoint.training["examples_seen"]), str(path), open_policy(path)


def _identity(checkpoint: ModelCheckpoint) -> dict[str, Any]:
    """What the checkpoints of a run have in common."""
    shared = {name: checkpoint.training.get(name) for name in ("stage", "objective", "beta", "reference")}
    return {**shared, "architecture": checkpoint.description.shape}


def _tokens_path(out: Path, label: str) -> Path:
    return out / "tokens" / f"{label}.parquet"


def _write_parquet(path: Path, table: pd.DataFrame) -> None:
    with whole_file(path) as file:
        table.to_parquet(file, index=False)


def _write_figures(
    out: Path, tokens: pd.DataFrame, prompts: dict[str, str], summary: pd.DataFrame, values_at_betas: pd.DataFrame
) -> dict[str, list[Path]]:
    """Draw what the tables carry; the files of each figure by its name."""
    with drawing():
        figures = {
            f"heat_map_{label}": draw_heat_map(
                heat_map_texts(rows, prompts), f"{label} after {rows['examples_seen'].iloc[0]:,} examples"
            )
            for label, rows in last_checkpoints(tokens).groupby("run", sort=False)
        }
        figures["over_training"] = draw_over_training(summary)
        if len(set(summary["beta"])) > 1:
            figures["over_betas"] = draw_over_betas(summary)
        figures["values_against_beta"] = draw_values_against_beta(values_at_betas)
        return {name: write_figures(out / "figures", [(name, figure)]) for name, figure in figures.items()}


def _record(
    client: MlflowClient,
    run: AlignedRun,
    settings: TokenQSettings,
    summary: pd.DataFrame,
    out: Path,
    tables: Sequence[Path],
    figures: dict[str, list[Path]],
) -> None:
    """Log a run's means at its examples seen, and what can be looked at; heat maps and tokens are its own only."""
    if not run.run_id:
        return
    set_tags(client, run.run_id, {f"overopt.token_q.{name}": str(value) for name, value in vars(settings).items()})
    measured = [name.removesuffix("_se") for name in map(str, summary) if name.endswith("_se")]
    for row in summary[summary["run"] == run.label].to_dict("records"):
        metrics = {
            f"token_q/{row['response']}_{name}": float(row[name])
            for mean in measured
            for name in (mean, f"{mean}_se")
            if pd.notna(row[name])
        }
        log_metrics(client, run.run_id, metrics, step=int(row["examples_seen"]))
    for path in [*tables, _tokens_path(out, run.label)]:
        log_artifact(client, run.run_id, path, ARTIFACTS)
    for name, paths in figures.items():
        if not name.startswith("heat_map_") or name == f"heat_map_{run.label}":
            for path in paths:
                log_artifact(client, run.run_id, path, ARTIFACTS)


def print_summary(summary: pd.DataFrame) -> None:
    """One line a checkpoint and kind of response."""
    print(f"{'run':<18} {'examples':>8} {'response':<9} {'unseen share':>17} {'of reference':>13} {'V - E_ref R':>18}")
    for row in summary.to_dict("records"):
        print(
            f"{row['run']:<18} {row['examples_seen']:>8} {row['response']:<9} "
            f"{row['unseen_share']:>7.4f} +- {row['unseen_share_se']:.4f} {row['reference_unseen_share']:>13.4f} "
            f"{row['optimism']:>8.4f} +- {row['optimism_se']:.4f}"
        )
