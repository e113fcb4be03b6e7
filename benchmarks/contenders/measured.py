"""What every contender reports: seconds and loss of each step, and peak memory."""

import json
import resource
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
        _synchronise()
        self._started = time.perf_counter()

    def end_step(self, loss: float) -> None:
        """Its update has been made."""
        _synchronise()
        self._seconds.append(time.perf_counter() - self._started)
        self._losses.append(loss)

    def write(self) -> None:
        """Keep the figures; peak memory is of the whole process, or of the device."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if torch.cuda.is_available():
            peak = torch.cuda.max_memory_allocated()
        self._out.write_text(json.dumps({"seconds": self._seconds, "losses": self._losses, "peak_bytes": peak}))


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
