"""``overopt predict``: predictions as JSON Lines."""

from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from overopt.evaluation.records import write_json_lines


class PredictionWriter(BasePredictionWriter):
    """Writes what ``predict_step`` gave, one JSON line an example, in the data's order.

    The file is ``predictions.jsonl`` in the trainer's ``default_root_dir``; with several processes each writes
    its own, ``predictions-RANK.jsonl``.
    """

    def __init__(self) -> None:
        super().__init__(write_interval="epoch")

    def write_on_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule, predictions: Any, batch_indices: Any
    ) -> None:
        """Write all predictions of this process."""
        examples = trainer.datamodule.evaluation_set.examples  # type: ignore[attr-defined]
        mine = examples[trainer.global_rank :: trainer.world_size]
        rows = [row for batch in predictions for row in batch]
        name = "predictions.jsonl" if trainer.world_size == 1 else f"predictions-{trainer.global_rank}.jsonl"
        path = Path(trainer.default_root_dir) / name
        write_json_lines(
            path, ({"example_id": example.example_id, **row} for example, row in zip(mine, rows, strict=True))
        )
        print(f"{len(rows)} predictions in {path}")
