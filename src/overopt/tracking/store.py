"""Where runs are tracked: the default store, and one clear line when a store can't be had."""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from overopt.checkpoints.locked_folder import locked_folder

DEFAULT_FOLDER = Path("mlruns")
EXPERIMENT = "overopt"
# Any number, the same everywhere.
_LOCK = 240602900


def resolve_tracking_uri(tracking_uri: str | None = None) -> str:
    """The store to use: the one given, or ``MLFLOW_TRACKING_URI``, or SQLite in ``mlruns/``."""
    return driver_url(
        tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{DEFAULT_FOLDER / 'mlflow.db'}"
    )


def sqlite_path(tracking_uri: str) -> Path | None:
    """The file of a SQLite store; ``None`` for any other kind.

    >>> sqlite_path("sqlite:///mlruns/mlflow.db")
    PosixPath('mlruns/mlflow.db')
    """
    prefix = "sqlite:///"
    return Path(tracking_uri.removeprefix(prefix)) if tracking_uri.startswith(prefix) else None


def shown_uri(uri: str) -> str:
    """The URI without its password.

    >>> shown_uri("postgresql://me:secret@host/mlflow")
    'postgresql://me:***@host/mlflow'
    """
    return re.sub(r"(//[^:/@]*):[^@/]*@", r"\1:***@", uri)


def open_store(tracking_uri: str | None = None, *, create: bool) -> MlflowClient:
    """A client of a store that has answered.

    Args:
        tracking_uri: as in :func:`resolve_tracking_uri`.
        create: make a SQLite store that is missing; those who only read pass false.

    Raises:
        ValueError: the store is missing or can't be reached.
    """
    uri = resolve_tracking_uri(tracking_uri)
    path = sqlite_path(uri)
    if path is not None and not path.is_file():
        if not create:
            raise ValueError(
                f"no tracking store at {path}: train something first, or name the store with --tracking-uri "
                "or MLFLOW_TRACKING_URI"
            )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"tracking store {uri} can't be made: {error.strerror}: {path.parent}") from error
    # MLflow reports its migrations at INFO, and would wait for a dead server for minutes.
    for name in ("mlflow.store.db.utils", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    retries = os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    timeout = os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    try:
        client = _answering(uri)
    except Exception as error:  # MLflow passes on whatever its backend throws.
        reason = str(error).splitlines()[0][:200]
        raise ValueError(
            f"tracking store {uri} can't be reached ({reason}; {retries} retries, {timeout} s each): check "
            "--tracking-uri or MLFLOW_TRACKING_URI"
        ) from error
    return client


def _answering(uri: str) -> MlflowClient:
    with one_at_a_time(uri):
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    return client


@contextmanager
def one_at_a_time(uri: str) -> Iterator[None]:
    """Hold a database while its tables may be made: MLflow and Optuna spoil them where two processes do it at once.

    Args:
        uri: of SQLite, whose folder is locked, or of PostgreSQL, which has locks of its own; others are not held.
    """
    path = sqlite_path(uri)
    if path is not None:
        with locked_folder(path.parent):
            yield
    elif uri.startswith("postgresql"):
        engine = sqlalchemy.create_engine(uri)
        try:
            with engine.connect() as connection:
                connection.execute(sqlalchemy.text(f"SELECT pg_advisory_lock({_LOCK})"))
                yield  # closing the connection, or dying, unlocks
        finally:
            engine.dispose()
    else:
        yield


def driver_url(url: str) -> str:
    """The URL with the PostgreSQL driver that this project installs, where it names none.

    >>> driver_url("postgresql://me@host/optuna")
    'postgresql+psycopg://me@host/optuna'
    """
    for plain in ("postgresql://", "postgres://"):
        if url.startswith(plain):
            return "postgresql+psycopg://" + url.removeprefix(plain)
    return url


def experiment_id(client: MlflowClient, name: str = EXPERIMENT) -> str:
    """The id of an experiment, made when missing.

    Artifacts of a local SQLite store go beside the database, in ``artifacts/``.
    """
    found = client.get_experiment_by_name(name)
    if found is not None:
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)
    path = sqlite_path(client.tracking_uri)
    location = None if path is None else (path.parent / "artifacts").resolve().as_uri()
    try:
        return str(client.create_experiment(name, artifact_location=location))
    except MlflowException:
        # Another process was first.
        return str(client.get_experiment_by_name(name).experiment_id)
