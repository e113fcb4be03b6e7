"""Rows of local JSON Lines and Parquet files; whatever is wrong with one is told with its place."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

JSON_LINES = (".jsonl", ".json")
PARQUET = (".parquet",)

# What file and folder names call published splits, shards included: train-00000-of-00002, valid2.
_SPLIT_NAME = re.compile(r"(train|validation|valid|val|dev|test)(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class Row:
    """One row and where it stands.

    Attributes:
        place: file and line, for messages.
        fields: the row's values by key.
        group: where ``fields`` is part of a row, the keys that lead to it, such as ``"info."``.
        origin_split: the published split that its file or hub split is named after; ``None`` where it has none.
    """

    place: str
    fields: dict[str, Any]
    group: str = ""
    origin_split: str | None = None

    def __contains__(self, key: str) -> bool:
        """Whether the key is there with a value: null is missing, as Parquet leaves no key out."""
        return self.fields.get(key) is not None

    @property
    def split(self) -> str | None:
        """The published split it belongs to: its own field ``split`` says more than where it was found."""
        own = self.fields.get("split")
        return own if isinstance(own, str) and own else self.origin_split

    def value(self, key: str) -> Any:
        """The value of a key that must be there."""
        if key not in self:
            found = ", ".join(repr(name) for name in self.fields) or "none"
            raise ValueError(f"{self.place}: key {self.group + key!r} is missing; keys found: {found}")
        return self.fields[key]

    def text(self, key: str) -> str:
        """The text under a key that must be there."""
        value = self.value(key)
        if not isinstance(value, str):
            raise ValueError(f"{self.place}: {self.group + key!r} must be text, found {_kind(value)}")
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"{self.place}: {self.group + key!r} has half a surrogate pair at character {error.start}"
                ) from None
        return value

    def identifier(self, key: str) -> str:
        """The text or whole number under a key that must be there, as text."""
        value = self.value(key)
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else self.text(key)

    def part(self, key: str) -> "Row":
        """The fields under a key that must be there."""
        return self._part(key, self.value(key))

    def parts(self, key: str) -> list["Row"]:
        """The list of fields under a key that must be there."""
        values = self.value(key)
        if not isinstance(values, list):
            raise ValueError(f"{self.place}: {self.group + key!r} must be a list, found {_kind(values)}")
        return [self._part(f"{key}[{index}]", value) for index, value in enumerate(values)]

    def _part(self, key: str, value: object) -> "Row":
        if not isinstance(value, dict):
            raise ValueError(f"{self.place}: {self.group + key!r} must have keys, found {_kind(value)}")
        return Row(self.place, value, f"{self.group}{key}.")


def read_rows(path: Path, suffixes: tuple[str, ...]) -> Iterator[Row]:
    """The rows of a file, or of all files with one of the suffixes in a folder and below, by file name.

    Raises:
        ValueError: nothing is there, a file is of another kind, or a line cannot be read.
    """
    for file in _files(path, suffixes):
        split = split_in_name(file.stem, *file.relative_to(path).parts[-2::-1])
        yield from _parquet_rows(file, split) if file.suffix in PARQUET else _json_rows(file, split)


def split_in_name(*names: str) -> str | None:
    """The published split that the first telling one of some names begins with.

    >>> split_in_name("train"), split_in_name("valid-00000-of-00002"), split_in_name("0000", "validation")
    ('train', 'valid', 'validation')
    >>> split_in_name("trainers"), split_in_name("batch3")
    (None, None)
    """
    found = (match for name in names if (match := _SPLIT_NAME.match(name)))
    return next((match[1].lower() for match in found), None)


def _files(path: Path, suffixes: tuple[str, ...]) -> list[Path]:
    wanted = ", ".join(f"*{suffix}" for suffix in suffixes)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in suffixes and file.is_file())
        if not files:
            raise ValueError(f"no data file in the folder {path}: expected {wanted} there or below")
        return files
    if not path.is_file():
        raise ValueError(f"no such file or folder: {path}")
    if path.suffix not in suffixes:
        raise ValueError(f"cannot read {path}: expected {wanted}, or a folder of such files")
    return [path]


def _json_rows(file: Path, split: str | None) -> Iterator[Row]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            place = f"{file}, line {number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if not text.strip():
                    continue
                fields = json.loads(text)
            except ValueError as error:  # bad UTF-8, or bad JSON
                raise ValueError(f"{place}: not JSON: {error}; expected one JSON object a line") from None
            if not isinstance(fields, dict):
                raise ValueError(f"{place}: expected one JSON object a line, found {_kind(fields)}")
            yield Row(place, fields, origin_split=split)


def _parquet_rows(file: Path, split: str | None) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            number = 0
            for batch in table.iter_batches():
                for fields in batch.to_pylist():
                    number += 1
                    yield Row(f"{file}, row {number}", fields, origin_split=split)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"cannot read {file} as Parquet: {error}") from error


def _kind(value: object) -> str:
    if value is None:
        return "null"
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false"}
    return kinds.get(type(value), f"the number {value}")
