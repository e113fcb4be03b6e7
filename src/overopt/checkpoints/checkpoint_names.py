"""Names of checkpoints, after the examples that had been seen."""

from pathlib import Path

_PREFIX = "examples-"


def checkpoint_paths(folder: Path) -> list[Path]:
    """Checkpoints that a schedule wrote into a folder, in order of examples seen."""
    return sorted(folder.glob(f"{_PREFIX}*.ckpt"))


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
