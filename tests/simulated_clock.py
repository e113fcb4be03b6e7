"""Time that passes at once: an event loop for tests of what takes minutes."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any


class _JumpingSelector(selectors.DefaultSelector):
    """Waits for nobody, and remembers how long it should have."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        # Never nothing: who wakes a rounding error too early, and looks again, would look for ever.
        self.now += (timeout or 0.0) + 1e-7
        return super().select(0)


class SimulatedClock(asyncio.SelectorEventLoop):
    """A loop whose time moves only while all tasks sleep, and then straight to the next one that wakes."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def run_at_once(main: Coroutine[Any, Any, Any], loop: SimulatedClock) -> Any:
    """Run a coroutine to its end on simulated time."""
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(main)
