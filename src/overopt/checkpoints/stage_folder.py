"""Folders of stages: done once with given settings, by one process at a time, whoever dies on the way."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from overopt.checkpoints.locked_folder import locked_folder
from overopt.checkpoints.whole_file import whole_file

RECORD = "stage.json"


class StageFolder:
    """A folder that knows whether its stage is done with the settings at hand.

    While it is entered no other process enters it: the lock is on the folder itself and goes with its owner, so that
    nothing is left of it, not even by a kill. ``stage.json`` is written when the stage is done.

    Args:
        folder: of the stage; made when missing; what another recipe left there to resume from goes.
        settings: that what the stage makes depends on.
        root: written as ``OUT`` in the settings, which are then the same wherever the study's folder lies.

    Attributes:
        key: hash of the settings.
        done: whether the stage was done with them; known once entered.
        result: what it gave, where it is done.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], root: Path) -> None:
        text = json.dumps(settings, sort_keys=True, default=str).replace(str(root), "OUT")
        self.folder = folder
        self.key = hashlib.sha256(text.encode()).hexdigest()[:32]
        self.done = False
        self.result: dict[str, float] = {}

    def __enter__(self) -> "StageFolder":
        self._lock = locked_folder(self.folder)
        self._lock.__enter__()
        record = read_record(self.folder)
        if record.get("key") != self.key:
            # Another recipe's files would be resumed from.
            for stale in [*self.folder.glob("checkpoints/*.ckpt"), *self.folder.glob("*.jsonl")]:
                stale.unlink()
            record = {"key": self.key, "status": "begun"}
            self._write(record)
        remove_unfinished(self.folder)
        self.done = record["status"] == "done"
        self.result = record.get("result", {})
        return self

    def __exit__(self, *error: object) -> None:
        """Unlock; an unfinished stage stays begun."""
        self._lock.__exit__(None, None, None)

    def finish(self, result: Mapping[str, float] | None = None) -> None:
        """Mark as done."""
        self.result = dict(result or {})
        self._write({"key": self.key, "status": "done", "result": self.result})

    def _write(self, record: Mapping[str, Any]) -> None:
        with whole_file(self.folder / RECORD) as file:
            file.write(json.dumps(record).encode())


def read_record(folder: Path) -> dict[str, Any]:
    """What a stage's folder says of itself: key, status, result; empty where there is no stage."""
    try:
        record: dict[str, Any] = json.loads((folder / RECORD).read_text())
    except FileNotFoundError:
        return {}
    return record


def remove_unfinished(folder: Path) -> None:
    """Remove what writers that are dead have left: ``.NAME.PID.tmp``, as whole files and folders are written."""
    for path in folder.rglob(".*.tmp"):
        pid = path.name.split(".")[-2]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
