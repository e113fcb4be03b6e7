"""What a study is made of: those who join it must bring the same."""

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import optuna

import overopt
from overopt.sweep.storage import patiently

_DEFINITION = "definition"
_WORDS = {
    "cells": "another search space",
    "search": "another search",
    "recipe": "another recipe",
    "code": "other code",
    "data": "other data",
}


def code_fingerprint() -> str:
    """Hash of this package's sources and of the versions of what computes."""
    folder = Path(overopt.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes() + b"\0")
    for name in ("torch", "lightning", "transformers"):
        digest.update(f"{name} {version(name)}".encode())
    return digest.hexdigest()[:16]


def require_same(study: optuna.Study, definition: Mapping[str, Any]) -> None:
    """Write the definition of a new study, or hold the one at hand against a known one; for one process at a time.

    Args:
        study: to be joined.
        definition: cells, recipe, code, data.

    Raises:
        ValueError: they differ.
    """
    mine: dict[str, Any] = json.loads(json.dumps(definition, default=str))
    known: dict[str, Any] | None = patiently(lambda: study.user_attrs).get(_DEFINITION)
    if known is None:
        patiently(lambda: study.set_user_attr(_DEFINITION, mine))
        return
    for name, words in _WORDS.items():
        if known.get(name) != mine.get(name):
            raise ValueError(
                f"study {study.study_name!r} was made with {words} ({_difference(known.get(name), mine.get(name))}): "
                "give the options and code that it was made with, or another --name for a new study"
            )


def _difference(known: Any, mine: Any) -> str:
    """The first few places in which two definitions differ.

    >>> _difference({"pairs": 10, "seed": 0}, {"pairs": 20, "seed": 0})
    'pairs: 10 there, 20 here'
    >>> _difference(["a", "b"], ["b", "c", "d"])
    '1 only there, such as a; 2 only here, such as c'
    """
    if isinstance(known, dict) and isinstance(mine, dict):
        names = [name for name in {**known, **mine} if known.get(name) != mine.get(name)]
        return "; ".join(f"{name}: {known.get(name)} there, {mine.get(name)} here" for name in names[:3])
    if isinstance(known, list) and isinstance(mine, list):
        sides = [("there", [x for x in known if x not in mine]), ("here", [x for x in mine if x not in known])]
        return "; ".join(f"{len(only)} only {side}, such as {only[0]}" for side, only in sides if only)
    return f"{known} there, {mine} here"
