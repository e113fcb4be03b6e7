"""The embedded default: docstrings of installed Python packages, each summarised by its own first lines.

Real text that every installation of this project has, so that nothing is downloaded and nothing of others
is kept in the project. The post is an object's name and the body of its docstring, the response is the
summary that opens the docstring.
"""

import ast
import gc
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from rich.console import Console
from rich.progress import Progress

from overopt.data.prompt_format import docstring_prompt, normalise_response
from overopt.data.schema import Demonstration
from overopt.data.sources.base import SourceRead, TokenLimits
from overopt.data.sources.examples import ExampleIds, text_id
from overopt.data.splits import SplitFractions

# Raise it with any change to what is read or how it is cleaned: caches of other versions are not used.
READER_VERSION = 3


class Package(NamedTuple):
    """An installed package.

    Attributes:
        module: what one imports.
        distribution: what one installs.
    """

    module: str
    distribution: str


# Our dependencies and what they cannot do without: a fixed list, so that extras do not change the data.
PACKAGES = (
    Package("torch", "torch"),
    Package("lightning", "lightning"),
    Package("transformers", "transformers"),
    Package("torchmetrics", "torchmetrics"),
    Package("mlflow", "mlflow"),
    Package("optuna", "optuna"),
    Package("openai", "openai"),
    Package("scipy", "scipy"),
    Package("numpy", "numpy"),
    Package("pandas", "pandas"),
    Package("sklearn", "scikit-learn"),  # of mlflow
    Package("matplotlib", "matplotlib"),
    Package("sqlalchemy", "SQLAlchemy"),  # of optuna and mlflow
    Package("alembic", "alembic"),  # of optuna and mlflow
    Package("networkx", "networkx"),  # of torch
    Package("sympy", "sympy"),  # of torch
    Package("mpmath", "mpmath"),  # of sympy
    Package("huggingface_hub", "huggingface_hub"),  # of transformers
    Package("fsspec", "fsspec"),  # of torch
    Package("pydantic", "pydantic"),  # of openai and mlflow
    Package("joblib", "joblib"),  # of scikit-learn
    Package("aiohttp", "aiohttp"),  # of mlflow
    Package("docker", "docker"),  # of mlflow
    Package("jinja2", "Jinja2"),
    Package("jsonargparse", "jsonargparse"),
    Package("pyarrow", "pyarrow"),
    Package("rich", "rich"),
)

SKIPPED_FOLDERS = frozenset(
    {"tests", "test", "testing", "_vendor", "_vendored", "vendor", "vendored", "externals", "_generated"}
)
SKIPPED_FILES = re.compile(r"conftest|test_.*|.*_test|_pytesttester")

# A summary longer than this is seldom one sentence, and would not fit a small model's response.
MIN_SUMMARY_WORDS, MAX_SUMMARY_WORDS = 3, 16
MIN_BODY_WORDS = 8
# Parsing is all of the time; beyond so many processes, collecting what they found would be.
MOST_WORKERS = 8
# Some 500 tokens of a large vocabulary; whole lines. The rest would be cut again, and slow to tokenise.
MAX_BODY_CHARACTERS = 2_000
# With the rest of the template, a prompt of 56 tokens has room for it even at one token a byte.
MAX_NAME_CHARACTERS = 46
# Bodies that begin alike are one text to a model that sees some fifty tokens of them.
SAME_BODY_CHARACTERS = 200

SECTION_OPENING = re.compile(
    r"(args|arguments|parameters|notes?|warning|deprecated|copyright|licen[sc]e|todo|examples?|see|same as"
    r"|alias|wrapper for deprecated|this file|this module)\b",
    re.IGNORECASE,
)
NOT_PROSE = re.compile(r"https?:|::|>>>|\.\. |:param|\(`|`\s*:|:$|\*\*|=")
ROLE = re.compile(r":(?:\w+:)?\w+:`[~!]?\.?([^`<]+?)(?:\s*<[^>`]*>)?`")
DOCTEST = (">>>", "...")

NO_BODY = "no body after the summary"
SUMMARY_LENGTH = f"summary not of {MIN_SUMMARY_WORDS} to {MAX_SUMMARY_WORDS} words"
SUMMARY_NOT_PROSE = "first paragraph is not a summary"
THIN_BODY = f"body has fewer than {MIN_BODY_WORDS} words of prose"
SAME_SUMMARY = "summary seen before"
SAME_BODY = "body seen before"
LONG_NAME = f"name of more than {MAX_NAME_CHARACTERS} characters"
UNREADABLE = "file cannot be parsed"


@dataclass(frozen=True)
class DocstringSource:
    """Docstrings of installed packages; demonstrations only: pairs come from sampling.

    No summary and no beginning of a body appears twice, so nothing held out was seen in training.

    Attributes:
        cache_dir: where the result is kept, under a name made from the packages' versions.
        packages: which packages are read.
    """

    cache_dir: Path
    packages: tuple[Package, ...] = PACKAGES
    name: ClassVar[str] = "docstrings"
    split_fractions: ClassVar[SplitFractions] = SplitFractions(evaluation=0.1, gold=0.25)
    token_limits: ClassVar[TokenLimits] = TokenLimits(prompt=48, response=24)

    def read(self) -> SourceRead:
        """All demonstrations, from the cache where it is there and whole.

        Raises:
            ValueError: a package is not installed, no docstring is found, or the cache cannot be written.
        """
        versions = {package.module: _version(package) for package in self.packages}
        stamp = {
            "reader": READER_VERSION,
            # It decides what parses and how docstrings are dedented.
            "python": f"{sys.version_info.major}.{sys.version_info.minor}",
            "packages": versions,
        }
        key = hashlib.sha256(json.dumps(stamp, sort_keys=True).encode()).hexdigest()[:16]
        cache = self.cache_dir / f"docstrings-{key}.jsonl"
        corpus = _load(cache, stamp)
        if corpus is None:
            corpus = _read_packages(self.packages)
            if not corpus.entries:
                raise ValueError("empty source: no usable docstring in " + ", ".join(versions))
            _save(cache, stamp, corpus)
        return SourceRead(
            [entry.demonstration() for entry in corpus.entries],
            preferences=[],
            left_out=corpus.left_out,
            rows=corpus.rows,
        )


class _Entry(NamedTuple):
    """One line of the cache."""

    example_id: str
    name: str
    summary: str
    body: str

    def demonstration(self) -> Demonstration:
        return Demonstration(
            self.example_id,
            text_id(_same_body(self.body)),
            docstring_prompt(self.name, self.body),
            normalise_response(self.summary, self.example_id),
        )


class _Corpus(NamedTuple):
    entries: list[_Entry]
    left_out: Counter[str]
    rows: int


def _version(package: Package) -> str:
    try:
        return importlib.metadata.version(package.distribution)
    except importlib.metadata.PackageNotFoundError:
        raise ValueError(
            f"the docstrings of {package.distribution} belong to the default data, but it is not installed:"
            " install overopt with its dependencies again, or choose another data source"
        ) from None


def _read_packages(packages: Sequence[Package]) -> _Corpus:
    files = [(package.module, root, file) for package in packages for root, file in _files(package)]
    entries: list[_Entry] = []
    left_out: Counter[str] = Counter()
    rows = 0
    ids = ExampleIds()
    with _mapping() as over_files, ExitStack() as stack:
        # Started before the progress bar, whose thread no process should be forked beside.
        of_files = over_files(_docstrings, [file for _, _, file in files])
        progress = stack.enter_context(Progress(console=Console(stderr=True), transient=True))
        read = progress.track(
            zip(files, of_files, strict=True), total=len(files), description="Reading docstrings (once)"
        )
        for (package, root, file), documented in read:
            module = ".".join((package, *file.relative_to(root).with_suffix("").parts)).removesuffix(".__init__")
            if documented is None:
                left_out[UNREADABLE] += 1
                continue
            for qualified_name, docstring in documented:
                rows += 1
                split = _split_docstring(docstring)
                if isinstance(split, str):
                    left_out[split] += 1
                    continue
                summary, body = split
                name = _short_name(package, qualified_name or module.rpartition(".")[2])
                if len(name) > MAX_NAME_CHARACTERS:
                    left_out[LONG_NAME] += 1
                    continue
                example_id = ids.made(f"{module}:{qualified_name}")
                entries.append(_Entry(example_id, name, summary, body))
    return _Corpus(_without_duplicates(sorted(entries), left_out), left_out, rows)


@contextmanager
def _mapping() -> Iterator[Callable[..., Iterable[Any]]]:
    """``map`` over all cores, where processes can be forked: that imports nothing again and needs no main guard."""
    # Syntax trees have no cycles to collect, and looking for some doubles the time of parsing.
    was_on = gc.isenabled()
    gc.disable()
    try:
        if sys.platform != "linux":
            yield map
            return
        workers = min(MOST_WORKERS, len(os.sched_getaffinity(0)))
        with ProcessPoolExecutor(workers, mp_context=get_context("fork")) as executor:
            yield partial(executor.map, chunksize=32)
    finally:
        if was_on:
            gc.enable()


def _files(package: Package) -> Iterator[tuple[Path, Path]]:
    """The package's root folder and each source file in it; nothing is imported."""
    spec = importlib.util.find_spec(package.module)
    for location in sorted(spec.submodule_search_locations or ()) if spec else ():
        root = Path(location)
        for file in sorted(root.rglob("*.py")):
            folders = file.relative_to(root).parts[:-1]
            if SKIPPED_FOLDERS.isdisjoint(folders) and not SKIPPED_FILES.fullmatch(file.stem):
                yield root, file


def _docstrings(file: Path) -> list[tuple[str, str]] | None:
    """Qualified name (empty for the module) and docstring of every documented object in a file that can be parsed."""
    try:
        return _documented_in(file.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError):  # ValueError: not UTF-8, or null bytes
        return None


def _documented_in(source: str) -> list[tuple[str, str]]:
    # Parsing is nearly all of the time, and a fifth of the files have no docstring with a second paragraph.
    if "'''" not in source and not any("\n\n" in quoted for quoted in source.split('"""')[1::2]):
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes and the like are the packages' own affair
        tree = ast.parse(source)
    return list(_documented(tree, ""))


def _documented(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str
) -> Iterator[tuple[str, str]]:
    if docstring := ast.get_docstring(node):
        yield name, docstring
    if isinstance(node, ast.Module | ast.ClassDef):
        for child in node.body:
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield from _documented(child, f"{name}.{child.name}" if name else child.name)


def _split_docstring(docstring: str) -> tuple[str, str] | str:
    """Summary and body, or why there are none to be had."""
    first, _, rest = docstring.strip().replace("\r\n", "\n").partition("\n\n")
    summary = _without_markup(" ".join(first.split()))
    if not rest.strip():
        return NO_BODY
    if not MIN_SUMMARY_WORDS <= len(summary.split()) <= MAX_SUMMARY_WORDS:
        return SUMMARY_LENGTH
    if not summary[0].isalpha() or SECTION_OPENING.match(summary) or NOT_PROSE.search(summary):
        return SUMMARY_NOT_PROSE
    # Lines of white space or rulers only say nothing and cost tokens.
    lines = [" ".join(line.split()) for line in rest.splitlines() if re.search(r"\w", line)]
    prose = " ".join(line for line in lines if not line.startswith(DOCTEST))
    if len(re.findall(r"[^\W\d_]{2,}", prose)) < MIN_BODY_WORDS:
        return THIN_BODY
    body = _without_markup("\n".join(lines))
    if len(body) > MAX_BODY_CHARACTERS:
        last_newline = body.rfind("\n", 0, MAX_BODY_CHARACTERS + 1)
        body = body[: last_newline if last_newline > 0 else MAX_BODY_CHARACTERS]
    return summary, body


def _short_name(package: str, qualified_name: str) -> str:
    """Package and name within the module; the latter's own end where that is too long.

    The modules in between are left out: they would cost ten tokens of some fifty.
    """
    parts = [package, *qualified_name.split(".")]
    while len(parts) > 1 and len(".".join(parts)) > MAX_NAME_CHARACTERS:
        parts.pop(0)
    return ".".join(parts)


def _without_markup(text: str) -> str:
    """Sphinx roles as plain names: :class:`~a.B` costs a small vocabulary a dozen tokens."""
    return ROLE.sub(r"`\1`", text).replace("``", "`")


def _without_duplicates(entries: list[_Entry], left_out: Counter[str]) -> list[_Entry]:
    """The first of those with one summary, and of those whose bodies begin alike."""
    summaries: set[str] = set()
    bodies: set[str] = set()
    kept = []
    for entry in entries:
        summary, body = _letters(entry.summary), _same_body(entry.body)
        if summary in summaries:
            left_out[SAME_SUMMARY] += 1
        elif body in bodies:
            left_out[SAME_BODY] += 1
        else:
            summaries.add(summary)
            bodies.add(body)
            kept.append(entry)
    return kept


def _same_body(body: str) -> str:
    return _letters(body)[:SAME_BODY_CHARACTERS]


def _letters(text: str) -> str:
    """What is left when case, digits and punctuation do not count."""
    return " ".join(re.findall(r"[^\W\d_]+", text.lower()))


def _load(cache: Path, stamp: dict[str, Any]) -> _Corpus | None:
    """The cached corpus; None where there is none or it is not what was written."""
    try:
        header_line, _, content = cache.read_bytes().partition(b"\n")
        header = json.loads(header_line)
        if header["stamp"] != stamp or header["sha256"] != hashlib.sha256(content).hexdigest():
            return None
        entries = [_Entry(**json.loads(line)) for line in content.splitlines()]
        return _Corpus(entries, Counter(header["left_out"]), header["rows"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _save(cache: Path, stamp: dict[str, Any], corpus: _Corpus) -> None:
    content = b"".join(json.dumps(entry._asdict()).encode() + b"\n" for entry in corpus.entries)
    header = {
        "stamp": stamp,
        "rows": corpus.rows,
        "left_out": dict(corpus.left_out),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    beside = cache.with_name(f"{cache.name}.{os.getpid()}.partial")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(json.dumps(header).encode() + b"\n" + content)
        beside.replace(cache)
    except OSError as error:
        raise ValueError(f"cannot write the docstring cache {cache}: {error}; choose another cache_dir") from error
