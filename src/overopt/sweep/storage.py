"""Where a sweep's state is kept: an Optuna storage with heartbeats, and patience with one that is away for a while."""

import logging
import warnings
from collections.abc import Callable
from typing import TypeVar

import optuna
import tenacity
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy.exc import SQLAlchemyError

from overopt.tracking.store import driver_url, one_at_a_time, shown_uri, sqlite_path

AWAY = (StorageInternalError, SQLAlchemyError)
"""What a storage raises that can't be reached."""
ValueT = TypeVar("ValueT")


def open_storage(url: str, heartbeat: int = 10, grace: int = 60) -> RDBStorage:
    """Open a storage, made if missing.

    Args:
        url: SQLAlchemy URL, such as ``sqlite:///FILE`` or ``postgresql://USER@HOST/DATABASE``.
        heartbeat: seconds between signs of life of those who work.
        grace: seconds without one after which what they did is given to others.

    Raises:
        ValueError: it can't be reached.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    url = driver_url(url)
    try:
        with warnings.catch_warnings(), one_at_a_time(url):
            warnings.simplefilter("ignore", ExperimentalWarning)
            return RDBStorage(
                url,
                engine_kwargs={"pool_pre_ping": True, "connect_args": {"timeout": 60} if sqlite_path(url) else {}},
                heartbeat_interval=heartbeat,
                grace_period=grace,
            )
    except Exception as error:  # SQLAlchemy and its drivers raise whatever they like
        reason = str(error).strip().splitlines()[0][:200]
        raise ValueError(
            f"storage {shown_uri(url)} can't be reached ({reason}): check --storage, such as sqlite:///FILE or "
            "postgresql://USER:PASSWORD@HOST/DATABASE"
        ) from error


def patiently(work: Callable[[], ValueT], minutes: float = 10.0) -> ValueT:
    """Do something with a storage; while it is away, as during a restart, try again."""
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(AWAY),
        wait=tenacity.wait_exponential(multiplier=0.5, max=10),
        stop=tenacity.stop_after_delay(60 * minutes),
        reraise=True,
    )
    return retrying(work)
