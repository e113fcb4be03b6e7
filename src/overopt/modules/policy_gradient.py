"""KL-regularised policy gradient (Eq. 3): RLHF against a reward model, on the policy's own samples."""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor

from overopt.checkpoints.cost import Cost
from overopt.checkpoints.format import ModelDescription
from overopt.data.schema import EvaluationBatch, PreferenceBatch, SampledBatch, StepBatch
from overopt.data.tokenization import end_of_text_id, padding_id
from overopt.models.compute import ComputeSettings
from overopt.models.generation import SampledResponse, sample_several
from overopt.models.policy import Policy, load_policy
from overopt.models.proxy_reward import ProxyReward
from overopt.models.reward_ensemble import require_combination, require_members
from overopt.modules.optimizers import OptimizerSettings
from overopt.modules.step import StepModule
from overopt.objectives.policy_gradient import (
    ADVANTAGES,
    clipped_loss,
    kl_k2_loss,
    kl_penalised_reward,
    score_function_loss,
)
from overopt.packed_tokens import PackedTokens, PromptGroup

# Of the reference's responses by which several reward models are put on one scale.
CENTRED_ON_PROMPTS = 256


@dataclass(frozen=True)
class PolicyGradientObjective:
    """An objective with its settings, as :class:`PolicyGradientModule` documents them.

    Raises:
        ValueError: an unknown objective, or a setting out of its range.
    """

    objective: str = "rloo"
    beta: float = 0.1
    samples_per_prompt: int = 4
    kl: str = "reward"
    unfinished_penalty: float = 0.0
    clip_range: float = 0.2
    inner_epochs: int = 4

    def __post_init__(self) -> None:
        if self.objective not in ADVANTAGES:
            raise ValueError(f"unknown objective {self.objective!r}; one of {', '.join(ADVANTAGES)}")
        if self.kl not in ("reward", "penalty"):
            raise ValueError(f"the KL goes into the reward or is a penalty, got kl={self.kl!r}")
        if min(self.samples_per_prompt, self.inner_epochs) < 1 or not 0 <= self.unfinished_penalty < math.inf:
            raise ValueError(
                f"need samples_per_prompt >= 1, inner_epochs >= 1 and unfinished_penalty >= 0, got "
                f"{self.samples_per_prompt=}, {self.inner_epochs=}, {self.unfinished_penalty=}".replace("self.", "")
            )
        # Refuses bad settings before anything is sampled.
        nothing = torch.zeros(0, self.samples_per_prompt)
        self.advantages(nothing, nothing, nothing)
        clipped_loss(nothing[:, 0], nothing[:, 0], nothing[:, 0], clip_range=self.clip_range)

    @property
    def passes(self) -> int:
        """Optimiser steps on each batch of samples."""
        return self.inner_epochs if self.objective == "ppo" else 1

    def advantages(
        self,
        rewards: Float[Tensor, "prompt sample"],
        log_ratios: Float[Tensor, "prompt sample"],
        unfinished: Float[Tensor, "prompt sample"],
    ) -> Float[Tensor, "prompt sample"]:
        """What each response's log-probability is multiplied by.

        Args:
            rewards: of the proxy.
            log_ratios: log pi/pi_ref of the policy that drew the responses [nats].
            unfinished: 1 where the length limit came first.
        """
        penalised = kl_penalised_reward(
            rewards - self.unfinished_penalty * unfinished, log_ratios, beta=self.beta if self.kl == "reward" else 0.0
        )
        if self.kl == "penalty":
            kl_penalised_reward(rewards, log_ratios, beta=self.beta)  # its range of beta holds here too
        return ADVANTAGES[self.objective](penalised)

    def losses(self, log_probs: Float[Tensor, " target"], sampled: SampledBatch) -> Float[Tensor, " response"]:
        """The loss of each response, of which the gradient has a meaning.

        Args:
            log_probs: of sampled tokens under the policy in training [nats].
            sampled: the responses.
        """
        tokens = sampled.tokens
        if self.objective == "ppo":
            of_tokens = clipped_loss(
                log_probs,
                sampled.drawn_log_probs,
                sampled.advantages[tokens.responses],
                clip_range=self.clip_range,
            )
            losses = tokens.sums(of_tokens)
        else:
            losses = score_function_loss(tokens.sums(log_probs), sampled.advantages)
        if self.kl == "penalty":
            losses = losses + self.beta * kl_k2_loss(tokens.sums(log_probs - sampled.reference_log_probs))
        return losses


class _Frozen(NamedTuple):
    """What is asked and not trained: kept from Lightning, which would count and save its weights."""

    reference: Policy
    proxy: ProxyReward
    gold: ProxyReward | None


class _Drawn(NamedTuple):
    """A prompt with the responses that were drawn to it."""

    prompt: Sequence[int]
    responses: tuple[SampledResponse, ...]


class PolicyGradientModule(StepModule):
    """Optimises a policy against reward models, less ``beta`` times its KL from the reference (Eq. 3).

    A step samples responses to ``batch_size`` prompts from the policy as it is, by the code that evaluation samples
    with, and scores the sampled token ids by the code that trains. Prompts are those of the labelled pairs, so that a
    run differs from an alignment on the same data in its objective alone; the pairs' responses and labels are not read.
    See :mod:`overopt.objectives.policy_gradient` for the estimators.

    The proxy reads a response as it was sampled. One that hit the length limit has no end of text, and is scored at its
    last token as the reward model has been trained to score responses that were cut; ``unfinished_penalty`` is
    subtracted from what the policy is trained on, never from what is logged as ``proxy_reward``.

    Args:
        reference: checkpoint, Hugging Face folder or hub name of the policy to start from and stay near.
        reward: one checkpoint of a reward model, or several: the proxy.
        objective: rloo, reinforce (no baseline), or ppo (clipped, with RLOO's baseline in place of a value function).
        beta: price of divergence from the reference, >= 0 [reward / nat].
        samples_per_prompt: responses drawn to each prompt; rloo and ppo need two at least.
        kl: where the divergence goes: into the ``reward``, or into the loss as a ``penalty`` (k2, of the whole
            response; in PPO's later passes on responses of the policy that drew them).
        unfinished_penalty: taken from the reward of a response that hit the length limit, >= 0 [reward].
        reward_combination: of several reward models: mean, worst or uncertainty_weighted.
        disagreement_price: of uncertainty_weighted [1 / standard deviation of a reward].
        gold: checkpoint of a reward model that is only watched: its reward is logged beside the proxy's, and what that
            takes is no part of the training's cost.
        gold_temperature: divides the gold model's rewards, as in the labels that the proxy learned from: one unit for
            both.
        clip_range: of ppo's ratios, in (0, 1).
        inner_epochs: ppo's optimiser steps on each batch of samples; the others take one.
        sampled_together: responses sampled side by side; bounds memory.
        optimizer: optimiser and schedule; the default suits the embedded default's policies.
        compute: memory against time, such as ``{activation_checkpointing: true}``.
    """

    stage_name = "rl"
    examples_kind = "preferences"

    def __init__(
        self,
        reference: str,
        reward: list[str] | str,
        objective: Literal["rloo", "reinforce", "ppo"] = "rloo",
        beta: float = 0.1,
        samples_per_prompt: int = 4,
        kl: Literal["reward", "penalty"] = "reward",
        unfinished_penalty: float = 0.0,
        reward_combination: Literal["mean", "worst", "uncertainty_weighted"] = "mean",
        disagreement_price: float = 0.5,
        gold: str | None = None,
        gold_temperature: float = 1.0,
        clip_range: float = 0.2,
        inner_epochs: int = 4,
        sampled_together: int = 256,
        optimizer: OptimizerSettings = OptimizerSettings("adamw", learning_rate=3e-4, warmup_steps=0.05),
        compute: ComputeSettings = ComputeSettings(),
    ) -> None:
        super().__init__(optimizer)
        if sampled_together < 1:
            raise ValueError(f"need sampled_together >= 1, got {sampled_together}")
        self.objective = PolicyGradientObjective(
            objective, beta, samples_per_prompt, kl, unfinished_penalty, clip_range, inner_epochs
        )
        if not 0 < gold_temperature < math.inf:
            raise ValueError(f"need gold_temperature > 0, got {gold_temperature}")
        self.reference = reference
        self.reward = [reward] if isinstance(reward, str) else list(reward)
        require_members(self.reward)
        require_combination(reward_combination, disagreement_price)
        self.reward_combination = reward_combination
        self.disagreement_price = disagreement_price
        self.gold, self.gold_temperature = gold, gold_temperature
        self.sampled_together = sampled_together
        self.compute = compute
        self._held_out: list[list[int]] = []

    def configure_model(self) -> None:
        """Open the policy twice, to train and to stay near, and the reward models; a policy that is set stays."""
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            raise ValueError(
                "a policy gradient samples outside of a sharded model's forward pass, which FSDP refuses: use "
                "--trainer.strategy auto, or ddp for several devices"
            )
        if hasattr(self, "policy"):
            return
        proxy = ProxyReward(self.reward, self.reward_combination, self.disagreement_price)
        gold = None if self.gold is None else ProxyReward([self.gold])
        # Lightning moves what trains later, and what does not, never.
        device = self.trainer.strategy.root_device
        self.policy = load_policy(self.reference, self.compute).to(device)
        reference = load_policy(self.reference).eval().requires_grad_(False)
        for rewards in (proxy, gold):
            if rewards is not None:
                rewards.to(device).require_tokenizer(self.policy.tokenizer)
        self._frozen = _Frozen(reference.to(device), proxy, gold)
        if proxy.needs_centre:
            self._centre()

    def on_fit_start(self) -> None:
        """Refuse what would change the meaning of an optimiser step."""
        super().on_fit_start()
        if self.objective.passes > 1 and str(self.trainer.precision) == "16-mixed":
            raise ValueError("ppo's inner epochs do not scale losses: use precision bf16-mixed or 32-true")

    def training_step(self, batch: StepBatch, batch_idx: int) -> Tensor:
        """Sample, score, and step on the samples; PPO's steps but the last are done here."""
        counted = [b for b, scale in zip(batch.micro_batches, batch.scales, strict=True) if scale]
        # Without an example of its own a process goes through the motions of a filler, which counts nothing.
        prompts = _prompts(counted or batch.micro_batches[:1])
        sampled = self._sampled(prompts, self._seeds(self.objective.samples_per_prompt))
        step = StepBatch(
            tuple(sampled), (float(bool(counted)),) * len(sampled), batch.num_examples, self._tokens(sampled)
        )
        for _ in range(self.objective.passes - 1):
            self._inner_step(step)
        return super().training_step(step, batch_idx)

    def loss_sum(self, micro_batch: SampledBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed over prompts, averaged over a prompt's responses: the loss, and what was sampled."""
        log_ratios, samples = micro_batch.log_ratios(), self.objective.samples_per_prompt
        sums = {
            "proxy_reward": micro_batch.proxy_rewards.sum(),
            "kl_nats": log_ratios.sum(),
            # Eq. 3 itself, as these responses estimate it.
            "regularised_reward": (micro_batch.proxy_rewards - self.objective.beta * log_ratios).sum(),
            "entropy_nats": -micro_batch.drawn_log_probs.sum(),
            "response_tokens": micro_batch.tokens.lengths().float().sum(),
            "unfinished_share": micro_batch.unfinished.sum(),
        }
        if micro_batch.gold_rewards is not None:
            sums["gold_reward"] = micro_batch.gold_rewards.sum()
        losses = self.objective.losses(self.policy(micro_batch.tokens), micro_batch)
        return losses.sum() / samples, {name: value / samples for name, value in sums.items()}

    def validation_step(self, batch: EvaluationBatch, batch_idx: int) -> None:
        """Gather held-out prompts."""
        if batch.counts:
            self._held_out += _prompts([batch.examples])

    def test_step(self, batch: EvaluationBatch, batch_idx: int) -> None:
        """As in validation."""
        self.validation_step(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Sample a response to each held-out prompt; the draws are the same each time."""
        self._score_held_out("val")

    def on_test_epoch_end(self) -> None:
        """As in validation."""
        self._score_held_out("test")

    def predict_step(self, batch: EvaluationBatch, batch_idx: int) -> list[dict[str, Any]]:
        """Implicit rewards, beta * log_ratio, of both responses of each held-out pair, as alignment predicts them.

        At the optimum of Eq. 3 they are the proxy's rewards, up to a constant per prompt.
        """
        assert isinstance(batch.examples, PreferenceBatch)
        tokens = batch.examples.tokens
        log_ratios = tokens.sums(self.policy(tokens) - self._frozen.reference(tokens)).view(-1, 2)
        if not batch.counts:
            return []
        return [
            {"chosen_implicit_reward": c, "rejected_implicit_reward": r}
            for c, r in (self.objective.beta * log_ratios).tolist()
        ]

    def describe_model(self) -> ModelDescription:
        """Architecture and tokenizer of the policy."""
        return self.policy.describe()

    def describe_training(self) -> dict[str, Any]:
        """What evaluation must know: the objective, the reference and the proxy."""
        return super().describe_training() | self.parameters_to_log() | self._frozen.proxy.describe()

    def parameters_to_log(self) -> dict[str, Any]:
        """What tells this run from others."""
        unused = () if self.objective.objective == "ppo" else ("clip_range", "inner_epochs")
        return {
            **{name: value for name, value in asdict(self.objective).items() if name not in unused},
            "reference": self.reference,
            "reward": self.reward,
            "reward_models": len(self.reward),
            "reward_combination": self.reward_combination,
            "disagreement_price": self.disagreement_price,
            "gold": self.gold,
            **({} if self.gold is None else {"gold_temperature": self.gold_temperature}),
        }

    @property
    def _root_device(self) -> torch.device:
        return self.trainer.strategy.root_device

    def _tokens(self, sampled: Sequence[SampledBatch]) -> int:
        """That were sampled, and that all passes over them train on; over all processes."""
        drawn = sum(len(batch.tokens.targets) for batch in sampled)
        trained = self.objective.passes * sum(batch.tokens.input_ids.numel() for batch in sampled)
        return int(self.ranks().total(torch.tensor(drawn + trained)))

    def _seeds(self, samples: int) -> list[int]:
        """Of a step's draws: what has been seen tells steps apart, after a resume too."""
        place = [self.data.hparams["seed"], self.examples_seen, self.trainer.global_rank]
        return _seeds("training", place, samples)

    def _draw(self, policy: Policy, prompts: Sequence[Sequence[int]], seeds: Sequence[int]) -> list[_Drawn]:
        sampled = sample_several(
            policy.causal_lm,
            prompts,
            eos_token_id=end_of_text_id(policy.tokenizer),
            max_response_tokens=self.data.max_response_tokens,
            seeds=seeds,
            batch_size=self.sampled_together,
        )
        return [_Drawn(prompt, responses) for prompt, responses in zip(prompts, sampled, strict=True)]

    def _sampled(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int]) -> list[SampledBatch]:
        """Responses to prompts, scored and with their advantages, in passes that fit into memory."""
        drawn = self._draw(self.policy, prompts, seeds)
        passes = self._passes(drawn)
        unfinished = torch.tensor([float(not r.finished) for d in drawn for r in d.responses], device=self._root_device)
        scored = [self._score(tokens, unfinished[places]) for places, tokens in passes]
        if self._frozen.gold is not None:
            began = self._now()
            scored = self._watched(scored)
            # Inside the time of a step, which counts as the training's.
            self.cost += Cost(seconds=began - self._now())
        # What was cast for a pass without gradients has none, and autocast would take it for the passes that train.
        torch.clear_autocast_cache()
        order = torch.cat([places for places, _ in passes]).argsort()

        def by_prompt(values: list[Tensor]) -> Tensor:
            return torch.cat(values)[order].view(len(prompts), len(seeds))

        advantages = self.objective.advantages(
            by_prompt([batch.proxy_rewards for batch in scored]),
            by_prompt([batch.log_ratios() for batch in scored]),
            unfinished.view(len(prompts), len(seeds)),
        ).flatten()
        return [
            batch._replace(advantages=advantages[places]) for batch, (places, _) in zip(scored, passes, strict=True)
        ]

    @torch.no_grad()
    def _score(self, tokens: PackedTokens, unfinished: Float[Tensor, " response"]) -> SampledBatch:
        """By the code that trains, in its precision; advantages are not known yet."""
        frozen = self._frozen
        return SampledBatch(
            tokens,
            torch.full_like(unfinished, torch.nan),
            self.policy(tokens),
            frozen.reference(tokens),
            frozen.proxy(tokens),
            None,
            unfinished,
        )

    def _watched(self, scored: Sequence[SampledBatch]) -> list[SampledBatch]:
        """With the gold model's rewards, if there is one."""
        gold = self._frozen.gold
        if gold is None:
            return list(scored)
        return [batch._replace(gold_rewards=gold(batch.tokens) / self.gold_temperature) for batch in scored]

    def _now(self) -> float:
        """Once all is done that was asked of the device [s]."""
        if self._root_device.type != "cpu":
            torch.accelerator.synchronize(self._root_device)
        return time.perf_counter()

    def _passes(self, drawn: Sequence[_Drawn]) -> list[tuple[Tensor, PackedTokens]]:
        """Forward passes of at most ``data.micro_batch_tokens``, with the places of their responses among all."""
        packing = self.data.packing
        groups: list[PromptGroup] = []
        places: list[list[int]] = []
        count = 0
        for prompt, responses in drawn:
            ids = np.asarray(prompt, np.int32)
            for i, response in enumerate(responses):
                answer = np.asarray(response.token_ids, np.int32)
                # A prompt with all its responses may be too long for a pass: they go on in a group of their own.
                grown = PromptGroup(ids, (*(groups[-1].responses if i else ()), answer))
                if i and packing.num_tokens(grown) <= packing.max_tokens:
                    groups[-1] = grown
                    places[-1].append(count)
                else:
                    groups.append(PromptGroup(ids, (answer,)))
                    places.append([count])
                count += 1
        return [
            (
                torch.tensor([place for row in rows for place in places[row]], device=self._root_device),
                move_data_to_device(tokens, self._root_device),
            )
            for rows, tokens in packing.batches(groups, padding_id(self.policy.tokenizer))
        ]

    def _inner_step(self, step: StepBatch) -> None:
        """One of PPO's optimiser steps that Lightning does not know of: its step counts prompts, not passes."""
        loss, _ = self.accumulate(step)
        self.trainer.strategy.backward(loss, None)
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        if self.trainer.world_size > 1:
            for parameter in self.parameters():
                if parameter.grad is not None:
                    parameter.grad = self.trainer.strategy.reduce(parameter.grad, reduce_op="mean")
        self.clip_gradients(
            optimizer.optimizer, self.trainer.gradient_clip_val, self.trainer.gradient_clip_algorithm or "norm"
        )
        optimizer.optimizer.step()

    @torch.no_grad()
    def _centre(self) -> None:
        """Put several reward models on one scale, by the reference's responses to some of the training prompts."""
        seed = self.data.hparams["seed"]
        prompts = sorted({tuple(row.prompt_ids.tolist()) for row in self.data.train_set.tokenized})
        chosen = np.random.default_rng([seed, 0]).permutation(len(prompts))[:CENTRED_ON_PROMPTS]
        frozen = self._frozen
        drawn = self._draw(frozen.reference, [prompts[i] for i in chosen.tolist()], _seeds("scales", [seed], 1))
        frozen.proxy.centre([tokens for _, tokens in self._passes(drawn)])

    def _score_held_out(self, split: str) -> None:
        prompts, self._held_out = sorted(map(list, {tuple(prompt) for prompt in self._held_out})), []
        self.log_examples_seen()
        seeds = _seeds("held out", [self.data.hparams["seed"], self.trainer.global_rank], 1)
        drawn = self._draw(self.policy, prompts, seeds) if prompts else []
        unfinished = torch.tensor([float(not d.responses[0].finished) for d in drawn], device=self._root_device)
        scored = self._watched([self._score(tokens, unfinished[places]) for places, tokens in self._passes(drawn)])
        sums = {
            "proxy_reward": [batch.proxy_rewards.sum() for batch in scored],
            "kl_nats": [batch.log_ratios().sum() for batch in scored],
            "response_tokens": [batch.tokens.lengths().sum() for batch in scored],
            "unfinished_share": [unfinished.sum()],
        }
        if self._frozen.gold is not None:
            sums["gold_reward"] = [batch.gold_rewards.sum() for batch in scored if batch.gold_rewards is not None]
        # A process without a prompt of its own waits with the others for the sums of all.
        values = [float(len(prompts)), *(float(sum(parts)) for parts in sums.values())]
        count, *totals = self.ranks().total(torch.tensor(values)).tolist()
        if not count:
            return
        for name, total in zip(sums, totals, strict=True):
            self.log(f"{split}/{name}", total / count, prog_bar=True, batch_size=1, sync_dist=True)


def _seeds(draws: Literal["training", "held out", "scales"], place: Sequence[int], count: int) -> list[int]:
    """Seeds that no other place, and no other kind of draws, shares."""
    # What comes first is no zero: zeros at the end are as if they were not there.
    kind = {"training": 1, "held out": 2, "scales": 3}[draws]
    return [int(seed) >> 1 for seed in np.random.SeedSequence([kind, *place]).generate_state(count, np.uint64)]


def _prompts(examples: Sequence[Any]) -> list[list[int]]:
    """Of labelled pairs, in an order that does not depend on how they were packed."""
    return sorted(prompt for batch in examples for prompt in batch.tokens.prompts()[::2])
