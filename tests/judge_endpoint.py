"""A real HTTP server on loopback that speaks OpenAI's chat completions and Batch API, and misbehaves on purpose.

    python tests/judge_endpoint.py --faults 0.5 --latency 0.5 --log FILE

prints its port and runs until it is stopped; :func:`judge_served` runs it inside a test. It answers questions about
the texts of :mod:`judged_texts`, and logs every request as a JSON line:

- ``received``, ``ended``: when the request was here and when the last byte of the answer had gone [s since the epoch];
- ``case``, ``question``: the case of the texts, and a hash of the whole message, which tells orders apart;
- ``answer``: ``good``, ``unreadable``, ``refused``, the name of a fault, or the status of a request that was wrong;
- ``text``: what the judge wrote, of answers that are no fault;
- ``delivered``: whether such an answer went out wholly while the client was still listening;
- ``early``: when the pause was announced (by Retry-After) that the client broke with this request; else null;
- ``under_way``: requests at that moment whose client had not hung up, this one included;
- ``batch``: the batch that the question came in, where it did.

HTTP is spoken by hand, byte by byte: no server library lets one break its promises.
"""

import asyncio
import json
import math
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from judge_batches import Batches, Reply, Request, failure, json_reply
from judged_texts import read_question, unanswered

MODEL = "judge-1"
#: Requests so soon after a pause was announced may have been on their way. [s]
GRACE = 0.1
#: Nobody's sleep is more exact. [s]
_TIMER = 0.005
_REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 429: "Too Many Requests"}
_PIECES = 25  # of a slow answer


class Exchange:
    """A request's connection, and what an honest server would answer.

    Args:
        reader: tells whether the client still listens.
        writer: to the client.
        honest: the answer.
        behaviour: of the server.
        key: the client's, echoed by a nasty server.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        honest: Reply,
        behaviour: "Behaviour",
        key: str,
    ) -> None:
        self.reader, self.writer, self.honest, self.behaviour = reader, writer, honest, behaviour
        self.echo = f" (key {key})" if behaviour.echo_key else ""
        self.pause_until: float | None = None

    async def send(self, reply: Reply) -> bool:
        """Send a reply; whether the client was there to take it."""
        self.writer.write(head_of(reply) + reply.body)
        return await self.flush()

    async def flush(self) -> bool:
        """Whether what was written went to a client that still listens."""
        try:
            await self.writer.drain()
        except ConnectionError:
            return False
        return not (self.reader.at_eof() or self.writer.is_closing())

    def abort(self) -> None:
        """Cut the connection: the client sees a reset."""
        self.writer.transport.abort()


def head_of(reply: Reply) -> bytes:
    """Status line and headers."""
    headers = {"Content-Type": "application/json", **reply.headers, "Content-Length": str(len(reply.body))}
    lines = [
        f"HTTP/1.1 {reply.status} {_REASONS.get(reply.status, 'Error')}",
        *(f"{k}: {v}" for k, v in headers.items()),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


Fault = Callable[[Exchange], Awaitable[bool]]


def _says(status: int, message: str) -> Fault:
    async def fault(exchange: Exchange) -> bool:
        await exchange.send(failure(status, message + exchange.echo))
        return False

    return fault


def _pauses(header: Callable[[float], tuple[dict[str, str], float]]) -> Fault:
    """429 with a header that names the end of the pause.

    Args:
        header: the time [s since the epoch] -> the header, and when the pause that it demands has passed.
    """

    async def fault(exchange: Exchange) -> bool:
        headers, exchange.pause_until = header(time.time())
        await exchange.send(failure(429, "Rate limit reached." + exchange.echo)._replace(headers=headers))
        return False

    return fault


def _in_seconds(now: float) -> tuple[dict[str, str], float]:
    return {"Retry-After": "1"}, now + 1


def _in_milliseconds(now: float) -> tuple[dict[str, str], float]:
    return {"retry-after-ms": "300"}, now + 0.3


def _at_a_date(now: float) -> tuple[dict[str, str], float]:
    until = math.ceil(now) + 1
    return {"Retry-After": formatdate(until, usegmt=True)}, until


async def _slow(exchange: Exchange) -> bool:
    """Bytes keep coming, so no time-out between two of them ever passes; the whole is too late."""
    body = exchange.honest.body
    exchange.writer.write(head_of(exchange.honest))
    piece = math.ceil(len(body) / _PIECES)
    for start in range(0, len(body), piece):
        await asyncio.sleep(exchange.behaviour.slow / _PIECES)
        exchange.writer.write(body[start : start + piece])
        if not await exchange.flush():
            return False
    return True


async def _cut_before(exchange: Exchange) -> bool:
    exchange.abort()
    return False


async def _cut_within(exchange: Exchange) -> bool:
    body = exchange.honest.body
    exchange.writer.write(head_of(exchange.honest) + body[: len(body) // 2])
    await exchange.flush()
    exchange.writer.close()
    return False


def _instead(body: Callable[[bytes], bytes], content_type: str = "application/json") -> Fault:
    """Status 200 with another body."""

    async def fault(exchange: Exchange) -> bool:
        await exchange.send(Reply(200, body(exchange.honest.body), {"Content-Type": content_type}))
        return False

    return fault


def _with_choices(change: Callable[[list[Any]], list[Any]]) -> Callable[[bytes], bytes]:
    def body(honest: bytes) -> bytes:
        content = json.loads(honest)
        return json.dumps({**content, "choices": change(content.get("choices", []))}).encode()

    return body


#: Each fault by name, with its weight among them. Pauses and slow answers hold up everything, so they are rarer.
FAULTS: dict[str, tuple[Fault, float]] = {
    "429 in seconds": (_pauses(_in_seconds), 0.1),
    "429 in milliseconds": (_pauses(_in_milliseconds), 0.1),
    "429 at a date": (_pauses(_at_a_date), 0.1),
    "429": (_says(429, "Rate limit reached."), 1.0),
    "500": (_says(500, "The server had an error."), 1.0),
    "503": (_says(503, "The engine is overloaded."), 1.0),
    "slow": (_slow, 0.3),
    "cut before": (_cut_before, 1.0),
    "cut within": (_cut_within, 1.0),
    "invalid JSON": (_instead(lambda honest: honest[: len(honest) * 2 // 3]), 1.0),
    "page": (_instead(lambda _: b"<html>Please sign in.</html>", "text/html"), 0.5),
    "no choices": (_instead(_with_choices(lambda _: [])), 1.0),
    "no message": (_instead(_with_choices(lambda _: [{"index": 0, "finish_reason": "stop"}])), 0.5),
    "list": (_instead(lambda honest: b"[" + honest + b"]"), 0.5),
    "error with 200": (_instead(lambda _: json.dumps({"error": {"message": "Provider failed."}}).encode()), 0.5),
}


@dataclass(frozen=True)
class Behaviour:
    """How the server behaves.

    Attributes:
        latency: from a request to its answer, faults included [s].
        faults: share of chat requests that get a fault.
        kinds: the faults to draw from, by their weights; all of them by default.
        slow: how long a slow answer takes [s].
        unreadable: share of cases whose answer names no summary.
        refused: share of cases that are refused.
        structured: whether it knows ``response_format``; else it answers 400 to it.
        key: the key it accepts; any by default.
        echo_key: put the client's key into every error message, as a nasty server might.
        batch_delay: from a batch's creation to its end [s].
        batch_line_faults: share of a batch's lines that end in the error file, with status 429 or 500.
        batch_call_faults: share of calls to files and batches that fail, some of them after they were carried out.
        batch_fates: how the first batches end: completed, failed or expired; those after them are completed.
        seed: fixes which fault comes when, in the order of requests.
    """

    latency: float = 0.0
    faults: float = 0.0
    kinds: list[str] | None = None
    slow: float = 5.0
    unreadable: float = 0.0
    refused: float = 0.0
    structured: bool = True
    key: str | None = None
    echo_key: bool = False
    batch_delay: float = 0.2
    batch_line_faults: float = 0.0
    batch_call_faults: float = 0.0
    batch_fates: list[str] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.kinds or ()) - FAULTS.keys()):
            raise ValueError(f"no fault {', '.join(unknown)}; there are {', '.join(FAULTS)}")


class _Pause(NamedTuple):
    announced: float
    until: float


class JudgeEndpoint:
    """The server's state: what it was asked, and what it owes.

    Args:
        behaviour: how it behaves.
        log: file that entries are appended to.
    """

    def __init__(self, behaviour: Behaviour, log: Path | None = None) -> None:
        self.behaviour = behaviour
        self.entries: list[dict[str, Any]] = []
        self.most_under_way = self.most_in_a_minute = 0
        self._readers: set[asyncio.StreamReader] = set()
        self.url = ""
        self._log = log.open("a", encoding="utf-8", buffering=1) if log else None
        self._random = Random(behaviour.seed)
        self._pauses: list[_Pause] = []
        self._writers: set[asyncio.StreamWriter] = set()
        self._last_minute: deque[float] = deque()
        self._batches = Batches(
            self._answer_in_batch,
            delay=behaviour.batch_delay,
            line_faults=behaviour.batch_line_faults,
            fates=behaviour.batch_fates or (),
            random=self._random,
        )

    async def start(self, port: int = 0) -> asyncio.Server:
        """Listen on loopback; :attr:`url` says where."""
        server = await asyncio.start_server(self._connected, "127.0.0.1", port, limit=1 << 20, backlog=1024)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        return server

    @property
    def busy(self) -> bool:
        """Whether it is at any request, its client listening or not."""
        return bool(self._readers)

    @property
    def under_way(self) -> int:
        """Requests whose client waits for the end of their answer."""
        return sum(not reader.at_eof() for reader in self._readers)

    @property
    def counts(self) -> dict[str, int]:
        """Requests to chat completions: in all, most at a time, most within 60 s."""
        return {
            "requests": len(self.entries),
            "most_under_way": self.most_under_way,
            "most_in_a_minute": self.most_in_a_minute,
        }

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while request := await _read(reader):
                await self._respond(request, reader, writer)
                if writer.is_closing():
                    return
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # clients may leave at any time
        finally:
            self._writers.discard(writer)
            writer.close()

    def hang_up(self) -> None:
        """Close every connection."""
        for writer in self._writers:
            writer.close()

    async def _respond(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        key = request.headers.get("authorization", "").removeprefix("Bearer ")
        if request.path == "/counts":
            reply = json_reply(self.counts)
        elif self.behaviour.key not in (None, key):
            said = f"Incorrect API key provided{f': {key}' if self.behaviour.echo_key else ''}."
            reply = failure(401, said, code="invalid_api_key")
        elif (request.method, request.path) == ("POST", "/v1/chat/completions"):
            await self._chat(request, key, reader, writer)
            return
        elif (request.method, request.path) == ("GET", "/v1/models"):
            model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "us"}
            reply = json_reply({"object": "list", "data": [model]})
        else:
            await self._batch_call(request, key, reader, writer)
            return
        await Exchange(reader, writer, reply, self.behaviour, key).send(reply)

    async def _chat(
        self, request: Request, key: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        received = time.time()
        self._count(received, reader)
        try:
            try:
                body = json.loads(request.body)
            except ValueError:
                body = None
            reply, said = self._honest(body)
            entry = {
                "received": received,
                **_about(body),
                "answer": said.kind,
                "text": said.text,
                "early": self._broken_pause(received),
                "under_way": self.under_way,
                "batch": None,
            }
            await asyncio.sleep(self.behaviour.latency - (time.time() - received))
            exchange = Exchange(reader, writer, reply, self.behaviour, key)
            # A request that is wrong in itself is told so: its error is the honest answer.
            if reply.status == 200 and self._random.random() < self.behaviour.faults:
                entry |= {"answer": self._draw_fault(), "text": None}
                delivered = await FAULTS[entry["answer"]][0](exchange)
                if delivered:
                    entry["text"] = said.text
            else:
                delivered = await exchange.send(reply) and reply.status == 200
            ended = time.time()
            if exchange.pause_until:
                self._pauses.append(_Pause(ended, exchange.pause_until))
            self._keep({**entry, "ended": ended, "delivered": delivered})
        finally:
            self._readers.discard(reader)

    def _draw_fault(self) -> str:
        kinds = self.behaviour.kinds or list(FAULTS)
        return self._random.choices(kinds, [FAULTS[kind][1] for kind in kinds])[0]

    async def _batch_call(
        self, request: Request, key: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        fault = None
        if self._random.random() < self.behaviour.batch_call_faults:
            fault = self._random.choice(["429", "500", "cut before", "cut after"])
        # The worst is to be cut off after the batch was made: it runs, and its id is lost.
        carried_out = fault in (None, "cut after")
        reply = self._batches.reply(request) if carried_out else failure(500, "The server had an error.")
        exchange = Exchange(reader, writer, reply, self.behaviour, key)
        if fault is None:
            await exchange.send(reply)
        else:
            await FAULTS["cut before" if fault == "cut after" else fault][0](exchange)

    def _honest(self, body: Any) -> tuple[Reply, "Said"]:
        """What an honest server answers."""
        wrong = self._wrong(body)
        if wrong:
            return wrong, Said(str(wrong.status), None)
        said = say(body, self.behaviour)
        message: dict[str, Any] = {"role": "assistant", "content": said.text, "refusal": None}
        if said.kind == "refused":
            message |= {"content": None, "refusal": said.text}
        prompt_tokens, completion_tokens = tokens(_message(body)), tokens(said.text or "")
        return (
            json_reply(
                {
                    "id": f"chatcmpl-{len(self.entries)}",
                    "object": "chat.completion",
                    "created": int(time.time()),
                    "model": body["model"],
                    "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
                    "usage": {
                        "prompt_tokens": prompt_tokens,
                        "completion_tokens": completion_tokens,
                        "total_tokens": prompt_tokens + completion_tokens,
                    },
                }
            ),
            said,
        )

    def _wrong(self, body: Any) -> Reply | None:
        """OpenAI's error for a request that can't be answered."""
        if not isinstance(body, dict) or not isinstance(body.get("messages"), list) or not body["messages"]:
            return failure(400, "We could not parse the JSON body of your request.")
        if body.get("model") != MODEL:
            message = f"The model `{body.get('model')}` does not exist or you do not have access to it."
            return failure(404, message, code="model_not_found")
        schema = _schema(body)
        if schema is None:
            return None
        if not self.behaviour.structured:
            return failure(400, "Unsupported parameter: 'response_format'.", code="unsupported_parameter")
        # What strict mode insists on.
        if schema.get("additionalProperties") is not False or sorted(schema.get("required", ())) != sorted(
            schema.get("properties", ())
        ):
            return failure(400, "Invalid schema for response_format: additionalProperties must be false.")
        return None

    def _answer_in_batch(self, body: Any, batch: str) -> tuple[int, Any]:
        reply, said = self._honest(body)
        now = time.time()
        about = {**_about(body), "answer": said.kind, "text": said.text, "early": None, "under_way": 0, "batch": batch}
        self._keep({"received": now, **about, "ended": now, "delivered": reply.status == 200})
        return reply.status, json.loads(reply.body)

    def _count(self, received: float, reader: asyncio.StreamReader) -> None:
        self._readers.add(reader)
        self.most_under_way = max(self.most_under_way, self.under_way)
        self._last_minute.append(received)
        while self._last_minute[0] <= received - 60:
            self._last_minute.popleft()
        self.most_in_a_minute = max(self.most_in_a_minute, len(self._last_minute))

    def _broken_pause(self, received: float) -> float | None:
        self._pauses = [pause for pause in self._pauses if received < pause.until - _TIMER]
        return next((pause.announced for pause in self._pauses if received > pause.announced + GRACE), None)

    def _keep(self, entry: dict[str, Any]) -> None:
        self.entries.append(entry)
        if self._log:
            self._log.write(json.dumps(entry) + "\n")


class Said(NamedTuple):
    """What the judge says to a question, and whether that is good, unreadable or refused."""

    kind: str
    text: str | None


def say(body: dict[str, Any], behaviour: Behaviour) -> Said:
    """The answer to a question: always the same, and true of the texts."""
    case, worths = read_question(_message(body))
    fate = unanswered(case, unreadable=behaviour.unreadable, refused=behaviour.refused) if case else None
    if fate == "refused":
        return Said("refused", "I'm sorry, I can't help with that.")
    if fate == "unreadable" or len(worths) != 2:
        return Said("unreadable", "Both have their merits, and who am I to say which of them I would rather read?")
    place = 2 if worths[0] == worths[1] else worths.index(max(worths))
    schema = _schema(body)
    if schema is None:
        return Said("good", f"Comparison: It covers more of case {case}.\nPreferred: {('A', 'B', 'tie')[place]}")
    # The choice is the field with an enumeration, its values in the order in which the summaries are shown.
    fields = {
        name: field["enum"][place] if "enum" in field else f"It covers more of case {case}."
        for name, field in schema["properties"].items()
    }
    return Said("good", json.dumps(fields))


def tokens(text: str) -> int:
    """So many tokens are counted for a text, in the fields ``usage``."""
    return len(text) // 4


def _schema(body: dict[str, Any]) -> dict[str, Any] | None:
    wanted = body.get("response_format") or {}
    return wanted["json_schema"]["schema"] if wanted.get("type") == "json_schema" else None


def _message(body: Any) -> str:
    """The text of all messages."""
    messages = body.get("messages") if isinstance(body, dict) else None
    return "\n".join(str(message.get("content")) for message in messages or ())


def _about(body: Any) -> dict[str, Any]:
    text = _message(body)
    return {"case": read_question(text).case, "question": sha256(text.encode()).hexdigest()[:16]}


async def _read(reader: asyncio.StreamReader) -> Request | None:
    """The next request of a connection; ``None`` at its end."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin-1").strip().split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    url = urlsplit(target)
    query = {name: values[-1] for name, values in parse_qs(url.query).items()}
    return Request(method, url.path, query, headers, body)


@contextmanager
def judge_served(behaviour: Behaviour | None = None, log: Path | None = None) -> Iterator[JudgeEndpoint]:
    """The server in a thread of its own; after the block all its entries are there."""
    endpoint = JudgeEndpoint(behaviour or Behaviour(), log)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = asyncio.run_coroutine_threadsafe(endpoint.start(), loop).result()

    async def finish() -> None:
        server.close()
        while endpoint.busy:  # an answer may be with the client before its entry is made
            await asyncio.sleep(0.01)
        endpoint.hang_up()
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})

    try:
        yield endpoint
    finally:
        asyncio.run_coroutine_threadsafe(finish(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def main(behaviour: Behaviour, port: int = 0, log: Path | None = None) -> None:
    """Serve until stopped; the port is printed first.

    Args:
        behaviour: how the server behaves.
        port: to listen at; a free one by default.
        log: file that entries are appended to.
    """

    async def serve() -> None:
        endpoint = JudgeEndpoint(behaviour, log)
        server = await endpoint.start(port)
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

    asyncio.run(serve())


if __name__ == "__main__":
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="to listen at; a free one by default")
    parser.add_argument("--log", type=Path, help="file that entries are appended to")
    parser.add_class_arguments(Behaviour)
    options = parser.parse_args()
    main(Behaviour(**{k: v for k, v in vars(options).items() if k not in ("port", "log")}), options.port, options.log)
