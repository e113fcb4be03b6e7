"""Supervised fine-tuning: maximum likelihood of the responses that people wrote (Sec. 2.1)."""

from dataclasses import asdict, replace
from typing import Any

from torch import Tensor
from torchmetrics import MeanMetric

from overopt.checkpoints.format import ModelDescription
from overopt.data.schema import EvaluationBatch
from overopt.models.compute import ComputeSettings
from overopt.models.policy import PythiaArchitecture, load_policy, new_policy
from overopt.modules.optimizers import OptimizerSettings
from overopt.modules.step import StepModule
from overopt.objectives.likelihood import response_negative_log_likelihood
from overopt.packed_tokens import PackedTokens


class SFTModule(StepModule):
    """Trains a policy on demonstrations; prompts are context, only responses are learned.

    The loss is the responses' negative log-likelihood summed over tokens [nats / response].

    Args:
        policy: a Hugging Face folder or hub name, or a checkpoint, to start from; fresh weights by default.
        architecture: shape of a fresh policy; its vocabulary and length limit are the DataModule's.
        optimizer: optimiser and schedule; the default suits the embedded half-million-parameter policy.
        compute: memory against time, such as ``{activation_checkpointing: true}``.
    """

    stage_name = "sft"
    examples_kind = "demonstrations"

    def __init__(
        self,
        policy: str | None = None,
        architecture: PythiaArchitecture = PythiaArchitecture(),
        optimizer: OptimizerSettings = OptimizerSettings(
            name="adamw", learning_rate=4e-3, warmup_steps=0.05, decay="cosine"
        ),
        compute: ComputeSettings = ComputeSettings(),
    ) -> None:
        super().__init__(optimizer)
        self.start = policy
        self.architecture = architecture
        self.compute = compute
        self.nll_per_token = MeanMetric()

    def configure_model(self) -> None:
        """Make or open the policy, unless one is set; Lightning calls this before every entry point."""
        if hasattr(self, "policy"):
            return
        if self.start is not None:
            self.policy = load_policy(self.start, self.compute)
        else:
            architecture = replace(self.architecture, max_tokens=self.data.max_tokens)
            self.policy = new_policy(architecture, self.data.tokenizer, self.compute)
        self.shard(self.policy)

    def loss_sum(self, micro_batch: PackedTokens) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed negative log-likelihood [nats]."""
        nll, tokens = self._nll(micro_batch)
        return nll.sum(), {"response_tokens": tokens.float().sum()}

    def validation_step(self, batch: EvaluationBatch, batch_idx: int) -> None:
        """Nats per response token, every token counted once."""
        self._score(batch, "val")

    def test_step(self, batch: EvaluationBatch, batch_idx: int) -> None:
        """As in validation."""
        self._score(batch, "test")

    def predict_step(self, batch: EvaluationBatch, batch_idx: int) -> list[dict[str, Any]]:
        """Log-probability [nats] and length of each held-out response."""
        nll, tokens = self._likelihood(batch)
        if not batch.counts:
            return []
        return [
            {"log_prob": -nats, "response_tokens": length}
            for nats, length in zip(nll.tolist(), tokens.tolist(), strict=True)
        ]

    def describe_model(self) -> ModelDescription:
        """Architecture and tokenizer of the policy."""
        return self.policy.describe()

    def parameters_to_log(self) -> dict[str, Any]:
        """What tells this run from others."""
        return {"objective": "nll", "policy": self.start, **asdict(self.architecture)}

    def _nll(self, tokens: PackedTokens) -> tuple[Tensor, Tensor]:
        return response_negative_log_likelihood(self.policy(tokens), tokens.responses, tokens.num_responses)

    def _likelihood(self, batch: EvaluationBatch) -> tuple[Tensor, Tensor]:
        assert isinstance(batch.examples, PackedTokens)
        return self._nll(batch.examples)

    def _score(self, batch: EvaluationBatch, split: str) -> None:
        nll, tokens = self._likelihood(batch)
        if batch.counts:
            self.nll_per_token.update(nll / tokens, weight=tokens)
        self.log(f"{split}/nll_per_token", self.nll_per_token, on_epoch=True, prog_bar=True)
