"""overopt's own ``fit``, as typed, with a callback that measures."""

import sys
from pathlib import Path
from typing import Any

from contenders.measured import Measured
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from overopt.trainer_cli import run


class StepTimes(Callback):
    """Measures each optimiser step.

    Args:
        out: JSON file.
    """

    def __init__(self, out: str) -> None:
        self._measured = Measured(Path(out))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Start the clock."""
        self._measured.begin_step()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Stop it."""
        self._measured.end_step(float(trainer.callback_metrics["train/loss"]))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the figures."""
        self._measured.write()


if __name__ == "__main__":
    run(sys.argv[1:])
