"""Direct alignment: a preference objective on the policy's own log-ratios (Eq. 4)."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor
from torchmetrics import MeanMetric

from overopt.checkpoints.format import ModelDescription
from overopt.data.datamodule import PreferenceDataModule
from overopt.data.example_sets import PreferenceSet
from overopt.data.packing import Ranks
from overopt.data.reference_cache import ReferenceKey, cached_reference_log_probs
from overopt.data.schema import EvaluationBatch, PreferenceBatch
from overopt.metrics.implicit_reward import ImplicitRewardAccuracy
from overopt.metrics.kl import ForwardKL
from overopt.models.compute import ComputeSettings
from overopt.models.policy import Policy, load_policy, weights_hash
from overopt.models.sharding import reshard
from overopt.modules.optimizers import OptimizerSettings
from overopt.modules.step import StepModule
from overopt.objectives.preference import LABEL_SMOOTHINGS, preference_logit, preference_loss
from overopt.packed_tokens import PackedTokens


class PairScores(NamedTuple):
    """What a policy thinks of labelled pairs.

    Attributes:
        chosen_log_ratios: log pi/pi_ref of each chosen response [nats].
        rejected_log_ratios: the same of each rejected response [nats].
        length_margin: length of the chosen minus the rejected response [tokens].
    """

    chosen_log_ratios: Float[Tensor, " pair"]
    rejected_log_ratios: Float[Tensor, " pair"]
    length_margin: Int[Tensor, " pair"]


def score_pairs(policy: Callable[[PackedTokens], Float[Tensor, " target"]], batch: PreferenceBatch) -> PairScores:
    """Log-ratios of a batch's pairs, summed over response tokens (never a mean).

    Args:
        policy: tokens -> log-probability of each response token [nats].
        batch: pairs with their reference log-probabilities.
    """
    log_probs = batch.tokens.sums(policy(batch.tokens)).view(-1, 2)
    chosen, rejected = (log_probs - batch.reference_log_probs).unbind(dim=1)
    chosen_length, rejected_length = batch.tokens.lengths().view(-1, 2).unbind(dim=1)
    return PairScores(chosen, rejected, chosen_length - rejected_length)


@dataclass(frozen=True)
class AlignmentObjective:
    """An objective with its settings, as :class:`DirectAlignmentModule` documents them.

    Raises:
        ValueError: an unknown objective, or a setting out of its range.
    """

    objective: str = "dpo"
    beta: float = 0.1
    length_penalty: float = 0.0
    label_smoothing: float = 0.0
    smoothing: Literal["conservative", "robust"] = "conservative"

    def __post_init__(self) -> None:
        none = torch.zeros(0)
        self.pair_losses(PairScores(none, none, none.int()))  # refuses bad settings before any training

    def pair_losses(self, scores: PairScores) -> Float[Tensor, " pair"]:
        """The objective for each pair."""
        smoothed = LABEL_SMOOTHINGS[self.smoothing]
        loss = smoothed(preference_loss(self.objective), label_smoothing=self.label_smoothing)
        logit = preference_logit(
            scores.chosen_log_ratios - scores.rejected_log_ratios,
            scores.length_margin,
            beta=self.beta,
            length_penalty=self.length_penalty,
        )
        return loss(logit, beta=self.beta)


class DirectAlignmentModule(StepModule):
    """Aligns a policy to preference pairs; the policy starts as its reference.

    The reference's log-probabilities are computed once per reference and data set, kept on disk and shared
    by all objectives, betas and seeds: no reference model is in memory while training.

    Args:
        reference: checkpoint, Hugging Face folder or hub name of the reference policy.
        objective: a name in :data:`overopt.objectives.preference.PREFERENCE_LOSSES`.
        beta: price of divergence from the reference, > 0 [reward / nat].
        length_penalty: price of length, >= 0 [reward / token]; 0 is the published objective.
        label_smoothing: share of labels taken to be flipped, in [0, 0.5).
        smoothing: how ``label_smoothing`` enters: ``conservative`` (cDPO) or ``robust`` DPO.
        optimizer: optimiser and schedule; the default is the paper's.
        compute: memory against time, such as ``{activation_checkpointing: true}``.
    """

    stage_name = "align"
    examples_kind = "preferences"

    def __init__(
        self,
        reference: str,
        objective: str = "dpo",
        beta: float = 0.1,
        length_penalty: float = 0.0,
        label_smoothing: float = 0.0,
        smoothing: Literal["conservative", "robust"] = "conservative",
        optimizer: OptimizerSettings = OptimizerSettings(),
        compute: ComputeSettings = ComputeSettings(),
    ) -> None:
        super().__init__(optimizer)
        self.alignment = AlignmentObjective(objective, beta, length_penalty, label_smoothing, smoothing)
        self.reference = reference
        self.compute = compute
        self.pair_loss = MeanMetric()
        self.accuracy = ImplicitRewardAccuracy()
        self.forward_kl = ForwardKL()

    def configure_model(self) -> None:
        """Open the reference, let it score all pairs, then train on from its weights; a policy that is set stays."""
        if hasattr(self, "policy"):
            return
        self.policy = load_policy(self.reference, self.compute)
        weights = weights_hash(self.policy)
        if not self.shard(self.policy):
            self.policy.to(self.device)
        # Scored by what trains: sharded over all processes, in the precision and on the code path of training.
        with self.trainer.precision_plugin.forward_context():
            attach_reference_log_probs(
                self.policy, self.data, weights=weights, precision=str(self.trainer.precision), ranks=self.ranks()
            )
        reshard(self.policy)

    def loss_sum(self, micro_batch: PreferenceBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed objective, and what tells a healthy run from a broken one."""
        scores = score_pairs(self.policy, micro_batch)
        margin = scores.chosen_log_ratios - scores.rejected_log_ratios
        return self.alignment.pair_losses(scores).sum(), {
            "margin": margin.sum(),
            "implicit_reward_accuracy": (margin > 0).float().sum(),
            "chosen_log_ratio": scores.chosen_log_ratios.sum(),
            "rejected_log_ratio": scores.rejected_log_ratios.sum(),
        }

    def validation_step(self, batch: EvaluationBatch, batch_idx: int) -> None:
        """Loss, implicit-reward accuracy and forward KL on held-out pairs."""
        self._score(batch)

    def test_step(self, batch: EvaluationBatch, batch_idx: int) -> None:
        """As in validation."""
        self._score(batch)

    def on_validation_epoch_end(self) -> None:
        """Log what all held-out pairs gave together."""
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        """As in validation."""
        self._log_scores("test")

    def predict_step(self, batch: EvaluationBatch, batch_idx: int) -> list[dict[str, Any]]:
        """Implicit rewards, beta * log_ratio, of both responses of each held-out pair."""
        scores, beta = self._scores(batch), self.alignment.beta
        if not batch.counts:
            return []
        return [
            {"chosen_implicit_reward": beta * c, "rejected_implicit_reward": beta * r}
            for c, r in zip(scores.chosen_log_ratios.tolist(), scores.rejected_log_ratios.tolist(), strict=True)
        ]

    def describe_model(self) -> ModelDescription:
        """Architecture and tokenizer of the policy."""
        return self.policy.describe()

    def describe_training(self) -> dict[str, Any]:
        """What evaluation must know: the objective and the reference."""
        return super().describe_training() | self.parameters_to_log()

    def parameters_to_log(self) -> dict[str, Any]:
        """What tells this run from others."""
        return {**asdict(self.alignment), "reference": self.reference}

    def _scores(self, batch: EvaluationBatch) -> PairScores:
        assert isinstance(batch.examples, PreferenceBatch)
        return score_pairs(self.policy, batch.examples)

    def _score(self, batch: EvaluationBatch) -> None:
        scores = self._scores(batch)
        if not batch.counts:
            return
        self.pair_loss.update(self.alignment.pair_losses(scores))
        self.accuracy.update(scores.chosen_log_ratios, scores.rejected_log_ratios)
        self.forward_kl.update(scores.chosen_log_ratios)

    def _log_scores(self, split: str) -> None:
        accuracy = self.accuracy.compute()
        self.log_dict(
            {
                f"{split}/loss": self.pair_loss.compute(),
                f"{split}/implicit_reward_accuracy": accuracy.accuracy,
                f"{split}/forward_kl_nats": self.forward_kl.compute().mean,
            },
            prog_bar=True,
        )
        self.log_examples_seen()
        for metric in (self.pair_loss, self.accuracy, self.forward_kl):
            metric.reset()


@torch.no_grad()  # inference mode would mark the weights that sharding gathers as unfit for training
def response_totals(policy: Policy, pairs: PreferenceSet, ranks: Ranks = Ranks()) -> Float[np.ndarray, "pair 2"]:
    """Log-probabilities of chosen and rejected responses under a policy [nats], summed over tokens, float32."""
    device = policy.causal_lm.device

    def totals(tokens: PackedTokens) -> Float[Tensor, " response"]:
        return tokens.sums(policy(move_data_to_device(tokens, device)))

    return np.stack(pairs.packing.scores([row.group for row in pairs.tokenized], totals, pairs.padding, ranks))


def attach_reference_log_probs(
    reference: Policy,
    data: PreferenceDataModule,
    *,
    weights: str | None = None,
    precision: str = "32-true",
    ranks: Ranks = Ranks(),
) -> None:
    """Give the DataModule's pairs their reference log-probabilities, from its cache where they are known.

    Args:
        reference: the reference policy; only read.
        data: holds preferences and has been set up.
        weights: the reference's hash, where it has been sharded since.
        precision: Lightning's name of the precision that the caller runs this in, a part of the cache's key.
        ranks: processes that share the work.

    Raises:
        ValueError: the data holds demonstrations.
    """
    weights = weights or weights_hash(reference)
    for pairs in (data.train_set, data.evaluation_set):
        if not isinstance(pairs, PreferenceSet):
            raise ValueError("a reference scores labelled pairs, this data holds demonstrations: examples=preferences")
        if len(pairs):
            key = ReferenceKey(weights=weights, tokens=pairs.tokens_hash, precision=precision)
            compute = partial(response_totals, reference, pairs, ranks)
            pairs.reference_log_probs = cached_reference_log_probs(data.reference_cache_dir, key, compute, ranks)
