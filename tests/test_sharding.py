"""FSDP2 on two processes with CPUs: what one process computes, two compute together."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from overopt.checkpoints.format import read_model_checkpoint
from sharded_training import HALF_WAY, KINDS, OBJECTIVES, STEPS, run

HALF_WAY_FILE = f"examples-{HALF_WAY:08d}.ckpt"


def fit(folder, name, data, *options):
    """Three steps of SFT by the command line; its losses and last checkpoint."""
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


def test_two_sharded_processes_train_as_one_does_by_the_command_line(tmp_path, preference_folder):
    losses, checkpoint = fit(tmp_path, "one", preference_folder, "--trainer.devices", "1")
    sharded = ["--trainer.devices", "2", "--trainer.strategy", "fsdp"]
    sharded_losses, other = fit(tmp_path, "two", preference_folder, *sharded)
    assert len(losses) == 3
    assert len(set(losses)) == 3
    assert sharded_losses == pytest.approx(losses, rel=1e-5)
    # By norm: Adam divides by a gradient's size, so that rounding alone may turn the sign of a small step.
    weights, sharded = (torch.cat([c.weights[n].flatten() for n in checkpoint.weights]) for c in (checkpoint, other))
    assert (sharded - weights).norm() < 1e-3 * weights.norm()


@pytest.fixture(scope="module")
def trained(tmp_path_factory, preference_folder, sft_checkpoint):
    """The folder, what one process found and what two found; the latter are launched by torchrun."""
    folder = tmp_path_factory.mktemp("sharded")
    shutil.copytree(preference_folder, folder / "pairs")
    shutil.copyfile(sft_checkpoint, folder / "reference.ckpt")
    (folder / "half.ckpt").write_bytes(b"PK\x03\x04 half a checkpoint")
    one = {kind: run(kind, folder, name=f"one-{kind}") for kind in KINDS}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    script = str(Path(__file__).with_name("sharded_training.py"))
    done = subprocess.run(
        [*torchrun, script, str(folder)], env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    two = json.loads((folder / "sharded.json").read_text())
    for found in two.values():
        found["losses"] = {int(examples): loss for examples, loss in found["losses"].items()}
    return folder, one, two


@pytest.mark.parametrize("kind", KINDS)
def test_losses_of_twenty_steps_are_those_of_one_process(trained, kind):
    _, one, two = trained
    losses = list(one[kind]["losses"].values())
    assert len(losses) == STEPS
    assert max(losses) > 1.01 * min(losses)
    # A reward model's head starts at zero: RMSprop scales up the rounding of its backbone's first, tiny gradients.
    relative = 1e-3 if kind == "reward" else 1e-5
    assert two[kind]["losses"] == pytest.approx(one[kind]["losses"], rel=relative)


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_metrics_are_those_of_one_process(trained, kind):
    _, one, two = trained
    assert one[kind]["metrics"]
    # A calibration error is a small difference of shares, of which each is right to float32.
    assert two[kind]["metrics"] == pytest.approx(one[kind]["metrics"], rel=1e-4, abs=2e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_first_loss_is_that_of_equal_policy_and_reference(trained, objective):
    _, _, two = trained
    first = next(iter(two[objective]["losses"].values()))
    assert first == pytest.approx({"dpo": 0.6931472, "ipo": 1.0, "slic": 1.0}[objective], abs=1e-6)


def rest_of(losses):
    return {examples: loss for examples, loss in losses.items() if examples > HALF_WAY}


def test_a_checkpoint_of_one_process_is_gone_on_with_by_two(trained):
    _, one, two = trained
    found = two["resumed from one process"]
    assert found["losses"] == pytest.approx(rest_of(one["dpo"]["losses"]), rel=1e-5)
    assert found["metrics"] == pytest.approx(one["dpo"]["metrics"], rel=1e-4)


def test_a_checkpoint_of_two_processes_is_gone_on_with_by_one(trained):
    folder, one, _ = trained
    found = run("dpo", folder, resume_from=folder / "two-dpo" / HALF_WAY_FILE)
    assert found["losses"] == pytest.approx(rest_of(one["dpo"]["losses"]), rel=1e-5)


def test_killed_inside_an_epoch_and_resumed_the_losses_go_on_as_if_nothing_had_happened(trained):
    _, _, two = trained
    killed, resumed = two["killed"]["losses"], two["killed and resumed"]["losses"]
    assert HALF_WAY < max(killed) < max(two["dpo"]["losses"])
    assert resumed == pytest.approx(rest_of(two["dpo"]["losses"]), rel=1e-5)


def test_a_half_written_checkpoint_is_refused_with_its_path_and_nobody_waits_for_ever(trained):
    folder, _, two = trained
    assert f"{folder / 'half.ckpt'} is no readable checkpoint" in two["half-written checkpoint"]["refused"]


@pytest.mark.parametrize("how", ["activation checkpointing", "one token's logits at a time", "CPU offload"])
def test_what_saves_memory_changes_no_loss(trained, how):
    _, one, two = trained
    assert two[how]["losses"] == pytest.approx(one["dpo"]["losses"], rel=1e-5)
    assert two[how]["metrics"] == pytest.approx(one["dpo"]["metrics"], rel=1e-4)


def test_bfloat16_computes_on_float32_master_weights(trained):
    folder, one, two = trained
    losses = two["bfloat16"]["losses"]
    assert losses == pytest.approx(one["dpo"]["losses"], rel=0.02)
    assert losses != pytest.approx(one["dpo"]["losses"], rel=1e-5)
    weights = read_model_checkpoint(folder / "two-bfloat16" / "last.ckpt", "policy.").weights.values()
    assert {weight.dtype for weight in weights} == {torch.float32}
    assert any((weight != weight.bfloat16()).any() for weight in weights)
