import time

import pytest

from overopt.tracking.provenance import git_commit, provenance
from overopt.tracking.runs import (
    PARENT_TAG,
    STAGE_TAG,
    find_run,
    finishing,
    log_artifact,
    log_metrics,
    log_params,
    start_run,
)


def status(client, run_id: str) -> str:
    return client.get_run(run_id).info.status


def test_a_run_bears_name_stage_parent_and_origin(client):
    parent = start_run(client, "quickstart", "study")
    run = client.get_run(start_run(client, "dpo 0.1", "align", tags={"key": "value", PARENT_TAG: parent}))
    assert run.info.run_name == "dpo 0.1"
    assert run.data.tags[STAGE_TAG] == "align"
    assert run.data.tags["mlflow.parentRunId"] == parent
    assert run.data.tags["key"] == "value"
    assert provenance().items() <= run.data.params.items()
    assert run.data.params["git_commit"] == git_commit() != ""
    assert "version_torch" in run.data.params


@pytest.mark.parametrize(
    ("error", "expected"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")]
)
def test_a_run_that_ends_early_says_how_and_its_error_goes_on(client, error, expected):
    run_id = start_run(client, "early", "sft")
    with pytest.raises(error), finishing(client, run_id):
        raise error
    assert status(client, run_id) == expected
    assert client.get_run(run_id).info.end_time is not None


def test_a_run_that_is_done_is_finished_and_may_be_taken_up_again(client):
    run_id = start_run(client, "done", "sft")
    for _ in range(2):
        with finishing(client, run_id) as same:
            assert same == run_id
            assert status(client, run_id) == "RUNNING"
        assert status(client, run_id) == "FINISHED"


def test_parameters_are_logged_once_and_never_changed(client):
    run_id = start_run(client, "params", "sft")
    many = {f"param {i}": i for i in range(230)}
    log_params(client, run_id, {**many, "beta": 0.1, "none": None})
    log_params(client, run_id, {"beta": 0.2, "new": "x"})
    params = client.get_run(run_id).data.params
    assert {name: params[name] for name in ("beta", "none", "new", "param 229")} == {
        "beta": "0.1",
        "none": "None",
        "new": "x",
        "param 229": "229",
    }


def test_metrics_stand_at_their_step_and_the_latest_counts(client):
    run_id = start_run(client, "metrics", "align")
    log_metrics(client, run_id, {"eval/kl_nats": 9.0, "eval/loss": 0.5}, step=3072)
    time.sleep(0.002)
    log_metrics(client, run_id, {"eval/kl_nats": 4.0}, step=3072)
    log_metrics(client, run_id, {"eval/kl_nats": 1.5}, step=1024)
    history = sorted(client.get_metric_history(run_id, "eval/kl_nats"), key=lambda m: (m.step, m.timestamp))
    assert [(m.step, m.value) for m in history] == [(1024, 1.5), (3072, 9.0), (3072, 4.0)]
    assert client.get_run(run_id).data.metrics == {"eval/kl_nats": 4.0, "eval/loss": 0.5}
    assert abs(history[0].timestamp / 1000 - time.time()) < 60


def test_the_newest_run_with_all_the_tags_is_found(client):
    tags = {"study": "it's here", "part": "a"}
    older = start_run(client, "older", "sft", tags=tags)
    time.sleep(0.002)
    newer = start_run(client, "newer", "sft", tags=tags)
    start_run(client, "other", "sft", tags={"study": "it's here", "part": "b"})
    assert older != newer
    assert find_run(client, tags) == newer
    assert find_run(client, {"study": "it's here", "part": "c"}) is None


def test_looking_for_a_run_makes_no_experiment(client):
    assert find_run(client, {"a": "b"}, experiment="nobody made this") is None
    assert client.get_experiment_by_name("nobody made this") is None


def test_an_artifact_is_kept_with_its_run(client, tmp_path):
    run_id = start_run(client, "artifact", "align")
    (tmp_path / "completions.jsonl").write_text("{}\n")
    log_artifact(client, run_id, tmp_path / "completions.jsonl", "completions")
    assert [a.path for a in client.list_artifacts(run_id, "completions")] == ["completions/completions.jsonl"]
