"""Stage ``best-of-n``: choosing the best of n samples by a proxy reward, from one pool of samples a prompt."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float64
from lightning.fabric.utilities import move_data_to_device
from mlflow import MlflowClient
from torch import Tensor

from overopt.analysis.figures.best_of_n import best_of_n, draw_best_of_n
from overopt.analysis.figures.style import drawing, write_figures
from overopt.checkpoints.checkpoint_names import run_folder
from overopt.checkpoints.cost import Cost
from overopt.data.datamodule import PreferenceDataModule
from overopt.data.tokenization import end_of_text_id, padding_id
from overopt.evaluation.best_of_n import (
    PromptMean,
    estimated_kl,
    expected_under_selection,
    kl_bound,
    mean_over_prompts,
    require_pool,
    selection_weights,
)
from overopt.evaluation.judges.protocol import Judge
from overopt.evaluation.records import Comparison, Completion, Verdict, write_json_lines
from overopt.evaluation.sampling import EvaluationPrompt, evaluation_prompts
from overopt.evaluation.text_rewards import combined_rewards, open_text_rewards
from overopt.experiment import data_of_policy, open_policy
from overopt.judging import Judging, judge_tags
from overopt.models.generation import SampledResponse, sample_several
from overopt.models.policy import Policy, model_name
from overopt.models.reward_ensemble import require_combination, require_members
from overopt.packed_tokens import PackedTokens, PromptGroup
from overopt.progress import progress_bar
from overopt.tracking.best_of_n_points import STAGE
from overopt.tracking.runs import (
    PARENT_TAG,
    PROXY_TAG,
    find_run,
    finishing,
    log_artifact,
    log_metrics,
    log_params,
    set_tags,
    start_run,
)
from overopt.tracking.store import open_store

_SETTINGS_TAG = "overopt.best_of_n"


@dataclass(frozen=True)
class BestOfNSettings:
    """How samples are drawn and chosen; see :func:`overopt.stages.best_of_n`.

    Raises:
        ValueError: an n beyond the pool or below 1, no prompts, an unknown combination or a bad price.
    """

    combine: str = "mean"
    price: float = 0.5
    pool: int = 64
    ns: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    num_prompts: int = 256
    opponent: str = "human"
    seed: int = 0

    def __post_init__(self) -> None:
        require_pool(self.pool, self.ns)
        if self.num_prompts < 1:
            raise ValueError(f"need at least one prompt, got --num-prompts {self.num_prompts}")
        require_combination(self.combine, self.price)


class BestOfNStudy(NamedTuple):
    """A study that compares best-of-n with other methods.

    Attributes:
        parent: id of the study's run.
        label: of the reward models, in words.
        cost: of the reward models, and of what they learned from.
    """

    parent: str
    label: str
    cost: Cost


class ScoredPool(NamedTuple):
    """As many samples of each prompt, and what was measured on them; arrays of a row a prompt.

    Attributes:
        prompts: held-out prompts.
        texts: of the samples, by prompt.
        sampled: the samples' tokens, by prompt.
        log_probs: of each sample under the policy [nats].
        members: rewards by each reward model.
        proxy: the members' rewards combined: what samples are chosen by.
        verdicts: of the judge, by prompt; ``None`` without one.
    """

    prompts: list[EvaluationPrompt]
    texts: list[list[str]]
    sampled: list[tuple[SampledResponse, ...]]
    log_probs: Float64[np.ndarray, "prompt sample"]
    members: Float64[np.ndarray, "member prompt sample"]
    proxy: Float64[np.ndarray, "prompt sample"]
    verdicts: list[list[Verdict]] | None

    def of_samples(self, value: Callable[[SampledResponse], float]) -> Float64[np.ndarray, "prompt sample"]:
        """A number of each sample."""
        return np.array([[value(sample) for sample in row] for row in self.sampled], dtype=np.float64)

    def of_verdicts(self, value: Callable[[Verdict], float | None]) -> Float64[np.ndarray, "prompt sample"] | None:
        """A number of each verdict, NaN where it has none; ``None`` where no verdict has."""
        rows = [[value(verdict) for verdict in row] for row in self.verdicts or ()]
        if all(each is None for row in rows for each in row):
            return None
        return np.array([[math.nan if each is None else each for each in row] for row in rows], dtype=np.float64)


def run_best_of_n(
    policy: str,
    reward: Sequence[Path],
    judge: Judging | Judge | None,
    settings: BestOfNSettings,
    *,
    source: str | None = None,
    path: str | None = None,
    out: Path | None = None,
    tracking_uri: str | None = None,
    name: str | None = None,
    study: BestOfNStudy | None = None,
) -> pd.DataFrame:
    """Stage ``best-of-n``; see :func:`overopt.stages.best_of_n`.

    Args:
        policy: checkpoint, Hugging Face folder or hub name.
        reward: checkpoints of reward models.
        judge: of samples against the dataset's responses.
        settings: how samples are drawn and chosen.
        source: data source of the prompts; what the policy was trained on by default.
        path: file or folder of the source.
        out: folder of tables, figures and completions.
        tracking_uri: of the store.
        name: of the run.
        study: that this belongs to.

    Returns:
        One row an n, as in best_of_n.csv.
    """
    if not reward:
        raise ValueError("name the reward models that samples are chosen by: --reward CHECKPOINT ...")
    require_members(reward)
    if isinstance(judge, Judging):
        judge.require()
    proxies = [open_text_rewards(checkpoint) for checkpoint in reward]
    opened = open_policy(policy)
    data = data_of_policy(policy, source, path)
    prompts = evaluation_prompts(data, settings.num_prompts, settings.opponent)
    out = out or (run_folder(Path(policy)) / "best_of_n" if Path(policy).is_file() else Path("outputs/best_of_n"))
    client = open_store(tracking_uri, create=True)
    with progress_bar() as progress:
        task = progress.add_task("sampling", total=settings.pool * len(prompts))
        sampled = sample_several(
            opened.causal_lm,
            [prompt.token_ids for prompt in prompts],
            eos_token_id=end_of_text_id(opened.tokenizer),
            max_response_tokens=data.max_response_tokens,
            seeds=range(settings.seed * settings.pool, (settings.seed + 1) * settings.pool),
            on_batch=lambda samples: progress.advance(task, samples),
        )
        texts = [
            [opened.tokenizer.decode(sample.token_ids, skip_special_tokens=True) for sample in row] for row in sampled
        ]
        asked = [(prompt.text, text) for prompt, row in zip(prompts, texts, strict=True) for text in row]
        members = np.stack(
            [proxy(*zip(*asked, strict=True)) for proxy in progress.track(proxies, description="scoring")]
        )
        judging = judge.open(progress) if isinstance(judge, Judging) else judge
        pool = ScoredPool(
            prompts=prompts,
            texts=texts,
            sampled=sampled,
            log_probs=pool_log_probs(opened, data, prompts, sampled),
            members=members.reshape(len(members), len(prompts), settings.pool),
            proxy=combined_rewards(members, settings.combine, settings.price).reshape(len(prompts), settings.pool),
            verdicts=None if judging is None else judged(judging, prompts, texts),
        )
    table = best_of_n_table(pool, settings.ns)
    title = f"best of n from {model_name(opened.causal_lm.config, opened.num_parameters)}"
    paths = _write(out, table, pool, title)
    own = {} if judging is None else judge_tags(judging)
    tracked = table
    if study is not None:
        own |= {PARENT_TAG: study.parent, PROXY_TAG: study.label}
        # One of one sample is the reference itself.
        tracked = pd.concat([table, pd.DataFrame([study.cost.part(float(n > 1)).record() for n in table["n"]])], axis=1)
    run = _track(client, tracked, paths, opened, policy, reward, settings, data, own, name)
    for line in summary(table):
        print(line)
    print(f"table, figure and completions in {out}, metrics in run {run}")
    return table


@torch.inference_mode()
def pool_log_probs(
    policy: Policy,
    data: PreferenceDataModule,
    prompts: Sequence[EvaluationPrompt],
    sampled: Sequence[tuple[SampledResponse, ...]],
) -> Float64[np.ndarray, "prompt sample"]:
    """Log-probability of each sample [nats], as sampled, by the code that trains; a prompt's share forward passes."""
    policy.eval()
    groups = [
        PromptGroup.of(prompt.token_ids, sample.token_ids)
        for prompt, row in zip(prompts, sampled, strict=True)
        for sample in row
    ]

    def totals(tokens: PackedTokens) -> Float[Tensor, " response"]:
        of_tokens = policy(move_data_to_device(tokens, policy.causal_lm.device)).cpu()
        return tokens.sums(of_tokens)

    scores = data.packing.scores(groups, totals, padding_id(policy.tokenizer))
    return np.array(scores, dtype=np.float64).reshape(len(prompts), -1)


def judged(judge: Judge, prompts: Sequence[EvaluationPrompt], texts: Sequence[Sequence[str]]) -> list[list[Verdict]]:
    """A verdict of each sample; of equal samples of a prompt one is asked for."""
    comparisons = {
        (prompt.prompt_id, text): Comparison(prompt.prompt_id, prompt.text, sample=text, opponent=prompt.opponent)
        for prompt, row in zip(prompts, texts, strict=True)
        for text in row
    }
    verdicts = dict(zip(comparisons, judge.judge(list(comparisons.values())), strict=True))
    return [[verdicts[prompt.prompt_id, text] for text in row] for prompt, row in zip(prompts, texts, strict=True)]


def best_of_n_table(pool: ScoredPool, ns: Sequence[int]) -> pd.DataFrame:
    """One row an n; each mean with its standard error over prompts (``_se``), which points of one pool share.

    n = 1 is always there: others are gains over it, and the pool has it for nothing.

    Columns: ``n``; ``kl_bound_nats``; ``kl_nats``, estimated; ``proxy_reward`` (the expected maximum), and
    ``gold_reward`` where the judge has one [logits], each with its ``_gain`` over n = 1, paired by prompt;
    ``win_rate`` [fraction] with a judge, and ``unreadable_share`` of its verdicts, by weight; ``response_tokens``;
    ``unfinished_share``.
    """
    quantities = {
        "proxy_reward": pool.proxy,
        "gold_reward": pool.of_verdicts(lambda verdict: verdict.sample_reward),
        "win_rate": pool.of_verdicts(lambda verdict: verdict.win_probability),
        "response_tokens": pool.of_samples(lambda sample: len(sample.token_ids)),
        "unfinished_share": pool.of_samples(lambda sample: not sample.finished),
    }
    if pool.verdicts is not None:
        quantities["unreadable_share"] = np.array(
            [[float(verdict.win_probability is None) for verdict in row] for row in pool.verdicts]
        )
    tokens = [[tuple(sample.token_ids) for sample in row] for row in pool.sampled]
    rows = []
    for n in sorted({1, *ns}):
        weights = np.stack([selection_weights(of_prompt, n) for of_prompt in pool.proxy])
        kl = mean_over_prompts(
            np.array(
                [estimated_kl(*of_prompt, n) for of_prompt in zip(pool.proxy, pool.log_probs, tokens, strict=True)]
            )
        )
        row: dict[str, float] = {"n": n, "kl_bound_nats": kl_bound(n), "kl_nats": kl.mean, "kl_se": kl.standard_error}
        for name, values in quantities.items():
            if values is None:
                continue
            row |= _with_error(name, expected_under_selection(weights, values))
            if name.endswith("_reward"):
                gains = ((weights - 1 / values.shape[1]) * values).sum(axis=1)
                row |= _with_error(f"{name}_gain", mean_over_prompts(gains))
        rows.append(row)
    return pd.DataFrame(rows).astype({"n": "int64"})


def _with_error(name: str, estimate: PromptMean) -> dict[str, float]:
    return {name: estimate.mean, f"{name}_se": estimate.standard_error}


def _write(out: Path, table: pd.DataFrame, pool: ScoredPool, title: str) -> list[Path]:
    out.mkdir(parents=True, exist_ok=True)
    table.to_csv(out / "best_of_n.csv", index=False)
    write_json_lines(out / "completions.jsonl", _completions(pool))
    with drawing():
        figures = write_figures(out / "figures", [("best_of_n", draw_best_of_n(best_of_n(table), title))])
    return [out / "best_of_n.csv", out / "completions.jsonl", *figures]


def _completions(pool: ScoredPool) -> Iterator[dict[str, object]]:
    """Rows that evaluate and judge would know, with what samples are chosen by."""
    for place, prompt in enumerate(pool.prompts):
        for sample, (text, response) in enumerate(zip(pool.texts[place], pool.sampled[place], strict=True)):
            completion = Completion(
                prompt_id=prompt.prompt_id,
                prompt=prompt.text,
                response=text,
                token_ids=response.token_ids,
                finished=response.finished,
                policy_log_prob=float(pool.log_probs[place, sample]),
                reference_log_prob=float(pool.log_probs[place, sample]),  # the base policy is its own reference
                k3=0.0,
                opponent=prompt.opponent,
                proxy_reward=float(pool.proxy[place, sample]),
            )
            if pool.verdicts is not None:
                completion = completion.with_verdict(pool.verdicts[place][sample])
            yield asdict(completion) | {
                "response_tokens": completion.response_tokens,
                "sample": sample,
                "member_rewards": pool.members[:, place, sample].tolist(),
            }


def _track(
    client: MlflowClient,
    table: pd.DataFrame,
    paths: Sequence[Path],
    opened: Policy,
    policy: str,
    reward: Sequence[Path],
    settings: BestOfNSettings,
    data: PreferenceDataModule,
    own: Mapping[str, str],
    name: str | None,
) -> str:
    """One run, a step an n: not examples seen, as nothing is trained, which is why its stage is not align."""
    params = {
        "objective": STAGE,
        "model": model_name(opened.causal_lm.config, opened.num_parameters),
        "num_parameters": opened.num_parameters,
        "policy": policy,
        "reward": [str(each) for each in reward],
        "reward_models": len(reward),
        "data_fingerprint": data.fingerprint,
        "split": data.split_statement,
        **asdict(settings),
    }
    identity = json.dumps([params, own, [_digest(each) for each in (Path(policy), *reward)]], default=str)
    tags = {_SETTINGS_TAG: hashlib.sha256(identity.encode()).hexdigest()}
    name = name or f"{STAGE}-{params['model']}-seed{settings.seed}"
    run = find_run(client, tags) or start_run(client, name, STAGE, tags=tags)
    with finishing(client, run):
        log_params(client, run, params)
        set_tags(client, run, own)
        for row in table.to_dict("records"):
            metrics = {
                f"eval/{column}": float(value)
                for column, value in row.items()
                if column != "n" and not math.isnan(value)
            }
            log_metrics(client, run, metrics, step=int(row["n"]))
        for path in paths:
            log_artifact(client, run, path, {".csv": "tables", ".jsonl": "completions"}.get(path.suffix, "figures"))
    return run


def _digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def summary(table: pd.DataFrame) -> list[str]:
    """For people: a line an n."""
    shown = {
        "kl_nats": "KL [nats]",
        "proxy_reward": "proxy reward",
        "gold_reward": "gold reward",
        "win_rate": "win rate",
        "response_tokens": "tokens",
    }
    shown = {column: title for column, title in shown.items() if column in table}
    lines = [f"{'n':>6} {'KL at most':>10} " + " ".join(f"{title:>18}" for title in shown.values())]
    for row in table.to_dict("records"):
        cells = [
            f"{row[column]:.3f} +- {row['kl_se' if column == 'kl_nats' else f'{column}_se']:.3f}" for column in shown
        ]
        lines.append(f"{row['n']:>6} {row['kl_bound_nats']:>10.3f} " + " ".join(f"{cell:>18}" for cell in cells))
    return lines
