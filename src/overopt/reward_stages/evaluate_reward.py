"""Stage ``evaluate-reward``: reward models on held-out pairs, alone and as ensembles, and beside a gold model."""

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from lightning.fabric.utilities import move_data_to_device
from mlflow import MlflowClient
from torch import Tensor

from overopt.analysis.figures.reliability import draw_reliability, reliability
from overopt.analysis.figures.style import drawing, write_figures
from overopt.checkpoints.checkpoint_names import run_folder
from overopt.checkpoints.format import REWARD_PREFIX, ModelCheckpoint, read_model_checkpoint
from overopt.data.datamodule import PreferenceDataModule, data_of_checkpoint
from overopt.data.example_sets import PreferenceSet
from overopt.evaluation.reward_pairs import (
    GoldAgreement,
    PairEvaluation,
    PairRewards,
    evaluate_pairs,
    gold_agreement,
)
from overopt.evaluation.text_rewards import combined_rewards
from overopt.evaluation.win_rate import wilson_interval
from overopt.metrics.calibration import CalibrationEstimate
from overopt.models.compute import stage_device
from overopt.models.reward_ensemble import COMBINATIONS, require_combination, require_members
from overopt.models.reward_model import RewardModel, load_reward_model
from overopt.packed_tokens import PackedTokens
from overopt.progress import progress_bar
from overopt.tracking.runs import (
    find_run,
    finishing,
    log_artifact,
    log_metrics,
    log_params,
    require_run,
    start_run,
)
from overopt.tracking.store import open_store

# What of the data must be the same for all reward models; tokenizer and lengths are each model's own.
_SHARED_DATA = ("source", "path", "splits", "evaluation_fraction", "gold_fraction", "max_evaluation_examples")
# Of a run that no training began: what was evaluated there, and on which data.
_EVALUATION_TAG = "overopt.reward_evaluation"


class EvaluatedReward(NamedTuple):
    """A reward model, or several as one, on the held-out pairs.

    Attributes:
        name: for tables and figures.
        pairs: accuracy, calibration and the like.
        gold: agreement with the gold model; ``None`` without one.
    """

    name: str
    pairs: PairEvaluation
    gold: GoldAgreement | None

    def metrics(self) -> dict[str, float]:
        """By the contract's names, ``eval/...``."""
        return self.pairs.metrics() | ({} if self.gold is None else self.gold.metrics())


class _Member(NamedTuple):
    """A checkpoint that is evaluated."""

    name: str
    path: Path
    checkpoint: ModelCheckpoint


@torch.inference_mode()
def pair_rewards(reward_model: RewardModel, pairs: PreferenceSet) -> PairRewards:
    """Rewards of each pair's chosen and rejected response, in the set's order."""
    reward_model.eval()
    device = reward_model.head.weight.device

    def reward(tokens: PackedTokens) -> Float[Tensor, " response"]:
        rewards: Tensor = reward_model(move_data_to_device(tokens, device))
        return rewards

    scores = pairs.packing.scores([row.group for row in pairs.tokenized], reward, pairs.padding)
    return np.array(scores, dtype=np.float64).reshape(-1, 2)


def evaluate_reward_models(
    checkpoints: Sequence[Path],
    *,
    gold: Path | None = None,
    source: str | None = None,
    path: str | None = None,
    price: float = 0.5,
    out: Path | None = None,
    run_id: str | None = None,
    tracking_uri: str | None = None,
) -> list[EvaluatedReward]:
    """Stage ``evaluate-reward``; see :func:`overopt.stages.evaluate_reward`."""
    if run_id is not None and len(checkpoints) > 1:
        raise ValueError("--run-id is one run, of one checkpoint: leave it out, each checkpoint names its own")
    require_combination("mean", price)
    members = _members(checkpoints)
    trained_in = [member.checkpoint.training.get("run_id") for member in members]
    client = open_store(tracking_uri, create=False) if run_id or any(trained_in) else None
    # Other data's results would take the place of those on the run's own held-out pairs.
    runs = [run_id or (run if source is None else None) for run in trained_in]
    for run in runs:
        if client is not None and run is not None:
            require_run(client, run)
    shared = {name: members[0].checkpoint.data[name] for name in _SHARED_DATA if name in members[0].checkpoint.data}
    if source is not None:
        shared |= {"source": source, "path": path}
    out = out or run_folder(members[0].path) / "reward_evaluation"
    opened = [*members, *([] if gold is None else _members([gold]))]
    with progress_bar() as progress:
        scored = [_rewards(member, shared) for member in progress.track(opened, description="scoring pairs")]
    rewards = [each for each, _ in scored]
    of_gold = rewards.pop() if gold is not None else None
    evaluated = [_evaluated(member.name, each, of_gold) for member, each in zip(members, rewards, strict=True)]
    if len(members) > 1:
        stacked = np.stack([each.ravel() for each in rewards])
        evaluated += [
            _evaluated(_ensemble_name(combine), combined_rewards(stacked, combine, price).reshape(-1, 2), of_gold)
            for combine in COMBINATIONS
        ]
    paths = write_reward_evaluation(out, evaluated)
    if client is not None:
        _track(client, members, evaluated, runs, price, scored[0].data_fingerprint, paths)
    for line in summary(evaluated):
        print(line)
    print(f"tables and figures in {out}" + (", metrics in MLflow" if client else ""))
    return evaluated


def _members(checkpoints: Sequence[Path]) -> list[_Member]:
    require_members(checkpoints)
    read = [read_model_checkpoint(path, REWARD_PREFIX) for path in checkpoints]
    # A task's folder is what tells last.ckpt of one run from another's.
    names = [run_folder(path.resolve()).name for path in checkpoints]
    if len(set(names)) < len(names):
        names = [f"{name}/{path.stem}" for name, path in zip(names, checkpoints, strict=True)]
    if len(set(names)) < len(names):
        names = [str(path) for path in checkpoints]
    return [_Member(*row) for row in zip(names, checkpoints, read, strict=True)]


class _Scored(NamedTuple):
    """Held-out pairs with their rewards."""

    rewards: PairRewards
    data_fingerprint: str


def _rewards(member: _Member, shared: dict[str, Any]) -> _Scored:
    data = data_of_checkpoint(member.checkpoint, member.path, **{**shared, "examples": "preferences"})
    data.setup("predict")
    rewards = pair_rewards(load_reward_model(member.path).to(stage_device()), held_out_pairs(data))
    return _Scored(rewards, data.fingerprint)


def held_out_pairs(data: PreferenceDataModule) -> PreferenceSet:
    """The pairs that reward modelling validates on."""
    pairs = data.evaluation_set
    assert isinstance(pairs, PreferenceSet)  # the data was opened for preferences
    return pairs


def _evaluated(name: str, rewards: PairRewards, gold: PairRewards | None) -> EvaluatedReward:
    return EvaluatedReward(name, evaluate_pairs(rewards), None if gold is None else gold_agreement(rewards, gold))


def _ensemble_name(combine: str) -> str:
    return f"ensemble, {combine.replace('_', ' ')}"


def evaluation_table(evaluated: Sequence[EvaluatedReward]) -> pd.DataFrame:
    """One row a reward model: ``reward_model``, ``pairs``, then the metrics by their last name."""
    rows = [
        {"reward_model": each.name, "pairs": each.pairs.num_pairs}
        | {name.removeprefix("eval/"): value for name, value in each.metrics().items()}
        for each in evaluated
    ]
    return pd.DataFrame(rows)


def reliability_table(name: str, calibration: CalibrationEstimate) -> pd.DataFrame:
    """One row a bin, with the columns of :data:`overopt.analysis.figures.reliability.COLUMNS`."""
    bins = calibration.bins
    count = bins.pairs.numpy()
    edges = np.linspace(0.5, 1.0, len(count) + 1)
    with np.errstate(invalid="ignore"):
        confidence, accuracy = bins.confidence.numpy() / count, bins.right.numpy() / count
    ends = [
        wilson_interval(share, pairs) if pairs else (math.nan, math.nan)
        for share, pairs in zip(accuracy.tolist(), count.tolist(), strict=True)
    ]
    return pd.DataFrame(
        {
            "reward_model": name,
            "confidence_low": edges[:-1],
            "confidence_high": edges[1:],
            "pairs": count,
            "confidence": confidence,
            "accuracy": accuracy,
            "low": [low for low, _ in ends],
            "high": [high for _, high in ends],
        }
    )


def write_reward_evaluation(out: Path, evaluated: Sequence[EvaluatedReward]) -> list[Path]:
    """Write reward_models.csv, reliability.csv and the reliability figure."""
    out.mkdir(parents=True, exist_ok=True)
    tables = {
        "reward_models": evaluation_table(evaluated),
        "reliability": pd.concat([reliability_table(each.name, each.pairs.calibration) for each in evaluated]),
    }
    paths = []
    for name, table in tables.items():
        paths.append(out / f"{name}.csv")
        table.to_csv(paths[-1], index=False)
    with drawing():
        figure = draw_reliability(reliability(tables["reliability"], tables["reward_models"]))
        return [*paths, *write_figures(out / "figures", [("reliability", figure)])]


def _track(
    client: MlflowClient,
    members: Sequence[_Member],
    evaluated: Sequence[EvaluatedReward],
    runs: Sequence[str | None],
    price: float,
    data_fingerprint: str,
    paths: Sequence[Path],
) -> None:
    """Each in its run; what has none gets one, and the same one when it is evaluated again on the same data."""
    steps = [int(member.checkpoint.training["examples_seen"]) for member in members]
    files = [hashlib.sha256(member.path.read_bytes()).hexdigest() for member in members]
    alone = [([member], [file]) for member, file in zip(members, files, strict=True)]
    together = [(members, sorted(files))] * (len(evaluated) - len(members))
    for place, (each, (of, hashes)) in enumerate(zip(evaluated, [*alone, *together], strict=True)):
        run = runs[place] if place < len(runs) else None
        step = steps[place] if place < len(steps) else max(steps)
        if run is not None:
            log_metrics(client, run, each.metrics(), step=step)
            _log_artifacts(client, run, paths)
            continue
        combined = [] if len(of) == 1 else [each.name, str(price)]
        key = hashlib.sha256(" ".join([*combined, *hashes, data_fingerprint]).encode()).hexdigest()
        tags = {_EVALUATION_TAG: key}
        name = each.name if len(of) == 1 else f"{each.name} of {len(of)}"
        own = find_run(client, tags) or start_run(client, name, "reward", tags=tags)
        with finishing(client, own):
            settings = {
                "objective": each.name,
                "members": len(of),
                "price": price,
                "data_fingerprint": data_fingerprint,
            }
            log_params(client, own, settings | {"checkpoints": " ".join(str(member.path) for member in of)})
            log_metrics(client, own, each.metrics(), step=step)
            _log_artifacts(client, own, paths)


def _log_artifacts(client: MlflowClient, run_id: str, paths: Sequence[Path]) -> None:
    for path in paths:
        log_artifact(client, run_id, path, "reward_evaluation")


def summary(evaluated: Sequence[EvaluatedReward]) -> list[str]:
    """For people: a line a reward model."""
    width = max(len(each.name) for each in evaluated)
    header = f"{evaluated[0].pairs.num_pairs} pairs"
    with_gold = evaluated[0].gold is not None
    columns = ["accuracy [95% interval]", "ties", "margin", "Brier", "calibration error"]
    columns += ["same order as gold", "rank correlation"] * with_gold
    lines = [f"{header:<{width}}  " + "  ".join(f"{column:>23}" for column in columns)]
    for each in evaluated:
        pairs, calibration = each.pairs, each.pairs.calibration
        cells = [
            _interval_text(*pairs.accuracy),
            f"{pairs.tie_share:.1%}",
            f"{pairs.mean_margin:.3f} +- {pairs.mean_margin_se:.3f}",
            f"{float(calibration.brier_score):.4f}",
            f"{float(calibration.expected_error):.3f} ({float(calibration.error_if_calibrated):.3f} if right)",
        ]
        if each.gold is not None:
            cells += [_interval_text(*each.gold.same_order), _interval_text(*each.gold.margin_rank_correlation)]
        lines.append(f"{each.name:<{width}}  " + "  ".join(f"{cell:>23}" for cell in cells))
    return lines


def _interval_text(value: float, low: float, high: float) -> str:
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"
