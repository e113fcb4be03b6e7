"""A Trainer as the stages use it, and the quiet that a person at a terminal wants."""

import atexit
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, RichProgressBar, Timer
from lightning.pytorch.strategies import ModelParallelStrategy

from overopt.checkpoints.atomic_io import AtomicCheckpointIO
from overopt.checkpoints.format import read_checkpoint
from overopt.data.datamodule import PreferenceDataModule
from overopt.modules.checkpoint_schedule import CheckpointSchedule
from overopt.modules.step import StepModule
from overopt.tracking.logger import MLflowTracker, RunRecord

_ADVERTISEMENTS = (
    "litlogger",
    "litmodels",
    "available:",
    "TPU",
    "HPU",
    "`weights_only`",
    "`max_steps=",
    "`max_epochs=",
    "to estimate number of stepping",
)


def quiet_lightning() -> None:
    """Silence what Lightning says at every start and nobody can act on."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(_no_advertisement)
    for message in (
        ".*does not have many workers.*",
        ".*LeafSpec.*is deprecated.*",
        ".*Checkpoint directory.*exists and is not empty.*",
        ".*smaller than the logging interval.*",
        ".*have no `val_dataloader`.*",
        ".*args parameter is intended to run from within Python.*",
    ):
        warnings.filterwarnings("ignore", message=message)


def _no_advertisement(record: logging.LogRecord) -> bool:
    return not any(word in record.getMessage() for word in _ADVERTISEMENTS)


class FullyShardedStrategy(ModelParallelStrategy):
    """``--trainer.strategy fsdp``: FSDP2 on GPUs and CPUs, all processes data-parallel, single-file checkpoints.

    With ``fsdp_cpu_offload``, shards stay in the host's memory.

    Lightning's own default would make the processes of a node tensor-parallel, hence not data-parallel at all.

    Args:
        cpu_offload: keep weights, gradients and optimiser states in the host's memory, and update them there:
            slower, for models that do not fit otherwise.
    """

    def __init__(self, cpu_offload: bool = False) -> None:
        super().__init__(
            data_parallel_size="auto",
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            # Norms of gradients that lie in the host's memory are summed there.
            process_group_backend="cpu:gloo,cuda:nccl" if cpu_offload and torch.cuda.is_available() else None,
        )
        self.cpu_offload = cpu_offload

    def setup_environment(self) -> None:
        """Settle the number of processes, which is known only now."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()
        # Lightning does so for NCCL alone; the threads of gloo, left running, may abort a process that is done.
        atexit.register(_leave_process_group)

    def model_to_device(self) -> None:
        """Move what sharding has left on the host; where weights are offloaded, they stay there."""
        if not self.cpu_offload:
            super().model_to_device()
            return
        assert self.model is not None
        for child in self.model.children():
            if next(child.parameters(), None) is None:  # metrics; sharding has placed models
                child.to(self.root_device)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Load weights and optimiser states; nothing in the file is executed.

        Raises:
            ValueError: there is no such file, or it is no readable checkpoint of this project.
        """
        problem = None
        if self.global_rank == 0:  # whose weights the others get
            try:
                read_checkpoint(Path(checkpoint_path))
            except ValueError as error:
                problem = str(error)
        # All raise, or some would wait for the others for ever.
        if problem := self.broadcast(problem):
            raise ValueError(problem)
        loaded: dict[str, Any] = super().load_checkpoint(checkpoint_path, weights_only=True)
        return loaded


def _leave_process_group() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class StageProgress(RichProgressBar):
    """Lightning's bar with time left, without the run's id."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The loss."""
        metrics: dict[str, Any] = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics


def fit(
    module: StepModule,
    data: PreferenceDataModule,
    folder: Path,
    *,
    tracking_uri: str,
    run_id: str,
    max_steps: int,
    gradient_clip: float = 10.0,
    callbacks: list[Callback] | None = None,
    on_saved: Callable[[], bool] | None = None,
) -> float:
    """Train a module into ``folder``, from its newest checkpoint where there is one.

    Args:
        module: what to train.
        data: what to train on.
        folder: checkpoints go there.
        tracking_uri: MLflow store.
        run_id: run to log to.
        max_steps: optimiser steps.
        gradient_clip: largest gradient norm.
        callbacks: more callbacks.
        on_saved: called after each checkpoint; where it gives true, the training ends there.

    Returns:
        How long it trained [s]: from its first step to its last, before a resume too.
    """
    schedule = CheckpointSchedule(str(folder))
    schedule.on_saved = on_saved
    timer = Timer()
    trainer = Trainer(
        accelerator="auto",
        devices=1,
        max_steps=max_steps,
        max_epochs=-(-max_steps * data.batch_size // len(data.train_set)),
        gradient_clip_val=gradient_clip,
        log_every_n_steps=10,
        limit_val_batches=0,
        enable_model_summary=False,
        enable_checkpointing=True,
        use_distributed_sampler=False,
        default_root_dir=folder,
        logger=MLflowTracker(tracking_uri=tracking_uri, run_id=run_id),
        callbacks=[schedule, timer, RunRecord(), StageProgress(), *(callbacks or [])],
        plugins=[AtomicCheckpointIO()],
    )
    last = folder / "last.ckpt"
    trainer.fit(module, datamodule=data, ckpt_path=last if last.is_file() else None, weights_only=True)
    return timer.time_elapsed("train")
