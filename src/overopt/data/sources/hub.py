"""Datasets of the Hugging Face hub, or local folders laid out as the hub has them.

Rows are read by ``datasets``, straight from the files; a dataset's own code is never run.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, NoReturn

from overopt.data.sources.base import SourceRead, TokenLimits
from overopt.data.sources.jsonl import read_prompt_rows
from overopt.data.sources.rows import Row
from overopt.data.sources.tldr_openai import read_openai_rows
from overopt.data.splits import SplitFractions

# user/name@revision:configuration, or name alone.
_HUB_NAME = re.compile(r"(?P<dataset>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[^:@]+))?(?::(?P<configuration>[\w.-]+))?")
# OpenAI's feedback is published as a script, which nobody runs any more; this is the hub's own conversion of it.
_CONVERTED = {"openai/summarize_from_feedback": "refs/convert/parquet"}
# Of datasets that have it and whose configuration is not named.
_DEFAULT_CONFIGURATION = "comparisons"
# What a dataset is read from: data files, and the card that says which of them make up which split.
_FILES = ("*.parquet", "*.json*", "*.csv*", "README.md", ".huggingface.yaml")


@dataclass(frozen=True)
class HubSource:
    """A dataset by its hub name, or by the folder of a local copy.

    Rows are those of :func:`overopt.data.sources.tldr_openai.read_openai_rows` (``openai/summarize_from_feedback``
    and the like) or of :func:`overopt.data.sources.jsonl.read_prompt_rows` (``trl-lib/tldr``,
    ``trl-lib/tldr-preference``, ``CarperAI/openai_summarize_tldr``, any ``prompt``, ``chosen``, ``rejected``); the
    first row tells which. What is downloaded is kept in the hub's cache (``HF_HOME``), and read from there when the
    hub is out of reach; local folders are read where they are.

    Attributes:
        path: ``NAME``, ``NAME@REVISION``, ``NAME:CONFIGURATION`` or ``FOLDER``, ``FOLDER:CONFIGURATION``. Where there
            is a configuration ``comparisons``, it is the default; ``axis`` are OpenAI's ratings. Of a dataset that is
            published as a script, the hub may have a conversion: ``NAME@refs/convert/parquet:CONFIGURATION``.
    """

    path: str
    name: ClassVar[str] = "hub"
    split_fractions: ClassVar[SplitFractions] = SplitFractions(evaluation=0.1, gold=0.0)
    token_limits: ClassVar[TokenLimits] = TokenLimits(prompt=448, response=64)

    def read(self) -> SourceRead:
        """All pairs and demonstrations, with the published split of each.

        Raises:
            ValueError: the dataset can't be had (names it, and says how a local copy is given), a row is malformed
                (names split, row and key), or no row can be used.
        """
        copy = self._copy()
        rows = self._rows(copy)
        first = next(rows, None)
        if first is None:
            raise ValueError(f"empty source: no row in {copy.origin}")
        is_openai = "summaries" in first or ("summary" in first and "prompt" not in first)
        read_rows = read_openai_rows if is_openai else read_prompt_rows
        return read_rows(chain([first], rows), copy.origin)

    def _copy(self) -> "_Copy":
        """Where the dataset's files are, downloaded if need be."""
        folder, _, configuration = self.path.rpartition(":")
        if Path(self.path).is_dir():
            return _Copy(Path(self.path), None, self.path)
        if folder and Path(folder).is_dir():
            return _Copy(Path(folder), configuration, self.path)
        if Path(self.path).exists():
            raise ValueError(
                f"the data source 'hub' reads a dataset of the hub or a folder laid out like one, and {self.path} is a"
                " file: give its folder, or read it with the source jsonl or tldr_openai"
            )
        match = _HUB_NAME.fullmatch(self.path)
        if match is None:
            self._cannot("there is no such folder, and it is no name that the hub could have")
        return self._download(match)

    def _download(self, name: re.Match[str]) -> "_Copy":
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            GatedRepoError,
            LocalEntryNotFoundError,
            OfflineModeIsEnabled,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        dataset, revision, configuration, files = name["dataset"], name["revision"], name["configuration"], list(_FILES)
        if dataset in _CONVERTED:
            revision = revision or _CONVERTED[dataset]
            configuration = configuration or _DEFAULT_CONFIGURATION
            # A conversion has a folder for each configuration; elsewhere only the card knows whose the files are.
            files = [f"{configuration}/*"]
        try:
            folder = snapshot_download(dataset, repo_type="dataset", revision=revision, allow_patterns=files)
        except GatedRepoError as error:
            self._cannot("its owner lets in only those who asked: see its page, then `hf auth login`", error)
        except RepositoryNotFoundError as error:
            self._cannot("the hub has no such dataset, or none for you: if it is private, `hf auth login`", error)
        except RevisionNotFoundError as error:
            self._cannot(f"it has no revision {revision!r}", error)
        except LocalEntryNotFoundError as error:
            cause = error.__cause__ or error
            reason = "HF_HUB_OFFLINE is set" if isinstance(cause, OfflineModeIsEnabled) else _one_line(cause)
            self._cannot(f"the hub is out of reach ({reason}) and the cache has no whole copy", error)
        except Exception as error:  # proxies, certificates, full disks: whatever else a download meets
            self._cannot(_one_line(error), error)
        if not Path(folder).is_dir():
            self._cannot(f"on the hub, it has no file {' or '.join(files)}")
        return _Copy(Path(folder), configuration, f"{self.path} (commit {Path(folder).name})")

    def _rows(self, copy: "_Copy") -> Iterator[Row]:
        try:
            splits = _load(copy)
            for split, rows in splits.items():
                for number, fields in enumerate(rows, start=1):
                    yield Row(f"{self.path}, split {split}, row {number}", fields, origin_split=split)
        except ImportError as error:
            raise ValueError(
                f"the data source 'hub' needs the package datasets, which is not installed ({error}):"
                " pip install 'datasets>=4'"
            ) from error
        except Exception as error:  # of the many kinds that `datasets` has for files it can't make sense of
            self._cannot(_one_line(error), error)

    def _cannot(self, reason: str, error: Exception | None = None) -> NoReturn:
        raise ValueError(
            f"cannot read the dataset {self.path}: {reason}; expected the name of a dataset on the Hugging Face hub,"
            " NAME[@REVISION][:CONFIGURATION], or a local copy laid out as the hub has it: --data.path FOLDER"
        ) from error


class _Copy(NamedTuple):
    """A dataset's files.

    Attributes:
        folder: laid out as on the hub.
        configuration: which of its parts; its default where ``None``.
        origin: what it is, for the record.
    """

    folder: Path
    configuration: str | None
    origin: str


def _load(copy: _Copy) -> Any:
    """A mapping of published splits to rows, read from the files as they are asked for: no cache has a copy."""
    import datasets

    folder = str(copy.folder)
    configuration = copy.configuration
    if configuration is None and (copy.folder / _DEFAULT_CONFIGURATION).is_dir():
        configuration = _DEFAULT_CONFIGURATION
    if configuration is None:
        return datasets.load_dataset(folder, streaming=True)
    # A card knows its splits best; without one, a configuration is a folder.
    named = datasets.get_dataset_config_names(folder)
    if configuration in named:
        return datasets.load_dataset(folder, configuration, streaming=True)
    if (copy.folder / configuration).is_dir():
        return datasets.load_dataset(folder, data_dir=configuration, streaming=True)
    folders = {child.name for child in copy.folder.iterdir() if child.is_dir() and child.name[0] != "."}
    raise ValueError(f"it has no configuration {configuration!r}; there are {', '.join(sorted({*named, *folders}))}")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
