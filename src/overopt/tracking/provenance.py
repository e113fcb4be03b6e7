"""What a run must say about its origin: code, versions, machine."""

import platform
import shlex
import subprocess
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path

_PACKAGES = ("overopt", "torch", "lightning", "transformers", "torchmetrics", "mlflow", "scipy", "numpy")


@cache
def git_commit() -> str:
    """Commit of the code that runs, marked ``-dirty`` where files differ from it; ``unknown`` outside git."""
    folder = Path(__file__).resolve().parent
    try:
        described = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return described.stdout.strip()


def provenance() -> dict[str, str]:
    """Commit, versions of what computes, Python and platform."""
    return {
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{f"version_{name}": version(name) for name in _PACKAGES},
    }


def command_line() -> str:
    """The command as a person would type it again."""
    return shlex.join(["python", "-m", "overopt", *sys.argv[1:]])
