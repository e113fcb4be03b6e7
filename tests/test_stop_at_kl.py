import os
import subprocess
import sys

import numpy as np
import pytest
from mlflow import MlflowClient

from overopt.checkpoints.checkpoint_names import checkpoint_paths
from overopt.checkpoints.format import read_model_checkpoint
from overopt.cli import main
from overopt.evaluation.judges.protocol import Judge
from overopt.evaluation.records import Verdict
from overopt.modules.checkpoint_schedule import CheckpointSchedule
from overopt.modules.direct_alignment import DirectAlignmentModule
from overopt.modules.optimizers import OptimizerSettings
from overopt.modules.policy_gradient import PolicyGradientModule
from overopt.modules.sft import SFTModule
from overopt.stop_at_kl import StopAtKL
from tiny import FAST, TINY, KilledError, Losses, StopAfter

EXAMPLES = [12, 18, 24, 30, 32]  # in steps of 6, the last of 2
PROMPTS = 8
# Far from the reference in a few steps, so that KL stands out of its noise.
BOLD = OptimizerSettings("rmsprop", learning_rate=2e-2, warmup_steps=2)


class ScriptedJudge(Judge):
    """Gives each checkpoint in turn a win rate; with a spread, by prompts that half win more and half less."""

    def __init__(self, *rates, spread=0.0):
        self.rates = list(rates)
        self.spread = spread

    @property
    def settings(self):
        return {"judge": "scripted"}

    def judge(self, comparisons, on_verdict=None, budget=None):
        rate = self.rates.pop(0)
        signs = np.random.default_rng(len(self.rates)).permutation([-1.0, 1.0] * (len(comparisons) // 2))
        return [Verdict("graded", win_probability=float(rate + self.spread * sign)) for sign in signs]


@pytest.fixture
def align(make_data, make_trainer, sft_checkpoint, tmp_path):
    """Train under a StopAtKL; the folder of checkpoints and the losses by examples seen."""

    def run(*callbacks, folder="c", ckpt_path=None, module=None, **trainer):
        schedule = CheckpointSchedule(str(tmp_path / folder), examples=EXAMPLES)
        losses = Losses()
        data = make_data(examples="preferences", tokenizer=str(sft_checkpoint))
        module = module or DirectAlignmentModule(str(sft_checkpoint), "dpo", 0.01, optimizer=BOLD)
        made = make_trainer(**{"callbacks": [*callbacks, schedule, losses], "enable_checkpointing": True} | trainer)
        made.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
        return schedule.folder, losses.by_examples

    return run


def seen(path):
    return read_model_checkpoint(path).training["examples_seen"]


def saved(folder):
    return [seen(path) for path in checkpoint_paths(folder)]


def kls(capsys):
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("after ")]
    return {int(line.split()[1]): float(line.split("KL ")[1].split()[0]) for line in lines}


def test_a_policy_gradient_ends_at_its_budget_too(align, sft_checkpoint, reward_checkpoint):
    module = PolicyGradientModule(
        str(sft_checkpoint), str(reward_checkpoint), beta=0.0, samples_per_prompt=2, optimizer=BOLD
    )
    folder, _ = align(StopAtKL(1e-3, num_prompts=PROMPTS), module=module)
    assert 1 <= len(saved(folder)) < len(EXAMPLES)


def test_a_training_ends_at_the_first_checkpoint_beyond_the_budget_or_goes_on_and_keeps_the_best_within(align, capsys):
    folder, _ = align(StopAtKL(1e6, num_prompts=PROMPTS), folder="free")
    assert saved(folder) == EXAMPLES  # a budget that nothing exceeds changes nothing
    found = kls(capsys)
    assert list(found) == EXAMPLES
    assert found[18] > found[12] > 0
    # Halfway between what two of its checkpoints measured: the same run again ends at the second.
    budget = (found[12] + found[18]) / 2
    folder, _ = align(StopAtKL(budget, num_prompts=PROMPTS), folder="tight")
    assert saved(folder) == [12, 18]
    assert os.path.samefile(folder / "best.ckpt", checkpoint_paths(folder)[0])
    out = capsys.readouterr().out
    assert f"beyond the budget of {budget:g} nats; the training ends" in out
    assert "best checkpoint: " in out
    folder, _ = align(StopAtKL(budget, action="keep_best", num_prompts=PROMPTS), folder="on")
    assert saved(folder) == EXAMPLES
    assert seen(folder / "best.ckpt") == max(n for n in EXAMPLES if found[n] <= budget)


def test_where_nothing_is_within_the_budget_no_checkpoint_is_best(align, capsys):
    (folder, _) = align(StopAtKL(1e-6, num_prompts=PROMPTS))
    assert saved(folder) == [12]
    assert not (folder / "best.ckpt").exists()
    assert "no checkpoint is within 1e-06 nats: the reference is the policy to ship" in capsys.readouterr().out


def test_with_a_judge_a_training_ends_once_it_falls_below_its_best_and_the_best_is_kept(align):
    folder, _ = align(StopAtKL(judge=ScriptedJudge(0.5, 0.6, 0.4, 0.9), num_prompts=PROMPTS))
    assert saved(folder) == [12, 18, 24]
    assert seen(folder / "best.ckpt") == 18


def test_keep_best_trains_on_past_the_peak(align):
    judge = ScriptedJudge(0.6, 0.5, 0.4, 0.8, 0.7)
    folder, _ = align(StopAtKL(judge=judge, action="keep_best", num_prompts=PROMPTS))
    assert saved(folder) == EXAMPLES
    assert seen(folder / "best.ckpt") == 30


def test_looking_changes_no_loss(align):
    _, losses = align(folder="alone")
    _, watched = align(StopAtKL(1e6, num_prompts=PROMPTS), folder="watched")
    assert len(losses) == 6
    assert watched == losses


def test_a_resumed_run_asks_before_it_trains_on(align, capsys, tmp_path):
    folder = tmp_path / "c"
    with pytest.raises(KilledError):
        align(StopAfter(24))
    assert saved(folder) == [12, 18, 24]
    judge = ScriptedJudge(0.6, 0.5, 0.4)  # of what it has; one more would find the list empty
    _, losses = align(StopAtKL(judge=judge, num_prompts=PROMPTS), ckpt_path=folder / "last.ckpt")
    assert not losses
    assert saved(folder) == [12, 18, 24]
    assert seen(folder / "best.ckpt") == 12
    assert "below its best, after 12 examples; the training ends" in capsys.readouterr().out


def test_a_resumed_run_that_is_not_over_goes_on_and_remembers_its_best_from_another_folder(align, tmp_path):
    with pytest.raises(KilledError):
        align(StopAfter(18), folder="before")
    assert saved(tmp_path / "before") == [12, 18]
    judge = ScriptedJudge(0.6, 0.65, 0.64, 0.63, 0.62, spread=0.2)  # a fall within chance
    watch = StopAtKL(judge=judge, num_prompts=PROMPTS)
    folder, losses = align(watch, folder="after", ckpt_path=tmp_path / "before" / "last.ckpt")
    assert list(losses) == [24, 30, 32]
    assert saved(folder) == [24, 30, 32]
    assert seen(folder / "best.ckpt") == 18


def test_a_new_run_does_not_mistake_an_earlier_ones_best_for_its_own(align, tmp_path):
    folder, _ = align(StopAtKL(1e6, num_prompts=PROMPTS))
    assert (folder / "best.ckpt").is_file()
    align(StopAtKL(1e-6, num_prompts=PROMPTS))
    assert not (folder / "best.ckpt").exists()


def command(preference_folder, sft_checkpoint, *options):
    fit = ["fit", "--model", "overopt.modules.direct_alignment.DirectAlignmentModule", "--model.beta", "0.01"]
    fit += ["--model.reference", str(sft_checkpoint), "--data.source", "jsonl", "--data.path", str(preference_folder)]
    fit += ["--data.evaluation_fraction", "0.3", "--data.batch_size", "6", "--trainer.accelerator", "cpu"]
    fit += ["--model.optimizer.learning_rate", "0.02", "--model.optimizer.warmup_steps", "2"]
    fit += ["--trainer.enable_progress_bar", "false", "--trainer.limit_val_batches", "0", "--checkpoints.folder", "c"]
    return [*fit, "--stop_at_kl.num_prompts", "8", *options]


def test_by_the_command_line(preference_folder, sft_checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    options = ["--stop-at-kl.budget", "1e-6", "--stop-at-kl.judge", "longer"]
    main(command(preference_folder, sft_checkpoint, *options))
    assert len(checkpoint_paths(tmp_path / "c")) == 1
    assert "the training ends" in capsys.readouterr().out
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    [run] = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert run.info.status == "FINISHED"
    [kl] = client.get_metric_history(run.info.run_id, "watch/kl_nats")
    assert kl.step == seen(tmp_path / "c" / "last.ckpt")
    assert 0 <= run.data.metrics["watch/win_rate"] <= 1
    assert run.data.tags["overopt.checkpoints"] == str(tmp_path / "c")


def test_sharded_processes_end_together_by_what_the_first_one_finds(preference_folder, sft_checkpoint, tmp_path):
    options = ["--trainer.devices", "2", "--trainer.strategy", "fsdp", "--stop_at_kl.budget", "1e-6"]
    arguments = command(preference_folder, sft_checkpoint, *options)
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "overopt", *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("the training ends") == 1
    assert len(checkpoint_paths(tmp_path / "c")) == 1


def test_what_could_not_be_looked_at_is_refused_before_a_step(align, make_trainer, make_data, sft_checkpoint, tmp_path):
    losses = Losses()
    data = make_data(examples="preferences", tokenizer=str(sft_checkpoint))
    module = DirectAlignmentModule(str(sft_checkpoint), optimizer=FAST)
    with pytest.raises(ValueError, match="looks at the checkpoints of one CheckpointSchedule, found 0"):
        make_trainer(callbacks=[StopAtKL(1.0, num_prompts=PROMPTS), losses]).fit(module, datamodule=data)
    with pytest.raises(ValueError, match="1000 evaluation prompts wanted"):
        align(StopAtKL(1.0, num_prompts=1000), losses)
    schedule = CheckpointSchedule(str(tmp_path / "sft"))
    sft = make_trainer(callbacks=[StopAtKL(1.0), schedule, losses], enable_checkpointing=True)
    with pytest.raises(ValueError, match="SFTModule has none of"):
        sft.fit(SFTModule(architecture=TINY, optimizer=FAST), datamodule=make_data())
    assert not losses.by_examples


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "needs a budget of KL"),
        ({"budget": -1.0}, "kl_budget is positive, got -1"),
        ({"budget": 1.0, "num_prompts": 1}, "at least 2, got 1"),
        ({"budget": 1.0, "standard_errors": 0.0}, "standard_errors is positive"),
    ],
)
def test_settings_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        StopAtKL(**arguments)
