"""Checkpoint -> every metric of the contract: KL, win rate, gold reward, length, implicit rewards, loss."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from overopt.data.datamodule import PreferenceDataModule
from overopt.data.example_sets import PreferenceSet
from overopt.data.tokenization import padding_id
from overopt.evaluation.judges.protocol import Judge
from overopt.evaluation.records import Comparison, Completion
from overopt.evaluation.sampling import EvaluationPrompt, Sampler, evaluation_prompts, rescore, sample_here
from overopt.evaluation.verdict_summary import summarise_by_words
from overopt.metrics.implicit_reward import ImplicitRewardAccuracy
from overopt.metrics.kl import ForwardKL
from overopt.metrics.length import LengthRegression, ResponseLength
from overopt.models.policy import Policy
from overopt.models.proxy_reward import ProxyReward
from overopt.modules.direct_alignment import (
    AlignmentObjective,
    PairScores,
    attach_reference_log_probs,
    response_totals,
)
from overopt.objectives.likelihood import ResponseLikelihood
from overopt.packed_tokens import PackedTokens, PromptGroup


class CheckpointEvaluation(NamedTuple):
    """What one checkpoint gave.

    Attributes:
        metrics: by the contract's names, ``eval/...``; a metric that could not be had is absent.
        completions: one a prompt, judged.
    """

    metrics: dict[str, float]
    completions: list[Completion]


class SampleEvaluator:
    """Evaluates policies by their own samples: KL, lengths and, by a judge, win rate.

    Args:
        data: set up; its held-out part is sampled on.
        reference: the frozen policy.
        judge: compares samples with the dataset's responses; without one there is no win rate.
        num_prompts: held-out prompts, one a post.
        opponent: ``human`` or ``preferred``; see :func:`overopt.evaluation.sampling.evaluation_prompts`.
        seed: fixes the draws; the same for all policies, which therefore share their noise.
        sampler: what draws the samples; whichever it is, they are rescored here.
        proxy: what the policies were optimised against, where they were, on the reference's device; it reads the same
            samples as the judge, so that its reward and the gold one stand side by side.
    """

    def __init__(
        self,
        data: PreferenceDataModule,
        reference: Policy,
        judge: Judge | None,
        *,
        num_prompts: int = 256,
        opponent: str = "human",
        seed: int = 0,
        sampler: Sampler = sample_here,
        proxy: ProxyReward | None = None,
    ) -> None:
        self.data = data
        self.reference = reference.eval()
        self.judge = judge
        self.prompts: list[EvaluationPrompt] = evaluation_prompts(data, num_prompts, opponent)
        self.settings = {"evaluation_prompts": num_prompts, "evaluation_seed": seed, "opponent": opponent}
        self._seed = seed
        self._sampler = sampler
        self._proxy = proxy

    def evaluate(self, policy: Policy, on_batch: Callable[[int], None] | None = None) -> CheckpointEvaluation:
        """What one policy's samples say.

        Args:
            policy: may be the reference itself.
            on_batch: told after each sampled batch how many prompts it had.
        """
        policy.eval()
        sampled = self._sampler(
            policy,
            self.prompts,
            max_response_tokens=self.data.max_response_tokens,
            seed=self._seed,
            on_batch=on_batch,
        )
        rescored = rescore(policy, self.reference, self.prompts, sampled, packing=self.data.packing)
        if rescored.agreement is not None:
            rescored.agreement.require_same_model()
        completions, by_proxy = self._by_proxy(rescored.completions)
        completions, judged = self._judged(completions)
        metrics = {
            "eval/kl_nats": float(rescored.kl.k1.mean),
            "eval/kl_se": float(rescored.kl.k1.standard_error),
            "eval/kl_k3_nats": float(rescored.kl.k3.mean),
            **({} if rescored.agreement is None else rescored.agreement.metrics()),
            **judged,
            **by_proxy,
            **_length_metrics(completions),
        }
        return CheckpointEvaluation(metrics, completions)

    def _by_proxy(self, completions: list[Completion]) -> tuple[list[Completion], dict[str, float]]:
        """With the rewards that the policy was after: of the sampled token ids, which it was trained on."""
        if self._proxy is None:
            return completions, {}
        proxy, device = self._proxy, self.reference.causal_lm.device
        groups = [
            PromptGroup.of(prompt.token_ids, completion.token_ids)
            for prompt, completion in zip(self.prompts, completions, strict=True)
        ]

        def reward(tokens: PackedTokens) -> Float[Tensor, " response"]:
            return proxy(move_data_to_device(tokens, device))

        scores = self.data.packing.scores(groups, reward, padding_id(self.reference.tokenizer))
        rewards = np.concatenate(scores).astype(np.float64)
        scored = [replace(c, proxy_reward=r) for c, r in zip(completions, rewards.tolist(), strict=True)]
        return scored, {"eval/proxy_reward": float(rewards.mean())}

    def _judged(self, completions: list[Completion]) -> tuple[list[Completion], dict[str, float]]:
        if self.judge is None:
            return completions, {}
        comparisons = [Comparison(c.prompt_id, c.prompt, sample=c.response, opponent=c.opponent) for c in completions]
        verdicts = self.judge.judge(comparisons)
        judged = [c.with_verdict(v) for c, v in zip(completions, verdicts, strict=True)]
        metrics = summarise_by_words(comparisons, verdicts).metrics()
        rewards = [v.sample_reward for v in verdicts if v.sample_reward is not None]
        if rewards:
            metrics["eval/gold_reward"] = float(np.mean(rewards))
        return judged, metrics


class Evaluator:
    """Evaluates checkpoints of one reference on the same prompts, pairs and draws.

    Args:
        samples: measures each policy by its samples; its data hold the preferences that the policies train on, of
            which the evaluation part is measured on.
    """

    def __init__(self, samples: SampleEvaluator) -> None:
        self._samples = samples
        self.data, self.reference, self.judge = samples.data, samples.reference, samples.judge
        self.prompts, self.settings = samples.prompts, samples.settings
        self._reference_samples: CheckpointEvaluation | None = None
        attach_reference_log_probs(self.reference, self.data)

    def evaluate(
        self, policy: Policy, alignment: AlignmentObjective | None, on_batch: Callable[[int], None] | None = None
    ) -> CheckpointEvaluation:
        """All metrics of one policy.

        Args:
            policy: the checkpoint's policy, or the reference itself for its own row.
            alignment: what it was trained by, for its held-out loss; ``None`` of a policy gradient, which has no loss
                on pairs. What else pairs tell needs log-ratios alone: how the policy's implicit reward ranks them, and
                how likely it finds preferred responses.
            on_batch: told after each sampled batch how many prompts it had.
        """
        policy.eval()
        if policy is self.reference:
            metrics, completions = self.sample_reference(on_batch)
        else:
            metrics, completions = self._samples.evaluate(policy, on_batch)
        metrics = {**metrics, **self._pair_metrics(policy, alignment)}
        return CheckpointEvaluation({k: v for k, v in metrics.items() if not math.isnan(v)}, completions)

    def sample_reference(self, on_batch: Callable[[int], None] | None = None) -> CheckpointEvaluation:
        """The reference's own samples, judged: the first row of every run, which does not depend on the run."""
        if self._reference_samples is None:
            self._reference_samples = self._samples.evaluate(self.reference, on_batch)
        elif on_batch is not None:
            on_batch(len(self.prompts))
        return self._reference_samples

    def know_reference(self, samples: CheckpointEvaluation) -> None:
        """Take what another evaluator of the same settings got from :meth:`sample_reference`."""
        self._reference_samples = samples

    def _pair_metrics(self, policy: Policy, alignment: AlignmentObjective | None) -> dict[str, float]:
        pairs = self.data.evaluation_set
        assert isinstance(pairs, PreferenceSet)  # a reference has been attached
        if pairs.reference_log_probs is None:  # to none, where no pair is held out
            return {}
        # The reference's own totals are known; computed anew they could differ in their last digit.
        is_reference = policy is self.reference
        totals = pairs.reference_log_probs if is_reference else response_totals(policy, pairs)
        log_ratios = torch.from_numpy(totals - pairs.reference_log_probs)
        lengths = torch.tensor([[len(p.chosen_ids), len(p.rejected_ids)] for p in pairs.tokenized])
        chosen, rejected = log_ratios.unbind(dim=1)
        accuracy, forward_kl = ImplicitRewardAccuracy(), ForwardKL()
        accuracy.update(chosen, rejected)
        forward_kl.update(chosen)
        ranked, forward = accuracy.compute(), forward_kl.compute()
        likelihood = ResponseLikelihood(-torch.from_numpy(totals[:, 0]), lengths[:, 0])
        scores = PairScores(chosen, rejected, lengths[:, 0] - lengths[:, 1], likelihood)
        loss = {} if alignment is None else {"eval/loss": float(alignment.pair_losses(scores).double().mean())}
        return {
            **loss,
            "eval/implicit_reward_accuracy": float(ranked.accuracy),
            "eval/chosen_log_ratio": float(ranked.chosen_log_ratio),
            "eval/rejected_log_ratio": float(ranked.rejected_log_ratio),
            "eval/forward_kl_nats": float(forward.mean),
            "eval/forward_kl_se": float(forward.standard_error),
        }


def _length_metrics(completions: list[Completion]) -> dict[str, float]:
    lengths = torch.tensor([c.response_tokens for c in completions])
    log_ratios = torch.tensor([c.policy_log_prob - c.reference_log_prob for c in completions], dtype=torch.float64)
    length, regression = ResponseLength(sync_on_compute=False), LengthRegression(sync_on_compute=False)
    length.update(lengths, torch.tensor([not c.finished for c in completions]))
    regression.update(log_ratios, lengths)
    estimate, fit = length.compute(), regression.compute()
    return {
        "eval/response_tokens": float(estimate.response_tokens),
        "eval/unfinished_share": float(estimate.unfinished_share),
        "eval/length_r2": float(fit.r2_centred),
        "eval/length_r2_uncentred": float(fit.r2_uncentred),
    }
