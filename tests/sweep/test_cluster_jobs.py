import signal
import sys
import time

import psutil
import pytest
from optuna.trial import TrialState
from small_sweep import cells, options, small_recipe
from sweep_script import points, runs, start, study, unfinished

from overopt.sweep.cluster_jobs import JobOptions, submit
from overopt.sweep.run import run_sweep


def job_output(folder):
    return "".join(path.read_text() for path in sorted((folder / "out" / "jobs").glob("*_log.*")))


def test_jobs_do_the_sweep_and_one_that_is_preempted_goes_on(preference_folder, tmp_path):
    """submitit's own signal to a job that is about to lose its machine, in the middle of a cell."""
    launcher = start(preference_folder, tmp_path, "--launcher", "local", "--steps", "40", "--betas", "0.02", "0.1")
    deadline = time.monotonic() + 150
    while not list(tmp_path.glob("out/dpo-*/checkpoints/examples-*.ckpt")):
        assert launcher.poll() is None, launcher.communicate()[0] + job_output(tmp_path)
        assert time.monotonic() < deadline, job_output(tmp_path)
        time.sleep(0.02)
    [task] = [int(path.name.partition("_")[0]) for path in (tmp_path / "out" / "jobs").glob("*_log.out")]
    # The job's id is its controller's; the signal is for the processes under it, as Slurm sends it.
    for process in psutil.Process(task).children(recursive=True):
        process.send_signal(signal.SIGUSR2)
    output, _ = launcher.communicate(timeout=200)
    assert launcher.returncode == 0, output + job_output(tmp_path)
    assert "2 of 2 cells done" in output
    assert "requeue" in job_output(tmp_path).lower()
    trials = study(f"sqlite:///{tmp_path}/out/sweep.db").trials
    assert sum(trial.state == TrialState.COMPLETE for trial in trials) == 2
    assert not [trial for trial in trials if trial.user_attrs.get("failure") == "died"]
    assert {run.info.status for run in runs(f"sqlite:///{tmp_path}/mlflow.db")} == {"FINISHED"}
    assert len(points(tmp_path)) == 2 * 6
    assert not unfinished(tmp_path)


def test_jobs_that_end_too_early_are_told_of(preference_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")  # which submitit starts its jobs by
    with pytest.raises(ValueError, match=r"all jobs have ended and tasks are left: .*jobs says why"):
        run_sweep(cells(["dpo"], [0.1]), small_recipe(preference_folder), options(tmp_path, job=JobOptions("local")))
    assert {run.info.status for run in runs(f"sqlite:///{tmp_path}/mlflow.db")} == {"FAILED"}


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ({"jobs": 0}, "at least 1, got --jobs 0"),
        ({"settings": ("partition",)}, "--job-settings are KEY=VALUE, such as partition=gpu; got 'partition'"),
    ],
)
def test_bad_job_options_are_refused(job, message):
    with pytest.raises(ValueError, match=message):
        JobOptions("local", **job)


def test_slurm_wants_stores_that_other_machines_reach(preference_folder, tmp_path):
    with pytest.raises(ValueError, match=r"share no SQLite file such as sqlite:///.*: give --storage postgresql://"):
        run_sweep(cells(["dpo"], [0.1]), small_recipe(preference_folder), options(tmp_path, job=JobOptions("slurm")))
    assert not (tmp_path / "out" / "jobs").exists()


def test_a_setting_that_slurm_does_not_have_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no jobs could be submitted to local .*Unknown argument 'colour'"):
        submit(JobOptions("local", settings=("colour=red",)), print, "trial", tmp_path)
    with pytest.raises(ValueError, match=r"no jobs could be submitted to slurm .*srun"):
        submit(JobOptions("slurm"), print, "trial", tmp_path)
