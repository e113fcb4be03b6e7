"""Training runs in a real store, through the real Trainer."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import Callback

from overopt.checkpoints.format import read_model_checkpoint
from overopt.modules.checkpoint_schedule import CheckpointSchedule
from overopt.modules.direct_alignment import DirectAlignmentModule
from overopt.modules.sft import SFTModule
from overopt.tracking.logger import MLflowTracker, RunRecord
from overopt.tracking.runs import STAGE_TAG, start_run
from tiny import FAST, TINY, KilledError, StopAfter

EXPERIMENT = "training"


@pytest.fixture(autouse=True)
def interrupt_signal() -> Iterator[None]:
    """Lightning leaves Ctrl-C ignored after a KeyboardInterrupt."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.fixture
def fit(store_uri, make_data, make_trainer):
    """Train an SFT policy in a run of its own, and give the run's id."""

    def train(*callbacks: Callback, module=None, data=None, ckpt_path=None, run_id=None, **trainer: Any) -> str:
        tracker = MLflowTracker(store_uri, experiment=EXPERIMENT, run_id=run_id)
        train.tracker = tracker
        settings = {"logger": tracker, "callbacks": [RunRecord(), *callbacks], "enable_checkpointing": True} | trainer
        settings["enable_checkpointing"] = any(isinstance(c, CheckpointSchedule) for c in callbacks)
        module = module or SFTModule(architecture=TINY, optimizer=FAST)
        make_trainer(**settings).fit(module, datamodule=data or make_data(), ckpt_path=ckpt_path)
        return tracker.run_id

    return train


class Raises(Callback):
    def __init__(self, error: BaseException) -> None:
        self._error = error

    def on_train_batch_end(self, *_: Any) -> None:
        raise self._error


def running(client) -> list[str]:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    return [r.info.run_id for r in client.search_runs([experiment.experiment_id], "attributes.status = 'RUNNING'")]


def test_a_training_run_is_recorded_as_the_contract_says(fit, client, make_data, sft_checkpoint, tmp_path):
    data = make_data(examples="preferences", tokenizer=str(sft_checkpoint))
    module = DirectAlignmentModule(str(sft_checkpoint), "ipo", 0.2, optimizer=FAST)
    run = client.get_run(fit(module=module, data=data))
    assert run.info.status == "FINISHED"
    assert run.data.tags[STAGE_TAG] == "align"
    params = run.data.params
    assert (params["objective"], params["beta"], params["reference"]) == ("ipo", "0.2", str(sft_checkpoint))
    num_parameters = sum(p.numel() for p in module.policy.parameters())
    assert (params["model"], params["num_parameters"]) == ("gpt_neox-0.0M", str(num_parameters))
    assert params["data_fingerprint"] == data.fingerprint
    assert params["examples_per_epoch"] == "32"
    assert {"git_commit", "version_torch", "split"} <= params.keys()
    assert (params["data_rows"], params["data_left_out"]) == ("120", "0")
    report = json.loads(Path(client.download_artifacts(run.info.run_id, "data_report.json", str(tmp_path))).read_text())
    assert report["tokens"]["trained on"]["examples"] == 32
    assert report["split"] == params["split"]


def test_metrics_stand_at_the_examples_seen(fit, client):
    run_id = fit(limit_val_batches=1.0, max_epochs=2)
    steps = [m.step for m in client.get_metric_history(run_id, "train/loss")]
    assert steps == [6, 12, 18, 24, 30, 32, 38, 44, 50, 56, 62, 64]
    assert [m.step for m in client.get_metric_history(run_id, "val/nll_per_token")] == [32, 64]


@pytest.mark.parametrize(
    ("error", "raised", "status"),
    [
        (ValueError("bad"), ValueError, "FAILED"),
        (KeyboardInterrupt(), SystemExit, "KILLED"),
        (SystemExit(143), SystemExit, "KILLED"),
    ],
    ids=["error", "Ctrl-C", "terminated"],
)
def test_no_run_is_left_running_whatever_ends_it(fit, client, error, raised, status):
    with pytest.raises(raised):
        fit(Raises(error))
    assert client.get_run(fit.tracker.run_id).info.status == status
    assert running(client) == []


def test_a_run_that_cannot_begin_is_failed(fit, client, make_data, tmp_path):
    with pytest.raises(ValueError, match="no policy at"):
        fit(module=SFTModule(policy=str(tmp_path / "none.ckpt")))
    assert client.get_run(fit.tracker.run_id).info.status == "FAILED"
    with pytest.raises(ValueError, match="falls into part"):
        fit(data=make_data(part="gold", gold_fraction=0.0))
    assert running(client) == []


def test_a_resumed_run_is_the_same_run(fit, client, tmp_path):
    with pytest.raises(KilledError):
        fit(CheckpointSchedule(str(tmp_path), examples=[12]), StopAfter(18))
    run_id = fit.tracker.run_id
    assert read_model_checkpoint(tmp_path / "last.ckpt").training["run_id"] == run_id
    assert client.get_run(run_id).info.status == "FAILED"
    assert fit(CheckpointSchedule(str(tmp_path)), run_id=run_id, ckpt_path=tmp_path / "last.ckpt") == run_id
    assert client.get_run(run_id).info.status == "FINISHED"
    assert {m.step for m in client.get_metric_history(run_id, "train/loss")} == {6, 12, 18, 24, 30, 32}


def test_a_run_that_a_stage_began_is_gone_on_with(fit, client):
    run_id = start_run(client, "named", "sft", tags={"key": "value"})
    assert fit(run_id=run_id) == run_id
    run = client.get_run(run_id)
    assert (run.info.run_name, run.data.tags["key"], run.info.status) == ("named", "value", "FINISHED")
    assert run.data.params["objective"] == "nll"


def test_a_store_that_cannot_be_had_is_refused_before_anything_trains(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="can't be made"):
        MLflowTracker(f"sqlite:///{tmp_path}/file/x/mlflow.db")
