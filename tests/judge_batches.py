"""OpenAI's Files and Batch API, as far as judging by the batch takes it; somebody else answers the questions."""

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, NamedTuple

_ENDPOINT = "/v1/chat/completions"
_MOST_LINES = 50_000


class Request(NamedTuple):
    """An HTTP request; header names in lower case."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes


class Reply(NamedTuple):
    """An HTTP response."""

    status: int
    body: bytes
    headers: Mapping[str, str] = {}


def json_reply(content: object, status: int = 200) -> Reply:
    """A JSON body."""
    return Reply(status, json.dumps(content).encode())


def failure(status: int, message: str, code: str | None = None) -> Reply:
    """OpenAI's shape of an error."""
    kind = "invalid_request_error" if 400 <= status < 429 else "server_error"
    return json_reply({"error": {"message": message, "type": kind, "param": None, "code": code}}, status)


@dataclass
class _File:
    id: str
    name: str
    purpose: str
    content: bytes
    created_at: int

    def described(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "file",
            "bytes": len(self.content),
            "created_at": self.created_at,
            "filename": self.name,
            "purpose": self.purpose,
            "status": "processed",
        }


@dataclass
class _Batch:
    id: str
    input_file_id: str
    metadata: dict[str, str] | None
    created: float
    fate: str
    lines: list[dict[str, Any]] = field(default_factory=list)
    status: str = "validating"
    # The other fields of OpenAI's batch object, as they come to be.
    shown: dict[str, Any] = field(default_factory=dict)

    def described(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": _ENDPOINT,
            "errors": None,
            "input_file_id": self.input_file_id,
            "completion_window": "24h",
            "status": self.status,
            "output_file_id": None,
            "error_file_id": None,
            "created_at": int(self.created),
            "expires_at": int(self.created) + 24 * 3600,
            "request_counts": {"total": len(self.lines), "completed": 0, "failed": 0},
            "metadata": self.metadata,
            **self.shown,
        }


class Batches:
    """Files and batches; both live as long as this object.

    A batch is validated for a quarter of its delay and in progress for the rest. Its outcome is worked out when
    somebody looks at it after that.

    Args:
        answer: body of a question, id of its batch -> status and body.
        delay: from a batch's creation to its end [s].
        line_faults: share of lines that fail with 429 or 500.
        fates: how the first batches end: completed, failed, or expired with half of the lines done.
        random: shuffles the lines of the output and draws their faults.
    """

    def __init__(
        self,
        answer: Callable[[Any, str], tuple[int, Any]],
        *,
        delay: float,
        line_faults: float,
        fates: Iterable[str],
        random: Random,
    ) -> None:
        self._answer, self._delay, self._line_faults, self._random = answer, delay, line_faults, random
        self._fates = list(fates)
        self._files: dict[str, _File] = {}
        self._batches: dict[str, _Batch] = {}

    def reply(self, request: Request) -> Reply:
        """Answer a call to /v1/files or /v1/batches."""
        match request.method, request.path.strip("/").split("/")[1:]:
            case "POST", ["files"]:
                return self._upload(request)
            case "GET", ["files", file, "content"] if file in self._files:
                return Reply(200, self._files[file].content, {"Content-Type": "application/octet-stream"})
            case "GET", ["files", file] if file in self._files:
                return json_reply(self._files[file].described())
            case "POST", ["batches"]:
                return self._create(request)
            case "GET", ["batches"]:
                return self._list(request)
            case "GET", ["batches", batch] if batch in self._batches:
                return json_reply(self._looked_at(self._batches[batch]).described())
            case "POST", ["batches", batch, "cancel"] if batch in self._batches:
                return self._cancel(self._looked_at(self._batches[batch]))
        return failure(404, f"No such object: {request.path}", code="not_found")

    def _upload(self, request: Request) -> Reply:
        parts = _parts(request)
        if "file" not in parts or parts.get("purpose", ("", b""))[1] != b"batch":
            return failure(400, "Expected a file, and 'batch' for its purpose.")
        name, content = parts["file"]
        return json_reply(self._add_file(name, "batch", content).described())

    def _add_file(self, name: str, purpose: str, content: bytes) -> _File:
        file = _File(f"file-{len(self._files) + 1}", name, purpose, content, int(time.time()))
        self._files[file.id] = file
        return file

    def _create(self, request: Request) -> Reply:
        asked = json.loads(request.body)
        file = self._files.get(asked.get("input_file_id"))
        if file is None or file.purpose != "batch":
            return failure(400, "Invalid input_file_id.")
        if (asked.get("endpoint"), asked.get("completion_window")) != (_ENDPOINT, "24h"):
            return failure(400, "Invalid endpoint or completion_window.")
        fate = self._fates.pop(0) if self._fates else "completed"
        batch = _Batch(f"batch_{len(self._batches) + 1}", file.id, asked.get("metadata"), time.time(), fate)
        self._batches[batch.id] = batch
        return json_reply(batch.described())

    def _list(self, request: Request) -> Reply:
        newest_first = [self._looked_at(batch).described() for batch in reversed(self._batches.values())]
        ids = [batch["id"] for batch in newest_first]
        after, limit = request.query.get("after"), int(request.query.get("limit", "20"))
        start = ids.index(after) + 1 if after in ids else 0
        page = newest_first[start : start + limit]
        return json_reply(
            {
                "object": "list",
                "data": page,
                "first_id": page[0]["id"] if page else None,
                "last_id": page[-1]["id"] if page else None,
                "has_more": start + limit < len(ids),
            }
        )

    def _cancel(self, batch: _Batch) -> Reply:
        if batch.status not in ("validating", "in_progress"):
            return failure(409, f"Cannot cancel a batch with status '{batch.status}'.")
        done = min(1.0, (time.time() - batch.created) / self._delay)
        batch.status = "cancelling"
        batch.shown["cancelling_at"] = int(time.time())
        reply = json_reply(batch.described())
        self._finish(batch, "cancelled", int(len(batch.lines) * done))
        return reply

    def _looked_at(self, batch: _Batch) -> _Batch:
        """The batch as it is by now."""
        age = time.time() - batch.created
        if batch.status == "validating" and age >= self._delay / 4:
            errors = self._validate(batch)
            if batch.fate == "failed":
                errors = [_error("token_limit_exceeded", "Enqueued token limit reached.")]
            if errors:
                batch.status = "failed"
                batch.shown |= {"errors": {"object": "list", "data": errors}, "failed_at": int(time.time())}
            else:
                batch.status = "in_progress"
                batch.shown["in_progress_at"] = int(time.time())
        if batch.status == "in_progress" and age >= self._delay:
            if batch.fate == "expired":
                self._finish(batch, "expired", len(batch.lines) // 2)
            else:
                self._finish(batch, "completed", len(batch.lines))
        return batch

    def _validate(self, batch: _Batch) -> list[dict[str, Any]]:
        try:
            batch.lines = [json.loads(line) for line in self._files[batch.input_file_id].content.splitlines()]
            ids = {line["custom_id"] for line in batch.lines}
            models = {line["body"]["model"] for line in batch.lines}
            targets = {(line["method"], line["url"]) for line in batch.lines}
        except (ValueError, KeyError, TypeError):
            return [_error("invalid_json_line", "This line is not parseable as valid JSON.")]
        if not 0 < len(batch.lines) <= _MOST_LINES:
            return [_error("invalid_number_of_requests", f"Expected 1 to {_MOST_LINES} requests.")]
        if len(ids) < len(batch.lines):
            return [_error("duplicate_custom_id", "The custom_id is not unique within the file.")]
        if len(models) > 1:
            return [_error("mismatched_model", "All requests must be for the same model.")]
        if targets != {("POST", _ENDPOINT)}:
            return [_error("mismatched_url", f"The URL must be {_ENDPOINT}.")]
        return []

    def _finish(self, batch: _Batch, status: str, done: int) -> None:
        """Answer the first lines; the others were not got to."""
        output, errors = [], []
        for line in batch.lines[:done]:
            if self._random.random() < self._line_faults:
                failed = failure(self._random.choice([429, 500]), "The server had an error.")
                code, body = failed.status, json.loads(failed.body)
            else:
                code, body = self._answer(line["body"], batch.id)
            response = {"status_code": code, "request_id": f"req_{line['custom_id']}", "body": body}
            (output if code == 200 else errors).append(_result(batch, line, response, None))
        code = "batch_expired" if status == "expired" else "batch_cancelled"
        message = "This request could not be executed before the batch ended."
        errors += [_result(batch, line, None, {"code": code, "message": message}) for line in batch.lines[done:]]
        for kind, results in (("output", output), ("error", errors)):
            if results:
                self._random.shuffle(results)
                content = b"".join(json.dumps(result).encode() + b"\n" for result in results)
                file = self._add_file(f"{batch.id}_{kind}.jsonl", "batch_output", content)
                batch.shown[f"{kind}_file_id"] = file.id
        batch.status = status
        batch.shown |= {
            f"{status}_at": int(time.time()),
            "request_counts": {"total": len(batch.lines), "completed": len(output), "failed": len(errors)},
        }


def _result(
    batch: _Batch, line: dict[str, Any], response: dict[str, Any] | None, error: dict[str, str] | None
) -> dict[str, Any]:
    custom_id = line["custom_id"]
    return {"id": f"batch_req_{batch.id}_{custom_id}", "custom_id": custom_id, "response": response, "error": error}


def _error(code: str, message: str) -> dict[str, Any]:
    return {"code": code, "message": message, "param": None, "line": 1}


def _parts(request: Request) -> dict[str, tuple[str, bytes]]:
    """The parts of a multipart body: name -> file name and content."""
    _, _, boundary = request.headers.get("content-type", "").partition("boundary=")
    parts = {}
    for part in request.body.split(b"--" + boundary.strip('"').encode())[1:-1] if boundary else ():
        head, _, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        names = dict(
            pair.strip().split("=", 1)
            for pair in head.decode().splitlines()[0].split(";")
            if "=" in pair  # Content-Disposition: form-data; name="file"; filename="..."
        )
        parts[names["name"].strip('"')] = (names.get("filename", "").strip('"'), content.removesuffix(b"\r\n"))
    return parts
