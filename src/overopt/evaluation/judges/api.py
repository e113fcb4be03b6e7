"""A model behind an OpenAI-compatible API as a judge."""

import asyncio
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from overopt.evaluation.judges.batch_requests import BatchRequests
from overopt.evaluation.judges.budget import Budget
from overopt.evaluation.judges.endpoint import OPENAI, Endpoint, Reply
from overopt.evaluation.judges.live_requests import Limits, LiveRequests, Request
from overopt.evaluation.judges.prices import DEFAULT_PRICES, Usage, read_prices
from overopt.evaluation.judges.protocol import Estimate, Judge, OnVerdict, ignore
from overopt.evaluation.judges.question import DEFAULT_TEMPLATE, AnswerForm, Choice, Question
from overopt.evaluation.judges.verdict_cache import verdict_key
from overopt.evaluation.records import Comparison, Verdict

# What a token of English takes on average, and what the smallest possible one takes. [bytes]
_USUAL_TOKEN, _SMALLEST_TOKEN = 4.0, 1.0
# Marks of roles and messages that an endpoint puts around a question, and a schema. [tokens]
_FRAME_TOKENS = 100
# What no further field of the request may change.
_FIXED_FIELDS = {"model", "messages", "n", "stream", "max_tokens", "max_completion_tokens", "response_format"}
# Of a sentence of comparison and the choice; only the estimate knows it.
_USUAL_ANSWER_TOKENS = 60


class ApiJudge(Judge):
    """Asks a model which of two summaries is better, through the chat API of OpenAI or of any server that speaks it.

    The key comes from the environment: OPENAI_API_KEY for OpenAI, OVEROPT_JUDGE_API_KEY for others.

    Args:
        model: as the endpoint calls it; a dated snapshot, so that verdicts stay comparable.
        base_url: of the endpoint, /v1 included.
        template: file of the question.
        answers: structured, a JSON object that the endpoint is held to; text, for endpoints and models that know no
            structured answers (gpt-4-turbo is one).
        ties: whether the judge may call it a tie.
        mode: live, or batch: OpenAI's Batch API, at half the price and within a day.
        prices: table of prices; null for none.
        temperature: of the answer; null for models that take none.
        max_output_tokens: of the answer, reasoning among them.
        extra: further fields of the request, such as {reasoning_effort: low}.
        max_concurrent: requests under way at a time.
        requests_per_minute: budget of the account; none by default.
        tokens_per_minute: budget of the account, of input and of the most that answers may have; none by default.
        timeout: of one answer [s].
        max_attempts: for one question; only failures that may pass are tried again.
        key_variable: environment variable of the key, if another one.
        poll_seconds: between looks at a batch [s].

    Raises:
        ValueError: a setting out of its range, or a file that is not what it should be.
    """

    def __init__(
        self,
        model: str,
        base_url: str = OPENAI,
        template: Path = DEFAULT_TEMPLATE,
        answers: AnswerForm = "structured",
        ties: bool = False,
        mode: Literal["live", "batch"] = "live",
        prices: Path | None = DEFAULT_PRICES,
        temperature: float | None = 0.0,
        max_output_tokens: int = 300,
        extra: dict[str, Any] | None = None,
        max_concurrent: int = 32,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        timeout: float = 120.0,
        max_attempts: int = 6,
        key_variable: str | None = None,
        poll_seconds: float = 30.0,
    ) -> None:
        if max_output_tokens < 1 or not poll_seconds > 0:
            raise ValueError(
                f"need max_output_tokens >= 1 and poll_seconds > 0, got {max_output_tokens} and {poll_seconds}"
            )
        self._model = model
        self._endpoint = Endpoint(base_url, key_variable, timeout)
        self._question = Question(template, answers=answers, ties=ties)
        self._mode = mode
        self._max_output_tokens = max_output_tokens
        self._extra = extra or {}
        if fixed := sorted(_FIXED_FIELDS & self._extra.keys()):
            raise ValueError(f"extra can't set {', '.join(fixed)}: cost and reading of answers rest on it")
        self._temperature = temperature
        self._limits = Limits(max_concurrent, max_attempts, requests_per_minute, tokens_per_minute)
        self._poll_seconds = poll_seconds
        table = None if prices is None else read_prices(prices)
        self._prices = prices
        self._price = None if table is None else table.models.get(model)
        self._factor = table.batch_factor if table is not None and mode == "batch" else 1.0
        self._currency = "" if table is None else table.currency

    @property
    def reads_both(self) -> bool:
        """It sees one text before the other."""
        return True

    @property
    def settings(self) -> dict[str, str]:
        """Whatever changes the question or how it is answered. How hard the endpoint is pressed does not."""
        sampling = {"temperature": self._temperature, "max_output_tokens": self._max_output_tokens, **self._extra}
        return {
            "judge": self._model,
            "judge_endpoint": self._endpoint.url,
            "judge_question": f"{self._question.name} {self._question.fingerprint}",
            "judge_sampling": ", ".join(f"{name} {value}" for name, value in sorted(sampling.items())),
        }

    def judge(
        self, comparisons: Sequence[Comparison], on_verdict: OnVerdict = ignore, budget: Budget | None = None
    ) -> list[Verdict]:
        """Verdicts as the model gives them; those it can't be read from keep its words.

        Raises:
            ValueError: as :meth:`require`; no such model, an endpoint that is down, questions that nobody
                answered, or the cost limit: verdicts that are there have been reported all the same.
        """
        budget = budget or Budget()
        self.require(comparisons, budget.max_cost)
        verdicts: list[Verdict] = [Verdict("unreadable", None)] * len(comparisons)

        def keep(request: Request, reply: Reply) -> None:
            verdict = self._verdict(request, reply)
            budget.spend(verdict.cost or 0.0)
            verdicts[request.place] = verdict
            on_verdict(request.place, verdict)

        requests = self._requests(comparisons)
        if self._mode == "batch":
            mark = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:32]
            batches = BatchRequests(
                self._endpoint, mark, self._limits.max_attempts, self._poll_seconds, keep, budget, self._cost
            )
            asyncio.run(batches.ask_all(list(requests)))
        else:
            live = LiveRequests(self._endpoint, self._limits, self._max_output_tokens, keep, budget, self._cost)
            asyncio.run(live.ask_all(requests))
        return verdicts

    def require(self, comparisons: Sequence[Comparison], max_cost: float | None = None) -> None:
        """The key, and a price where there is a limit.

        Raises:
            ValueError: one of them is missing.
        """
        if max_cost is not None and self._price is None:
            table = "without a table of prices" if self._prices is None else f"in {self._prices}"
            raise ValueError(
                f"no price of {self._model} {table}, so --max-cost can't be kept: give its price in a table with "
                "--judge.prices, or leave the limit out"
            )
        self._endpoint.require_key()

    def estimate(self, comparisons: Sequence[Comparison]) -> Estimate:
        """By the length of the questions, at four bytes a token."""
        count = len(comparisons)
        size = sum(len(self._question.text(comparison).encode()) for comparison in comparisons)
        usage = Usage(
            int(size / _USUAL_TOKEN) + count * _FRAME_TOKENS,
            count * min(_USUAL_ANSWER_TOKENS, self._max_output_tokens),
        )
        return Estimate(count, usage.input_tokens, usage.output_tokens, self._cost(usage), self._currency)

    def _requests(self, comparisons: Sequence[Comparison]) -> Iterator[Request]:
        settings = self.settings
        for place, comparison in enumerate(comparisons):
            text = self._question.text(comparison)
            size = len(text.encode())
            # Hard: as if every byte were a token and the answer as long as it may be.
            most = Usage(int(size / _SMALLEST_TOKEN) + _FRAME_TOKENS, self._max_output_tokens)
            yield Request(
                place,
                verdict_key(settings, comparison),
                self._body(text),
                int(size / _USUAL_TOKEN) + _FRAME_TOKENS,
                self._cost(most) or 0.0,
            )

    def _body(self, text: str) -> dict[str, Any]:
        # OpenAI's newer models refuse max_tokens; servers of its kind may not know the newer name.
        limit = "max_completion_tokens" if self._endpoint.is_openai else "max_tokens"
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": "user", "content": text}],
            limit: self._max_output_tokens,
        }
        if self._temperature is not None:
            body["temperature"] = self._temperature
        if (response_format := self._question.response_format()) is not None:
            body["response_format"] = response_format
        return body | self._extra

    def _cost(self, usage: Usage) -> float | None:
        return None if self._price is None else self._price.cost(usage, self._factor)

    def _verdict(self, request: Request, reply: Reply) -> Verdict:
        # In an answer that was cut, what looks like a choice is not one.
        choice = Choice("unreadable", None) if reply.cut else self._question.read(reply.text)
        kind, win_probability = Choice("refused", None) if reply.refused else choice
        usage = reply.usage or Usage()
        # An endpoint that counts nothing may have taken all that the question could cost; limits hold all the same.
        uncounted = None if self._price is None else request.highest_cost
        return Verdict(
            kind,
            win_probability,
            answer=self._endpoint.without_key(reply.text),
            answered_by=reply.model,
            cost=uncounted if reply.usage is None else self._cost(usage),
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
        )
