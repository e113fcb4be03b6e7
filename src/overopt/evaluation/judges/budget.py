"""A limit on what judging may cost that can't be overrun, whatever is under way."""

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class CostLimitError(ValueError):
    """The next question could cost more than is left."""


class Budget:
    """What has been spent, and how much may be.

    A question is only sent once its highest possible cost is set aside, so that spending stays below the limit even
    where every answer under way takes all that it may.

    Args:
        max_cost: in the currency of the price table; no limit by default.

    Raises:
        ValueError: the limit is negative or no number.
    """

    def __init__(self, max_cost: float | None = None) -> None:
        if max_cost is not None and not 0 <= max_cost < math.inf:
            raise ValueError(f"need a cost limit of at least 0, got {max_cost}")
        self.max_cost = max_cost
        self.spent = 0.0
        self._set_aside = 0.0
        self._under_way = 0
        # A lock and a condition of asyncio would do, but belong to one event loop; a budget outlives each.
        self._line: deque[asyncio.Event] = deque()

    def spend(self, cost: float) -> None:
        """Count what an answer cost."""
        self.spent += cost

    def refusal(self, highest_cost: float, set_aside: float) -> CostLimitError | None:
        """Why a question may not be asked now; ``None`` where it may.

        Args:
            highest_cost: that its answer can have.
            set_aside: for the questions under way.
        """
        if self.max_cost is None or self.spent + set_aside + highest_cost <= self.max_cost:
            return None
        return CostLimitError(
            f"{self.spent:.4g} of --max-cost {self.max_cost:g} are spent and the next question could cost "
            f"{highest_cost:.2g}"
        )

    @asynccontextmanager
    async def setting_aside(self, highest_cost: float) -> AsyncIterator[None]:
        """Hold back the highest possible cost of a question while it is asked, in the order in which they come.

        Near the limit a question waits for those before it: a dearer one that overtook it could find too little left,
        and end what a cheaper one could have gone on with.

        Raises:
            CostLimitError: it is more than what is left, and nothing is under way that could leave more.
        """
        await self._until_it_may(highest_cost)
        self._set_aside += highest_cost
        self._under_way += 1
        try:
            yield
        finally:
            self._set_aside -= highest_cost
            self._under_way -= 1
            self._wake_first()

    async def _until_it_may(self, highest_cost: float) -> None:
        woken = asyncio.Event()
        self._line.append(woken)
        try:
            while self._line[0] is not woken or (self._under_way and self.refusal(highest_cost, self._set_aside)):
                woken.clear()
                await woken.wait()
            if (refusal := self.refusal(highest_cost, self._set_aside)) is not None:
                raise refusal
        finally:
            self._line.remove(woken)
            self._wake_first()

    def _wake_first(self) -> None:
        if self._line:
            self._line[0].set()
