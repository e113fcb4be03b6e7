"""Folders that are whole or absent, whatever happens while they are written."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Write beside and rename: on any error the folder that was there before stays, and nothing else is left.

    A process killed between the two renames that replace a folder leaves both beside it, under names with a dot.

    Args:
        path: the folder; what it held goes, so the caller has made sure that it may.

    Yields:
        An empty folder to write into.
    """
    path = path.resolve()
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    replaced = path.with_name(f".{path.name}.{os.getpid()}.old")
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        for file in unfinished.rglob("*"):
            with file.open("rb") as written:
                os.fsync(written.fileno())
        if not path.exists():
            os.replace(unfinished, path)
            return
        os.replace(path, replaced)
        try:
            os.replace(unfinished, path)
        except OSError:
            os.replace(replaced, path)
            raise
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
