"""Checkpoints by examples seen."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from overopt.checkpoints.checkpoint_names import checkpoint_path, checkpoint_paths
from overopt.data.step_loader import StepLoader
from overopt.modules.step import StepModule


class CheckpointSchedule(Checkpoint):
    """Saves after given numbers of examples, so that the batch size does not move the checkpoints.

    Files are named ``examples-00003072.ckpt`` after what had been seen; ``last.ckpt`` is the newest of them
    (a link), for a resume.

    Args:
        folder: where checkpoints go; ``runs/RUN_ID/checkpoints`` in the trainer's root by default.
        examples: save once as many examples have been seen; the end of training is always added.
        fractions: the same as shares of the whole run, used where ``examples`` is not given.

    Attributes:
        on_saved: called after each checkpoint; where it gives true, the training ends there.
    """

    def __init__(
        self,
        folder: str | None = None,
        examples: Sequence[int] | None = None,
        fractions: Sequence[float] = (0.2, 0.4, 0.6, 0.8),
    ) -> None:
        super().__init__()
        if examples is not None and any(number < 1 for number in examples):
            raise ValueError(f"checkpoints come after at least one example, got examples={list(examples)}")
        if any(not 0 < fraction <= 1 for fraction in fractions):
            raise ValueError(f"fractions of the run lie in (0, 1], got fractions={list(fractions)}")
        self._folder = folder
        self._examples = examples
        self._fractions = fractions
        self._due: list[int] = []
        self.on_saved: Callable[[], bool] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Settle the folder."""
        run = "untracked" if trainer.logger is None else str(trainer.logger.version)
        self.folder = Path(self._folder or Path(trainer.default_root_dir) / "runs" / run / "checkpoints")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Plan: what is due, less what a resumed run has passed."""
        assert isinstance(pl_module, StepModule)
        total = total_examples(trainer)
        wanted = [round(f * total) for f in self._fractions] if self._examples is None else self._examples
        self._due = sorted({n for n in wanted if pl_module.examples_seen < n < total})

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when a number has been reached or passed, or the run is over."""
        assert isinstance(pl_module, StepModule)
        reached = bool(self._due) and pl_module.examples_seen >= self._due[0]
        if reached:
            self._due = [n for n in self._due if n > pl_module.examples_seen]
        if reached or trainer.global_step >= int(trainer.estimated_stepping_batches):
            self._save(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where the checkpoints are."""
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            print(f"{len(checkpoint_paths(self.folder))} checkpoints in {self.folder}")

    def _save(self, trainer: Trainer, pl_module: StepModule) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return  # a trial leaves nothing behind, least of all a checkpoint that looks like the real run's
        path = checkpoint_path(self.folder, pl_module.examples_seen)
        trainer.save_checkpoint(path, weights_only=False)
        if trainer.is_global_zero:
            link = self.folder / f".last.{os.getpid()}.tmp"
            link.unlink(missing_ok=True)
            os.symlink(path.name, link)
            os.replace(link, self.folder / "last.ckpt")
        if self.on_saved is not None and self.on_saved():
            trainer.should_stop = True


def total_examples(trainer: Trainer) -> int:
    """Examples that the whole run will see, all epochs and ranks counted."""
    loader = trainer.train_dataloader
    assert isinstance(loader, StepLoader)
    steps = int(trainer.estimated_stepping_batches)
    epochs, rest = divmod(steps, len(loader))
    return epochs * loader.num_examples + rest * loader.batch_size
