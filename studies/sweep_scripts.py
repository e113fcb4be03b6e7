"""The scripts in ``sweeps/``, run as a person would run them."""

import subprocess
import sys
from pathlib import Path

SWEEPS = Path(__file__).parents[1] / "sweeps"


def run_script(script: str, *options: object) -> None:
    """Run a script; where it fails, it has said why, and this process ends with its exit code."""
    command = [str(part) for part in (sys.executable, SWEEPS / script, *options)]
    if code := subprocess.run(command, check=False).returncode:
        sys.exit(code)
