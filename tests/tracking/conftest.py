"""A real SQLite store, made once: its migrations take seconds."""

import pytest

from overopt.tracking.store import open_store


@pytest.fixture(scope="session")
def store_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = f"sqlite:///{tmp_path_factory.mktemp('tracking') / 'mlflow.db'}"
    open_store(uri, create=True)
    return uri


@pytest.fixture
def client(store_uri: str):
    return open_store(store_uri, create=False)
