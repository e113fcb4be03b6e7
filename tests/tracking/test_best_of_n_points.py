import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from overopt.tracking.best_of_n_points import COLUMNS, read_best_of_n
from overopt.tracking.store import open_store


@pytest.fixture
def store(tmp_path):
    """Three runs of best-of-n, in two experiments, and one that does not say what it is of."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = open_store(uri, create=True)
    first, second = (client.create_experiment(name) for name in ("first", "second"))
    log(client, first, {"overopt.proxy": "worst of 3 proxies 0.4M on 256 pairs"}, reward_models=3)
    log(client, first, {"mlflow.parentRunId": "0" * 32}, reward_models=1)
    log(client, second, {}, reward_models=3, combine="worst")
    log(client, second, {}, seed=None)
    return uri


def log(client: MlflowClient, experiment, tags, **changes):
    run = client.create_run(experiment, tags={"overopt.stage": "best_of_n", **tags}).info.run_id
    known = {"model": "tiny", "num_parameters": 9, "seed": 4, "combine": "mean", "reward_models": 1, **changes}
    params = [Param(name, str(value)) for name, value in known.items() if value is not None]
    metrics = [Metric("eval/kl_nats", n / 8, 1, n) for n in (1, 4)] + [Metric("eval/kl_bound_nats", 0.6, 1, 4)]
    client.log_batch(run, metrics, params)
    client.set_terminated(run)


def test_a_row_an_n_named_by_what_samples_are_chosen_by(store):
    rows, notes = read_best_of_n(store)
    assert len(notes) == 1
    assert "does not say of which model" in notes[0]
    assert tuple(rows) == COLUMNS
    assert set(rows["objective"]) == {
        "best of n, worst of 3 proxies 0.4M on 256 pairs",
        "best of n",
        "best of n, worst of 3 reward models",
    }
    assert rows["n"].tolist() == [1, 4] * 3
    assert rows["kl_nats"].tolist() == [0.125, 0.5] * 3
    assert rows["kl_bound_nats"].isna().tolist() == [True, False] * 3
    assert set(rows["seed"]) == {4}


def test_of_two_runs_of_a_cell_the_newer_counts(store):
    client = open_store(store, create=False)
    [old] = read_best_of_n(store, experiment="second").table["run_id"].unique()
    log(client, client.get_experiment_by_name("second").experiment_id, {}, reward_models=3, combine="worst")
    [new] = read_best_of_n(store, experiment="second").table["run_id"].unique()
    assert new != old


def test_one_experiment_or_study_alone(store):
    assert set(read_best_of_n(store, experiment="second").table["objective"]) == {"best of n, worst of 3 reward models"}
    assert set(read_best_of_n(store, parent_run_id="0" * 32).table["objective"]) == {"best of n"}
    assert read_best_of_n(store, experiment="third").table.empty


def test_runs_by_other_reward_models_both_count_and_are_noted(store):
    client = open_store(store, create=False)
    third = client.create_experiment("third")
    for reward in ("['few.ckpt']", "['many.ckpt']", "['few.ckpt']"):
        log(client, third, {}, reward=reward)
    table, notes = read_best_of_n(store, experiment="third")
    assert table["run_id"].nunique() == 2
    assert ["newer run" in note for note in notes].count(True) == 1
    assert ["different reward models" in note for note in notes].count(True) == 1


def test_a_price_of_disagreement_makes_another_method(store):
    client = open_store(store, create=False)
    third = client.create_experiment("third")
    for price in (0.1, 0.5):
        log(client, third, {}, combine="uncertainty_weighted", reward_models=4, price=price)
    assert set(read_best_of_n(store, experiment="third").table["objective"]) == {
        "best of n, uncertainty-weighted at 0.1 of 4 reward models",
        "best of n, uncertainty-weighted at 0.5 of 4 reward models",
    }
