import pytest

from overopt.tracking.checkpoint_record import read_checkpoint_record
from overopt.tracking.runs import log_metrics, log_params, start_run


def test_a_record_has_the_metrics_at_its_examples_and_the_latest_of_each(client):
    run_id = start_run(client, "run", "align")
    log_params(client, run_id, {"objective": "dpo", "data_fingerprint": "f0"})
    log_metrics(client, run_id, {"eval/kl_nats": 1.0, "train/loss": 0.6}, step=100)
    log_metrics(client, run_id, {"eval/kl_nats": 3.0}, step=200)
    log_metrics(client, run_id, {"eval/kl_nats": 2.5}, step=200)
    record = read_checkpoint_record(client, run_id, 200)
    assert record.metrics == {"eval/kl_nats": 2.5}
    assert record.params["objective"] == "dpo"
    assert "git_commit" in record.params
    assert read_checkpoint_record(client, run_id, 100).metrics == {"eval/kl_nats": 1.0, "train/loss": 0.6}


def test_a_run_that_is_not_there_is_one_line(client):
    with pytest.raises(ValueError, match="does not give run 0123") as error:
        read_checkpoint_record(client, "0123", 0)
    assert "\n" not in str(error.value)
