"""Stage ``export``: a checkpoint and what its run's record knows, as a Hugging Face folder."""

from pathlib import Path
from typing import Literal

from overopt.checkpoints.format import ModelCheckpoint, read_model_checkpoint
from overopt.model_card import model_card
from overopt.models.hf_export import require_ours, stock_model, write_hf_folder
from overopt.tracking.checkpoint_record import CheckpointRecord, read_checkpoint_record
from overopt.tracking.store import open_store


def export_checkpoint(
    path: Path, folder: Path, dtype: Literal["float32", "bfloat16"] = "float32", tracking_uri: str | None = None
) -> None:
    """Stage ``export``; see :func:`overopt.stages.export`.

    Raises:
        ValueError: not a readable checkpoint, one that can't be exported, or a folder that can't be written.
    """
    require_ours(folder)
    checkpoint = read_model_checkpoint(path)
    record: CheckpointRecord | None = None
    try:
        record = _record(checkpoint, tracking_uri)
    except ValueError as error:
        print(f"the model card will lack the run's parameters and metrics: {error}")
    write_hf_folder(
        folder,
        stock_model(checkpoint),
        checkpoint.description.tokenizer(),
        dtype=dtype,
        card=model_card(checkpoint, record, dtype=dtype),
        provenance={
            "training": checkpoint.training,
            "data": checkpoint.data,
            "dtype": dtype,
            "params": record.params if record else None,
            "metrics": record.metrics if record else None,
        },
    )
    print(f"{checkpoint.description.shape} in {folder}, {dtype}")


def _record(checkpoint: ModelCheckpoint, tracking_uri: str | None) -> CheckpointRecord:
    run_id = checkpoint.training.get("run_id")
    if run_id is None:
        raise ValueError("the checkpoint was trained without tracking")
    return read_checkpoint_record(open_store(tracking_uri, create=False), run_id, checkpoint.training["examples_seen"])
