"""What all modules share, through the real Trainer."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from overopt.modules.checkpoint_schedule import CheckpointSchedule
from overopt.modules.direct_alignment import DirectAlignmentModule
from overopt.modules.optimizers import OptimizerSettings
from overopt.modules.reward_modeling import RewardModule
from overopt.modules.sft import SFTModule
from overopt.modules.step import StepModule
from tiny import FAST, TINY, KilledError, Losses, StopAfter

SEED = 5
BATCH = 6


class Bench:
    """Trains each kind of module on the same posts, from the same start."""

    def __init__(self, make_data: Callable[..., Any], make_trainer: Callable[..., Any], sft_checkpoint: Path) -> None:
        self._make_data, self._make_trainer, self._reference = make_data, make_trainer, str(sft_checkpoint)

    def module(self, kind: str, optimizer: OptimizerSettings = FAST) -> StepModule:
        modules: dict[str, Callable[[], StepModule]] = {
            "sft": lambda: SFTModule(architecture=TINY, optimizer=optimizer),
            "sft on": lambda: SFTModule(policy=self._reference, optimizer=optimizer),
            "reward": lambda: RewardModule(self._reference, optimizer),
            "dpo": lambda: DirectAlignmentModule(self._reference, "dpo", 0.5, optimizer=optimizer),
            "ipo": lambda: DirectAlignmentModule(self._reference, "ipo", 0.1, length_penalty=0.01, optimizer=optimizer),
        }
        return modules[kind]()

    def data(self, kind: str, **changes: Any) -> Any:
        if kind == "sft":
            return self._make_data(**changes)
        examples = "demonstrations" if kind == "sft on" else "preferences"
        return self._make_data(**{"examples": examples, "tokenizer": self._reference} | changes)

    def fit(
        self,
        kind: str,
        *callbacks: Callback,
        ckpt_path: Path | None = None,
        data: dict[str, Any] | None = None,
        optimizer: OptimizerSettings = FAST,
        **trainer: Any,
    ) -> tuple[dict[int, float], StepModule]:
        """The losses by examples seen, and the module."""
        losses, module = Losses(), self.module(kind, optimizer)
        torch.manual_seed(SEED)
        settings = {"callbacks": [losses, *callbacks], "enable_checkpointing": True} | trainer
        # Lightning adds a checkpoint of its own where none is wanted.
        settings["enable_checkpointing"] = any(isinstance(c, CheckpointSchedule) for c in callbacks)
        self._make_trainer(**settings).fit(module, datamodule=self.data(kind, **(data or {})), ckpt_path=ckpt_path)
        return losses.by_examples, module


@pytest.fixture
def bench(make_data, make_trainer, sft_checkpoint) -> Bench:
    return Bench(make_data, make_trainer, sft_checkpoint)


def weights(module: StepModule) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def relative_difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


KINDS = ["sft", "sft on", "reward", "dpo", "ipo"]
GENTLE = OptimizerSettings("rmsprop", learning_rate=1e-4, warmup_steps=2)


@pytest.mark.parametrize("kind", KINDS)
def test_how_a_step_is_packed_changes_neither_losses_nor_weights(bench, kind):
    expected, module = bench.fit(kind, optimizer=GENTLE)
    assert max(expected) % BATCH != 0  # the last step is a partial one
    _, start = bench.fit(kind, optimizer=GENTLE, max_steps=0)
    assert relative_difference(weights(module), weights(start)) > 1e-4
    ways = [{"micro_batch_tokens": 70}, {"micro_batch_tokens": 120}, {"packed": False}, {"shared_prompts": False}]
    for data in [*ways, {"packed": False, "shared_prompts": False, "micro_batch_tokens": 100}]:
        losses, parted = bench.fit(kind, data=data, optimizer=GENTLE)
        assert losses == pytest.approx(expected, rel=1e-5)
        assert relative_difference(weights(parted), weights(module)) < 1e-5


class OneStep(Callback):
    """Keeps the gradient of the first step."""

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.gradient = torch.cat([p.grad.flatten() for p in pl_module.parameters() if p.grad is not None])


@pytest.mark.parametrize("kind", KINDS)
def test_a_steps_gradient_is_that_of_the_mean_over_its_examples(bench, kind):
    step = OneStep()
    _, module = bench.fit(kind, step, data={"micro_batch_tokens": 100}, max_steps=1, gradient_clip_val=None)
    # Again by hand: all examples of the step at once, from the weights before it.
    _, start = bench.fit(kind, max_steps=0)
    data = module.data
    loader = data.train_dataloader()
    order = next(iter(loader)).micro_batches
    rows = sum(b.tokens.num_responses // 2 if hasattr(b, "tokens") else b.num_responses for b in order)
    assert rows == BATCH
    assert len(order) > 1
    start.zero_grad()
    sum(start.loss_sum(micro_batch)[0] for micro_batch in order).div(rows).backward()
    by_hand = torch.cat([p.grad.flatten() for p in start.parameters() if p.grad is not None])
    assert by_hand.norm() > 1e-3
    assert relative_difference(step.gradient, by_hand) < 1e-5


@pytest.mark.parametrize("kind", ["sft", "reward", "dpo"])
@pytest.mark.parametrize("saved_after", [6, 12, "epoch", "epoch + 6"])
def test_a_run_stopped_and_resumed_is_the_run_that_was_not(bench, kind, saved_after, tmp_path):
    optimizer = OptimizerSettings("adamw", learning_rate=1e-3, warmup_steps=3, decay="cosine")
    expected, uninterrupted = bench.fit(kind, max_epochs=2, optimizer=optimizer)
    epoch = max(expected) // 2
    assert epoch % BATCH != 0
    saved = {"epoch": epoch, "epoch + 6": epoch + 6}.get(saved_after, saved_after)
    with pytest.raises(KilledError):
        # One more step than was saved, so that a checkpoint is not just the state at the end.
        bench.fit(
            kind,
            CheckpointSchedule(str(tmp_path / "run"), examples=[saved]),
            StopAfter(saved + 1),
            max_epochs=2,
            optimizer=optimizer,
        )
    resumed, module = bench.fit(
        kind, CheckpointSchedule(str(tmp_path / "run")), ckpt_path=tmp_path / "run" / "last.ckpt", max_epochs=2,
        optimizer=optimizer,
    )  # fmt: skip
    assert resumed == pytest.approx({n: loss for n, loss in expected.items() if n > saved}, rel=1e-6)
    assert len(resumed) >= 3
    assert relative_difference(weights(module), weights(uninterrupted)) < 1e-6


def test_an_iteration_based_run_is_resumed_alike(bench, tmp_path):
    """The stages give max_steps besides max_epochs, and Lightning then restarts otherwise."""
    expected, _ = bench.fit("dpo", max_epochs=3, max_steps=14)
    epoch = next(n for n in expected if n % BATCH)
    for saved in (12, epoch, epoch + BATCH):
        folder = tmp_path / str(saved)
        with pytest.raises(KilledError):
            bench.fit(
                "dpo",
                CheckpointSchedule(str(folder), examples=[saved]),
                StopAfter(saved + 1),
                max_epochs=3,
                max_steps=14,
            )
        resumed, _ = bench.fit(
            "dpo", CheckpointSchedule(str(folder)), ckpt_path=folder / "last.ckpt", max_epochs=3, max_steps=14
        )
        assert resumed == pytest.approx({n: loss for n, loss in expected.items() if n > saved}, rel=1e-6)


def test_resuming_a_run_that_is_over_trains_no_more(bench, tmp_path):
    schedule = CheckpointSchedule(str(tmp_path))
    _, module = bench.fit("dpo", schedule)
    again, same = bench.fit("dpo", CheckpointSchedule(str(tmp_path)), ckpt_path=tmp_path / "last.ckpt")
    assert again == {}
    assert torch.equal(weights(same), weights(module))


def refused(bench: Bench, kind: str, ckpt_path: Path, message: str, **data: Any) -> None:
    with pytest.raises(ValueError, match=message) as error:
        bench.fit(kind, ckpt_path=ckpt_path, data=data)
    assert "\n" not in str(error.value)


def test_a_checkpoint_of_another_architecture_is_refused(bench, sft_checkpoint, make_data, make_trainer):
    for changes in ({"hidden_size": 32}, {"num_layers": 1}, {"num_heads": 4}):
        module = SFTModule(architecture=type(TINY)(**{"hidden_size": 16, "num_layers": 2, "num_heads": 2} | changes))
        with pytest.raises(ValueError, match=r"the checkpoint holds a gpt_neox of hidden size 16, 2 layers, 2 heads"):
            make_trainer().fit(module, datamodule=make_data(), ckpt_path=sft_checkpoint)


def test_a_checkpoint_of_another_stage_is_refused(bench, sft_checkpoint):
    for kind in ("reward", "dpo"):
        refused(bench, kind, sft_checkpoint, "written by stage 'sft', this is '(reward|align)'.*not as ckpt_path")


def test_a_checkpoint_with_another_tokenizer_is_refused(bench, sft_checkpoint, tmp_path, preference_folder):
    changed = tmp_path / "changed"
    changed.mkdir()
    for file in preference_folder.glob("*.jsonl"):
        (changed / file.name).write_text(file.read_text().replace("the", "eht"))
    refused(bench, "sft", sft_checkpoint, "tokenizer is not this run's.*data.tokenizer", path=str(changed))


def test_a_broken_or_missing_checkpoint_is_refused_by_name(bench, tmp_path):
    refused(bench, "sft", tmp_path / "none.ckpt", f"no checkpoint at {tmp_path}/none.ckpt")
    (tmp_path / "half.ckpt").write_bytes(b"PK")
    refused(bench, "sft", tmp_path / "half.ckpt", f"{tmp_path}/half.ckpt is no readable checkpoint")


def test_lightnings_own_accumulation_is_refused(bench):
    with pytest.raises(ValueError, match=r"accumulate_grad_batches=2: .*data.micro_batch_tokens"):
        bench.fit("dpo", accumulate_grad_batches=2)


def test_the_examples_seen_are_the_axis_of_what_is_logged(bench, tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    losses, _ = bench.fit("dpo", logger=CSVLogger(tmp_path), limit_val_batches=1.0, max_epochs=2)
    import pandas as pd

    rows = pd.read_csv(tmp_path / "lightning_logs" / "version_0" / "metrics.csv")
    assert rows["step"].dropna()[rows["train/loss"].notna()].tolist() == list(losses)
    epoch = max(losses) // 2
    assert rows["step"][rows["val/loss"].notna()].tolist() == [epoch, 2 * epoch]


def test_a_module_without_the_projects_data_says_what_it_needs(make_trainer):
    with pytest.raises(ValueError, match="SFTModule needs a PreferenceDataModule"):
        make_trainer().fit(SFTModule(), train_dataloaders=[1, 2])


def test_losses_are_finite_and_fall(bench):
    losses, _ = bench.fit("sft on", max_epochs=6, optimizer=OptimizerSettings("adamw", 1e-2, warmup_steps=2))
    values = list(losses.values())
    assert all(map(math.isfinite, values))
    assert sum(values[-5:]) < 0.8 * sum(values[:5])
