import os
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback

from full_disk import no_file_larger_than
from overopt.checkpoints.atomic_io import AtomicCheckpointIO
from overopt.checkpoints.checkpoint_names import checkpoint_paths
from overopt.checkpoints.format import read_model_checkpoint
from overopt.modules.checkpoint_schedule import CheckpointSchedule
from overopt.modules.sft import SFTModule
from tiny import FAST, TINY


def content(value: float, size: int = 100_000) -> dict[str, Any]:
    return {"weight": torch.full((size,), value)}


@pytest.mark.parametrize("room", [0, 4096, 200_000], ids=["none", "a little", "half"])
def test_a_full_disk_costs_no_earlier_checkpoint(room, tmp_path):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(content(1.0), path)
    with (
        no_file_larger_than(room),
        pytest.raises(ValueError, match=r"could not be written \(File too large\)") as error,
    ):
        AtomicCheckpointIO().save_checkpoint(content(2.0), path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == ["last.ckpt"]
    assert torch.load(path, weights_only=True)["weight"][0] == 1
    AtomicCheckpointIO().save_checkpoint(content(2.0), path)  # room again
    assert torch.load(path, weights_only=True)["weight"][0] == 2


def test_an_interrupt_while_writing_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupted(_: object, file: Any) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        AtomicCheckpointIO().save_checkpoint(content(1.0), tmp_path / "last.ckpt")
    assert os.listdir(tmp_path) == []


def test_folders_are_made_and_a_folder_that_cannot_be_is_said(tmp_path):
    AtomicCheckpointIO().save_checkpoint(content(1.0), tmp_path / "new" / "er" / "last.ckpt")
    assert (tmp_path / "new" / "er" / "last.ckpt").is_file()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="could not be written"):
        AtomicCheckpointIO().save_checkpoint(content(1.0), tmp_path / "file" / "last.ckpt")


class DiskFillsUp(Callback):
    """No room for another checkpoint once so many are there."""

    def __init__(self, folder: Path, checkpoints: int) -> None:
        self._folder, self._checkpoints = folder, checkpoints

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if len(checkpoint_paths(self._folder)) == self._checkpoints:
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))


def test_a_run_whose_disk_fills_up_is_resumed_from_the_checkpoint_before(make_data, make_trainer, tmp_path):
    folder = tmp_path / "checkpoints"

    def fit(*callbacks: Callback, ckpt_path: Path | None = None) -> None:
        trainer = make_trainer(callbacks=[*callbacks, CheckpointSchedule(str(folder))], enable_checkpointing=True)
        trainer.fit(
            SFTModule(architecture=TINY, optimizer=FAST), datamodule=make_data(batch_size=4), ckpt_path=ckpt_path
        )

    with no_file_larger_than(resource.RLIM_INFINITY), pytest.raises(ValueError, match="could not be written"):
        fit(DiskFillsUp(folder, checkpoints=2))
    first, second = checkpoint_paths(folder)
    assert sorted(os.listdir(folder)) == [first.name, second.name, "last.ckpt"]
    seen = read_model_checkpoint(folder / "last.ckpt").training["examples_seen"]
    assert f"{seen:08d}" in second.name
    fit(ckpt_path=folder / "last.ckpt")
    assert len(checkpoint_paths(folder)) == 5
