"""Names of checkpoints, after the examples that had been seen."""

from pathlib import Path

_PREFIX = "examples-"


def checkpoint_paths(folder: Path) -> list[Path]:
    """Checkpoints that a schedule wrote into a folder, in order of examples seen."""
    return sorted(folder.glob(f"{_PREFIX}*.ckpt"))


def named_checkpoints(location: Path) -> list[Path]:
    """The checkpoints that a person means by a file, or by a folder that a schedule wrote; at least one.

    Raises:
        ValueError: there is none.
    """
    paths = checkpoint_paths(location) if location.is_dir() else [location]
    if not paths or not paths[0].is_file():
        raise ValueError(f"no checkpoints at {location}: expected a .ckpt file or a folder of examples-*.ckpt")
    return paths


def checkpoint_path(folder: Path, examples_seen: int) -> Path:
    """Where a checkpoint is."""
    return folder / f"{_PREFIX}{examples_seen:08d}.ckpt"


def examples_of(path: Path) -> int:
    """Examples that a checkpoint's policy has seen, by the file's name.

    >>> examples_of(Path("checkpoints/examples-00003072.ckpt"))
    3072
    """
    return int(path.stem.removeprefix(_PREFIX))


def run_folder(checkpoint: Path) -> Path:
    """The folder of the run that wrote a checkpoint: around ``checkpoints/``, or the file's own.

    >>> [run_folder(Path(place)).as_posix() for place in ("outputs/dpo/checkpoints/last.ckpt", "outputs/sft/last.ckpt")]
    ['outputs/dpo', 'outputs/sft']
    """
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
