"""Direct alignment: a preference objective on the policy's own log-ratios (Eq. 4)."""

import copy
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torchmetrics import MeanMetric

from overopt.checkpoints.format import ModelDescription
from overopt.data.datamodule import PreferenceDataModule
from overopt.data.example_sets import PreferenceSet
from overopt.data.packing import Ranks
from overopt.data.reference_cache import ReferenceKey, cached_reference_log_probs
from overopt.data.schema import EvaluationBatch, PreferenceBatch
from overopt.data.tokenization import tokenizer_hash
from overopt.metrics.implicit_reward import ImplicitRewardAccuracy
from overopt.metrics.kl import ForwardKL
from overopt.models.compute import ComputeSettings
from overopt.models.policy import Policy, load_policy, weights_hash
from overopt.models.sharding import reshard
from overopt.modules.moving_reference import MovingReference, ReferenceUpdates
from overopt.modules.optimizers import OptimizerSettings
from overopt.modules.step import StepModule
from overopt.objectives.likelihood import ResponseLikelihood
from overopt.objectives.mitigations import LIKELIHOOD_LOSSES, LINKS, clip_reward_margin, lost_likelihood
from overopt.objectives.preference import LABEL_SMOOTHINGS, preference_logit, preference_loss
from overopt.packed_tokens import PackedTokens


class PairScores(NamedTuple):
    """What a policy thinks of labelled pairs.

    Attributes:
        chosen_log_ratios: log pi/pi_ref of each chosen response [nats].
        rejected_log_ratios: the same of each rejected response [nats].
        length_margin: length of the chosen minus the rejected response [tokens].
        chosen: likelihood and length of each chosen response.
    """

    chosen_log_ratios: Float[Tensor, " pair"]
    rejected_log_ratios: Float[Tensor, " pair"]
    length_margin: Int[Tensor, " pair"]
    chosen: ResponseLikelihood


def score_pairs(policy: Callable[[PackedTokens], Float[Tensor, " target"]], batch: PreferenceBatch) -> PairScores:
    """Log-ratios of a batch's pairs, summed over response tokens (never a mean).

    Args:
        policy: tokens -> log-probability of each response token [nats].
        batch: pairs with their reference log-probabilities.
    """
    log_probs = batch.tokens.sums(policy(batch.tokens)).view(-1, 2)
    chosen, rejected = (log_probs - batch.reference_log_probs).unbind(dim=1)
    chosen_length, rejected_length = batch.tokens.lengths().view(-1, 2).unbind(dim=1)
    likelihood = ResponseLikelihood(-log_probs[:, 0], chosen_length)
    return PairScores(chosen, rejected, chosen_length - rejected_length, likelihood)


#: The moving reference's entry in a checkpoint.
_MOVING_REFERENCE = "moving_reference"

#: Losses that rise again beyond their target: what lowers the logit there lowers the loss.
TARGETED_OBJECTIVES = ("ipo", "ipo_azar")

#: Recorded by every run; other settings by runs that have changed them, so that the rest keep their record.
_ALWAYS_RECORDED = ("objective", "beta", "length_penalty", "label_smoothing", "smoothing")


@dataclass(frozen=True)
class AlignmentObjective:
    """An objective with its settings, as :class:`DirectAlignmentModule` documents them.

    Raises:
        ValueError: an unknown objective, a setting out of its range, or settings that make no objective together.
    """

    objective: str = "dpo"
    beta: float = 0.1
    length_penalty: float = 0.0
    label_smoothing: float = 0.0
    smoothing: Literal["conservative", "robust"] = "conservative"
    nll_weight: float = 0.0
    nll_per: Literal["token", "response"] = "token"
    link: Literal["log", "chi_squared"] = "log"
    max_reward: float | None = None
    positive_penalty: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.nll_weight < math.inf and 0 <= self.positive_penalty < math.inf):
            raise ValueError(
                f"need finite nll_weight >= 0 and positive_penalty >= 0, got nll_weight={self.nll_weight}, "
                f"positive_penalty={self.positive_penalty}"
            )
        self._refuse_what_goes_ill_together()
        none = torch.zeros(0)
        # Refuses bad settings before any training.
        self.pair_losses(PairScores(none, none, none.int(), ResponseLikelihood(none, none.int())))

    def pair_losses(self, scores: PairScores) -> Float[Tensor, " pair"]:
        """The objective for each pair."""
        smoothed = LABEL_SMOOTHINGS[self.smoothing]
        loss = smoothed(preference_loss(self.objective), label_smoothing=self.label_smoothing)
        logit = preference_logit(
            self._margin(scores), scores.length_margin, beta=self.beta, length_penalty=self.length_penalty
        )
        if self.max_reward is not None:
            logit = clip_reward_margin(logit, max_reward=self.max_reward)
        losses = loss(logit, beta=self.beta)
        if self.nll_weight:
            losses = losses + self.nll_weight * LIKELIHOOD_LOSSES[self.nll_per](scores.chosen)
        return losses

    def implicit_rewards(self, log_ratios: Float[Tensor, " response"]) -> Float[Tensor, " response"]:
        """Beta times the link of log pi/pi_ref [reward]."""
        return self.beta * LINKS[self.link](log_ratios)

    def to_record(self) -> dict[str, Any]:
        """The settings, less mitigations that are off."""
        values = ((field, getattr(self, field.name)) for field in fields(self))
        return {f.name: value for f, value in values if f.name in _ALWAYS_RECORDED or value != f.default}

    def _margin(self, scores: PairScores) -> Float[Tensor, " pair"]:
        link = LINKS[self.link]
        margin = link(scores.chosen_log_ratios) - link(scores.rejected_log_ratios)
        if self.positive_penalty:
            margin = margin - self.positive_penalty * lost_likelihood(scores.chosen_log_ratios)
        return margin

    def _refuse_what_goes_ill_together(self) -> None:
        if self.positive_penalty and self.objective in TARGETED_OBJECTIVES:
            raise ValueError(
                f"positive_penalty lowers the logit, and {self.objective} rewards that beyond its target: take dpo, "
                "slic or another loss that falls throughout, or nll_weight"
            )
        if self.positive_penalty and self.label_smoothing:
            raise ValueError(
                "positive_penalty is of the chosen response, and a flipped label has another one: leave out "
                "label_smoothing or positive_penalty"
            )
        if self.positive_penalty and self.link != "log":
            raise ValueError(f"positive_penalty is a part of a margin of log-ratios, got link={self.link!r}")
        if self.max_reward is not None and self.link != "chi_squared":
            raise ValueError(f"max_reward clips as chi-PO does: give link chi_squared too, got link={self.link!r}")
        if self.link == "chi_squared" and self.objective == "exponential" and self.max_reward is None:
            raise ValueError("exp(-z) overflows with link chi_squared, whose margins are huge: give max_reward too")


class DirectAlignmentModule(StepModule):
    """Aligns a policy to preference pairs; the policy starts as its reference.

    The reference's log-probabilities are computed once per reference and data set, kept on disk and shared
    by all objectives, betas and seeds: no reference model is in memory while training, unless it moves.

    Mitigations of over-optimization are off by default and go with any objective, where they make sense together:
    ``nll_weight``, ``link``, ``positive_penalty`` and ``moving_reference``; each is documented with its source in
    :mod:`overopt.objectives.mitigations` or :mod:`overopt.modules.moving_reference`.

    Args:
        reference: checkpoint, Hugging Face folder or hub name of the reference policy.
        objective: a name in :data:`overopt.objectives.preference.PREFERENCE_LOSSES`.
        beta: price of divergence from the reference, > 0 [reward / nat].
        length_penalty: price of length, >= 0 [reward / token]; 0 is the published objective.
        label_smoothing: share of labels taken to be flipped, in [0, 0.5).
        smoothing: how ``label_smoothing`` enters: ``conservative`` (cDPO) or ``robust`` DPO.
        nll_weight: weight of the chosen response's negative log-likelihood, added to the objective, >= 0 (RPO).
        nll_per: what that is per: ``token``, its mean over the response's tokens (Pang et al. 2024, with weight 1), or
            ``response``, its sum (Liu et al. 2024, whose eta is ``nll_weight / beta``).
        link: of pi/pi_ref to implicit reward: ``log``, or ``chi_squared``, z + log z (chi-PO, Huang et al. 2024).
        max_reward: chi-PO's R_max, > 0 [reward]: its logit is clipped to +-2 R_max; not clipped by default.
        positive_penalty: price of a chosen response that falls below the reference, >= 0 [nats of margin / nat]:
            lambda of DPO-positive (Pal et al. 2024), under beta.
        moving_reference: let the reference follow the policy (TR-DPO), such as ``{mode: soft, alpha: 0.6}``, at the
            price of a second model in memory. Training losses and log-ratios are then against the moving one;
            validation, evaluation and their KL stay against the original.
        policy: checkpoint, Hugging Face folder or hub name to start from, of the reference's tokenizer; the reference
            itself by default. A later round of iterated DPO starts from the last one.
        optimizer: optimiser and schedule; the default is the paper's.
        compute: memory against time, such as ``{activation_checkpointing: true}``.

    Raises:
        ValueError: see :class:`AlignmentObjective` and
            :class:`overopt.modules.moving_reference.ReferenceUpdates`.
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
        nll_weight: float = 0.0,
        nll_per: Literal["token", "response"] = "token",
        link: Literal["log", "chi_squared"] = "log",
        max_reward: float | None = None,
        positive_penalty: float = 0.0,
        moving_reference: ReferenceUpdates | None = None,
        policy: str | None = None,
        optimizer: OptimizerSettings = OptimizerSettings(),
        compute: ComputeSettings = ComputeSettings(),
    ) -> None:
        super().__init__(optimizer)
        self.alignment = AlignmentObjective(
            objective,
            beta,
            length_penalty,
            label_smoothing,
            smoothing,
            nll_weight,
            nll_per,
            link,
            max_reward,
            positive_penalty,
        )
        self.reference_updates = moving_reference
        self.reference = reference
        self.start = policy
        self._moving: MovingReference | None = None
        self.compute = compute
        self.pair_loss = MeanMetric()
        self.accuracy = ImplicitRewardAccuracy()
        self.forward_kl = ForwardKL()

    def configure_model(self) -> None:
        """Open the reference, let it score all pairs, then train on from its weights; a policy that is set stays."""
        if hasattr(self, "policy"):
            return
        if self.reference_updates is not None and isinstance(self.trainer.strategy, ModelParallelStrategy):
            raise ValueError(
                "moving_reference keeps a whole second model on each device, which sharding is there to avoid: train "
                "on one device or under ddp, or leave it out"
            )
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
        if self.reference_updates is not None:
            self._moving = MovingReference(copy.deepcopy(self.policy), self.reference_updates)
        if self.start is not None:
            self.policy = self._open_start(self.start, self.policy)

    def _open_start(self, start: str, reference: Policy) -> Policy:
        policy = load_policy(start, self.compute)
        if tokenizer_hash(policy.tokenizer) != tokenizer_hash(reference.tokenizer):
            raise ValueError(
                f"the policy {start} and the reference {self.reference} have different tokenizers: no log-ratio"
            )
        if not self.shard(policy):
            policy.to(self.device)
        return policy

    def on_fit_start(self) -> None:
        """Refuse what would change the meaning of a step, or of the reference."""
        super().on_fit_start()
        if self.reference_updates is not None and self._moving is None:
            raise ValueError("moving_reference needs the module to open its reference; this policy was set before")

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The step; then the reference follows, before anything is saved."""
        super().optimizer_step(*args, **kwargs)
        if self._moving is not None:
            self._moving.after_step(self.policy)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the moving reference too."""
        super().on_save_checkpoint(checkpoint)
        if self._moving is not None:
            checkpoint[_MOVING_REFERENCE] = self._moving.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the moving reference; a training without one is not gone on with as one with it, nor back.

        Elsewhere than in training it is not needed: what is held out is measured against the original reference.
        """
        super().on_load_checkpoint(checkpoint)
        state = checkpoint.get(_MOVING_REFERENCE)
        if self.trainer.state.fn == TrainerFn.FITTING and (state is None) != (self._moving is None):
            trained, here = ("without", "with") if state is None else ("with", "without")
            raise ValueError(f"the checkpoint was trained {trained} a moving_reference, this run is {here} one")
        if state is not None and self._moving is not None:
            self._moving.restore(state)

    def loss_sum(self, micro_batch: PreferenceBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed objective, and what tells a healthy run from a broken one."""
        if self._moving is not None:
            micro_batch = micro_batch._replace(reference_log_probs=self._moving.totals(micro_batch.tokens))
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
        """Implicit rewards of both responses of each held-out pair: beta * log_ratio, or beta * phi under chi-PO."""
        scores = self._scores(batch)
        if not batch.counts:
            return []
        log_ratios = torch.stack([scores.chosen_log_ratios, scores.rejected_log_ratios], dim=1).flatten()
        rewards = self.alignment.implicit_rewards(log_ratios.double()).view(-1, 2).tolist()
        return [{"chosen_implicit_reward": c, "rejected_implicit_reward": r} for c, r in rewards]

    def describe_model(self) -> ModelDescription:
        """Architecture and tokenizer of the policy."""
        return self.policy.describe()

    def describe_training(self) -> dict[str, Any]:
        """What evaluation must know: the objective, in full, and the reference."""
        return super().describe_training() | asdict(self.alignment) | self.parameters_to_log()

    def parameters_to_log(self) -> dict[str, Any]:
        """What tells this run from others."""
        moving = {} if self.reference_updates is None else {"moving_reference": str(self.reference_updates)}
        start = {} if self.start is None else {"policy": self.start}
        return {**self.alignment.to_record(), "reference": self.reference, **moving, **start}

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
