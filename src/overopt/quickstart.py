"""From nothing to an over-optimization curve, by the embedded default's recipe (SPEC: docstrings, gold judge)."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lightning import seed_everything
from mlflow import MlflowClient

from overopt.analysis.store_report import report_from_store
from overopt.data.datamodule import PreferenceDataModule
from overopt.data.splits import Part
from overopt.evaluation.checkpoint_metrics import Evaluator
from overopt.evaluation.judges.gold_reward import gold_reward_judge
from overopt.experiment import (
    evaluate_paths,
    label_pairs_to_folder,
    open_policy,
    record_evaluations,
    sample_pairs_to_file,
)
from overopt.models.policy import EMBEDDED_SIZES
from overopt.modules.checkpoint_schedule import checkpoint_paths
from overopt.modules.direct_alignment import AlignmentObjective, DirectAlignmentModule
from overopt.modules.optimizers import OptimizerSettings
from overopt.modules.reward_modeling import RewardModule
from overopt.modules.sft import SFTModule
from overopt.modules.step import StepModule
from overopt.progress import progress_bar
from overopt.tracking.runs import PARENT_TAG, find_run, finishing, log_artifact, log_params, start_run
from overopt.tracking.store import open_store, resolve_tracking_uri
from overopt.trainers import fit, quiet_lightning


@dataclass(frozen=True)
class Recipe:
    """The embedded default's settings, found by the experiments that ``studies/README.md`` tells of.

    Attributes:
        betas: prices of divergence [reward / nat].
        vocab_size: of the byte-level BPE that all models share.
        max_prompt_tokens: of all stages.
        max_response_tokens: of all stages, the end of text included.
        batch_size: examples per optimiser step of SFT and reward modelling.
        sft_steps: optimiser steps of the SFT policy.
        gold_steps: optimiser steps of the gold reward model.
        gold_pairs: posts of the gold part whose human summaries it learns to prefer.
        gold_temperature: divides the gold model's rewards, in labels and verdicts alike.
        pairs: sampled pairs that policies are aligned to.
        align_batch_size: pairs per optimiser step of alignment.
        align_steps: optimiser steps of an alignment run.
        evaluation_prompts: held-out prompts.
        sft_optimizer: of the SFT policy.
        gold_optimizer: of the gold reward model.
        align_optimizer: of alignment.
    """

    betas: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
    vocab_size: int = 2048
    max_prompt_tokens: int = 48
    max_response_tokens: int = 24
    batch_size: int = 64
    sft_steps: int = 1000
    gold_steps: int = 400
    gold_pairs: int = 6400
    gold_temperature: float = 0.5
    pairs: int = 2048
    align_batch_size: int = 32
    align_steps: int = 256
    evaluation_prompts: int = 512
    sft_optimizer: OptimizerSettings = OptimizerSettings("adamw", 4e-3, 0.05, "cosine")
    gold_optimizer: OptimizerSettings = OptimizerSettings("adamw", 2e-3, 0.1, "cosine")
    align_optimizer: OptimizerSettings = OptimizerSettings("rmsprop", 4e-4, 0.2)


GOLD_SIZE = "0.7M"


@dataclass
class Quickstart:
    """One quickstart: its folder, its tracking, its recipe.

    Every stage has a folder with ``stage.json``, written when the stage is done and naming the settings it
    was done with; a stage whose settings agree is not done again. ``policies`` are the SFT policies at hand, by
    size and seed.
    """

    out: Path
    client: MlflowClient
    tracking_uri: str
    study: str
    recipe: Recipe = field(default_factory=Recipe)
    policies: dict[tuple[str, int], Path] = field(default_factory=dict)

    def data(self, **changes: Any) -> PreferenceDataModule:
        """A DataModule under the recipe's limits."""
        recipe = self.recipe
        data = PreferenceDataModule(
            **{
                "vocab_size": recipe.vocab_size,
                "max_prompt_tokens": recipe.max_prompt_tokens,
                "max_response_tokens": recipe.max_response_tokens,
                "batch_size": recipe.batch_size,
                "cache_dir": str(self.out / "cache"),
                **changes,
            }
        )
        data.setup("predict")
        return data

    def train(
        self, name: str, module: StepModule, data: PreferenceDataModule, max_steps: int, seed: int, then: Any = None
    ) -> Path:
        """Train a module in a run of its own, or find it trained; its last checkpoint.

        Args:
            name: of folder and run.
            module: what to train.
            data: what on.
            max_steps: optimiser steps.
            seed: of weights and data order.
            then: what to do with the checkpoint's folder and the run while it is open.
        """
        folder = self.out / name
        last = folder / "checkpoints" / "last.ckpt"
        settings = {
            "name": name,
            **module.parameters_to_log(),
            "optimizer": asdict(module.optimizer_settings),
            "data": {k: v for k, v in data.hparams.items() if k != "cache_dir"},
            "fingerprint": data.fingerprint,
            "max_steps": max_steps,
            "seed": seed,
        }
        with _Stage(folder, settings) as stage:
            # Of this study: another one in the same store may have a run with equal settings.
            tags = {"overopt.stage_key": stage.key, PARENT_TAG: self.study}
            run_id = find_run(self.client, tags)
            if stage.done and run_id is not None:
                return last
            run_id = run_id or start_run(self.client, name, module.stage_name, tags=tags)
            print(f"\n{name}")
            seed_everything(seed, verbose=False)
            with finishing(self.client, run_id):
                log_params(self.client, run_id, {"seed": seed, "max_steps": max_steps})
                fit(
                    module,
                    data,
                    folder / "checkpoints",
                    tracking_uri=self.tracking_uri,
                    run_id=run_id,
                    max_steps=max_steps,
                )
                self.client.update_run(run_id, status="RUNNING")  # the trainer's logger has ended it
                if then is not None:
                    then(folder, run_id)
            stage.finish()
        return last

    def make(self, name: str, settings: dict[str, Any], work: Callable[[Path], object]) -> Path:
        """A stage without training: files in a folder, made once."""
        with _Stage(self.out / name, settings) as stage:
            if not stage.done:
                print(f"\n{name}")
                work(stage.folder)
                stage.finish()
        return self.out / name


class _Stage:
    """A folder that knows whether its stage is done with the settings at hand."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        text = json.dumps(settings, sort_keys=True, default=str)
        self.folder = folder
        self.key = hashlib.sha256(text.encode()).hexdigest()[:32]
        self._record = folder / "stage.json"

    def __enter__(self) -> "_Stage":
        known = json.loads(self._record.read_text())["key"] if self._record.is_file() else None
        if known != self.key:
            # Another recipe's files would be resumed from.
            for stale in [*self.folder.glob("checkpoints/*.ckpt"), *self.folder.glob("*.jsonl")]:
                stale.unlink()
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write("begun")
        self.done = json.loads(self._record.read_text())["status"] == "done"
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing: an unfinished stage stays begun."""

    def finish(self) -> None:
        """Mark as done."""
        self._write("done")

    def _write(self, status: str) -> None:
        unfinished = self._record.with_suffix(".tmp")
        unfinished.write_text(json.dumps({"key": self.key, "status": status}))
        unfinished.replace(self._record)


def run_quickstart(
    objectives: Sequence[str],
    betas: Sequence[float] | None,
    seeds: Sequence[int],
    sizes: Sequence[str],
    out: Path,
    tracking_uri: str | None,
    recipe: Recipe = Recipe(),
) -> Path:
    """Stage ``quickstart``; see :func:`overopt.stages.quickstart`.

    Returns:
        The path of report.html.

    Raises:
        ValueError: an unknown objective or size, a bad beta, or a store that can't be reached; before any work.
    """
    betas = list(betas or recipe.betas)
    for objective in objectives:
        for beta in betas:
            AlignmentObjective(objective, beta)
    for size in sizes:
        if size not in EMBEDDED_SIZES:
            raise ValueError(f"no size {size!r}; the embedded default has {', '.join(EMBEDDED_SIZES)}")
    quiet_lightning()
    client = open_store(tracking_uri, create=True)
    uri = resolve_tracking_uri(tracking_uri)
    tags = {"overopt.quickstart": str(out.resolve())}
    study = find_run(client, tags) or start_run(client, "quickstart", "study", tags=tags)
    with finishing(client, study):
        quick = Quickstart(out, client, uri, study, recipe)
        gold = _gold_model(quick)
        for size in sizes:
            for seed in seeds:
                _align_all(quick, gold, size, seed, objectives, betas)
        report = report_from_store(out / "report", study=study, tracking_uri=uri)
        for path in sorted((out / "report").rglob("*")):
            if path.is_file():
                log_artifact(client, study, path, str(Path("report") / path.parent.relative_to(out / "report")))
    print(f"compare runs:  mlflow ui --backend-store-uri {uri}")
    return report.html


def _sft(quick: Quickstart, size: str, seed: int) -> Path:
    if (size, seed) not in quick.policies:
        recipe = quick.recipe
        module = SFTModule(architecture=EMBEDDED_SIZES[size], optimizer=recipe.sft_optimizer)
        name = f"sft-{size}-seed{seed}"
        quick.policies[size, seed] = quick.train(name, module, quick.data(seed=seed), recipe.sft_steps, seed)
    return quick.policies[size, seed]


def _gold_model(quick: Quickstart) -> Path:
    """The gold reward model: the SFT policy's backbone, trained by Eq. 2 on posts kept from every policy."""
    recipe = quick.recipe
    policy = _sft(quick, GOLD_SIZE, 0)

    def make_pairs(folder: Path) -> None:
        file = folder / "sampled.jsonl"
        parts: list[Part] = ["gold", "evaluation"]
        sample_pairs_to_file(str(policy), file, None, None, parts, recipe.gold_pairs, recipe.evaluation_prompts, 0)
        label_pairs_to_folder(file, folder / "labelled", None, 0)

    settings = {"policy": _key(policy), "pairs": recipe.gold_pairs, "held out": recipe.evaluation_prompts}
    pairs = quick.make("gold-pairs", settings, make_pairs)
    data = quick.data(source="jsonl", path=str(pairs / "labelled"), examples="preferences", tokenizer=str(policy))
    return quick.train("gold", RewardModule(str(policy), recipe.gold_optimizer), data, recipe.gold_steps, 0)


def _align_all(
    quick: Quickstart, gold: Path, size: str, seed: int, objectives: Sequence[str], betas: Sequence[float]
) -> None:
    recipe = quick.recipe
    reference = _sft(quick, size, seed)

    def make_pairs(folder: Path) -> None:
        file = folder / "sampled.jsonl"
        sample_pairs_to_file(
            str(reference), file, None, None, ["train", "evaluation"], recipe.pairs, recipe.evaluation_prompts, 1 + seed
        )
        label_pairs_to_folder(file, folder / "labelled", gold_reward_judge(gold, recipe.gold_temperature), seed)

    settings = {
        "policy": _key(reference),
        "gold": _key(gold),
        "gold_temperature": recipe.gold_temperature,
        "pairs": recipe.pairs,
        "held out": recipe.evaluation_prompts,
        "seed": seed,
    }
    pairs = quick.make(f"pairs-{size}-seed{seed}", settings, make_pairs)
    data = quick.data(
        source="jsonl",
        path=str(pairs / "labelled"),
        examples="preferences",
        tokenizer=str(reference),
        batch_size=recipe.align_batch_size,
        seed=seed,
    )
    evaluator = Evaluator(
        data,
        open_policy(reference),
        gold_reward_judge(gold, recipe.gold_temperature),
        num_prompts=recipe.evaluation_prompts,
        seed=seed,
    )

    def evaluate(folder: Path, run_id: str) -> None:
        paths = checkpoint_paths(folder / "checkpoints")
        with progress_bar() as progress:
            task = progress.add_task("evaluating", total=(len(paths) + 1) * recipe.evaluation_prompts)
            evaluations = evaluate_paths(evaluator, paths, folder / "evaluation", lambda n: progress.advance(task, n))
        record_evaluations(quick.client, run_id, evaluations, folder / "evaluation", evaluator)

    for objective in objectives:
        for beta in betas:
            module = DirectAlignmentModule(str(reference), objective, beta, optimizer=recipe.align_optimizer)
            quick.train(f"{objective}-beta{beta:g}-{size}-seed{seed}", module, data, recipe.align_steps, seed, evaluate)


def _key(checkpoint: Path) -> str:
    return str(json.loads((checkpoint.parent.parent / "stage.json").read_text())["key"])
