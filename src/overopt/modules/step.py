"""What SFT, reward modelling and alignment share: one Lightning batch is one optimiser step."""

from abc import abstractmethod
from typing import Any

from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from overopt.checkpoints.format import (
    ModelDescription,
    read_description,
    read_training,
    write_description,
)
from overopt.data.schema import PreferenceBatch, StepBatch, TokenBatch
from overopt.modules.optimizers import OptimizerSettings


class StepModule(LightningModule):
    """Trains on :class:`StepBatch` and describes itself in its checkpoints.

    An optimiser step divides the summed losses of its micro-batches by the step's examples, over all ranks.
    Lightning's own accumulation would average micro-batches of unequal size and halve the gradient of a
    half-full last window, so accumulation happens inside the step, and ``accumulate_grad_batches`` stays 1.

    Attributes:
        stage_name: which stage of the experiment it trains: sft, reward or align.
        examples_kind: what it needs of the DataModule: demonstrations or preferences.
        examples_seen: examples whose gradient has been applied; survives a resume.
    """

    stage_name: str
    examples_kind: str

    def __init__(self, optimizer: OptimizerSettings) -> None:
        super().__init__()
        self.optimizer_settings = optimizer
        self.examples_seen = 0

    @abstractmethod
    def loss_sum(self, micro_batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed loss of a micro-batch, and sums of what is worth a curve, by name."""

    @abstractmethod
    def describe_model(self) -> ModelDescription:
        """Architecture and tokenizer of the model in training."""

    def describe_training(self) -> dict[str, Any]:
        """What a later stage must know of this training; plain values only."""
        logger = self.trainer.logger
        return {
            "stage": self.stage_name,
            "examples_seen": self.examples_seen,
            "run_id": None if logger is None else str(logger.version),
        }

    # Gradients of early micro-batches are there before Lightning's own zero_grad would run.
    def optimizer_zero_grad(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: :meth:`training_step` clears gradients before its first micro-batch."""

    def training_step(self, batch: StepBatch, batch_idx: int) -> Tensor:
        """Forward and backward of all micro-batches; Lightning does the last backward and the step."""
        optimizer = self.optimizers()
        optimizer.zero_grad()
        # Strategies average gradients over ranks; a step divides by its examples only.
        divisor = batch.num_examples / self.trainer.world_size
        totals: dict[str, Tensor] = {}
        for i, (micro_batch, scale) in enumerate(zip(batch.micro_batches, batch.scales, strict=True)):
            loss, sums = self.loss_sum(micro_batch)
            loss = loss * (scale / divisor)
            for name, value in {"loss": loss, **{k: v * (scale / divisor) for k, v in sums.items()}}.items():
                totals[name] = totals.get(name, 0.0) + value.detach()
            if i < len(batch.micro_batches) - 1:
                self.trainer.strategy.backward(loss, None)
        self.log_dict(
            {f"train/{name}": value for name, value in totals.items()},
            batch_size=batch.num_examples,
            sync_dist=self.trainer.world_size > 1,
        )
        # The progress bar has room for one number.
        self.log("loss", totals["loss"], prog_bar=True, logger=False, batch_size=batch.num_examples)
        self.examples_seen += batch.num_examples
        # Lightning takes a metric of this name for the horizontal axis.
        self.log("step", float(self.examples_seen), batch_size=batch.num_examples)
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser with its schedule, stepped once an optimiser step."""
        optimizer = self.optimizer_settings.optimizer(self.parameters())
        schedule = self.optimizer_settings.schedule(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_start(self) -> None:
        """Refuse what would change the meaning of an optimiser step."""
        if self.trainer.accumulate_grad_batches != 1:
            raise ValueError(
                f"accumulate_grad_batches={self.trainer.accumulate_grad_batches}: a step is data.batch_size "
                "examples already; set data.micro_batch_size to what fits into memory instead"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the file open alone."""
        write_description(checkpoint, self.describe_model(), self.describe_training())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another architecture before any weight is copied."""
        found, expected = read_description(checkpoint), self.describe_model()
        if found.shape != expected.shape:
            raise ValueError(f"the checkpoint holds a {found.shape}; this run trains a {expected.shape}")
        stage = read_training(checkpoint)["stage"]
        if stage != self.stage_name:
            raise ValueError(
                f"the checkpoint was written by stage {stage!r}, this is {self.stage_name!r}: to start from its "
                "weights give it as the model's policy or reference, not as ckpt_path"
            )
        self.examples_seen = read_training(checkpoint)["examples_seen"]


def num_sequences(batch: TokenBatch | PreferenceBatch) -> int:
    """Sequences of a batch, for Lightning's averages."""
    tokens = batch.tokens if isinstance(batch, PreferenceBatch) else batch
    return tokens.input_ids.shape[0]
