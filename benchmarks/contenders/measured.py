"""What every contender reports: seconds and loss of each step, and peak memory."""

import json
import time
from pathlib import Path

import torch


class Measured:
    """Times steps and watches memory from the first step on.

    Args:
        out: JSON file that :meth:`write` makes.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self._seconds: list[float] = []
        self._losses: list[float] = []
        self._started = 0.0

    def begin_step(self) -> None:
        """A step's data are there."""
        synchronise()
        self._started = time.perf_counter()

    def end_step(self, loss: float) -> None:
        """Its update has been made."""
        synchronise()
        self._seconds.append(time.perf_counter() - self._started)
        self._losses.append(loss)

    def write(self) -> None:
        """Keep the figures; peak memory is of the whole process, or of the device."""
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _peak_resident()
        self._out.write_text(json.dumps({"seconds": self._seconds, "losses": self._losses, "peak_bytes": peak}))


def synchronise() -> None:
    """Wait until the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _peak_resident() -> int:
    # Of this program alone: getrusage's counts what the process held before it was this program.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024
