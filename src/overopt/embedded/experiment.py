"""The whole experiment on small models from scratch: what is trained, from what, and where it is kept.

Texts (docstrings by default), an SFT policy of each size and seed, one gold reward model, pairs that it labels, proxy
reward models of these pairs, and any number of cells: policies that are aligned to the pairs, in rounds where asked, or
optimised against proxies, and best-of-n. Each is a task with a folder of its own, done once; see
:mod:`overopt.embedded.plan` for what needs what. The quickstart does them in order, a sweep hands them to workers.
"""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from overopt.analysis.advice.peak_rule import PeakRule
from overopt.checkpoints.cost import Cost
from overopt.checkpoints.format import load_tokenizer, read_model_checkpoint
from overopt.checkpoints.whole_file import whole_file
from overopt.data.datamodule import PreferenceDataModule
from overopt.data.splits import Part
from overopt.embedded.cells import BestOfN, Cell, PolicyGradientCell, Proxies, Proxy
from overopt.embedded.names import GOLD, GOLD_PAIRS, pairs_name, reference_name, round_pairs_name, sft_name
from overopt.embedded.recipe import Recipe
from overopt.embedded.task_folders import TaskFolders
from overopt.evaluation.checkpoint_metrics import CheckpointEvaluation, Evaluator, SampleEvaluator
from overopt.evaluation.judges.gold_reward import gold_reward_judge
from overopt.evaluation.records import read_completions, write_completions
from overopt.experiment import (
    completions_path,
    label_pairs_to_folder,
    open_policy,
    proxy_of,
    record_evaluations,
    sample_pairs_to_file,
)
from overopt.models.compute import stage_device
from overopt.models.policy import EMBEDDED_SIZES
from overopt.models.proxy_reward import ProxyReward
from overopt.modules.direct_alignment import DirectAlignmentModule
from overopt.modules.optimizers import OptimizerSettings
from overopt.modules.policy_gradient import PolicyGradientModule
from overopt.modules.reward_modeling import RewardModule
from overopt.modules.sft import SFTModule
from overopt.progress import progress_bar
from overopt.reward_stages.best_of_n import BestOfNSettings, BestOfNStudy, run_best_of_n
from overopt.reward_stages.evaluate_reward import evaluate_reward_models
from overopt.run_evaluations import BEST_KL, BEST_N, BEST_WIN_RATE, RunEvaluations
from overopt.tracking.runs import PROXY_TAG, log_metrics

EVALUATION_SECONDS = "evaluation_seconds"
"""How long a task evaluated in its last sitting, from opening policies, judge and prompts."""

#: Between the seeds of one round's pairs and the next one's: more than a study has seeds.
_DRAWS_OF_A_ROUND = 1000


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

    def fingerprint(self) -> str:
        """Of the texts that everything begins with; reads them, and keeps what it has read."""
        return self._texts().fingerprint

    @cached_property
    def tasks(self) -> TaskFolders:
        """Where each task is kept."""
        return TaskFolders(self.out, self.tracking_uri, self.study)

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

    def _peak(self) -> dict[str, Any]:
        """The rule by which a run's best checkpoint is found; the usual one is no setting."""
        return {} if self.recipe.peak == PeakRule() else {"peak": asdict(self.recipe.peak)}

    def _cost_of_proxies(self, proxies: Proxies) -> Cost:
        """Of the pairs that they learn from, the reward models, and the backbones that are not the policy."""
        share = min(1.0, max(member.pairs for member in proxies.members) / self.recipe.pairs)
        pairs = self.tasks.cost([pairs_name(*proxies.policy)]).part(share)
        backbones = {(member.size, member.seed) for member in proxies.members} - {proxies.policy}
        return pairs + self.tasks.cost(
            [*(member.name for member in proxies.members), *(sft_name(*backbone) for backbone in sorted(backbones))]
        )

    def sft(self, size: str, seed: int) -> Mapping[str, float]:
        """An SFT policy."""
        module = SFTModule(architecture=EMBEDDED_SIZES[size], optimizer=self.recipe.sft_optimizer)
        return self.tasks.train(sft_name(size, seed), module, self._texts(seed=seed), self.recipe.sft_steps, seed)

    def gold_pairs(self) -> Mapping[str, float]:
        """What the gold model learns from: people's summaries against samples, on posts kept from every policy."""
        recipe, name = self.recipe, sft_name(self.recipe.gold_size, 0)
        policy = self.tasks.checkpoint(name)

        def work(folder: Path) -> None:
            file = folder / "sampled.jsonl"
            parts: list[Part] = ["gold", "evaluation"]
            sample_pairs_to_file(str(policy), file, None, None, parts, recipe.gold_pairs, recipe.evaluation_prompts, 0)
            label_pairs_to_folder(file, folder / "labelled", None, 0, recipe.gold_repetitions)

        settings = {"policy": self.tasks.key(name), "pairs": recipe.gold_pairs, "held out": recipe.evaluation_prompts}
        if recipe.gold_repetitions:
            settings["repetitions"] = True
        return self.tasks.make(GOLD_PAIRS, settings, work)

    def gold(self) -> Mapping[str, float]:
        """The gold reward model: the SFT policy's backbone, trained by Eq. 2."""
        policy = str(self.tasks.checkpoint(sft_name(self.recipe.gold_size, 0)))
        data = self._data(
            source="jsonl", path=str(self.out / GOLD_PAIRS / "labelled"), examples="preferences", tokenizer=policy
        )
        return self.tasks.train(GOLD, RewardModule(policy, self.recipe.gold_optimizer), data, self.recipe.gold_steps, 0)

    def pairs(self, size: str, seed: int) -> Mapping[str, float]:
        """Sampled pairs, labelled by the gold model."""
        return self._labelled_pairs(pairs_name(size, seed), sft_name(size, seed), 1 + seed, seed)

    def pairs_of_round(self, cell: Cell) -> Mapping[str, float]:
        """Pairs for a cell's last round: of the policy that the round before ended with, on the same prompts."""
        before = cell.round_before
        draw = cell.seed + _DRAWS_OF_A_ROUND * before.rounds
        labeller = GOLD if cell.round_labels == "gold" else self.labeller(cell).name
        return self._labelled_pairs(round_pairs_name(cell), before.name, 1 + draw, draw, labeller)

    def labeller(self, cell: Cell) -> Proxy:
        """The proxy that labels later rounds: of all pairs of the first round."""
        return Proxy(cell.size, self.recipe.pairs, cell.seed)

    def _labelled_pairs(
        self, name: str, policy: str, draw: int, seed: int, labeller: str = GOLD
    ) -> Mapping[str, float]:
        recipe, gold = self.recipe, labeller == GOLD

        def work(folder: Path) -> Mapping[str, float]:
            file = folder / "sampled.jsonl"
            parts: list[Part] = ["train", "evaluation"]
            most = recipe.pairs, recipe.evaluation_prompts
            # A proxy has learned from labels that the gold model's temperature had made more decisive.
            judge = gold_reward_judge(self.tasks.checkpoint(labeller), recipe.gold_temperature if gold else 1.0)
            began = time.perf_counter()
            pairs = sample_pairs_to_file(str(self.tasks.checkpoint(policy)), file, None, None, parts, *most, draw)
            label_pairs_to_folder(file, folder / "labelled", judge, seed)
            seconds = time.perf_counter() - began
            # Held-out pairs, which come last, measure; they are no part of what training takes.
            trained_on = pairs[: len(pairs) - recipe.evaluation_prompts]
            tokenizer = load_tokenizer(self.tasks.checkpoint(policy))
            tokens = sum(len(tokenizer(text)["input_ids"]) for pair in trained_on for text in (pair.first, pair.second))
            return Cost(tokens, seconds * len(trained_on) / len(pairs)).record()

        settings = {
            "policy": self.tasks.key(policy),
            **({"gold_temperature": recipe.gold_temperature} if gold else {}),
            labeller: self.tasks.key(labeller),
            "pairs": recipe.pairs,
            "held out": recipe.evaluation_prompts,
            "seed": seed,
        }
        return self.tasks.make(name, settings, work)

    def proxy(self, proxy: Proxy) -> Mapping[str, float]:
        """A proxy reward model, evaluated on held-out pairs beside the gold model."""
        policy = str(self.tasks.checkpoint(sft_name(proxy.size, proxy.seed)))
        data = self._preferences(
            pairs_name(*proxy.labelled), *proxy.labelled, tokenizer=policy, seed=proxy.seed, max_examples=proxy.pairs
        )
        steps = proxy.epochs * math.ceil(len(data.train_set) / data.batch_size)

        def evaluate(run_id: str) -> Mapping[str, float]:
            [evaluated] = evaluate_reward_models(
                [self.tasks.checkpoint(proxy.name)],
                gold=self.tasks.checkpoint(GOLD),
                run_id=run_id,
                tracking_uri=self.tracking_uri,
            )
            return {name.removeprefix("eval/"): value for name, value in evaluated.metrics().items()}

        module = RewardModule(policy, self.recipe.gold_optimizer)
        return self.tasks.train(proxy.name, module, data, steps, proxy.seed, then=evaluate, tags=_tags(asdict(proxy)))

    def best_of_n(self, choice: BestOfN) -> Mapping[str, float]:
        """Best-of-n from an SFT policy; of its several n the best counts as the result."""
        recipe, policy, proxies = self.recipe, sft_name(choice.size, choice.seed), choice.proxies
        pairs = pairs_name(choice.size, choice.seed)
        settings = BestOfNSettings(
            proxies.combine, proxies.price, choice.pool, choice.ns, recipe.evaluation_prompts, seed=choice.seed
        )

        def work(folder: Path) -> Mapping[str, float]:
            table = run_best_of_n(
                str(self.tasks.checkpoint(policy)),
                [self.tasks.checkpoint(proxy.name) for proxy in proxies.members],
                gold_reward_judge(self.tasks.checkpoint(GOLD), recipe.gold_temperature),
                settings,
                # The prompts that all other cells of this policy answer.
                source="jsonl",
                path=str(self.out / pairs / "labelled"),
                out=folder,
                tracking_uri=self.tracking_uri,
                name=choice.name,
                study=BestOfNStudy(self.study, proxies.label, self._cost_of_proxies(proxies)),
            )
            rows = table.to_dict("records")
            allowed = [row for row in rows if recipe.peak.allows(row["kl_nats"])] or rows[:1]
            best = max(allowed, key=lambda row: float(row["win_rate"]))
            return {BEST_WIN_RATE: best["win_rate"], BEST_KL: best["kl_nats"], BEST_N: float(best["n"])}

        needed = (policy, GOLD, pairs, *(proxy.name for proxy in proxies.members))
        keys = {
            **{name: self.tasks.key(name) for name in needed},
            **asdict(settings),
            "gold_temperature": recipe.gold_temperature,
            "peak": asdict(recipe.peak),
            # Its run is this study's: another one makes its own.
            "study": self.study,
        }
        return self.tasks.make(choice.name, keys, work)

    def reference(self, size: str, seed: int) -> Mapping[str, float]:
        """The first row of every run with this reference: its samples, judged."""

        def work(folder: Path) -> None:
            evaluator = self._open_evaluator(size, seed, self._monitored_reward(size, seed))
            with progress_bar() as progress:
                task = progress.add_task("evaluating the reference", total=self.recipe.evaluation_prompts)
                samples = evaluator.sample_reference(lambda n: progress.advance(task, n))
            write_completions(completions_path(folder, 0), samples.completions)
            with whole_file(folder / "metrics.json") as file:
                file.write(json.dumps(samples.metrics).encode())

        monitored = self.recipe.monitored_proxy(size, seed)
        settings = {
            "pairs": self.tasks.key(pairs_name(size, seed)),
            "prompts": self.recipe.evaluation_prompts,
            **({} if monitored is None else {"monitored": self.tasks.key(monitored.name)}),
        }
        return self.tasks.make(reference_name(size, seed), settings, work)

    def _preferences(self, pairs: str, size: str, seed: int, /, **changes: Any) -> PreferenceDataModule:
        return self._data(
            **{
                "source": "jsonl",
                "path": str(self.out / pairs / "labelled"),
                "examples": "preferences",
                "tokenizer": str(self.tasks.checkpoint(sft_name(size, seed))),
                "batch_size": self.recipe.align_batch_size,
                "seed": seed,
                **changes,
            }
        )

    def _open_evaluator(self, size: str, seed: int, proxy: ProxyReward | None) -> Evaluator:
        samples = SampleEvaluator(
            self._preferences(pairs_name(size, seed), size, seed),
            open_policy(self.tasks.checkpoint(sft_name(size, seed))),
            gold_reward_judge(self.tasks.checkpoint(GOLD), self.recipe.gold_temperature),
            num_prompts=self.recipe.evaluation_prompts,
            seed=seed,
            proxy=proxy,
        )
        return Evaluator(samples)

    def _monitored_reward(self, size: str, seed: int) -> ProxyReward | None:
        monitored = self.recipe.monitored_proxy(size, seed)
        return None if monitored is None else ProxyReward([self.tasks.checkpoint(monitored.name)]).to(stage_device())

    def _evaluator(self, size: str, seed: int) -> Evaluator:
        """One a reference: all policies that are aligned to its pairs are evaluated by it."""
        if (size, seed) not in self._evaluators:
            evaluator = self._open_evaluator(size, seed, self._monitored_reward(size, seed))
            folder = self.out / reference_name(size, seed)
            metrics = json.loads((folder / "metrics.json").read_text())
            evaluator.know_reference(CheckpointEvaluation(metrics, read_completions(completions_path(folder, 0))))
            self._evaluators[size, seed] = evaluator
        return self._evaluators[size, seed]

    def align(self, cell: Cell) -> Mapping[str, float]:
        """A policy aligned to the labelled pairs, evaluated."""
        rule, monitored = self.recipe.peak, self.recipe.monitored_proxy(cell.size, cell.seed)
        began = time.perf_counter()
        evaluator = self._evaluator(cell.size, cell.seed)
        opened = time.perf_counter() - began
        paid = [pairs_name(cell.size, cell.seed)]
        for later in cell.all_rounds[1:]:
            labeller = [] if later.round_labels == "gold" else [self.labeller(later).name]
            paid += [later.round_before.name, *labeller, round_pairs_name(later)]
        evaluations = RunEvaluations(evaluator, self.out / cell.name, rule, self.tasks.cost(paid), seconds=opened)
        data, start = evaluator.data, None
        reference = str(self.tasks.checkpoint(sft_name(cell.size, cell.seed)))
        if cell.rounds > 1:
            data = self._preferences(round_pairs_name(cell), cell.size, cell.seed)
            start = str(self.tasks.checkpoint(cell.round_before.name))
            if cell.round_reference == "last":
                reference, start = start, None
        module = DirectAlignmentModule(
            reference,
            **asdict(cell.alignment),
            moving_reference=cell.reference_updates,
            policy=start,
            optimizer=_with_rate(self.recipe.align_optimizer, cell.learning_rate),
        )
        return self.tasks.train(
            cell.name,
            module,
            data,
            self.recipe.align_steps,
            cell.seed,
            then=lambda run_id: self._evaluated(run_id, evaluations),
            past_peak=None if rule.standard_errors is None else evaluations.past_peak,
            tags=_tags(cell.parameters),
            also={**self._peak(), **({} if monitored is None else self.tasks.keys([monitored.name]))},
        )

    def optimise(self, cell: PolicyGradientCell) -> Mapping[str, float]:
        """A policy gradient against proxies, on the prompts of the pairs; the gold model is only watched."""
        recipe, proxies = self.recipe, cell.proxies
        module = PolicyGradientModule(
            str(self.tasks.checkpoint(sft_name(cell.size, cell.seed))),
            [str(self.tasks.checkpoint(proxy.name)) for proxy in proxies.members],
            cell.objective,
            cell.beta,
            recipe.rl_samples,
            cell.kl,
            reward_combination=proxies.combine,
            disagreement_price=proxies.price,
            gold=str(self.tasks.checkpoint(GOLD)),
            gold_temperature=recipe.gold_temperature,
            optimizer=_with_rate(recipe.rl_optimizer, cell.learning_rate),
        )
        data = self._preferences(pairs_name(cell.size, cell.seed), cell.size, cell.seed, batch_size=recipe.rl_prompts)

        def evaluate(run_id: str) -> Mapping[str, float]:
            began = time.perf_counter()
            # With the zeros and units of the ensemble that it was trained by.
            proxy = proxy_of(read_model_checkpoint(self.tasks.checkpoint(cell.name)))
            evaluator = self._open_evaluator(cell.size, cell.seed, proxy)
            opened = time.perf_counter() - began
            cost = self._cost_of_proxies(proxies)
            return self._evaluated(
                run_id, RunEvaluations(evaluator, self.out / cell.name, recipe.peak, cost, seconds=opened)
            )

        return self.tasks.train(
            cell.name,
            module,
            data,
            recipe.rl_steps,
            cell.seed,
            then=evaluate,
            tags={**_tags(cell.parameters), PROXY_TAG: proxies.label},
            also={**self._peak(), **self.tasks.keys([GOLD, *(proxy.name for proxy in proxies.members)])},
        )

    def _evaluated(self, run_id: str, evaluations: RunEvaluations) -> Mapping[str, float]:
        """A run with all its checkpoints evaluated, and its best one."""
        with progress_bar() as progress:
            policies = len(evaluations.missing()) + (not evaluations.evaluations)
            task = progress.add_task("evaluating", total=policies * self.recipe.evaluation_prompts)
            evaluations.catch_up(lambda n: progress.advance(task, n))
        record_evaluations(
            self.tasks.client, run_id, evaluations.evaluations, evaluations.completions, evaluations.evaluator
        )
        log_metrics(self.tasks.client, run_id, evaluations.best, step=max(evaluations.evaluations))
        return {**evaluations.best, EVALUATION_SECONDS: evaluations.seconds}


def _with_rate(optimizer: OptimizerSettings, learning_rate: float | None) -> OptimizerSettings:
    return optimizer if learning_rate is None else replace(optimizer, learning_rate=learning_rate)


def _tags(parameters: Mapping[str, Any]) -> dict[str, str]:
    return {f"overopt.{name}": str(value) for name, value in parameters.items() if value is not None}
