"""Questions by OpenAI's Batch API: submitted as files, collected within a day, at half the price.

The endpoint is the only record: a batch bears the mark of its judge, its lines bear the questions' keys. So a run that
was stopped at any moment, between a submission and its answer too, finds all that it has asked.
"""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeVar

from openai import APIStatusError, AsyncOpenAI, Omit, omit
from openai.types import Batch
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from overopt.evaluation.judges.budget import Budget, CostLimitError
from overopt.evaluation.judges.endpoint import Endpoint, PassingError, Reply
from overopt.evaluation.judges.live_requests import Request, UnansweredError
from overopt.evaluation.judges.prices import Usage

#: Metadata of our batches.
MARK = "overopt_judge"
_PATH: Final = "/v1/chat/completions"
# OpenAI takes 50,000 lines and 200 MB.
_MOST_LINES, _MOST_BYTES = 50_000, 100_000_000
_ENDED = {"completed", "failed", "expired", "cancelled"}
# Of small requests that change nothing, or nothing but a file: by a network that fails for a moment.
_TRIES = 6

ResultT = TypeVar("ResultT")


class _GoneError(ValueError):
    """The endpoint does not know it, or does not know it any more."""


class BatchRequests:
    """Asks an endpoint in batches.

    Args:
        endpoint: who is asked.
        mark: of the judge; batches that bear it are ours.
        max_attempts: for one question.
        poll_seconds: between looks at the batches [s].
        on_reply: told of each answer.
        budget: what may be spent.
        cost: of tokens that were charged without an answer.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        mark: str,
        max_attempts: int,
        poll_seconds: float,
        on_reply: Callable[[Request, Reply], None],
        budget: Budget,
        cost: Callable[[Usage], float | None],
    ) -> None:
        self._endpoint = endpoint
        self._mark = mark
        self._max_attempts = max_attempts
        self._poll_seconds = poll_seconds
        self._on_reply = on_reply
        self._budget = budget
        self._cost = cost
        self._waiting: dict[str, Request] = {}
        self._attempts: Counter[str] = Counter()
        self._unanswered: dict[str, str] = {}
        self._refused: ValueError | None = None
        # Keys that are in batches which have not ended, by the batch's id.
        self._under_way: dict[str, set[str]] = {}

    async def ask_all(self, requests: Sequence[Request]) -> None:
        """Submit what is not submitted yet, and wait for everything.

        Raises:
            UnansweredError: some questions used up their attempts; all others are answered.
            CostLimitError: the next batch could cost more than is left; all that was submitted has been collected.
            ValueError: the endpoint refuses for good.
        """
        self._waiting = {request.key: request for request in requests}
        async with self._endpoint.client() as client:
            await self._find_earlier(client)
            limit: CostLimitError | None = None
            while self._waiting:
                if self._refused is None:
                    limit = await self._submit_rest(client)
                if not self._under_way:
                    break
                await self._collect(client)
        if self._refused is not None:
            raise self._refused
        if limit is not None and self._waiting:
            raise limit
        if self._unanswered:
            raise UnansweredError(
                len(self._unanswered), len(requests), self._max_attempts, list(self._unanswered.values())[-1]
            )

    async def _find_earlier(self, client: AsyncOpenAI) -> None:
        """Take over what an earlier run has submitted."""
        async for batch in self._ours(client):
            if batch.status in _ENDED:
                # What failed then is asked again now; a batch whose files are gone has nothing to give.
                with suppress(_GoneError):
                    await self._read_files(client, batch, failures_count=False)
            else:
                submitted = await self._lines(client, batch.input_file_id)
                keys = {str(line["custom_id"]) for line in submitted} & self._waiting.keys()
                if keys:
                    self._under_way[batch.id] = keys

    async def _ours(self, client: AsyncOpenAI) -> AsyncIterator[Batch]:
        after: str | Omit = omit
        while True:
            page = await self._persist(partial(client.batches.list, limit=100, after=after))
            for batch in page.data:
                if (batch.metadata or {}).get(MARK) == self._mark:
                    yield batch
            if not page.data or not page.has_more:
                return
            after = page.data[-1].id

    async def _submit_rest(self, client: AsyncOpenAI) -> CostLimitError | None:
        under_way = set().union(*self._under_way.values()) if self._under_way else set()
        # A question may be in two batches, of two runs at once, and be answered by the first.
        set_aside = sum((self._waiting[key].highest_cost for key in under_way & self._waiting.keys()), 0.0)
        lines: list[bytes] = []
        keys: set[str] = set()
        size = 0
        limit: CostLimitError | None = None
        for key, request in self._waiting.items():
            if key in under_way:
                continue
            limit = self._budget.refusal(request.highest_cost, set_aside)
            if limit is not None:
                break
            line = {"custom_id": key, "method": "POST", "url": _PATH, "body": request.body}
            encoded = json.dumps(line).encode() + b"\n"
            if len(lines) == _MOST_LINES or size + len(encoded) > _MOST_BYTES:
                await self._submit(client, lines, keys)
                lines, keys, size = [], set(), 0
            lines.append(encoded)
            keys.add(key)
            size += len(encoded)
            set_aside += request.highest_cost
        if lines:
            await self._submit(client, lines, keys)
        return limit

    async def _submit(self, client: AsyncOpenAI, lines: list[bytes], keys: set[str]) -> None:
        content = b"".join(lines)
        # A file made twice costs nothing.
        file = await self._persist(lambda: client.files.create(file=("questions.jsonl", content), purpose="batch"))
        batch = await self._persist(lambda: self._create_once(client, file.id))
        self._under_way[batch.id] = keys
        print(f"batch {batch.id} submitted: {len(keys):,} questions", flush=True)

    async def _create_once(self, client: AsyncOpenAI, file_id: str) -> Batch:
        """A batch of a file, unless an attempt that seemed to fail has made it."""
        async for batch in self._ours(client):
            if batch.input_file_id == file_id:
                return batch
        return await client.batches.create(
            input_file_id=file_id, endpoint=_PATH, completion_window="24h", metadata={MARK: self._mark}
        )

    async def _collect(self, client: AsyncOpenAI) -> None:
        """Wait for a look, then read what has ended."""
        await asyncio.sleep(self._poll_seconds)
        for batch_id in list(self._under_way):
            batch = await self._persist(partial(client.batches.retrieve, batch_id))
            if batch.status not in _ENDED:
                continue
            keys = self._under_way.pop(batch_id)
            answered = await self._read_files(client, batch, failures_count=True)
            reason = f"batch {batch_id} is {batch.status}"
            if batch.errors and batch.errors.data:
                reason += f": {batch.errors.data[0].message}"
            # What somebody has cancelled is not asked again behind their back.
            if batch.status == "cancelled" or (batch.status == "failed" and not answered):
                self._refused = ValueError(
                    f"{self._endpoint.without_key(reason)}: see the endpoint's page of batches, then start again"
                )
            for key in keys - answered:
                self._failed(key, reason)

    async def _read_files(self, client: AsyncOpenAI, batch: Batch, *, failures_count: bool) -> set[str]:
        """Read the answers of a batch that has ended; gives the keys that it says something of."""
        seen = set()
        for file_id in (batch.output_file_id, batch.error_file_id):
            if file_id is None:
                continue
            for line in await self._lines(client, file_id):
                key = str(line.get("custom_id"))
                seen.add(key)
                request = self._waiting.get(key)
                if request is None:
                    continue
                try:
                    reply = self._reply(line)
                except PassingError as error:
                    if error.usage is not None:
                        self._budget.spend(self._cost(error.usage) or 0.0)
                    if failures_count:
                        self._failed(key, str(error))
                except ValueError as error:
                    if failures_count:
                        self._refused = self._refused or error
                else:
                    del self._waiting[key]
                    self._on_reply(request, reply)
        return seen

    def _reply(self, line: dict[str, Any]) -> Reply:
        response = line.get("response") or {}
        status, body = response.get("status_code"), response.get("body")
        if status == 200:
            return self._endpoint.read(json.dumps(body))
        if status is None:
            error = line.get("error") or {}
            said = str(error.get("message") or error.get("code") or "a line without an answer")
            raise PassingError(self._endpoint.first_words(said))
        return self._endpoint.refused_or_raise(int(status), body, json.dumps(body))

    def _failed(self, key: str, reason: str) -> None:
        if key not in self._waiting:
            return
        self._attempts[key] += 1
        if self._attempts[key] >= self._max_attempts:
            del self._waiting[key]
            self._unanswered[key] = reason

    async def _lines(self, client: AsyncOpenAI, file_id: str) -> list[dict[str, Any]]:
        async def lines() -> list[dict[str, Any]]:
            content = await client.files.content(file_id)
            found = [json.loads(line) for line in content.content.splitlines() if line.strip()]
            if not all(isinstance(line, dict) for line in found):
                raise PassingError("a file whose lines are no objects")
            return found

        return await self._persist(lines)

    async def _persist(self, call: Callable[[], Awaitable[ResultT]]) -> ResultT:
        """What a call gives, through failures that pass.

        Raises:
            ValueError: the endpoint refuses, or fails in all tries.
        """
        retrying = AsyncRetrying(
            stop=stop_after_attempt(_TRIES),
            wait=wait_random_exponential(max=30),
            retry=retry_if_exception_type(PassingError),
            reraise=True,
        )
        try:
            return await retrying(self._once, call)
        except PassingError as error:
            raise ValueError(
                f"the endpoint at {self._endpoint.url} fails ({error}): start again later, what was submitted is "
                "found again"
            ) from error

    async def _once(self, call: Callable[[], Awaitable[ResultT]]) -> ResultT:
        answer: ResultT | APIStatusError | None
        try:
            answer = await self._endpoint.answered(call())
        except (json.JSONDecodeError, UnicodeDecodeError):
            answer = None
        # The client takes a page for a text.
        if answer is None or isinstance(answer, str):
            raise PassingError("an answer that is no JSON")
        if not isinstance(answer, APIStatusError):
            return answer
        if answer.status_code == 404:
            raise _GoneError(
                f"the endpoint at {self._endpoint.url} answered 404 "
                f"({self._endpoint.first_words(answer.response.text)}): it has no Batch API, or the file or batch is "
                "gone; ask with --judge.mode live where it has none"
            )
        self._endpoint.refused_or_raise(answer.status_code, answer.body, answer.response.text, answer.response.headers)
        raise ValueError(
            f"the endpoint at {self._endpoint.url} filters what is none of a question's: start again later"
        )
