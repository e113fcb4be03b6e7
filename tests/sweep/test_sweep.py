import json
import shutil
import signal
import time
from dataclasses import replace

import pandas as pd
import psutil
import pytest
import torch
from optuna.trial import TrialState
from postgres_server import postgres
from small_sweep import cells, options, small_recipe
from sweep_script import points, runs, start, study, unfinished

from overopt.analysis.advice.peak_rule import PeakRule
from overopt.checkpoints.checkpoint_names import checkpoint_paths
from overopt.embedded.cells import Cell
from overopt.embedded.experiment import EmbeddedExperiment
from overopt.embedded.plan import plan
from overopt.sweep.beta_search import BetaSearch
from overopt.sweep.run import run_sweep
from overopt.tracking.store import driver_url

BETAS = [0.02, 0.1, 0.5]


@pytest.fixture(scope="module")
def done(preference_folder, tmp_path_factory):
    """A sweep that nobody disturbed, on as many threads as those that it is compared with: their number rounds."""
    folder = tmp_path_factory.mktemp("sweep")
    worker = start(preference_folder, folder)
    output, _ = worker.communicate(timeout=200)
    assert worker.returncode == 0, output
    return folder


def test_every_cell_is_done_once_and_tracked_under_one_parent(done):
    trials = study(f"sqlite:///{done}/out/sweep.db").trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 3
    assert [trial.params["beta"] for trial in trials] == BETAS
    tracked = runs(f"sqlite:///{done}/mlflow.db")
    assert {run.info.status for run in tracked} == {"FINISHED"}
    [parent] = [run for run in tracked if run.data.tags["overopt.stage"] == "study"]
    aligned = {run.info.run_name: run for run in tracked if run.data.tags["overopt.stage"] == "align"}
    assert set(aligned) == {f"dpo-beta{beta:g}-0.4M-seed0" for beta in BETAS}
    for trial in trials:
        run = aligned[trial.user_attrs["task"]]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["overopt.beta"] == str(trial.params["beta"])
        assert run.data.metrics["best/win_rate"] == trial.value
        assert run.data.metrics["best/kl_nats"] == trial.user_attrs["best/kl_nats"]
    assert not unfinished(done)


def test_started_again_nothing_is_done_again(done, preference_folder):
    before = {run.info.run_id: run.info.end_time for run in runs(f"sqlite:///{done}/mlflow.db")}
    run_sweep(cells(["dpo"], BETAS), small_recipe(preference_folder), options(done))
    after = {run.info.run_id: run.info.end_time for run in runs(f"sqlite:///{done}/mlflow.db")}
    assert before.keys() == after.keys()
    assert sum(before[run_id] != after[run_id] for run_id in before) == 1  # the parent
    assert len(study(f"sqlite:///{done}/out/sweep.db").trials) == 3


def test_two_machines_on_postgres_share_the_work_and_get_what_one_gets(done, preference_folder, tmp_path):
    with postgres(tmp_path / "postgres") as server:
        storage, tracking = server.get_uri("optuna"), server.get_uri("mlflow")
        # Each has a folder of its own; what cells share comes from the other through the tracking store.
        workers = [
            start(preference_folder, tmp_path / name, "--storage", storage, "--tracking-uri", tracking)
            for name in ("one", "two")
        ]
        for worker in workers:
            output, _ = worker.communicate(timeout=200)
            assert worker.returncode == 0, output
        trials = study(driver_url(storage)).trials
        completed = [trial for trial in trials if trial.state == TrialState.COMPLETE]
        assert sorted(trial.params["beta"] for trial in completed) == BETAS
        assert not [trial for trial in trials if trial.state in (TrialState.RUNNING, TrialState.WAITING)]
        tracked = runs(driver_url(tracking))
        assert {run.info.status for run in tracked} == {"FINISHED"}
        assert len(tracked) == 6  # parent, SFT, gold model, three cells
    for name in ("one", "two"):
        pd.testing.assert_frame_equal(points(tmp_path / name), points(done), check_exact=True, check_dtype=False)
        assert not unfinished(tmp_path / name)


def test_a_killed_worker_takes_its_task_along_and_the_next_one_goes_on(done, preference_folder, tmp_path):
    tracking = f"sqlite:///{tmp_path}/mlflow.db"
    worker = start(preference_folder, tmp_path)
    checkpoint = tmp_path / "out/dpo-beta0.1-0.4M-seed0/checkpoints"
    deadline = time.monotonic() + 150
    while not list(checkpoint.glob("examples-*.ckpt")):  # inside the second cell
        assert worker.poll() is None, worker.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    children = psutil.Process(worker.pid).children(recursive=True)
    assert children
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    again = start(preference_folder, tmp_path)
    output, _ = again.communicate(timeout=200)
    assert again.returncode == 0, output
    pd.testing.assert_frame_equal(points(tmp_path), points(done), check_exact=True, check_dtype=False)
    assert {run.info.status for run in runs(tracking)} == {"FINISHED"}
    assert not unfinished(tmp_path)


def test_a_stopped_sweep_says_so_leaves_no_run_running_and_goes_on(done, preference_folder, tmp_path):
    tracking = f"sqlite:///{tmp_path}/mlflow.db"
    worker = start(preference_folder, tmp_path)
    deadline = time.monotonic() + 150
    while not list(tmp_path.glob("out/dpo-*/checkpoints/examples-*.ckpt")):
        assert worker.poll() is None, worker.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    worker.send_signal(signal.SIGTERM)
    output, _ = worker.communicate(timeout=60)
    assert worker.returncode == 130
    assert output.endswith("interrupted: start the same command again to go on\n")
    assert "RUNNING" not in {run.info.status for run in runs(tracking)}
    again = start(preference_folder, tmp_path)
    output, _ = again.communicate(timeout=200)
    assert again.returncode == 0, output
    pd.testing.assert_frame_equal(points(tmp_path), points(done), check_exact=True, check_dtype=False)


def test_a_cell_that_fails_for_good_is_told_of_and_the_others_are_done(preference_folder, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "dpo-beta0.1-0.4M-seed0").write_text("a file where the cell's folder would be")
    with pytest.raises(ValueError, match=r"1 task\(s\) failed for good, the first one dpo-beta0.1-0.4M-seed0"):
        run_sweep(cells(["dpo"], [0.1, 0.5]), small_recipe(preference_folder), options(tmp_path, max_errors=1))
    failed = next(
        run
        for run in runs(f"sqlite:///{tmp_path}/mlflow.db")
        if run.info.status == "FAILED" and "-" in run.info.run_name
    )
    assert failed.info.run_name == "dpo-beta0.1-0.4M-seed0"
    assert "FileExistsError" in failed.data.tags["overopt.failure"]
    page = (out / "report" / "report.html").read_text()
    assert "dpo-beta0.1-0.4M-seed0 failed for good: FileExistsError" in page
    assert list(pd.read_csv(out / "report" / "points.csv").beta.unique()) == [0.5]


def refuse(texts, folder, match, recipe=None, grid=None, **changes):
    before = sorted(path for path in folder.rglob("*") if "mlflow" not in path.name)
    with pytest.raises(ValueError, match=match) as caught:
        run_sweep(grid or cells(["dpo"], BETAS), recipe or small_recipe(texts), options(folder, **changes))
    assert "\n" not in str(caught.value)
    trained = [path for path in folder.rglob("*.ckpt") if path not in before]
    assert not trained


def test_another_search_space_is_refused(done, preference_folder):
    refuse(
        preference_folder,
        done,
        "another search space .1 only there, such as dpo-beta0.5",
        grid=cells(["dpo"], BETAS[:2]),
    )


def test_another_recipe_is_refused(done, preference_folder):
    refuse(
        preference_folder, done, "another recipe .align_steps: 10 there, 12 here", small_recipe(preference_folder, 12)
    )


def test_other_code_is_refused(done, preference_folder, monkeypatch):
    monkeypatch.setattr("overopt.sweep.run.code_fingerprint", lambda: "0123")
    refuse(preference_folder, done, "other code .* 0123 here")


def test_other_data_is_refused(done, preference_folder, tmp_path):
    """The same path with other contents, as on another machine."""
    kept = tmp_path / "kept"
    shutil.copytree(preference_folder, kept)
    changed = preference_folder / "demonstrations.jsonl"
    rows = [json.loads(line) for line in changed.read_text().splitlines()]
    rows[0]["response"] = " Something else."
    changed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    try:
        refuse(preference_folder, done, "other data")
    finally:
        shutil.copy(kept / changed.name, changed)


@pytest.mark.parametrize(
    ("storage", "match"),
    [
        ("postgresql://nobody@127.0.0.1:1/optuna", "can't be reached .*: check --storage"),
        ("postgresql://me:secret@127.0.0.1:1/optuna", r"me:\*\*\*@127"),
        ("nonsense", "can't be reached"),
    ],
)
def test_a_storage_out_of_reach_is_refused(preference_folder, tmp_path, storage, match):
    refuse(preference_folder, tmp_path, match, storage=storage)


def test_bad_numbers_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 1, got --workers 0"):
        options(tmp_path, workers=0)
    with pytest.raises(ValueError, match="--grace is longer than --heartbeat"):
        options(tmp_path, grace=1)
    with pytest.raises(ValueError, match="no size '7B'"):
        Cell(size="7B")


def test_evaluating_while_it_trains_changes_nothing(done, preference_folder, tmp_path):
    """A run that never gets past its peak is the run that is evaluated at its end."""
    recipe = replace(small_recipe(preference_folder), peak=PeakRule(standard_errors=1e9))
    experiment = EmbeddedExperiment(tmp_path, f"sqlite:///{tmp_path}/mlflow.db", "0" * 32, recipe)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as `done` has
    try:
        for task in plan(experiment, [Cell("dpo", 0.1, "0.4M")]).values():
            task.run()
    finally:
        torch.set_num_threads(threads)
    [run] = experiment.tasks.client.search_runs(
        [e.experiment_id for e in experiment.tasks.client.search_experiments()], "tags.`overopt.stage` = 'align'"
    )
    expected = points(done).query("beta == 0.1").set_index("examples_seen")
    for name in ("kl_nats", "win_rate", "forward_kl_nats", "loss"):
        history = {m.step: m.value for m in experiment.tasks.client.get_metric_history(run.info.run_id, f"eval/{name}")}
        assert history == pytest.approx(expected[name].to_dict(), rel=1e-9)


def test_a_run_past_its_peak_ends_there_and_a_resumed_one_too(preference_folder, tmp_path):
    recipe = replace(small_recipe(preference_folder), peak=PeakRule(kl_budget=1e-9, standard_errors=1.0))
    experiment = EmbeddedExperiment(tmp_path, f"sqlite:///{tmp_path}/mlflow.db", "0" * 32, recipe)
    [cell] = grid = [Cell("dpo", 0.1, "0.4M")]
    results = {name: task.run() for name, task in plan(experiment, grid).items()}
    saved = checkpoint_paths(tmp_path / cell.name / "checkpoints")
    assert len(saved) == 1
    assert results[cell.name]["best/examples_seen"] == 0  # all that was trained is beyond the budget
    # As a kill would have left it between its last checkpoint and the record.
    record = tmp_path / cell.name / "stage.json"
    record.write_text(record.read_text().replace('"done"', '"begun"'))
    again = EmbeddedExperiment(tmp_path, experiment.tracking_uri, experiment.study, recipe)
    result = plan(again, grid)[cell.name].run()
    assert checkpoint_paths(tmp_path / cell.name / "checkpoints") == saved
    assert result["best/win_rate"] == results[cell.name]["best/win_rate"]


def test_a_search_goes_on_where_it_was_and_joins_what_others_try(preference_folder, tmp_path):
    recipe = small_recipe(preference_folder, 3)
    search = BetaSearch(Cell(size="0.4M"), 0.02, 0.5, runs=5)
    storage = f"sqlite:///{tmp_path}/out/sweep.db"

    def betas():
        trials = [trial for trial in study(storage).trials if trial.state == TrialState.COMPLETE]
        return sorted(trial.params["beta"] for trial in trials)

    class EnoughError(Exception):
        pass

    def ask_once(self, values):
        if len(values) > 3:
            raise EnoughError
        return self.cell_at(0.123)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BetaSearch, "next_cell", ask_once)  # not what the process would have proposed
        with pytest.raises(EnoughError):
            run_sweep(search.first_cells(), recipe, options(tmp_path), search)
    assert len(betas()) == 4
    run_sweep(search.first_cells(), recipe, options(tmp_path), search)
    found = betas()
    assert len(found) == 5
    assert 0.123 in found
    assert len(pd.read_csv(tmp_path / "out/report/points.csv").beta.unique()) == 5
    with pytest.raises(ValueError, match=r"another search .runs: 5 there, 6 here"):
        run_sweep(search.first_cells(), recipe, options(tmp_path), replace(search, runs=6))
