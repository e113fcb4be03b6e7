"""Reward modelling: Bradley-Terry likelihood of labelled pairs (Eq. 2)."""

from typing import Any

from torch import Tensor
from torchmetrics import MeanMetric

from overopt.checkpoints.format import ModelDescription
from overopt.data.schema import EvaluationBatch, PreferenceBatch
from overopt.metrics.calibration import BradleyTerryCalibration
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
        self.calibration = BradleyTerryCalibration()

    def configure_model(self) -> None:
        """Put a fresh head on the policy's backbone."""
        if not hasattr(self, "reward_model"):
            self.reward_model = reward_model_from_policy(load_policy(self.start, self.compute))
            self.shard(self.reward_model)

    def loss_sum(self, micro_batch: PreferenceBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed Bradley-Terry loss, and how many pairs are ranked right."""
        chosen, rejected = self._rewards(micro_batch)
        return bradley_terry_loss(chosen, rejected).sum(), {"accuracy": (chosen > rejected).float().sum()}

    def validation_step(self, batch: EvaluationBatch, batch_idx: int) -> None:
        """Loss, accuracy and calibration on held-out pairs."""
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

    def _score(self, batch: EvaluationBatch) -> None:
        assert isinstance(batch.examples, PreferenceBatch)
        chosen, rejected = self._rewards(batch.examples)
        if not batch.counts:
            return
        self.pair_loss.update(bradley_terry_loss(chosen, rejected))
        self.accuracy.update((chosen > rejected).float())
        self.calibration.update(chosen - rejected)

    def _log_scores(self, split: str) -> None:
        calibration = self.calibration.compute()
        self.log_dict(
            {
                f"{split}/loss": self.pair_loss.compute(),
                f"{split}/accuracy": self.accuracy.compute(),
                f"{split}/calibration_error": calibration.expected_error,
                f"{split}/calibration_error_if_calibrated": calibration.error_if_calibrated,
                f"{split}/brier_score": calibration.brier_score,
            },
            prog_bar=True,
        )
        self.log_examples_seen()
        for metric in (self.pair_loss, self.accuracy, self.calibration):
            metric.reset()
