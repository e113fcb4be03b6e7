import http.server
import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient

from overopt.tracking.tables import COLUMNS, METRICS, read_points

CHECKPOINTS = (0, 3072, 6144)


@dataclass
class Store:
    """A real store, one experiment for each test."""

    client: MlflowClient
    uri: str

    def experiment(self, name: str) -> str:
        return self.client.create_experiment(name)

    def log(
        self,
        experiment: str,
        *,
        stage: str = "align",
        status: str = "FINISHED",
        started: int = 1000,
        parent: str | None = None,
        tags: Mapping[str, str] | None = None,
        steps: tuple[int, ...] = CHECKPOINTS,
        metrics: Callable[[int], dict[str, float]] = lambda step: {"kl_nats": step / 1e3, "win_rate": 0.5},
        **params: object,
    ) -> str:
        tags = {"overopt.stage": stage, **({"mlflow.parentRunId": parent} if parent else {}), **(tags or {})}
        run_id: str = self.client.create_run(experiment, start_time=started, tags=tags).info.run_id
        known: dict[str, object] = {
            "objective": "dpo",
            "beta": 0.1,
            "model": "gpt_neox-0.5M",
            "num_parameters": 529_920,
            "seed": 0,
            "examples_per_epoch": 3072,
            "data_fingerprint": "d0",
        }
        given = {name: value for name, value in (known | params).items() if value is not None}
        self.client.log_batch(
            run_id,
            params=[Param(name, str(value)) for name, value in given.items()],
            metrics=[Metric(f"eval/{name}", value, 1, step) for step in steps for name, value in metrics(step).items()],
        )
        self.client.set_terminated(run_id, status)
        return run_id


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    uri = f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"
    return Store(MlflowClient(uri), uri)


def test_a_row_per_run_and_checkpoint_with_the_contracts_columns_in_a_fixed_order(store: Store) -> None:
    experiment = store.experiment("grid")
    every_metric = {name: index / 10 for index, name in enumerate(METRICS)}
    ids = {
        (objective, beta): store.log(
            experiment,
            objective=objective,
            beta=beta,
            metrics=lambda step: every_metric | {"kl_nats": step / 1e3},
        )
        for objective in ("ipo", "dpo")
        for beta in (0.5, 0.05)
    }
    table, notes = read_points(store.uri, experiment="grid")
    assert tuple(table.columns) == COLUMNS
    assert COLUMNS[:8] == (
        "run_id", "objective", "model", "num_parameters", "beta", "seed", "examples_seen", "epoch_fraction",
    )  # fmt: skip
    assert notes == ()
    found = list(table[["run_id", "objective", "beta", "examples_seen"]].itertuples(index=False, name=None))
    assert found == [
        (ids[objective, beta], objective, beta, step)
        for objective in ("dpo", "ipo")
        for beta in (0.05, 0.5)
        for step in CHECKPOINTS
    ]
    assert table["epoch_fraction"].tolist() == [0.0, 1.0, 2.0] * 4
    assert table["kl_nats"].tolist() == [0.0, 3.072, 6.144] * 4
    assert (table["unfinished_share"] == every_metric["unfinished_share"]).all()
    assert set(table["num_parameters"]) == {529_920}


def test_policy_gradients_are_curves_of_their_own_beside_alignments(store: Store) -> None:
    experiment = store.experiment("rlhf")
    store.log(experiment)
    store.log(experiment, stage="reward", objective="bradley_terry")
    for changes in (
        {},
        {"kl": "penalty"},
        {"reward_models": 3, "reward_combination": "worst"},
        {"reward_models": 3, "tags": {"overopt.proxy": "worst of 3 proxies 0.4M on 256 pairs"}},
        {"tags": {"overopt.proxy": "proxy 0.4M on 256 pairs"}},
        {"tags": {"overopt.proxy": "proxy 0.4M on 2048 pairs"}},
    ):
        given: dict[str, object] = {"objective": "rloo", "kl": "reward", "reward_models": 1, **changes}
        metrics = lambda step: {"kl_nats": 0.1, "proxy_reward": 2.0, "gold_reward": 1.0}  # noqa: E731
        store.log(experiment, stage="rl", metrics=metrics, **given)
    table, notes = read_points(store.uri, experiment="rlhf")
    assert notes == ()
    names = ["dpo", "rloo", "rloo, KL as a penalty", "rloo, proxy 0.4M on 2048 pairs", "rloo, proxy 0.4M on 256 pairs"]
    names += ["rloo, worst of 3 proxies 0.4M on 256 pairs", "rloo, worst of 3 reward models"]
    assert list(table["objective"].unique()) == names
    optimised = table[table["objective"] != "dpo"]
    assert set(optimised["proxy_reward"]) == {2.0}
    assert table[table["objective"] == "dpo"]["proxy_reward"].isna().all()


def test_missing_and_nan_metrics_are_missing_and_a_lone_loss_is_no_evaluation(store: Store) -> None:
    def metrics(step: int) -> dict[str, float]:
        if step == 3072:
            return {"loss": 0.6}
        return {"kl_nats": 1.0, "win_rate": float("nan") if step else 0.4}

    store.log(store.experiment("gaps"), metrics=metrics, seed=None, examples_per_epoch=None)
    table, _ = read_points(store.uri, experiment="gaps")
    assert table["examples_seen"].tolist() == [0, 6144]
    assert table["win_rate"].isna().tolist() == [False, True]
    assert table[["gold_reward", "seed", "epoch_fraction"]].isna().all(axis=None)


def test_only_finished_align_runs_count_and_the_others_are_noted(store: Store) -> None:
    experiment = store.experiment("states")
    finished = store.log(experiment, beta=0.1)
    store.log(experiment, beta=0.2, status="FAILED")
    running = store.client.create_run(experiment, tags={"overopt.stage": "align"}).info.run_id
    store.log(experiment, beta=0.5, stage="sft")
    bare = store.log(experiment, beta=1.0, steps=())
    table, notes = read_points(store.uri, experiment="states")
    assert set(table["run_id"]) == {finished}
    assert "2 align run(s) left out because they did not finish: 1 failed, 1 running" in notes[0]
    assert f"no evaluated checkpoint (run {bare})" in notes[1]
    assert set(read_points(store.uri, experiment="states", unfinished=True).table["beta"]) == {0.1, 0.2}
    store.client.set_terminated(running)


def test_the_newest_run_of_a_cell_counts_and_other_cells_are_not_confused(store: Store) -> None:
    experiment = store.experiment("twice")
    newer = store.log(experiment, started=3000, metrics=lambda step: {"kl_nats": 2.0})
    older = store.log(experiment, started=2000, metrics=lambda step: {"kl_nats": 1.0})
    store.log(experiment, started=1000, seed=1)
    penalised = store.log(experiment, started=1000, length_penalty=0.01)
    store.log(experiment, started=1000, length_penalty=0.0, label_smoothing=0.1, smoothing="robust")
    table, notes = read_points(store.uri, experiment="twice")
    assert newer in set(table["run_id"])
    assert older not in set(table["run_id"])
    assert f"run {older} left out, {newer} is a newer run of the same cell" in notes[0]
    assert set(table["objective"]) == {"dpo", "dpo, length penalty 0.01", "dpo, robust label smoothing 0.1"}
    assert set(table.loc[table["run_id"] == penalised, "objective"]) == {"dpo, length penalty 0.01"}


@pytest.mark.parametrize(
    ("settings", "told_by"),
    [
        ({"nll_weight": 0.1}, "dpo, NLL 0.1 per token"),
        ({"nll_weight": 0.1, "nll_per": "response"}, "dpo, NLL 0.1 per response"),
        ({"link": "chi_squared", "max_reward": 2.0}, "dpo, chi_squared link, rewards up to 2"),
        ({"positive_penalty": 50.0}, "dpo, positive penalty 50"),
        ({"moving_reference": "soft 0.6 every 1"}, "dpo, reference moving soft 0.6 every 1"),
    ],
    ids=str,
)
def test_a_mitigation_makes_a_curve_of_its_own(store: Store, settings: dict[str, object], told_by: str) -> None:
    experiment = store.experiment(told_by)
    store.log(experiment)
    mitigated = store.log(experiment, **settings)
    table, notes = read_points(store.uri, experiment=told_by)
    assert not notes
    assert set(table["objective"]) == {"dpo", told_by}
    assert set(table.loc[table["run_id"] == mitigated, "objective"]) == {told_by}


def test_policy_gradients_against_other_reward_models_both_count_and_are_noted(store: Store) -> None:
    experiment = store.experiment("rewards")
    rewards = [{"reward": "['few.ckpt']"}, {"reward": "['many.ckpt']"}, {"reward": "['few.ckpt']"}]
    for started, settings in enumerate(rewards, start=1):
        store.log(experiment, started=1000 * started, stage="rl", objective="rloo", unfinished_penalty=0.0, **settings)
    table, notes = read_points(store.uri, experiment="rewards")
    assert table["run_id"].nunique() == 2
    assert set(table["objective"]) == {"rloo"}
    assert [" differ in reward; both are points of one curve" in note for note in notes].count(True) == 1
    assert ["newer run" in note for note in notes].count(True) == 1


def test_a_price_of_disagreement_makes_a_curve_of_its_own(store: Store) -> None:
    experiment = store.experiment("prices")
    several = {"reward_models": 4, "reward_combination": "uncertainty_weighted"}
    for price in (0.1, 5.0):
        store.log(experiment, stage="rl", objective="rloo", disagreement_price=price, **several)
    assert set(read_points(store.uri, experiment="prices").table["objective"]) == {
        "rloo, uncertainty-weighted at 0.1 of 4 reward models",
        "rloo, uncertainty-weighted at 5 of 4 reward models",
    }


def test_a_later_round_makes_a_curve_of_its_own(store: Store) -> None:
    experiment = store.experiment("rounds")
    runs = [store.log(experiment) for _ in range(2)]
    for run, rounds in zip(runs, (1, 3), strict=True):
        store.client.set_tag(run, "overopt.rounds", str(rounds))
    table, notes = read_points(store.uri, experiment="rounds")
    assert not notes
    assert set(table["objective"]) == {"dpo", "dpo, round 3 from the first reference"}


def test_a_curve_that_mixes_data_sets_is_noted(store: Store) -> None:
    experiment = store.experiment("mixed")
    for data in ("d0", "d1"):
        store.log(experiment, data_fingerprint=data)
    table, notes = read_points(store.uri, experiment="mixed")
    assert table["run_id"].nunique() == 2
    assert "2 different data sets" in notes[0]


def test_the_later_of_two_values_of_one_step_stands_and_a_tie_is_noted(store: Store) -> None:
    experiment = store.experiment("again")
    run = store.log(experiment)
    store.client.log_batch(run, metrics=[Metric("eval/win_rate", 0.7, 2, 3072)])
    table, notes = read_points(store.uri, experiment="again")
    assert table["win_rate"].tolist() == [0.5, 0.7, 0.5]
    assert notes == ()
    store.client.log_batch(run, metrics=[Metric("eval/win_rate", 0.9, 1, 6144)])
    assert "1 checkpoint(s) logged twice" in read_points(store.uri, experiment="again").notes[0]


def test_a_study_gives_its_own_children(store: Store) -> None:
    experiment = store.experiment("studies")
    study = store.log(experiment, stage="study", steps=())
    child = store.log(experiment, parent=study)
    store.log(experiment, beta=0.2)
    assert set(read_points(store.uri, parent_run_id=study).table["run_id"]) == {child}
    with pytest.raises(ValueError, match="no align run in children of run 0123"):
        read_points(store.uri, parent_run_id="0123")
    with pytest.raises(ValueError, match="is not a run id"):
        read_points(store.uri, parent_run_id="' or 1=1")


def test_runs_without_a_beta_are_left_out_with_a_note(store: Store) -> None:
    experiment = store.experiment("params")
    store.log(experiment)
    store.log(experiment, beta=None)
    store.log(experiment, beta="auto")
    table, notes = read_points(store.uri, experiment="params")
    assert table["run_id"].nunique() == 1
    assert any("no parameter beta" in note for note in notes)
    assert any("its beta is not a number" in note for note in notes)


def test_nothing_to_read_is_one_clear_line(store: Store) -> None:
    store.experiment("empty")
    with pytest.raises(ValueError, match="no align run in experiment 'empty'") as empty:
        read_points(store.uri, experiment="empty")
    with pytest.raises(ValueError, match=r"no experiment 'typo' in sqlite:.*it has .*empty") as typo:
        read_points(store.uri, experiment="typo")
    bare = store.experiment("bare")
    store.log(bare, steps=())
    with pytest.raises(ValueError, match="has no evaluated checkpoint") as unevaluated:
        read_points(store.uri, experiment="bare")
    assert all("\n" not in str(problem.value) for problem in (empty, typo, unevaluated))


@pytest.mark.parametrize("uri", ["sqlite:///gone/mlflow.db", "sqlite:///mlflow.db", "sqlite://", "gone"])
def test_a_store_that_is_not_there_is_refused_and_not_made(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="store") as problem:
        read_points(uri)
    assert "\n" not in str(problem.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_store_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "notes.db").write_text("no database\n" * 100)
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE thing (x)")
    (tmp_path / "empty.db").touch()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(before) == 3
    for name in before:
        with pytest.raises(ValueError, match=r"not an MLflow store|not a database"):
            read_points(f"sqlite:///{tmp_path / name}")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_store_of_another_version_is_refused_and_not_migrated(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "old.db") as old:
        old.execute("CREATE TABLE experiments (experiment_id INTEGER)")
        old.execute("CREATE TABLE alembic_version (version_num VARCHAR)")
        old.execute("INSERT INTO alembic_version VALUES ('451aebb31d03')")
    before = (tmp_path / "old.db").read_bytes()
    with pytest.raises(ValueError, match=r"schema 451aebb31d03.*mlflow db upgrade"):
        read_points(f"sqlite:///{tmp_path / 'old.db'}")
    assert (tmp_path / "old.db").read_bytes() == before


def test_a_dead_server_is_given_up_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.setenv(name, "1")
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        port = server.server_address[1]
    begin = time.monotonic()
    with pytest.raises(ValueError, match="reached"):
        read_points(f"http://127.0.0.1:{port}")
    assert time.monotonic() - begin < 20


def test_a_password_is_not_repeated() -> None:
    with pytest.raises(ValueError, match="cannot open") as problem:
        read_points("postgresql://someone:secret@127.0.0.1:1/mlflow")
    assert "secret" not in str(problem.value)


def test_a_sweep_is_read_in_seconds(store: Store) -> None:
    experiment = store.experiment("sweep")
    for seed in range(21):
        store.log(experiment, seed=seed, metrics=lambda step: dict.fromkeys(METRICS, float(np.sqrt(step))))
    begin = time.monotonic()
    table = read_points(store.uri, experiment="sweep").table
    assert time.monotonic() - begin < 10
    assert len(table) == 21 * len(CHECKPOINTS)
