"""``--trainer.strategy fsdp`` as typed, in two processes on CPUs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from overopt.checkpoints.format import read_model_checkpoint


def fit(folder, name, data, *options):
    """Three steps of SFT; its losses and last checkpoint."""
    store = f"sqlite:///{folder}/{name}.db"
    command = [sys.executable, "-m", "overopt", "fit", "--data.source", "jsonl", "--data.path", str(data)]
    command += ["--data.vocab_size", "300", "--data.batch_size", "7", "--data.micro_batch_tokens", "100"]
    command += ["--model.architecture", "{hidden_size: 16, num_layers: 2, num_heads: 2}", "--trainer.max_steps", "3"]
    command += ["--trainer.accelerator", "cpu", "--trainer.log_every_n_steps", "1", "--checkpoints.folder", name]
    command += ["--trainer.limit_val_batches", "0", "--trainer.enable_progress_bar", "false", *options]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": store, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=folder, env=environment, check=True, timeout=240)
    client = MlflowClient(store)
    [run] = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert run.info.status == "FINISHED"
    losses = [metric.value for metric in client.get_metric_history(run.info.run_id, "train/loss")]
    return losses, read_model_checkpoint(Path(folder) / name / "last.ckpt", "policy.")


def test_two_sharded_processes_train_as_one_does(tmp_path, preference_folder):
    losses, checkpoint = fit(tmp_path, "one", preference_folder, "--trainer.devices", "1")
    sharded = ["--trainer.devices", "2", "--trainer.strategy", "fsdp"]
    sharded_losses, other = fit(tmp_path, "two", preference_folder, *sharded)
    assert len(losses) == 3
    assert len(set(losses)) == 3
    assert sharded_losses == pytest.approx(losses, rel=1e-5)
    # By norm: Adam divides by a gradient's size, so that rounding alone may turn the sign of a small step.
    weights, sharded = (torch.cat([c.weights[n].flatten() for n in checkpoint.weights]) for c in (checkpoint, other))
    assert (sharded - weights).norm() < 1e-3 * weights.norm()
