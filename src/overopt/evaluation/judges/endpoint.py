"""One question to an OpenAI-compatible chat endpoint: who is asked, what comes back, and which failures may pass."""

import asyncio
import email.utils
import os
import time
from collections.abc import Awaitable, Mapping
from typing import Any, TypeVar
from urllib.parse import SplitResult, urlsplit

from openai import APIConnectionError, APIStatusError, AsyncOpenAI
from pydantic import BaseModel, NonNegativeInt, ValidationError

from overopt.evaluation.endpoint_errors import first_line, read_error
from overopt.evaluation.judges.prices import Usage

OPENAI = "https://api.openai.com/v1"
#: The key of an endpoint that is not OpenAI's: OPENAI_API_KEY is nobody's but OpenAI's to see.
OTHER_KEY_VARIABLE = "OVEROPT_JUDGE_API_KEY"

# Of 4xx answers, those that time mends: time-outs, locks, early data, too many requests.
_PASSING = {408, 409, 425, 429}
# 429 for an account that is out of money.
_FINAL_CODES = {"insufficient_quota", "billing_hard_limit_reached", "access_terminated"}
# 400 from endpoints that filter the question itself.
_FILTER_CODES = {"content_filter", "content_policy_violation", "ResponsibleAIPolicyViolation"}


ResultT = TypeVar("ResultT")


class Reply(BaseModel):
    """What is read of an answer, whatever else a server puts there.

    Attributes:
        text: the answer, word for word; it may repeat anything that the server knows, the key too.
        refused: the model declined, or a filter did.
        cut: it reached the limit of output tokens.
        model: that answered: of an alias, its snapshot.
        usage: tokens as the endpoint counted them; ``None`` where it counted none.
    """

    text: str
    refused: bool = False
    cut: bool = False
    model: str | None = None
    usage: Usage | None = None


class PassingError(Exception):
    """An attempt that failed in a way that may pass.

    Attributes:
        retry_after: the endpoint's own word on when to come back [s]; ``None`` where it says nothing.
        usage: tokens that it has charged all the same.
    """

    def __init__(self, reason: str, retry_after: float | None = None, usage: Usage | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after
        self.usage = usage


class Endpoint:
    """An OpenAI-compatible API.

    Args:
        url: its base, such as ``http://127.0.0.1:8000/v1``.
        key_variable: environment variable that holds the key; ``OPENAI_API_KEY`` for OpenAI and
            ``OVEROPT_JUDGE_API_KEY`` elsewhere by default.
        timeout: of one answer, from the first byte sent to the last one read [s].

    Raises:
        ValueError: no URL, a key inside it, or no time.
    """

    def __init__(self, url: str = OPENAI, key_variable: str | None = None, timeout: float = 120.0) -> None:
        # By its marks, not by its parts: a URL that is none may hold a key all the same, and is not repeated.
        if set("@?#") & set(url):
            raise ValueError(
                "the base URL of the endpoint holds a name, a key or a query (@, ? or #), which would be logged: give "
                "the key in an environment variable"
            )
        parts = _parts(url)
        if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no URL of an endpoint; expected such as http://127.0.0.1:8000/v1")
        if not timeout > 0:
            raise ValueError(f"need a time-out > 0 s, got {timeout}")
        self.url = url
        self.is_openai = parts.hostname == urlsplit(OPENAI).hostname
        self.timeout = timeout
        self._key_variable = key_variable or ("OPENAI_API_KEY" if self.is_openai else OTHER_KEY_VARIABLE)
        # A named variable was meant to hold something; a server on one's own machine often wants no key.
        self._needs_key = self.is_openai or key_variable is not None

    def require_key(self) -> None:
        """Raise a ValueError where the key is missing, or can be none."""
        if not self._key() and self._needs_key:
            raise ValueError(f"no key for {self.url}: set the environment variable {self._key_variable} to it")
        if not all("!" <= character <= "~" for character in self._key()):
            raise ValueError(
                f"what {self._key_variable} holds is no key, there is white space or a character beyond ASCII in it: "
                "set it to the key alone"
            )

    def client(self) -> AsyncOpenAI:
        """A client, which does not retry by itself."""
        self.require_key()
        return AsyncOpenAI(base_url=self.url, api_key=self._key() or "none", timeout=self.timeout, max_retries=0)

    def _key(self) -> str:
        return os.environ.get(self._key_variable, "").strip()

    def without_key(self, text: str) -> str:
        """A server's words, its key struck out should it have repeated it."""
        return text.replace(self._key(), "[key]") if self._key() else text

    def first_words(self, text: str) -> str:
        """The first line of a server's words, as far as an error can hold it, without the key."""
        # Struck out first: of a key that is cut in two, the half would stay.
        return first_line(self.without_key(text))

    async def ask(self, client: AsyncOpenAI, body: Mapping[str, Any]) -> Reply:
        """One attempt.

        Raises:
            PassingError: it may be asked again.
            ValueError: it may not: the endpoint has refused for good.
        """
        fields = {name: value for name, value in body.items() if name not in ("model", "messages")}
        try:
            async with asyncio.timeout(self.timeout):
                # In extra_body, since servers know fields of which OpenAI's client knows nothing.
                answer = await self.answered(
                    client.chat.completions.with_raw_response.create(
                        model=body["model"], messages=body["messages"], extra_body=fields
                    )
                )
        except TimeoutError as error:
            raise PassingError(f"no whole answer within {self.timeout:g} s") from error
        if isinstance(answer, APIStatusError):
            return self.refused_or_raise(answer.status_code, answer.body, answer.response.text, answer.response.headers)
        return self.read(answer.content)

    async def answered(self, call: Awaitable[ResultT]) -> ResultT | APIStatusError:
        """What a call of the client gives, or the error that the server answers with.

        Raises:
            PassingError: there is no answer.
        """
        try:
            return await call
        except APIStatusError as error:
            return error
        except APIConnectionError as error:
            reason = self.first_words(str(error.__cause__ or error))
        # Outside of the handlers, here and below: a traceback shows the error over which another was raised, and that
        # one's words may hold the key.
        raise PassingError(reason)

    def refused_or_raise(self, status: int, body: object, text: str, headers: Mapping[str, str] | None = None) -> Reply:
        """An answer that is an error: a question that was filtered has been answered, anything else is raised.

        Raises:
            PassingError: it may pass.
            ValueError: it will not.
        """
        code, reason = read_error(body, text)
        reason = self.first_words(reason)
        if status == 400 and code in _FILTER_CODES:
            return Reply(text=reason, refused=True, usage=Usage())
        if (status in _PASSING or status >= 500) and code not in _FINAL_CODES:
            raise PassingError(f"{status} {reason}", retry_after(headers or {}))
        raise ValueError(f"the endpoint at {self.url} answered {status} ({reason}): {self._way_out(status, code)}")

    def read(self, content: bytes | str) -> Reply:
        """An answer of status 200.

        Raises:
            PassingError: it is none: no JSON, no choices, or not the fields of a chat completion.
        """
        try:
            answer: _Completion | None = _Completion.model_validate_json(content)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            where = ".".join(map(str, first["loc"])) or "the answer"
            problem = f"an answer that is no chat completion ({where}: {first['msg']})"
            answer = None
        if answer is None:
            raise PassingError(problem)
        usage = answer.usage.counted() if answer.usage else None
        if len(answer.choices) != 1:
            raise PassingError(f"an answer with {len(answer.choices)} choices", usage=usage)
        (choice,) = answer.choices
        refusal = choice.message.refusal
        return Reply(
            text=refusal or choice.message.content or "",
            refused=refusal is not None or choice.finish_reason == "content_filter",
            cut=choice.finish_reason == "length",
            model=None if answer.model is None else self.without_key(answer.model),
            usage=usage,
        )

    def _way_out(self, status: int, code: str) -> str:
        if status in (401, 403):
            return f"check the key in {self._key_variable}"
        if status == 404:
            return "check --judge.model, and --judge.base_url, which ends with /v1 as a rule"
        if code in _FINAL_CODES:
            return "the account can't pay for more"
        return (
            "the request is not to its liking: try --judge.answers text where it knows no structured ones, and "
            "--judge.temperature null for models that take none"
        )


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _CachedTokens(BaseModel):
    cached_tokens: NonNegativeInt | None = None


class _Usage(BaseModel):
    prompt_tokens: NonNegativeInt | None = None
    completion_tokens: NonNegativeInt | None = None
    prompt_tokens_details: _CachedTokens | None = None

    def counted(self) -> Usage | None:
        if self.prompt_tokens is None or self.completion_tokens is None:
            return None
        cached = self.prompt_tokens_details.cached_tokens if self.prompt_tokens_details else None
        return Usage(self.prompt_tokens, self.completion_tokens, min(cached or 0, self.prompt_tokens))


class _Completion(BaseModel):
    choices: list[_Choice]
    model: str | None = None
    usage: _Usage | None = None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """What an answer's headers say on when to come back [s]: milliseconds, seconds, or a date.

    >>> retry_after({"retry-after": "3"}), retry_after({"retry-after-ms": "250"}), retry_after({})
    (3.0, 0.25, None)
    """
    for header, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers[header]) * unit)
        except (KeyError, ValueError):
            continue
    try:
        date = email.utils.parsedate_tz(headers.get("retry-after", ""))
        return None if date is None else max(0.0, email.utils.mktime_tz(date) - time.time())
    except (ValueError, OverflowError):
        return None  # a date that no calendar has


def _parts(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    return parts
