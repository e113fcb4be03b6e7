"""The stages as files in, files out: what the command line, the quickstart and sweeps have in common."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Literal

from mlflow import MlflowClient

from overopt.checkpoints.checkpoint_names import named_checkpoints, run_folder
from overopt.checkpoints.cost import Cost
from overopt.checkpoints.format import ModelCheckpoint, read_model_checkpoint
from overopt.data.datamodule import PreferenceDataModule, data_of_checkpoint
from overopt.data.splits import Part
from overopt.evaluation.checkpoint_metrics import CheckpointEvaluation, Evaluator, SampleEvaluator
from overopt.evaluation.completion_server import CompletionServer
from overopt.evaluation.judges.protocol import Judge
from overopt.evaluation.preference_pairs import (
    LabelledPairs,
    SampledPair,
    label_by_human,
    label_by_judge,
    read_sampled_pairs,
    sample_pairs,
    write_preferences,
    write_sampled_pairs,
)
from overopt.evaluation.records import write_completions
from overopt.evaluation.sampling import sample_here
from overopt.judging import Judging, judge_tags
from overopt.models.compute import stage_device
from overopt.models.policy import Policy, load_policy
from overopt.models.proxy_reward import ProxyReward
from overopt.modules.direct_alignment import AlignmentObjective
from overopt.progress import progress_bar
from overopt.tracking.runs import log_artifact, log_metrics, log_params, set_tags
from overopt.tracking.store import open_store

EVALUATED_STAGES = ("align", "rl")
"""Whose policies have a reference."""

Row = Literal["reference", "checkpoint"]
"""Which policies of a run are evaluated: the row at 0 examples, those of its checkpoints."""


def open_policy(location: str | Path) -> Policy:
    """A policy where stages without a Trainer compute: on the GPU, where there is one."""
    return load_policy(location).to(stage_device())


def data_of_policy(policy: str, source: str | None, path: str | None, **changes: Any) -> PreferenceDataModule:
    """Data under a policy's tokenizer, set up: what a checkpoint was trained on, or another source.

    Args:
        policy: checkpoint, Hugging Face folder or hub name.
        source: of the data; what the checkpoint was trained on, or the default source, by default.
        path: file or folder of the source.
        changes: more settings of the DataModule.
    """
    if source is not None:
        changes |= {"source": source, "path": path}
    if Path(policy).is_file():
        data = data_of_checkpoint(read_model_checkpoint(Path(policy)), policy, **changes)
    else:
        data = PreferenceDataModule(**{"tokenizer": policy, **changes})
    data.setup("predict")
    return data


def sample_pairs_to_file(
    policy: str,
    out: Path,
    source: str | None,
    path: str | None,
    parts: Sequence[Part],
    max_pairs: int | None,
    max_evaluation_pairs: int | None,
    seed: int,
) -> list[SampledPair]:
    """Stage ``sample-pairs``; see :func:`overopt.stages.sample_pairs`."""
    opened = open_policy(policy)
    data = data_of_policy(policy, source, path, examples="demonstrations")
    with progress_bar() as progress:
        task = progress.add_task("sampling pairs", total=None)
        pairs = sample_pairs(
            opened,
            data,
            parts,
            max_pairs=max_pairs,
            max_evaluation_pairs=max_evaluation_pairs,
            seed=seed,
            on_batch=lambda samples, total: progress.update(task, advance=samples, total=total),
        )
    write_sampled_pairs(out, pairs)
    print(f"{len(pairs)} sampled pairs in {out}")
    return pairs


def label_pairs_to_folder(
    pairs_file: Path, out: Path, judge: Judge | None, seed: int, repetitions: bool = False
) -> LabelledPairs:
    """Labels by a judge, or without one by preferring the person's response; writes a folder for source ``jsonl``."""
    pairs = read_sampled_pairs(pairs_file)
    labelled = (
        label_by_human(pairs, repetitions=repetitions, seed=seed)
        if judge is None
        else label_by_judge(pairs, judge, seed=seed)
    )
    write_preferences(out, labelled, pairs)
    left_out = ", ".join(f"{count} with {reason}" for reason, count in sorted(labelled.left_out.items()))
    print(f"{len(labelled.rows)} labelled pairs in {out}" + (f" (left out: {left_out})" if left_out else ""))
    return labelled


def label_pairs(
    pairs_file: Path, out: Path, by: Literal["judge", "human"], judging: Judging | None, seed: int, repetitions: bool
) -> None:
    """Stage ``label-pairs``; see :func:`overopt.stages.label_pairs`."""
    if (by == "judge") != (judging is not None):
        raise ValueError("labels by judge need --judge, such as --judge gold; labels by human take none")
    if repetitions and by == "judge":
        raise ValueError("--repetitions adds responses that a person's is preferred to: it goes with --by human")
    if judging is not None:
        judging.require()
    with progress_bar() as progress:
        label_pairs_to_folder(pairs_file, out, None if judging is None else judging.open(progress), seed, repetitions)


def evaluate_checkpoints(
    checkpoints: Path,
    judging: Judging | None,
    num_prompts: int,
    opponent: str,
    seed: int,
    out: Path | None,
    run_id: str | None,
    tracking_uri: str | None,
    server: CompletionServer | None = None,
    server_has: Literal["checkpoint", "reference"] = "checkpoint",
    reference: str | None = None,
) -> None:
    """Stage ``evaluate``; see :func:`overopt.stages.evaluate`."""
    if server is not None and checkpoints.is_dir():
        raise ValueError(f"a server has one model: with --sampler-url give one checkpoint file, not {checkpoints}")
    paths = named_checkpoints(checkpoints)
    first = read_model_checkpoint(paths[0])
    if first.training["stage"] not in EVALUATED_STAGES:
        raise ValueError(
            f"{paths[0]} was written by stage {first.training['stage']!r}; only aligned policies, of stage align or "
            "rl, have a reference to be evaluated against"
        )
    if judging is not None:
        judging.require()
    run_id = run_id or first.training.get("run_id")
    client = open_store(tracking_uri, create=False) if run_id else None
    reference_path = reference or first.training["reference"]
    data = data_of_checkpoint(first, reference_path)
    data.setup("predict")
    rows: Sequence[Row] = ("reference", "checkpoint") if server is None else (server_has,)
    out = out or run_folder(paths[0]) / "evaluation"
    with progress_bar() as progress:
        samples = SampleEvaluator(
            data,
            open_policy(reference_path),
            None if judging is None else judging.open(progress),
            num_prompts=num_prompts,
            opponent=opponent,
            seed=seed,
            sampler=sample_here if server is None else server.sample,
            proxy=proxy_of(first),
        )
        evaluator = Evaluator(samples)
        if server is not None:
            evaluator.settings["sampler"] = "a completions server"
        policies = sum(len(paths) if row == "checkpoint" else 1 for row in rows)
        task = progress.add_task("evaluating", total=policies * num_prompts)
        # A run that has costs is a sweep's, which knows what the training was made of too.
        known = client is not None and "eval/cost_tokens" in client.get_run(run_id).data.metrics
        before = None if known else Cost()
        evaluations = evaluate_paths(evaluator, paths, out, lambda n: progress.advance(task, n), rows, before)
    if client is not None and run_id is not None:
        record_evaluations(client, run_id, evaluations, out, evaluator)
    print_evaluations(evaluations)
    if server is not None:
        print_agreement(evaluations, server)
    print(f"completions in {out}" + (f", metrics in run {run_id}" if run_id else ""))


def evaluate_paths(
    evaluator: Evaluator,
    paths: Sequence[Path],
    out: Path,
    on_batch: Callable[[int], None],
    rows: Collection[Row] = ("reference", "checkpoint"),
    cost_before: Cost | None = Cost(),
) -> dict[int, CheckpointEvaluation]:
    """Evaluate checkpoints of one run, the reference first, by examples seen; keep completions in ``out``.

    ``cost_before``, of what the run was trained on, is added to what each checkpoint says that its training took;
    with ``None`` costs are no metrics.
    """
    first = read_model_checkpoint(paths[0])
    alignment = alignment_of(first)
    evaluations: dict[int, CheckpointEvaluation] = {}

    def evaluate(examples_seen: int, policy: Policy, cost: Cost | None) -> None:
        metrics, completions = evaluator.evaluate(policy, alignment, on_batch)
        if cost is not None:
            metrics |= {f"eval/{name}": value for name, value in cost.record().items()}
        evaluations[examples_seen] = CheckpointEvaluation(metrics, completions)
        # One by one: whatever stops the next one, these samples have been drawn and judged.
        write_completions(completions_path(out, examples_seen), evaluations[examples_seen].completions)

    if "reference" in rows:
        evaluate(0, evaluator.reference, None if cost_before is None else Cost())
    for path in paths if "checkpoint" in rows else ():
        checkpoint = read_model_checkpoint(path)
        if checkpoint.description.shape != first.description.shape:
            raise ValueError(f"{path} holds a {checkpoint.description.shape}; {paths[0]} a {first.description.shape}")
        own = Cost.of(checkpoint.training)
        cost = None if own is None or cost_before is None else cost_before + own
        evaluate(checkpoint.training["examples_seen"], open_policy(path), cost)
    return evaluations


def completions_path(folder: Path, examples_seen: int) -> Path:
    """Where a checkpoint's completions are kept."""
    return folder / f"examples-{examples_seen:08d}.jsonl"


def proxy_of(checkpoint: ModelCheckpoint) -> ProxyReward | None:
    """What a checkpoint of stage rl was optimised against; none of any other."""
    if checkpoint.training["stage"] != "rl":
        return None
    return ProxyReward.from_description(checkpoint.training).to(stage_device())


def alignment_of(checkpoint: ModelCheckpoint) -> AlignmentObjective | None:
    """The objective that trained a checkpoint; none of stage rl, which has no loss on pairs.

    One from before a setting has its default.
    """
    if checkpoint.training["stage"] == "rl":
        return None
    names = AlignmentObjective.__dataclass_fields__.keys() & checkpoint.training.keys()
    return AlignmentObjective(**{name: checkpoint.training[name] for name in names})


def record_evaluations(
    client: MlflowClient, run_id: str, evaluations: dict[int, CheckpointEvaluation], out: Path, evaluator: Evaluator
) -> None:
    """Log metrics at the examples seen, completions as artifacts, and how they were made."""
    log_params(client, run_id, evaluator.settings)
    if evaluator.judge is not None:
        set_tags(client, run_id, judge_tags(evaluator.judge))
    for examples_seen, evaluation in evaluations.items():
        log_metrics(client, run_id, evaluation.metrics, step=examples_seen)
        log_artifact(client, run_id, completions_path(out, examples_seen), "completions")


def print_evaluations(evaluations: dict[int, CheckpointEvaluation]) -> None:
    """One line a checkpoint; of a policy gradient with the reward that it was after beside the gold one."""
    optimised = any("eval/proxy_reward" in metrics for metrics, _ in evaluations.values())
    rewards = {"eval/proxy_reward": "proxy", "eval/gold_reward": "gold"} if optimised else {}
    header = f"{'examples':>10} {'KL [nats]':>16} {'win rate':>16} {'tokens':>7}"
    print(header + "".join(f" {name:>8}" for name in rewards.values()))
    for examples_seen, (metrics, _) in sorted(evaluations.items()):
        kl = f"{metrics['eval/kl_nats']:.2f} +- {metrics['eval/kl_se']:.2f}"
        win = "-"
        if "eval/win_rate" in metrics:
            win = f"{metrics['eval/win_rate']:.3f} +- {metrics['eval/win_rate_se']:.3f}"
        found = "".join(f" {metrics[name]:>8.3f}" if name in metrics else f" {'-':>8}" for name in rewards)
        print(f"{examples_seen:>10} {kl:>16} {win:>16} {metrics['eval/response_tokens']:>7.1f}{found}")


def print_agreement(evaluations: dict[int, CheckpointEvaluation], server: CompletionServer) -> None:
    """How far the server's log-probabilities are from ours: what its rounding may add to KL."""
    for metrics, _ in evaluations.values():
        if "eval/sampler_kl_nats" not in metrics:
            print(f"warning: {server.url} gives no log-probabilities, so whether it has this very policy is unknown")
            continue
        print(
            f"sampled by {server.url}, which is {metrics['eval/sampler_kl_nats']:.3g} nats of KL a response from "
            "the policy here; log-probabilities differ by at most "
            f"{metrics['eval/sampler_largest_difference_nats']:.3g} nats at a token"
        )
