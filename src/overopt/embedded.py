"""The whole experiment on small models from scratch: what is trained, from what, and where it is kept.

Texts (docstrings by default), an SFT policy of each size and seed, one gold reward model, pairs that it labels, and any
number of aligned policies (cells), in rounds on pairs of their own where asked. Each is a task with a folder of its
own, done once; the quickstart does them in order, a sweep hands them to workers.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lightning import seed_everything
from mlflow import MlflowClient

from overopt.analysis.advice.peak_rule import PeakRule
from overopt.checkpoints.stage_folder import StageFolder, read_record
from overopt.checkpoints.whole_file import whole_file
from overopt.data.datamodule import PreferenceDataModule
from overopt.data.splits import Part
from overopt.evaluation.checkpoint_metrics import CheckpointEvaluation, Evaluator, SampleEvaluator
from overopt.evaluation.judges.gold_reward import gold_reward_judge
from overopt.evaluation.records import read_completions, write_completions
from overopt.experiment import (
    completions_path,
    label_pairs_to_folder,
    open_policy,
    record_evaluations,
    sample_pairs_to_file,
)
from overopt.models.policy import EMBEDDED_SIZES
from overopt.modules.direct_alignment import AlignmentObjective, DirectAlignmentModule
from overopt.modules.moving_reference import ReferenceUpdates
from overopt.modules.optimizers import OptimizerSettings
from overopt.modules.reward_modeling import RewardModule
from overopt.modules.sft import SFTModule
from overopt.modules.step import StepModule
from overopt.progress import progress_bar
from overopt.reward_stages.best_of_n import BestOfNSettings, run_best_of_n
from overopt.reward_stages.evaluate_reward import evaluate_reward_models
from overopt.run_evaluations import RunEvaluations
from overopt.tracking.runs import PARENT_TAG, find_run, finishing, log_metrics, log_params, start_run
from overopt.tracking.store import open_store
from overopt.trainers import fit

TRAINING_SECONDS, EVALUATION_SECONDS = "training_seconds", "evaluation_seconds"
"""How long a task trained, waits for evaluations included, and how long it evaluated in its last sitting, from opening
policies, judge and prompts."""

#: Between the seeds of one round's pairs and the next one's: more than a study has seeds.
_DRAWS_OF_A_ROUND = 1000


@dataclass(frozen=True)
class Recipe:
    """The embedded default's settings, found by the experiments that ``studies/README.md`` tells of.

    Attributes:
        source: of the texts; any that holds demonstrations, see ``overopt data-report``.
        path: file or folder of the source.
        gold_fraction: share of posts kept for the gold model; the source's own by default.
        betas: prices of divergence [reward / nat].
        gold_size: of the gold reward model's backbone.
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
        peak: which checkpoint of a run is its best, and whether a run past it goes on.
        sft_optimizer: of the SFT policy.
        gold_optimizer: of the gold reward model.
        align_optimizer: of alignment.

    Raises:
        ValueError: a number of steps, pairs, prompts or the like below 1.
    """

    source: str = "docstrings"
    path: str | None = None
    gold_fraction: float | None = None
    gold_size: str = "0.7M"
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
    peak: PeakRule = PeakRule()
    sft_optimizer: OptimizerSettings = OptimizerSettings("adamw", 4e-3, 0.05, "cosine")
    gold_optimizer: OptimizerSettings = OptimizerSettings("adamw", 2e-3, 0.1, "cosine")
    align_optimizer: OptimizerSettings = OptimizerSettings("rmsprop", 4e-4, 0.2)

    def __post_init__(self) -> None:
        if low := [f"{name}={value}" for name, value in vars(self).items() if isinstance(value, int) and value < 1]:
            raise ValueError(f"a recipe needs at least 1 of everything, got {', '.join(low)}")


@dataclass(frozen=True)
class Cell:
    """One aligned policy: what a study varies.

    Attributes:
        objective: direct alignment objective.
        beta: price of divergence [reward / nat].
        size: of the policy, a name in ``EMBEDDED_SIZES``.
        seed: of SFT policy, pairs, labels and training order.
        length_penalty: price of length [reward / token].
        learning_rate: of the alignment; the recipe's by default.
        nll_weight: of the chosen response's negative log-likelihood (RPO); this and the following as
            :class:`overopt.modules.direct_alignment.DirectAlignmentModule` has them.
        nll_per: token or response.
        link: log or chi_squared (chi-PO).
        max_reward: clips chi-PO's logit [reward].
        positive_penalty: price of a fallen chosen response (DPO-positive).
        reference_every: the reference follows the policy every so many optimiser steps (TR-DPO); 0: it does not.
        reference_alpha: the policy's part in that, in [0, 1]; 1 is a hard update.
        rounds: of iterated DPO: each after the first samples pairs from the policy that the one before ended with,
            which the gold model labels, and trains on from that policy. A round is a run of its own, and the last
            round's is this cell's. All rounds are evaluated against the SFT policy, on the first round's held-out
            pairs, and so is the row at 0 examples.
        round_reference: of the training in later rounds: ``first``, the SFT policy, or ``last``, the policy that the
            round starts from.

    Raises:
        ValueError: an unknown objective or size, a bad beta or penalty, or settings that make no sense together.
    """

    objective: str = "dpo"
    beta: float = 0.1
    size: str = "0.7M"
    seed: int = 0
    length_penalty: float = 0.0
    learning_rate: float | None = None
    nll_weight: float = 0.0
    nll_per: Literal["token", "response"] = "token"
    link: Literal["log", "chi_squared"] = "log"
    max_reward: float | None = None
    positive_penalty: float = 0.0
    reference_every: int = 0
    reference_alpha: float = 1.0
    rounds: int = 1
    round_reference: Literal["first", "last"] = "first"

    def __post_init__(self) -> None:
        _ = self.alignment, self.reference_updates  # refuse bad settings
        if self.rounds < 1 or self.round_reference not in ("first", "last"):
            raise ValueError(
                f"need rounds >= 1 and round_reference first or last, got {self.rounds} and {self.round_reference!r}"
            )
        if self.rounds == 1 and self.round_reference == "last":
            raise ValueError("round_reference is of rounds after the first, got rounds=1")
        if self.size not in EMBEDDED_SIZES:
            raise ValueError(f"no size {self.size!r}; the embedded default has {', '.join(EMBEDDED_SIZES)}")
        if self.learning_rate is not None and self.learning_rate <= 0:
            raise ValueError(f"a learning rate is positive, got {self.learning_rate}")

    @property
    def alignment(self) -> AlignmentObjective:
        """What the policy is trained by."""
        return AlignmentObjective(
            self.objective,
            self.beta,
            self.length_penalty,
            nll_weight=self.nll_weight,
            nll_per=self.nll_per,
            link=self.link,
            max_reward=self.max_reward,
            positive_penalty=self.positive_penalty,
        )

    @property
    def reference_updates(self) -> ReferenceUpdates | None:
        """How the reference moves, if it does."""
        if self.reference_every == 0:
            if self.reference_alpha != 1:
                raise ValueError(f"reference_alpha={self.reference_alpha} needs reference_every, in optimiser steps")
            return None
        if self.reference_alpha == 1:
            return ReferenceUpdates("hard", every=self.reference_every)
        return ReferenceUpdates("soft", self.reference_alpha, self.reference_every)

    @property
    def round_before(self) -> "Cell":
        """The cell whose last policy this one's last round starts from; only where there are several rounds."""
        rounds = self.rounds - 1
        return replace(self, rounds=rounds, round_reference=self.round_reference if rounds > 1 else "first")

    @property
    def all_rounds(self) -> "list[Cell]":
        """The cells of all its rounds, this one last."""
        return [*([] if self.rounds == 1 else self.round_before.all_rounds), self]

    @property
    def name(self) -> str:
        """Of folder and run.

        >>> Cell("ipo", 0.05, length_penalty=0.01).name
        'ipo-beta0.05-length0.01-0.7M-seed0'
        >>> Cell(nll_weight=0.1, reference_every=8, rounds=2).name
        'dpo-beta0.1-nll0.1-moving8-rounds2-0.7M-seed0'
        """
        parts = {
            f"-length{self.length_penalty:g}": self.length_penalty,
            f"-lr{self.learning_rate or 0:g}": self.learning_rate is not None,
            f"-nll{self.nll_weight:g}{'' if self.nll_per == 'token' else self.nll_per}": self.nll_weight,
            f"-{self.link}": self.link != "log",
            f"-max{self.max_reward or 0:g}": self.max_reward is not None,
            f"-positive{self.positive_penalty:g}": self.positive_penalty,
            f"-moving{self.reference_every}": self.reference_every,
            f"-alpha{self.reference_alpha:g}": self.reference_alpha != 1,
            f"-rounds{self.rounds}{'' if self.round_reference == 'first' else self.round_reference}": self.rounds > 1,
        }
        changed = "".join(part for part, said in parts.items() if said)
        return f"{self.objective}-beta{self.beta:g}{changed}-{self.size}-seed{self.seed}"


@dataclass(frozen=True)
class Proxy:
    """A proxy reward model (Eq. 2) on pairs that the gold model labelled.

    Members of an ensemble differ in their seed and have one ``policy_seed``.

    Attributes:
        size: of its backbone, a name in ``EMBEDDED_SIZES``.
        pairs: so many at most of the policy's labelled pairs, chosen by a hash of their posts.
        seed: of the SFT policy that is its backbone, and of the training order.
        policy_size: of the policy whose pairs it learns from; its own by default.
        policy_seed: of that policy; its own by default.
        passes: over the pairs.

    Raises:
        ValueError: an unknown size, or no pairs or passes.
    """

    size: str = "0.7M"
    pairs: int = 2048
    seed: int = 0
    policy_size: str | None = None
    policy_seed: int | None = None
    passes: int = 2

    def __post_init__(self) -> None:
        for size in (self.size, self.labelled[0]):
            if size not in EMBEDDED_SIZES:
                raise ValueError(f"no size {size!r}; the embedded default has {', '.join(EMBEDDED_SIZES)}")
        if self.pairs < 1 or self.passes < 1:
            raise ValueError(f"a proxy needs at least 1 of pairs and passes, got {self.pairs} and {self.passes}")

    @property
    def labelled(self) -> tuple[str, int]:
        """Size and seed of the policy whose pairs it learns from."""
        return (
            self.size if self.policy_size is None else self.policy_size,
            self.seed if self.policy_seed is None else self.policy_seed,
        )

    @property
    def name(self) -> str:
        """Of folder and run.

        >>> Proxy("0.4M", 512, 1).name, Proxy("0.4M", 512, 1, policy_size="0.7M", policy_seed=0).name
        ('proxy-0.4M-pairs512-seed1', 'proxy-0.4M-pairs512-seed1-of-0.7M-seed0')
        """
        of = "" if self.labelled == (self.size, self.seed) else "-of-{}-seed{}".format(*self.labelled)
        passes = "" if self.passes == Proxy.passes else f"-passes{self.passes}"
        return f"proxy-{self.size}-pairs{self.pairs}-seed{self.seed}{of}{passes}"


@dataclass(frozen=True)
class BestOfN:
    """Best-of-n from an SFT policy, by proxies of its own pairs.

    Attributes:
        proxies: one, or an ensemble; the policy is the one whose pairs they learn from.
        settings: how samples are drawn and chosen; the recipe says how many prompts there are.

    Raises:
        ValueError: no proxies, or of several policies.
    """

    proxies: tuple[Proxy, ...]
    settings: BestOfNSettings = field(default_factory=BestOfNSettings)

    def __post_init__(self) -> None:
        if len({proxy.labelled for proxy in self.proxies}) != 1:
            raise ValueError(
                "best-of-n needs proxies that learn from the pairs of one policy: set their policy_size and policy_seed"
            )

    @property
    def name(self) -> str:
        """Of folder and run.

        >>> BestOfN((Proxy("0.4M", 512, 1),)).name
        'best-of-64-seed0-proxy-0.4M-pairs512-seed1'
        """
        first, settings = self.proxies[0], self.settings
        several = f"-{len(self.proxies)}-{settings.combine}" if len(self.proxies) > 1 else ""
        return f"best-of-{settings.pool}-seed{settings.seed}-{first.name}{several}"


class Task(NamedTuple):
    """Something to be done once.

    Attributes:
        needs: names of the tasks whose folders it reads, earliest first.
        run: does it, or finds it done; gives what is worth telling of it.
    """

    needs: tuple[str, ...]
    run: Callable[[], Mapping[str, float]]


@dataclass
class EmbeddedExperiment:
    """One experiment: its folder, its tracking, its recipe.

    Attributes:
        out: folder of everything but the tracking store; each task has a folder in it.
        tracking_uri: MLflow store.
        study: id of the parent run.
        recipe: the settings.
    """

    out: Path
    tracking_uri: str
    study: str
    recipe: Recipe = field(default_factory=Recipe)

    def tasks(self, cells: Iterable[Cell]) -> dict[str, Task]:
        """All that these cells take, by name: each after what it needs."""
        tasks = self._gold_tasks()
        for cell in cells:
            size, seed = cell.size, cell.seed
            policy, pairs, reference = _sft_name(size, seed), _pairs_name(size, seed), f"reference-{size}-seed{seed}"
            self._add_pairs(tasks, size, seed)
            tasks.setdefault(reference, Task((policy, "gold", pairs), partial(self._reference, size, seed)))
            needs: tuple[str, ...] = (policy, "gold", pairs, reference)
            for done in cell.all_rounds:
                if done.rounds > 1:
                    before, own = done.round_before, _round_pairs(done.round_before)
                    tasks.setdefault(own, Task((*needs, before.name), partial(self._pairs_of_round, before)))
                    needs = (*needs, before.name, own)
                tasks.setdefault(done.name, Task(needs, partial(self._align, done)))
        return tasks

    def proxy_tasks(self, proxies: Iterable[Proxy], best_of_n: Iterable[BestOfN] = ()) -> dict[str, Task]:
        """All that these proxies, and best-of-n by theirs, take, by name: each after what it needs.

        Raises:
            ValueError: a proxy of more pairs than the recipe has.
        """
        tasks, choices = self._gold_tasks(), list(best_of_n)
        for proxy in dict.fromkeys([*proxies, *(proxy for choice in choices for proxy in choice.proxies)]):
            if proxy.pairs > self.recipe.pairs:
                raise ValueError(
                    f"{proxy.name} wants {proxy.pairs} pairs, the recipe has {self.recipe.pairs} of a policy"
                )
            backbone = _sft_name(proxy.size, proxy.seed)
            pairs = self._add_pairs(tasks, *proxy.labelled)
            tasks.setdefault(backbone, Task((), partial(self._sft, proxy.size, proxy.seed)))
            tasks[proxy.name] = Task((backbone, "gold", pairs), partial(self._proxy, proxy))
        for choice in choices:
            needs = _sft_name(*choice.proxies[0].labelled), "gold", *(proxy.name for proxy in choice.proxies)
            tasks[choice.name] = Task(needs, partial(self._best_of_n, choice))
        return tasks

    def _gold_tasks(self) -> dict[str, Task]:
        policy = _sft_name(self.recipe.gold_size, 0)
        return {
            policy: Task((), partial(self._sft, self.recipe.gold_size, 0)),
            "gold-pairs": Task((policy,), self._gold_pairs),
            "gold": Task((policy, "gold-pairs"), self._gold),
        }

    def _add_pairs(self, tasks: dict[str, Task], size: str, seed: int) -> str:
        """Add what makes a policy's labelled pairs; gives the name of their task."""
        policy, pairs = _sft_name(size, seed), _pairs_name(size, seed)
        tasks.setdefault(policy, Task((), partial(self._sft, size, seed)))
        tasks.setdefault(pairs, Task((policy, "gold"), partial(self._pairs, size, seed)))
        return pairs

    def fingerprint(self) -> str:
        """Of the texts that everything begins with; reads them, and keeps what it has read."""
        return self._texts().fingerprint

    @cached_property
    def client(self) -> MlflowClient:
        """Of the tracking store."""
        return open_store(self.tracking_uri, create=True)

    @cached_property
    def _evaluators(self) -> dict[tuple[str, int], Evaluator]:
        return {}

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs: neither clients nor models."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def _data(self, **changes: Any) -> PreferenceDataModule:
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

    def _texts(self, **changes: Any) -> PreferenceDataModule:
        """The texts that everything begins with."""
        recipe = self.recipe
        return self._data(source=recipe.source, path=recipe.path, gold_fraction=recipe.gold_fraction, **changes)

    def _checkpoint(self, name: str) -> Path:
        return self.out / name / "checkpoints" / "last.ckpt"

    def _key(self, name: str) -> str:
        return str(read_record(self.out / name)["key"])

    def _train(
        self,
        name: str,
        module: StepModule,
        data: PreferenceDataModule,
        max_steps: int,
        seed: int,
        then: Callable[[str], Mapping[str, float]] | None = None,
        past_peak: Callable[[], bool] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Mapping[str, float]:
        """Train a module in a run of its own, or find it trained.

        Args:
            name: of folder and run.
            module: what to train.
            data: what on.
            max_steps: optimiser steps.
            seed: of weights and data order.
            then: what to do after training with the run while it is open.
            past_peak: asked after each checkpoint whether to end there, and before a training is resumed.
            tags: of the run.
        """
        settings = {
            "name": name,
            **module.parameters_to_log(),
            "optimizer": asdict(module.optimizer_settings),
            "data": {k: v for k, v in data.hparams.items() if k != "cache_dir"},
            "fingerprint": data.fingerprint,
            "max_steps": max_steps,
            "seed": seed,
            **({} if past_peak is None else {"peak": asdict(self.recipe.peak)}),
        }
        with StageFolder(self.out / name, settings, self.out) as stage:
            # Of this study: another one in the same store may have a run with equal settings.
            own = {"overopt.stage_key": stage.key, PARENT_TAG: self.study}
            run_id = find_run(self.client, own)
            if stage.done and run_id is not None:
                return stage.result
            run_id = run_id or start_run(self.client, name, module.stage_name, tags={**(tags or {}), **own})
            print(f"\n{name}")
            seed_everything(seed, verbose=False)
            with finishing(self.client, run_id):
                log_params(self.client, run_id, {"seed": seed, "max_steps": max_steps})
                took = 0.0
                if past_peak is None or not past_peak():
                    took = fit(
                        module,
                        data,
                        stage.folder / "checkpoints",
                        tracking_uri=self.tracking_uri,
                        run_id=run_id,
                        max_steps=max_steps,
                        on_saved=past_peak,
                    )
                self.client.update_run(run_id, status="RUNNING")  # the trainer's logger has ended it
                result = {TRAINING_SECONDS: took, **({} if then is None else then(run_id))}
            stage.finish(result)
            return stage.result

    def _make(self, name: str, settings: dict[str, Any], work: Callable[[Path], object]) -> Mapping[str, float]:
        """A stage without training: files in a folder, made once."""
        with StageFolder(self.out / name, settings, self.out) as stage:
            if not stage.done:
                print(f"\n{name}")
                work(stage.folder)
                stage.finish()
        return {}

    def _sft(self, size: str, seed: int) -> Mapping[str, float]:
        module = SFTModule(architecture=EMBEDDED_SIZES[size], optimizer=self.recipe.sft_optimizer)
        return self._train(_sft_name(size, seed), module, self._texts(seed=seed), self.recipe.sft_steps, seed)

    def _gold_pairs(self) -> Mapping[str, float]:
        """What the gold model learns from: people's summaries against samples, on posts kept from every policy."""
        recipe, name = self.recipe, _sft_name(self.recipe.gold_size, 0)
        policy = self._checkpoint(name)

        def work(folder: Path) -> None:
            file = folder / "sampled.jsonl"
            parts: list[Part] = ["gold", "evaluation"]
            sample_pairs_to_file(str(policy), file, None, None, parts, recipe.gold_pairs, recipe.evaluation_prompts, 0)
            label_pairs_to_folder(file, folder / "labelled", None, 0)

        settings = {"policy": self._key(name), "pairs": recipe.gold_pairs, "held out": recipe.evaluation_prompts}
        return self._make("gold-pairs", settings, work)

    def _gold(self) -> Mapping[str, float]:
        """The gold reward model: the SFT policy's backbone, trained by Eq. 2."""
        policy = str(self._checkpoint(_sft_name(self.recipe.gold_size, 0)))
        data = self._data(
            source="jsonl", path=str(self.out / "gold-pairs/labelled"), examples="preferences", tokenizer=policy
        )
        return self._train("gold", RewardModule(policy, self.recipe.gold_optimizer), data, self.recipe.gold_steps, 0)

    def _pairs(self, size: str, seed: int) -> Mapping[str, float]:
        """Sampled pairs, labelled by the gold model."""
        return self._labelled_pairs(_pairs_name(size, seed), _sft_name(size, seed), 1 + seed, seed)

    def _pairs_of_round(self, cell: Cell) -> Mapping[str, float]:
        """Pairs for the round after a cell's: its policy's own, on the same prompts, labelled by the gold model."""
        draw = cell.seed + _DRAWS_OF_A_ROUND * cell.rounds
        return self._labelled_pairs(_round_pairs(cell), cell.name, 1 + draw, draw)

    def _labelled_pairs(self, name: str, policy: str, draw: int, seed: int) -> Mapping[str, float]:
        recipe, gold = self.recipe, self._checkpoint("gold")

        def work(folder: Path) -> None:
            file = folder / "sampled.jsonl"
            parts: list[Part] = ["train", "evaluation"]
            most = recipe.pairs, recipe.evaluation_prompts
            sample_pairs_to_file(str(self._checkpoint(policy)), file, None, None, parts, *most, draw)
            label_pairs_to_folder(file, folder / "labelled", gold_reward_judge(gold, recipe.gold_temperature), seed)

        settings = {
            "policy": self._key(policy),
            "gold": self._key("gold"),
            "gold_temperature": recipe.gold_temperature,
            "pairs": recipe.pairs,
            "held out": recipe.evaluation_prompts,
            "seed": seed,
        }
        return self._make(name, settings, work)

    def _proxy(self, proxy: Proxy) -> Mapping[str, float]:
        """A proxy reward model, evaluated on held-out pairs beside the gold model."""
        policy = str(self._checkpoint(_sft_name(proxy.size, proxy.seed)))
        data = self._preferences(
            _pairs_name(*proxy.labelled), *proxy.labelled, tokenizer=policy, seed=proxy.seed, max_examples=proxy.pairs
        )
        steps = proxy.passes * math.ceil(len(data.train_set) / data.batch_size)

        def evaluate(run_id: str) -> Mapping[str, float]:
            [evaluated] = evaluate_reward_models(
                [self._checkpoint(proxy.name)],
                gold=self._checkpoint("gold"),
                run_id=run_id,
                tracking_uri=self.tracking_uri,
            )
            return {name.removeprefix("eval/"): value for name, value in evaluated.metrics().items()}

        module = RewardModule(policy, self.recipe.gold_optimizer)
        tags = {f"overopt.{name}": str(value) for name, value in asdict(proxy).items() if value is not None}
        return self._train(proxy.name, module, data, steps, proxy.seed, then=evaluate, tags=tags)

    def _best_of_n(self, choice: BestOfN) -> Mapping[str, float]:
        recipe, policy = self.recipe, _sft_name(*choice.proxies[0].labelled)
        settings = replace(choice.settings, num_prompts=recipe.evaluation_prompts)

        def work(folder: Path) -> None:
            run_best_of_n(
                str(self._checkpoint(policy)),
                [self._checkpoint(proxy.name) for proxy in choice.proxies],
                gold_reward_judge(self._checkpoint("gold"), recipe.gold_temperature),
                settings,
                out=folder,
                tracking_uri=self.tracking_uri,
                parent=self.study,
            )

        keys = {name: self._key(name) for name in (policy, "gold", *(proxy.name for proxy in choice.proxies))}
        return self._make(choice.name, keys | asdict(settings) | {"gold_temperature": recipe.gold_temperature}, work)

    def _reference(self, size: str, seed: int) -> Mapping[str, float]:
        """The first row of every run with this reference: its samples, judged."""

        def work(folder: Path) -> None:
            evaluator = self._open_evaluator(size, seed)
            with progress_bar() as progress:
                task = progress.add_task("evaluating the reference", total=self.recipe.evaluation_prompts)
                samples = evaluator.sample_reference(lambda n: progress.advance(task, n))
            write_completions(completions_path(folder, 0), samples.completions)
            with whole_file(folder / "metrics.json") as file:
                file.write(json.dumps(samples.metrics).encode())

        settings = {"pairs": self._key(_pairs_name(size, seed)), "prompts": self.recipe.evaluation_prompts}
        return self._make(f"reference-{size}-seed{seed}", settings, work)

    def _preferences(self, pairs: str, size: str, seed: int, /, **changes: Any) -> PreferenceDataModule:
        return self._data(
            **{
                "source": "jsonl",
                "path": str(self.out / pairs / "labelled"),
                "examples": "preferences",
                "tokenizer": str(self._checkpoint(_sft_name(size, seed))),
                "batch_size": self.recipe.align_batch_size,
                "seed": seed,
                **changes,
            }
        )

    def _open_evaluator(self, size: str, seed: int) -> Evaluator:
        samples = SampleEvaluator(
            self._preferences(_pairs_name(size, seed), size, seed),
            open_policy(self._checkpoint(_sft_name(size, seed))),
            gold_reward_judge(self._checkpoint("gold"), self.recipe.gold_temperature),
            num_prompts=self.recipe.evaluation_prompts,
            seed=seed,
        )
        return Evaluator(samples)

    def _evaluator(self, size: str, seed: int) -> Evaluator:
        """One a reference: all its cells are evaluated by it."""
        if (size, seed) not in self._evaluators:
            evaluator = self._open_evaluator(size, seed)
            folder = self.out / f"reference-{size}-seed{seed}"
            metrics = json.loads((folder / "metrics.json").read_text())
            evaluator.know_reference(CheckpointEvaluation(metrics, read_completions(completions_path(folder, 0))))
            self._evaluators[size, seed] = evaluator
        return self._evaluators[size, seed]

    def _align(self, cell: Cell) -> Mapping[str, float]:
        rule, optimizer = self.recipe.peak, self.recipe.align_optimizer
        if cell.learning_rate is not None:
            optimizer = replace(optimizer, learning_rate=cell.learning_rate)
        began = time.perf_counter()
        evaluator = self._evaluator(cell.size, cell.seed)
        opened = time.perf_counter() - began
        evaluations = RunEvaluations(evaluator, self.out / cell.name, rule, seconds=opened)
        data, start = evaluator.data, None
        reference = str(self._checkpoint(_sft_name(cell.size, cell.seed)))
        if cell.rounds > 1:
            data = self._preferences(_round_pairs(cell.round_before), cell.size, cell.seed)
            start = str(self._checkpoint(cell.round_before.name))
            if cell.round_reference == "last":
                reference, start = start, None
        module = DirectAlignmentModule(
            reference,
            **asdict(cell.alignment),
            moving_reference=cell.reference_updates,
            policy=start,
            optimizer=optimizer,
        )

        def evaluate(run_id: str) -> Mapping[str, float]:
            with progress_bar() as progress:
                policies = len(evaluations.missing()) + (not evaluations.evaluations)
                task = progress.add_task("evaluating", total=policies * self.recipe.evaluation_prompts)
                evaluations.catch_up(lambda n: progress.advance(task, n))
            record_evaluations(
                self.client, run_id, evaluations.evaluations, evaluations.completions, evaluations.evaluator
            )
            log_metrics(self.client, run_id, evaluations.best, step=max(evaluations.evaluations))
            return {**evaluations.best, EVALUATION_SECONDS: evaluations.seconds}

        return self._train(
            cell.name,
            module,
            data,
            self.recipe.align_steps,
            cell.seed,
            then=evaluate,
            past_peak=None if rule.standard_errors is None else evaluations.past_peak,
            tags={f"overopt.{name}": str(value) for name, value in asdict(cell).items() if value is not None},
        )


def _sft_name(size: str, seed: int) -> str:
    return f"sft-{size}-seed{seed}"


def _pairs_name(size: str, seed: int) -> str:
    return f"pairs-{size}-seed{seed}"


def _round_pairs(before: Cell) -> str:
    return f"pairs-{before.name}"
