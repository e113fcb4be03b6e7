import os
from pathlib import Path

import pytest
import torch

from overopt.checkpoints.checkpoint_names import checkpoint_paths
from overopt.checkpoints.format import read_model_checkpoint
from overopt.modules.checkpoint_schedule import CheckpointSchedule
from overopt.modules.sft import SFTModule
from tiny import FAST, TINY, KilledError, StopAfter

EXAMPLES = 32  # in the tiny training set


@pytest.fixture
def saved_after(make_data, make_trainer, tmp_path):
    """Train, and give the examples seen at each checkpoint by its own word."""

    def run(schedule: CheckpointSchedule, batch_size: int = 4, **trainer) -> list[int]:
        data = make_data(batch_size=batch_size)
        settings = {"callbacks": [schedule], "enable_checkpointing": True, **trainer}
        make_trainer(**settings).fit(SFTModule(architecture=TINY, optimizer=FAST), datamodule=data)
        assert len(data.train_set) == EXAMPLES
        return [read_model_checkpoint(path).training["examples_seen"] for path in checkpoint_paths(schedule.folder)]

    return run


def test_checkpoints_are_at_fifths_of_the_examples(saved_after, tmp_path):
    # 64 in all: 12.8, 25.6, 38.4 and 51.2, rounded, and reached in steps of 4.
    assert saved_after(CheckpointSchedule(str(tmp_path / "c")), max_epochs=2) == [16, 28, 40, 52, 64]


def test_the_batch_size_moves_them_by_less_than_a_batch(saved_after, tmp_path):
    for batch_size in (1, 5, 6):
        found = saved_after(CheckpointSchedule(str(tmp_path / str(batch_size))), batch_size, max_epochs=2)
        for seen, wanted in zip(found, [13, 26, 38, 51, 64], strict=True):
            assert 0 <= seen - wanted < batch_size


def test_given_examples_are_kept_to_and_the_end_is_added(saved_after, tmp_path):
    assert saved_after(CheckpointSchedule(str(tmp_path / "c"), examples=[20, 8, 10_000])) == [8, 20, EXAMPLES]


def test_with_no_examples_at_all_the_end_is_saved(saved_after, tmp_path):
    assert saved_after(CheckpointSchedule(str(tmp_path / "c"), examples=[])) == [EXAMPLES]


def test_fractions_are_shares_of_the_run_that_max_steps_cuts(saved_after, tmp_path):
    # 10 steps of 4: one epoch of 32, then 8 more.
    schedule = CheckpointSchedule(str(tmp_path / "c"), fractions=(0.5,))
    assert saved_after(schedule, max_epochs=5, max_steps=10) == [20, 40]


def test_one_step_that_passes_several_numbers_is_saved_once(saved_after, tmp_path):
    assert saved_after(CheckpointSchedule(str(tmp_path / "c"), examples=[1, 2, 3, 9])) == [4, 12, EXAMPLES]


def test_last_is_the_newest_and_takes_no_room(saved_after, tmp_path):
    schedule = CheckpointSchedule(str(tmp_path / "c"))
    saved_after(schedule)
    newest = checkpoint_paths(schedule.folder)[-1]
    assert newest.name == f"examples-{EXAMPLES:08d}.ckpt"
    assert os.path.samefile(schedule.folder / "last.ckpt", newest)
    assert not [name for name in os.listdir(schedule.folder) if name.endswith(".tmp")]


def test_checkpoints_go_to_the_run_in_the_trainers_root_by_default(saved_after, tmp_path):
    schedule = CheckpointSchedule()
    saved_after(schedule)
    assert schedule.folder == tmp_path / "runs" / "untracked" / "checkpoints"
    assert len(checkpoint_paths(schedule.folder)) == 5


def test_a_resumed_run_saves_what_is_still_due(make_data, make_trainer, tmp_path):
    folder = tmp_path / "c"

    def fit(*callbacks, ckpt_path: Path | None = None) -> list[str]:
        trainer = make_trainer(callbacks=[CheckpointSchedule(str(folder)), *callbacks], enable_checkpointing=True)
        data = make_data(batch_size=4)
        trainer.fit(SFTModule(architecture=TINY, optimizer=FAST), datamodule=data, ckpt_path=ckpt_path)
        return [path.name for path in checkpoint_paths(folder)]

    with pytest.raises(KilledError):
        fit(StopAfter(18))
    before = {path.name: torch.load(path, weights_only=True)["global_step"] for path in checkpoint_paths(folder)}
    assert list(before.values()) == [2, 4, 5]
    after = fit(ckpt_path=folder / "last.ckpt")
    assert after == [f"examples-{n:08d}.ckpt" for n in (8, 16, 20, 28, 32)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"examples": [0, 5]}, "at least one example"), ({"fractions": (0.5, 1.5)}, r"lie in \(0, 1\]")],
)
def test_numbers_that_no_run_reaches_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        CheckpointSchedule(**arguments)
