"""Stage ``tree-mdp``: policies on the tree of Fig. 6 through SFT and direct alignment, many seeds at a time."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from mlflow import MlflowClient

from overopt.analysis.figures.style import drawing, write_figures
from overopt.analysis.figures.tree_mdp import draw_sensitivity, tree_figures
from overopt.analysis.findings.claim import Claim, claims_table
from overopt.analysis.findings.tree_claims import both_fell, settings_summary, tree_claims
from overopt.modules.direct_alignment import AlignmentObjective
from overopt.progress import progress_bar
from overopt.theory.trajectory_mass import mass_table
from overopt.theory.tree_mdp import TreeData, with_more_preferences
from overopt.theory.tree_training import LogProbs, TreeTraining, align, train_sft
from overopt.tracking.runs import PARENT_TAG, finishing, log_artifact, log_metrics, log_params, start_run
from overopt.tracking.store import open_store
from overopt.trainers import quiet_lightning

EXPERIMENT = "overopt-tree-mdp"
"""Apart from the language models' runs, which a report is made of."""
SEEDS_DRAWN = 4
LOGGED_STEPS = 50
PREFERENCE_DRAWS = 4
"""Sets of random preferences, over which the seeds of a variation are dealt."""

VARIATIONS: dict[str, tuple[Any, ...]] = {
    "width": (4, 16, 64, 256),
    "preferences": (1, 2, 4, 8, 16),
    "sft_steps": (50, 100, 200, 300, 500),
    "learning_rate": (3e-4, 1e-3, 3e-3),
    "optimizer": ("adamw", "rmsprop"),
    "cell": ("rnn", "gru", "lstm"),
    "observes": ("actions", "states"),
    "init_scale": (0.5, 1.0, 2.0),
}
"""What the paper does not say, and the values that are tried with everything else left alone."""


@dataclass(frozen=True)
class TreeStudy:
    """What is trained.

    Attributes:
        data: demonstrations and preferences on a tree.
        training: how.
        objectives: of alignment.
        betas: for each objective [reward / nat].
        num_seeds: initial weights.

    Raises:
        ValueError: an unknown objective, a beta out of range, or no seed.
    """

    data: TreeData
    training: TreeTraining
    objectives: tuple[str, ...]
    betas: tuple[float, ...]
    num_seeds: int

    def __post_init__(self) -> None:
        if self.num_seeds < 1 or not self.alignments:
            raise ValueError(
                f"need at least one seed, objective and beta, got {self.num_seeds}, {list(self.objectives)} and "
                f"{list(self.betas)}"
            )

    @property
    def alignments(self) -> list[AlignmentObjective]:
        """Every objective at every beta."""
        return [AlignmentObjective(objective, beta) for objective in self.objectives for beta in self.betas]

    @property
    def num_steps(self) -> int:
        """Optimiser steps of SFT and all alignments."""
        return self.training.sft_steps + len(self.alignments) * self.training.steps


class TreeResults(NamedTuple):
    """What a study gave.

    Attributes:
        sft: log-probabilities along SFT [nats].
        aligned: along alignment, for each objective with its beta.
        masses: ``objective``, ``beta`` and the columns of :func:`mass_table`, all seeds and steps.
        seconds: that SFT and all alignments took.
    """

    sft: LogProbs
    aligned: dict[AlignmentObjective, LogProbs]
    masses: pd.DataFrame
    seconds: float

    @property
    def largest_error(self) -> float:
        """How far the probabilities of all trajectories are from summing to 1, at the worst step."""
        return max(float(np.abs(np.exp(p).sum(axis=-1) - 1).max()) for p in (self.sft, *self.aligned.values()))


def train(study: TreeStudy, on_step: Callable[[], None] = lambda: None) -> TreeResults:
    """SFT once, then each alignment from there."""
    quiet_lightning()
    began = time.perf_counter()
    with _one_thread():
        sft = train_sft(study.data, range(study.num_seeds), study.training, on_step)
        aligned = {a: align(sft.policies, study.data, a, study.training, on_step) for a in study.alignments}
    seconds = time.perf_counter() - began
    tables = [
        mass_table(log_probs, study.data).assign(objective=a.objective, beta=a.beta) for a, log_probs in aligned.items()
    ]
    return TreeResults(sft.log_probs, aligned, pd.concat(tables, ignore_index=True), seconds)


def variants(study: TreeStudy, factor: str, value: Any) -> list[TreeStudy]:
    """The study with one thing changed; where preferences are drawn, several draws.

    Raises:
        ValueError: no such factor; see :data:`VARIATIONS`.
    """
    training = study.training
    if factor == "preferences" and value != len(study.data.preferences):
        each = -(-study.num_seeds // PREFERENCE_DRAWS)
        drawn = [with_more_preferences(study.data, value, seed=draw) for draw in range(PREFERENCE_DRAWS)]
        return [replace(study, data=data, num_seeds=each) for data in drawn]
    if factor in ("cell", "width", "observes", "init_scale"):
        changed = replace(training, architecture=replace(training.architecture, **{factor: value}))
    elif factor == "learning_rate":
        changed = replace(training, optimizer=replace(training.optimizer, learning_rate=value))
    elif factor == "optimizer":
        changed = replace(training, optimizer=replace(training.optimizer, name=value))
    elif factor == "sft_steps":
        changed = replace(training, sft_steps=value)
    elif factor == "preferences":
        changed = training
    else:
        raise ValueError(f"nothing called {factor!r} can be varied; there are {', '.join(VARIATIONS)}")
    return [replace(study, training=changed)]


def sensitivity_table(
    study: TreeStudy, factors: Sequence[str], on_step: Callable[[], None] = lambda: None
) -> pd.DataFrame:
    """What is left at the end of training where one thing is changed, a row a factor, value and setting.

    Args:
        study: everything else is as in it.
        factors: names in :data:`VARIATIONS`.
        on_step: told of each optimiser step.

    Returns:
        Medians over seeds, with ``_low`` and ``_high``, the quantiles 5% and 95% of single seeds: masses under the
        reference, their changes until the end; and ``both_fell``, the share of seeds in which the pair's trajectories
        both have less mass and the unseen more.
    """
    rows = []
    for factor in factors:
        for value in VARIATIONS[factor]:
            tables = []
            for draw, variant in enumerate(variants(study, factor, value)):
                masses = train(variant, on_step).masses
                tables.append(masses.assign(seed=masses["seed"] + draw * variant.num_seeds))
            masses = pd.concat(tables, ignore_index=True)
            for (objective, beta), setting in masses.groupby(["objective", "beta"], sort=False):
                named = {"factor": factor, "value": f"{value:g}" if isinstance(value, float) else str(value)}
                rows.append({**named, "objective": objective, "beta": beta, **_changes(setting)})
    return pd.DataFrame(rows)


def _changes(setting: pd.DataFrame) -> dict[str, float | int]:
    start = setting[setting["step"] == 0].set_index("seed")
    end = setting[setting["step"] == setting["step"].max()].set_index("seed")
    row: dict[str, float | int] = {"seeds": len(end)}
    for kind in ("chosen", "rejected", "demonstrated", "unseen"):
        row[f"{kind}_reference"] = float(start[kind].median())
        change = end[kind] - start[kind]
        row[f"{kind}_change"] = float(change.median())
        row[f"{kind}_change_low"], row[f"{kind}_change_high"] = (float(change.quantile(q)) for q in (0.05, 0.95))
    fell = both_fell(setting)
    row["both_fell"] = float(fell[setting["step"] == setting["step"].max()].mean())
    row["both_fell_at_some_step"] = float(fell.groupby(setting["seed"]).any().mean())
    return row


def run_tree_mdp(study: TreeStudy, vary: Sequence[str], vary_seeds: int, out: Path, tracking_uri: str | None) -> None:
    """Stage ``tree-mdp``; see :func:`overopt.stages.tree_mdp`.

    Raises:
        ValueError: a factor that can't be varied, or a store that can't be reached; before any work.
    """
    few = replace(study, num_seeds=vary_seeds)
    planned = [variant for factor in vary for value in _values(factor) for variant in variants(few, factor, value)]
    client = open_store(tracking_uri, create=True)
    out.mkdir(parents=True, exist_ok=True)
    parent = start_run(client, "tree-mdp", "study", experiment=EXPERIMENT)
    with finishing(client, parent):
        log_params(client, parent, _parameters(study))
        with progress_bar() as progress:
            steps = study.num_steps + sum(variant.num_steps for variant in planned)
            task = progress.add_task("training on the tree", total=steps)
            results = train(study, lambda: progress.advance(task))
            sensitivity = sensitivity_table(few, vary, lambda: progress.advance(task))
        claims = tree_claims(results.masses)
        tables = _write_tables(out, study, results, claims, sensitivity)
        with drawing():
            figures = [*tree_figures(_drawn_trajectories(study, results), results.masses)]
            if len(sensitivity):
                figures.append(("tree_sensitivity", draw_sensitivity(sensitivity)))
            pictures = write_figures(out / "figures", figures)
        for path in tables:
            log_artifact(client, parent, path, "tables")
        for path in pictures:
            log_artifact(client, parent, path, "figures")
        for alignment, log_probs in results.aligned.items():
            masses = results.masses[
                (results.masses["objective"] == alignment.objective) & (results.masses["beta"] == alignment.beta)
            ]
            _track(client, parent, study, alignment, log_probs, masses, out)
    lines = _summary(study, results, claims)
    (out / "summary.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if sensitivity.empty:
        print(f"what the paper leaves open can be varied: --vary {' '.join(VARIATIONS)}")
    print(f"tables and figures in {out}; runs in experiment {EXPERIMENT}")
    print("\n".join(lines))


def _values(factor: str) -> tuple[Any, ...]:
    if factor not in VARIATIONS:
        raise ValueError(f"nothing called {factor!r} can be varied; there are {', '.join(VARIATIONS)}")
    return VARIATIONS[factor]


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread: matrices are so small that to divide them costs more than it saves."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _parameters(study: TreeStudy) -> dict[str, Any]:
    tree = study.data.tree
    return {
        "branching": tree.branching,
        "depth": tree.depth,
        "demonstrations": "; ".join(map(tree.name, study.data.demonstrations)),
        "preferences": "; ".join(f"{tree.name(p.chosen)} > {tree.name(p.rejected)}" for p in study.data.preferences),
        "seeds": study.num_seeds,
        "sft_steps": study.training.sft_steps,
        "steps": study.training.steps,
        **asdict(study.training.architecture),
        **{f"optimizer_{name}": value for name, value in asdict(study.training.optimizer).items()},
    }


def _setting_name(alignment: AlignmentObjective) -> str:
    return f"{alignment.objective}_beta_{alignment.beta:g}"


def _trajectories_path(out: Path, name: str) -> Path:
    return out / "trajectories" / f"{name}.parquet"


def _write_tables(
    out: Path, study: TreeStudy, results: TreeResults, claims: list[Claim], sensitivity: pd.DataFrame
) -> list[Path]:
    """Write all tables; those of every step and trajectory, which are large, are not among the paths that come back."""
    (out / "trajectories").mkdir(exist_ok=True)
    by_name = {"sft": results.sft, **{_setting_name(a): p for a, p in results.aligned.items()}}
    for name, log_probs in by_name.items():
        _all_trajectories(study, log_probs).to_parquet(_trajectories_path(out, name), index=False)
    results.masses.to_parquet(out / "masses.parquet", index=False)
    tables = {
        "settings": settings_summary(results.masses),
        "claims": claims_table(claims).rename(columns={"value": "estimate"}),
    }
    if len(sensitivity):
        tables["sensitivity"] = sensitivity
    for name, table in tables.items():
        table.to_csv(out / f"{name}.csv", index=False, float_format="%.6g")
    return [out / "masses.parquet", *(out / f"{name}.csv" for name in tables)]


def _all_trajectories(study: TreeStudy, log_probs: LogProbs) -> pd.DataFrame:
    """``seed``, ``step``, and a column a trajectory: its probability."""
    steps, seeds, trajectories = log_probs.shape
    step, seed = np.indices((steps, seeds))
    names = [study.data.tree.name(number) for number in range(trajectories)]
    table = pd.DataFrame(np.exp(log_probs).reshape(-1, trajectories), columns=names)
    table.insert(0, "step", step.ravel())
    table.insert(0, "seed", seed.ravel())
    return table


def _drawn_trajectories(study: TreeStudy, results: TreeResults) -> pd.DataFrame:
    """The table that :func:`tree_figures` draws single runs from, of the first seeds."""
    kinds = dict(
        zip(map(study.data.tree.name, range(study.data.tree.num_trajectories)), study.data.classes(), strict=True)
    )
    tables = []
    for alignment, log_probs in results.aligned.items():
        wide = _all_trajectories(study, log_probs[:, :SEEDS_DRAWN])
        long = wide.melt(["seed", "step"], var_name="trajectory", value_name="probability")
        tables.append(long.assign(objective=alignment.objective, beta=alignment.beta))
    table = pd.concat(tables, ignore_index=True)
    return table.assign(kind=table["trajectory"].map(kinds))


def _track(
    client: MlflowClient,
    parent: str,
    study: TreeStudy,
    alignment: AlignmentObjective,
    log_probs: LogProbs,
    masses: pd.DataFrame,
    out: Path,
) -> None:
    """A run for one objective and beta: means over seeds at some steps, every seed and step as an artifact."""
    name = f"tree {alignment.objective} beta {alignment.beta:g}"
    run_id = start_run(client, name, "align", tags={PARENT_TAG: parent}, experiment=EXPERIMENT)
    with finishing(client, run_id):
        log_params(client, run_id, {**_parameters(study), "objective": alignment.objective, "beta": alignment.beta})
        by_step = masses.drop(columns=["seed", "objective", "beta"]).groupby("step").mean().dropna(axis="columns")
        of_measures = {str(name): values.to_numpy() for name, values in by_step.items()}
        means = np.exp(log_probs).mean(axis=1)
        for step in range(0, len(log_probs), max(1, study.training.steps // LOGGED_STEPS)):
            of_trajectories = {f"trajectory/{study.data.tree.name(i)}": float(p) for i, p in enumerate(means[step])}
            of_classes = {f"tree/{name}": float(values[step]) for name, values in of_measures.items()}
            log_metrics(client, run_id, {**of_classes, **of_trajectories}, step=step)
        log_artifact(client, run_id, _trajectories_path(out, _setting_name(alignment)), "trajectories")


def _summary(study: TreeStudy, results: TreeResults, claims: list[Claim]) -> list[str]:
    kinds = ("chosen", "rejected", "demonstrated", "unseen")
    lines = [
        f"mean probability of {study.num_seeds} seeds under the reference -> at the end; in brackets the share of "
        "seeds in which both of the pair lost and the unseen gained, at the end and at some step",
        f"{'':17}" + "".join(f"{kind:>14}" for kind in kinds),
    ]
    for (objective, beta), setting in results.masses.groupby(["objective", "beta"], sort=False):
        means = setting.groupby("step")[list(kinds)].mean()
        cells = [f"{means[kind].iloc[0]:.2f} -> {means[kind].iloc[-1]:.2f}" for kind in kinds]
        changes = _changes(setting)
        fell = f"[{changes['both_fell']:.0%}, {changes['both_fell_at_some_step']:.0%}]"
        lines.append(f"{f'{objective} beta {beta:g}':17}" + "".join(f"{cell:>14}" for cell in cells) + f"  {fell}")
    verdicts = pd.Series([claim.verdict for claim in claims]).value_counts()
    return [
        *lines,
        "claims of App. D and E: " + ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items()),
        f"{len(study.alignments)} settings x {study.num_seeds} seeds trained in {results.seconds:.0f} s; probabilities "
        f"of the {study.data.tree.num_trajectories} trajectories sum to 1 within {results.largest_error:.0e} at each "
        f"of {study.num_steps:,} steps",
    ]
