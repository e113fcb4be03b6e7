import os
import time
from pathlib import Path

import pytest

from overopt.tracking.store import experiment_id, open_store, resolve_tracking_uri, sqlite_path


def test_the_store_is_the_one_given_then_the_environments_then_the_default(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert resolve_tracking_uri() == "sqlite:///mlruns/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert resolve_tracking_uri() == "http://server:5000"
    assert resolve_tracking_uri("sqlite:///given.db") == "sqlite:///given.db"


def test_only_sqlite_stores_are_files():
    assert sqlite_path("sqlite:////tmp/a.db") == Path("/tmp/a.db")
    assert sqlite_path("http://server:5000") is None
    assert sqlite_path("postgresql://user@server/overopt") is None


def test_reading_a_store_that_is_not_there_makes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for uri in (None, f"sqlite:///{tmp_path}/folder/other.db"):
        with pytest.raises(ValueError, match=r"no tracking store at .*\.db: train something first") as error:
            open_store(uri, create=False)
        assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == []


def test_a_new_store_keeps_artifacts_beside_its_database(tmp_path):
    client = open_store(f"sqlite:///{tmp_path}/new/store.db", create=True)
    experiment = client.get_experiment(experiment_id(client, "study"))
    assert experiment.artifact_location == (tmp_path / "new" / "artifacts").as_uri()
    assert (tmp_path / "new" / "store.db").is_file()


def test_an_experiment_is_made_once_and_brought_back_when_deleted(client):
    first = experiment_id(client, "once")
    assert experiment_id(client, "once") == first
    client.delete_experiment(first)
    assert experiment_id(client, "once") == first
    assert client.get_experiment(first).lifecycle_stage == "active"


def test_a_server_that_does_not_answer_is_one_line_within_seconds(monkeypatch):
    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.setenv(name, "taken back when the test is over")
        monkeypatch.delenv(name)
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"tracking store http://127.0.0.1:9 can't be reached") as error:
        open_store("http://127.0.0.1:9", create=True)
    assert time.monotonic() - start < 20
    assert "\n" not in str(error.value)
    assert "MLFLOW_TRACKING_URI" in str(error.value)


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "notes.db"
    path.write_text("not a database, but long enough to be told from an empty one" * 20)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="can't be reached") as error:
        open_store(f"sqlite:///{path}", create=False)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == before


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=f"can't be made: .*{tmp_path}/file"):
        open_store(f"sqlite:///{tmp_path}/file/deeper/mlflow.db", create=True)
