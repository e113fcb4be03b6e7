"""``overopt predict``: predictions as JSON Lines."""

from operator import itemgetter
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from overopt.data.step_loader import EvaluationLoader
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
        loader = trainer.predict_dataloaders
        assert isinstance(loader, EvaluationLoader)
        places = [place for batch in loader.batches[: len(predictions)] for place in batch]
        in_order = sorted(zip(places, (row for batch in predictions for row in batch), strict=True), key=itemgetter(0))
        name = "predictions.jsonl" if trainer.world_size == 1 else f"predictions-{trainer.global_rank}.jsonl"
        path = Path(trainer.default_root_dir) / name
        write_json_lines(path, ({"example_id": examples[place].example_id, **row} for place, row in in_order))
        print(f"{len(in_order)} predictions in {path}")
