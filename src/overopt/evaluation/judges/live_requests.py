"""Questions sent one by one, many at a time: bounded, within rate limits, retried where that may help."""

import asyncio
import math
import random
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from aiolimiter import AsyncLimiter
from openai import AsyncOpenAI
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_random_exponential

from overopt.evaluation.judges.budget import Budget
from overopt.evaluation.judges.endpoint import Endpoint, PassingError, Reply
from overopt.evaluation.judges.prices import Usage

# Waits without a word from the endpoint: drawn from nothing up to a second, doubling to a minute. [s]
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 60.0
# An endpoint that wants more patience than this is left alone; a later start goes on. [s]
_LONGEST_RETRY_AFTER = 900.0
# Those that were told to come back at the same moment come back up to so much later, each at its own. [s]
_LATER = 0.25
# A question that waits for its next attempt holds no slot, so that others use it.
_QUESTIONS_PER_SLOT = 4
# A turn of the event loop that is shorter has read no heap of answers [s]; an answer takes some turns to be read.
_QUIET, _QUIET_TURNS = 0.004, 20
# Part of a minute's budget that may come at once.
_BURST = 1 / 6


class Request(NamedTuple):
    """A question ready to be sent.

    Attributes:
        place: of its comparison.
        key: that tells it from all others of its judge.
        body: of the request.
        input_tokens: that it is taken to have.
        highest_cost: that an answer can have.
    """

    place: int
    key: str
    body: dict[str, Any]
    input_tokens: int
    highest_cost: float


@dataclass(frozen=True)
class Limits:
    """How hard an endpoint may be pressed.

    Attributes:
        max_concurrent: requests under way at a time.
        max_attempts: for one question.
        requests_per_minute: in any 60 s, at least 2; no budget by default.
        tokens_per_minute: input and the most that answers may have, in any 60 s; no budget by default. A question that
            is larger than a sixth of it counts as a sixth.

    Raises:
        ValueError: one of them leaves nothing to be asked.
    """

    max_concurrent: int = 32
    max_attempts: int = 6
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None

    def __post_init__(self) -> None:
        if low := {name: value for name, value in vars(self).items() if value is not None and not value >= 1}:
            found = ", ".join(f"{name} {value:g}" for name, value in low.items())
            raise ValueError(f"an endpoint needs at least one of everything, got {found}")
        if self.requests_per_minute is not None and self.requests_per_minute < 2:
            raise ValueError(f"need at least 2 requests_per_minute, got {self.requests_per_minute:g}")
        if math.inf in (self.requests_per_minute, self.tokens_per_minute):
            raise ValueError("a budget a minute is a number: leave it out, or set it to null, where there is none")


class UnansweredError(ValueError):
    """Some questions got no answer in all their attempts.

    Args:
        unanswered: so many questions.
        asked: questions in all.
        max_attempts: that each of them had.
        last: failure of the last one.
    """

    def __init__(self, unanswered: int, asked: int, max_attempts: int, last: object) -> None:
        super().__init__(
            f"{unanswered} of {asked} questions got no answer in {max_attempts} attempts each (the last one: {last}); "
            "all others are answered"
        )


class LiveRequests:
    """Asks an endpoint.

    Args:
        endpoint: who is asked.
        limits: how hard.
        max_output_tokens: of an answer.
        on_reply: told of each answer, and spends its cost.
        budget: what may be spent.
        cost: of tokens that were charged without an answer.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        limits: Limits,
        max_output_tokens: int,
        on_reply: Callable[[Request, Reply], None],
        budget: Budget,
        cost: Callable[[Usage], float | None],
    ) -> None:
        self._endpoint = endpoint
        self._limits = limits
        self._max_output_tokens = max_output_tokens
        self._on_reply = on_reply
        self._budget = budget
        self._cost = cost
        self._in_hand = _QUESTIONS_PER_SLOT * limits.max_concurrent
        self._slots = asyncio.Semaphore(limits.max_concurrent)
        self._gate = asyncio.Lock()
        self._requests = _rate(limits.requests_per_minute)
        self._tokens = _rate(limits.tokens_per_minute)
        self._paused_until = 0.0
        self._last_reply = -math.inf
        self._failures_since = 0  # the last reply
        self._stopped: ValueError | None = None
        self._stop = asyncio.Event()
        self._unanswered = 0
        self._last_failure = ""

    async def ask_all(self, requests: Iterable[Request]) -> None:
        """Send all; whatever stops them, those under way are waited for, since they are paid for.

        Args:
            requests: made one by one as there is room for them.

        Raises:
            UnansweredError: some questions used up their attempts; all others are answered.
            CostLimitError: the next question could cost more than is left.
            ValueError: the endpoint refuses for good, or answers nobody any more.
        """
        waiting = iter(requests)
        asked = 0

        async def work(client: AsyncOpenAI) -> None:
            nonlocal asked
            while self._stopped is None:
                try:
                    request = next(waiting, None)
                    if request is None:
                        return
                    asked += 1
                    await self._ask(client, request)
                except PassingError as error:
                    self._unanswered += 1
                    self._last_failure = str(error)
                except ValueError as error:
                    self._stopped = self._stopped or error
                    self._stop.set()

        async with self._endpoint.client() as client, asyncio.TaskGroup() as group:
            for _ in range(self._in_hand):
                group.create_task(work(client))
        if self._stopped is not None:
            raise self._stopped
        if self._unanswered:
            raise UnansweredError(self._unanswered, asked, self._limits.max_attempts, self._last_failure)

    async def _ask(self, client: AsyncOpenAI, request: Request) -> None:
        begun = time.monotonic()
        retrying = AsyncRetrying(
            stop=stop_after_attempt(self._limits.max_attempts),
            wait=_wait,
            retry=retry_if_exception(lambda error: isinstance(error, PassingError) and self._stopped is None),
            sleep=lambda seconds: self._unless_stopped(asyncio.sleep(seconds)),
            reraise=True,
        )
        try:
            async for attempt in retrying:
                with attempt:
                    await self._attempt(client, request)
        except PassingError as error:
            if self._stopped is None and self._last_reply < begun and self._limits.max_attempts > 1:
                raise self._silent_since(begun, error) from error
            raise

    async def _attempt(self, client: AsyncOpenAI, request: Request) -> None:
        async with self._slots, self._budget.setting_aside(request.highest_cost):
            await self._turn(request)
            if self._stopped is not None:
                raise PassingError("stopped before it was asked")
            try:
                reply = await self._endpoint.ask(client, request.body)
            except PassingError as error:
                self._heed(error)
                raise
            self._last_reply = time.monotonic()
            self._failures_since = 0
            self._on_reply(request, reply)

    async def _turn(self, request: Request) -> None:
        """Wait until no pause and no budget of the account is in the way, or all is stopped."""
        # One by one, and none while answers wait to be read: after a pause all would start at once, and the first one
        # that is told to wait again could not stop the others.
        async with self._gate:
            await _caught_up()
            while self._stopped is None:
                while self._stopped is None and (pause := self._paused_until - time.monotonic()) > 0:
                    await self._unless_stopped(asyncio.sleep(pause + random.uniform(0, _LATER)))
                # Not before the pause: what was taken from the budgets then would come on top of what they hold now.
                if self._tokens is not None:
                    tokens = min(request.input_tokens + self._max_output_tokens, self._tokens.max_rate)
                    await self._unless_stopped(self._tokens.acquire(tokens))
                if self._requests is not None:
                    await self._unless_stopped(self._requests.acquire())
                if self._paused_until <= time.monotonic():
                    return

    def _heed(self, error: PassingError) -> None:
        if error.usage is not None:
            self._budget.spend(self._cost(error.usage) or 0.0)
        self._failures_since += 1
        # Of those in hand when an endpoint goes down, each was begun before its last reply and would only count as
        # unanswered; those that replace them would be asked in vain as well.
        if self._failures_since >= self._in_hand * self._limits.max_attempts and self._limits.max_attempts > 1:
            raise self._silent_since(self._last_reply, error)
        if error.retry_after is None:
            return
        if error.retry_after > _LONGEST_RETRY_AFTER:
            raise ValueError(
                f"the endpoint at {self._endpoint.url} wants to be asked again in {error.retry_after:.0f} s only "
                f"({error}): start again then"
            )
        # The limit is the account's, not the question's: everybody waits.
        self._paused_until = max(self._paused_until, time.monotonic() + error.retry_after)

    def _silent_since(self, begun: float, error: PassingError) -> ValueError:
        return ValueError(
            f"the endpoint at {self._endpoint.url} has answered nothing for {time.monotonic() - begun:.0f} s "
            f"(the last failure: {error}): check --judge.base_url, or wait until it is well"
        )

    async def _unless_stopped(self, waiting: Coroutine[Any, Any, None]) -> None:
        """Wait, unless all is stopped: then there is nothing to wait for."""
        tasks = [asyncio.ensure_future(waiting), asyncio.ensure_future(self._stop.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()


async def _caught_up() -> None:
    """Until the event loop has nothing that takes long left to do; new requests, which would, wait here."""
    quiet = 0
    while quiet < _QUIET_TURNS:
        begun = time.monotonic()
        await asyncio.sleep(0)
        quiet = quiet + 1 if time.monotonic() - begun < _QUIET else 0


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    told = error.retry_after if isinstance(error, PassingError) else None
    if told is not None:
        return told + random.uniform(0, _LATER)
    return wait_random_exponential(multiplier=_FIRST_WAIT, max=_LONGEST_WAIT)(state)


def _rate(per_minute: float | None) -> AsyncLimiter | None:
    """A bucket that lets no more than a minute's budget into any 60 s: its size and its refills together are one."""
    if per_minute is None:
        return None
    size = max(1.0, per_minute * _BURST)
    # aiolimiter refills its size once in a period; in 60 s it may refill what the size leaves of the budget.
    return AsyncLimiter(size, 60 * size / (per_minute - size))
