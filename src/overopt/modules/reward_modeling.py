"""Reward modelling: Bradley-Terry likelihood of labelled pairs (Eq. 2)."""

from typing import Any

from torch import Tensor
from torchmetrics import MeanMetric

from overopt.checkpoints.format import ModelDescription
from overopt.data.schema import EvaluationBatch, PreferenceBatch
from overopt.models.compute import ComputeSettings
from overopt.models.policy import load_policy
from overopt.models.reward_model import reward_model_from_policy
from overopt.modules.optimizers import OptimizerSettings
from overopt.modules.step import StepModule
from overopt.objectives.reward import bradley_terry_loss


class RewardModule(StepModule):
    """Trains a reward model on pairs, its backbone starting from a policy's weights.

    Args:
        policy: checkpoint, Hugging Face folder or hub name whose backbone is taken.
        optimizer: optimiser and schedule.
        compute: memory against time, such as ``{activation_checkpointing: true}``.
    """

    stage_name = "reward"
    examples_kind = "preferences"

    def __init__(
        self,
        policy: str,
        optimizer: OptimizerSettings = OptimizerSettings(
            name="adamw", learning_rate=1e-3, warmup_steps=0.1, decay="cosine"
        ),
        compute: ComputeSettings = ComputeSettings(),
    ) -> None:
        super().__init__(optimizer)
        self.start = policy
        self.compute = compute
        self.pair_loss = MeanMetric()
        self.accuracy = MeanMetric()

    def configure_model(self) -> None:
        """Put a fresh head on the policy's backbone."""
        if not hasattr(self, "reward_model"):
            self.reward_model = reward_model_from_policy(load_policy(self.start, self.compute))
            self.shard(self.reward_model)

    def loss_sum(self, micro_batch: PreferenceBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed Bradley-Terry loss, and how many pairs are ranked right."""
        loss, correct = self._score_pairs(micro_batch)
        return loss.sum(), {"accuracy": correct.sum()}

    def validation_step(self, batch: EvaluationBatch, batch_idx: int) -> None:
        """Loss and accuracy on held-out pairs."""
        self._score(batch, "val")

    def test_step(self, batch: EvaluationBatch, batch_idx: int) -> None:
        """As in validation."""
        self._score(batch, "test")

    def predict_step(self, batch: EvaluationBatch, batch_idx: int) -> list[dict[str, Any]]:
        """Rewards of both responses of each held-out pair."""
        assert isinstance(batch.examples, PreferenceBatch)
        chosen, rejected = self._rewards(batch.examples)
        if not batch.counts:
            return []
        return [
            {"chosen_reward": c, "rejected_reward": r} for c, r in zip(chosen.tolist(), rejected.tolist(), strict=True)
        ]

    def describe_model(self) -> ModelDescription:
        """Architecture and tokenizer of the reward model."""
        return self.reward_model.describe()

    def parameters_to_log(self) -> dict[str, Any]:
        """What tells this run from others."""
        return {"objective": "bradley_terry", "policy": self.start}

    def _rewards(self, batch: PreferenceBatch) -> tuple[Tensor, Tensor]:
        chosen, rejected = self.reward_model(batch.tokens).view(-1, 2).unbind(dim=1)
        return chosen, rejected

    def _score_pairs(self, batch: PreferenceBatch) -> tuple[Tensor, Tensor]:
        chosen, rejected = self._rewards(batch)
        return bradley_terry_loss(chosen, rejected), (chosen > rejected).float()

    def _score(self, batch: EvaluationBatch, split: str) -> None:
        assert isinstance(batch.examples, PreferenceBatch)
        loss, correct = self._score_pairs(batch.examples)
        if batch.counts:
            self.pair_loss.update(loss)
            self.accuracy.update(correct)
        self.log_dict(
            {f"{split}/loss": self.pair_loss, f"{split}/accuracy": self.accuracy},
            on_epoch=True,
            prog_bar=True,
        )
