"""What SFT, reward modelling, alignment and policy gradients share: one Lightning batch is one optimiser step."""

import time
from abc import abstractmethod
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from overopt.checkpoints.cost import Cost
from overopt.checkpoints.format import (
    ModelDescription,
    read_description,
    read_training,
    write_description,
)
from overopt.data.datamodule import PreferenceDataModule
from overopt.data.packing import Ranks
from overopt.data.schema import StepBatch
from overopt.data.tokenization import tokenizer_hash
from overopt.models.heap import return_freed_memory
from overopt.models.sharding import shard_layers
from overopt.modules.optimizers import OptimizerSettings

#: What sharded weights are computed with, where it is not their own precision, by Lightning's name of the precision.
COMPUTE_DTYPES = {"bf16-mixed": torch.bfloat16}


class StepModule(LightningModule):
    """Trains on :class:`StepBatch` and describes itself in its checkpoints.

    An optimiser step divides the summed losses of its micro-batches by the step's examples, over all ranks.
    Lightning's own accumulation would average micro-batches of unequal size and halve the gradient of a
    half-full last window, so accumulation happens inside the step, and ``accumulate_grad_batches`` stays 1.

    Attributes:
        stage_name: which stage of the experiment it trains: sft, reward, align or rl.
        examples_kind: what it needs of the DataModule: demonstrations or preferences.
        examples_seen: examples whose gradient has been applied; survives a resume.
        cost: of all steps so far; survives a resume.
    """

    stage_name: str
    examples_kind: str

    def __init__(self, optimizer: OptimizerSettings) -> None:
        super().__init__()
        self.optimizer_settings = optimizer
        self.examples_seen = 0
        self.cost = Cost()

    @abstractmethod
    def loss_sum(self, micro_batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed loss of a micro-batch, and sums of what is worth a curve, by name."""

    @abstractmethod
    def describe_model(self) -> ModelDescription:
        """Architecture and tokenizer of the model in training."""

    @abstractmethod
    def parameters_to_log(self) -> dict[str, Any]:
        """What tells this run from others: the objective and its settings."""

    @property
    def data(self) -> PreferenceDataModule:
        """The trainer's DataModule.

        Raises:
            ValueError: the trainer was given another, or dataloaders instead.
        """
        datamodule = self.trainer.datamodule  # type: ignore[attr-defined] # set when the trainer is given one
        if not isinstance(datamodule, PreferenceDataModule):
            raise ValueError(f"{type(self).__name__} needs a PreferenceDataModule: trainer.fit(module, datamodule=...)")
        return datamodule

    def describe_training(self) -> dict[str, Any]:
        """What a later stage must know of this training; plain values only."""
        logger = self.trainer.logger
        return {
            "stage": self.stage_name,
            "examples_seen": self.examples_seen,
            "run_id": None if logger is None else str(logger.version),
            **self.cost.record(),
        }

    def shard(self, model: nn.Module) -> bool:
        """Shard a model that has just been made, where the strategy shards; whether it does."""
        strategy = self.trainer.strategy
        if not isinstance(strategy, ModelParallelStrategy):
            return False
        shard_layers(
            model,
            strategy.device_mesh["data_parallel"],
            compute_dtype=COMPUTE_DTYPES.get(str(self.trainer.precision)),
            cpu_offload=getattr(strategy, "cpu_offload", False),
        )
        return True

    def ranks(self) -> Ranks:
        """The trainer's processes."""
        strategy = self.trainer.strategy

        def total(values: Tensor) -> Tensor:
            # On the device: its backend may know no other tensors.
            summed = strategy.reduce(values.to(strategy.root_device), reduce_op="sum")
            assert isinstance(summed, Tensor)
            return summed.cpu()

        return Ranks(self.trainer.global_rank, self.trainer.world_size, total)

    # Gradients of early micro-batches are there before Lightning's own zero_grad would run.
    def optimizer_zero_grad(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: :meth:`training_step` clears gradients before its first micro-batch."""

    def training_step(self, batch: StepBatch, batch_idx: int) -> Tensor:
        """Forward and backward of all micro-batches; Lightning does the last backward and the step."""
        loss, totals = self.accumulate(batch)
        self.log_dict(
            {f"train/{name}": value for name, value in totals.items()},
            batch_size=batch.num_examples,
            sync_dist=self.trainer.world_size > 1,
        )
        # The progress bar has room for one number.
        self.log("loss", totals["loss"], prog_bar=True, logger=False, batch_size=batch.num_examples)
        self.examples_seen += batch.num_examples
        self.cost += Cost(tokens=batch.num_tokens)
        self.log_examples_seen()
        return loss

    def accumulate(self, batch: StepBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Gradients of all micro-batches but the last; the last one's loss, and means over the step's examples."""
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        optimizer.zero_grad()
        # Strategies average gradients over ranks; a step divides by its examples only.
        divisor = batch.num_examples / self.trainer.world_size
        totals: dict[str, Tensor] = {}
        for i, (micro_batch, scale) in enumerate(zip(batch.micro_batches, batch.scales, strict=True)):
            loss, sums = self.loss_sum(micro_batch)
            loss = loss * (scale / divisor)
            for name, value in {"loss": loss, **{k: v * (scale / divisor) for k, v in sums.items()}}.items():
                totals[name] = totals[name] + value.detach() if name in totals else value.detach()
            if i < len(batch.micro_batches) - 1:
                self.trainer.strategy.backward(loss, None)
        return loss, totals

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """A step, forward and backward passes included, and how long it took."""
        began = time.perf_counter()
        super().optimizer_step(*args, **kwargs)
        self.cost += Cost(seconds=time.perf_counter() - began)

    def on_before_backward(self, loss: Tensor) -> None:
        """Of the forward pass keep what the backward pass reads, and no more."""
        return_freed_memory(self)

    def on_after_backward(self) -> None:
        """Keep gradients, and no more."""
        return_freed_memory(self)

    def on_validation_epoch_end(self) -> None:
        """Put validation metrics on the axis of the training metrics."""
        self.log_examples_seen()

    def on_test_epoch_end(self) -> None:
        """As in validation."""
        self.log_examples_seen()

    def log_examples_seen(self) -> None:
        """Make examples seen the horizontal axis of what is logged now: Lightning takes a metric ``step`` for it."""
        self.log("step", float(self.examples_seen), batch_size=1)

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
                "examples already; set data.micro_batch_tokens to what fits into memory instead"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the file open alone."""
        write_description(checkpoint, self.describe_model(), self.describe_training())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another stage, architecture or tokenizer before any weight is copied."""
        stage = read_training(checkpoint)["stage"]
        if stage != self.stage_name:
            raise ValueError(
                f"the checkpoint was written by stage {stage!r}, this is {self.stage_name!r}: to start from its "
                "weights give it as the model's policy or reference, not as ckpt_path"
            )
        found, expected = read_description(checkpoint), self.describe_model()
        if found.shape != expected.shape:
            raise ValueError(f"the checkpoint holds a {found.shape}; this run trains a {expected.shape}")
        if tokenizer_hash(found.tokenizer()) != tokenizer_hash(expected.tokenizer()):
            raise ValueError(
                "the checkpoint's tokenizer is not this run's: resume on the data that it was trained on, or give "
                "the checkpoint as data.tokenizer"
            )
        self.examples_seen = read_training(checkpoint)["examples_seen"]
        self.cost = Cost.of(read_training(checkpoint)) or Cost()
