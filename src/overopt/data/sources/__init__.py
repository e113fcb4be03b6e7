"""One reader per kind of data, one interface."""

from collections.abc import Callable
from pathlib import Path

from overopt.data.sources.base import Source, SourceRead
from overopt.data.sources.docstrings import DocstringSource
from overopt.data.sources.hub import HubSource
from overopt.data.sources.jsonl import JsonlSource
from overopt.data.sources.tldr_openai import TldrOpenaiSource

__all__ = ["SOURCES", "Source", "SourceRead", "make_source"]


def _docstrings(path: Path | None, cache_dir: Path) -> Source:
    if path is not None:
        raise ValueError(
            f"the data source 'docstrings' reads installed packages and takes no path, got {path}:"
            " leave the path out, or name the source that reads it (tldr_openai, hub, jsonl)"
        )
    return DocstringSource(cache_dir)


def _tldr_openai(path: Path | None, cache_dir: Path) -> Source:
    if path is None:
        raise ValueError(
            "the data source 'tldr_openai' needs a path: a file or folder of OpenAI's comparisons/batch*.json"
        )
    return TldrOpenaiSource(path)


def _jsonl(path: Path | None, cache_dir: Path) -> Source:
    if path is None:
        raise ValueError("the data source 'jsonl' needs a path: a *.jsonl or *.parquet file, or a folder of them")
    return JsonlSource(path)


def _hub(path: Path | None, cache_dir: Path) -> Source:
    if path is None:
        raise ValueError(
            "the data source 'hub' needs a path: a dataset's name such as openai/summarize_from_feedback, or a folder"
            " laid out as the hub has it"
        )
    return HubSource(str(path))


SOURCES: dict[str, Callable[[Path | None, Path], Source]] = {
    "docstrings": _docstrings,
    "tldr_openai": _tldr_openai,
    "hub": _hub,
    "jsonl": _jsonl,
}


def make_source(name: str, path: Path | None, cache_dir: Path) -> Source:
    """The data source of that name.

    Args:
        name: a key of ``SOURCES``.
        path: the file, folder or dataset to read, for sources that read one.
        cache_dir: where sources keep what is slow to make.

    Raises:
        ValueError: no such source, or it needs a path and has none, or the reverse.
    """
    if name not in SOURCES:
        raise ValueError(f"no data source {name!r}; there are {', '.join(SOURCES)}")
    return SOURCES[name](path, cache_dir)
