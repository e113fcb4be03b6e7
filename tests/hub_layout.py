"""Dataset folders laid out as the hub has them, and a hub to download them from; all rows are ours."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow
import pyarrow.parquet

TEXT, NUMBER = pyarrow.string(), pyarrow.int32()
INFO = pyarrow.struct([(name, TEXT) for name in ("id", "post", "title", "subreddit", "site", "article")])
COMPARISONS = pyarrow.schema(
    {
        "info": INFO,
        "summaries": pyarrow.list_(pyarrow.struct([("text", TEXT), ("policy", TEXT), ("note", TEXT)])),
        "choice": NUMBER,
        "worker": TEXT,
        "batch": TEXT,
        "split": TEXT,
        "extra": pyarrow.struct([("confidence", NUMBER)]),
    }
)
AXES = pyarrow.struct([(name, NUMBER) for name in ("overall", "accuracy", "coverage", "coherence")])
AXIS = pyarrow.schema(
    {
        "info": INFO,
        "summary": pyarrow.struct([("text", TEXT), ("policy", TEXT), ("note", TEXT), ("axes", AXES)]),
        "worker": TEXT,
        "batch": TEXT,
        "split": TEXT,
    }
)


def info(post: str, **changes: str | None) -> dict[str, str | None]:
    return {"id": post, "post": f"My {post} sleeps.", "title": "A pet", "subreddit": "pets"} | changes


def news(post: str) -> dict[str, str | None]:
    return {"id": post, "site": "cnn", "article": "(CNN) -- News.", "title": "News"}


def comparison(post: str, split: str, *, choice: int = 0, confidence: int | None = 7, **changes: Any) -> dict[str, Any]:
    row = {
        "info": info(post),
        "summaries": [{"text": f" {post} sleeps.", "policy": "sup4"}, {"text": " A pet.", "policy": "ref"}],
        "choice": choice,
        "worker": "w",
        "batch": "batch3",
        "split": split,
        "extra": {"confidence": confidence},
    }
    return row | changes


def rating(post: str, text: str, overall: int | None, *, worker: str = "w", **changes: Any) -> dict[str, Any]:
    summary = {"text": text, "policy": "sup4", "axes": {"overall": overall, "accuracy": 7}}
    return {"info": info(post), "summary": summary, "worker": worker, "batch": "b", "split": "test"} | changes


def write_parquet(path: Path, rows: list[dict[str, Any]], schema: pyarrow.Schema | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), path)


def write_feedback(folder: Path) -> Path:
    """Like the Parquet conversion of openai/summarize_from_feedback: two configurations, two splits each, shards."""
    train = [comparison(f"t3_{i}", "train", choice=i % 2) for i in range(30)]
    write_parquet(folder / "comparisons/train/0000.parquet", train[:20], COMPARISONS)
    write_parquet(folder / "comparisons/train/0001.parquet", train[20:], COMPARISONS)
    held_out = [
        comparison("t3_0", "valid1", choice=1),  # a post of the training split
        comparison("t3_40", "valid1"),
        comparison("t3_41", "valid2", confidence=None),
        comparison("t3_42", "valid2", info=news("t3_42")),
        comparison("t3_43", "valid2", info=info("t3_43", id=None, subreddit="r/pets")),
    ]
    write_parquet(folder / "comparisons/validation/0000.parquet", held_out, COMPARISONS)
    ratings = [rating("t3_50", " Good.", 7), rating("t3_50", " Bad.", 2), rating("t3_50", " So so.", 2)]
    write_parquet(folder / "axis/test/0000.parquet", ratings, AXIS)
    write_parquet(folder / "axis/validation/0000.parquet", [rating("t3_51", " Alone.", 4, split="valid1")], AXIS)
    return folder


def tldr_text(number: int, gap: str = "\n\n", end: str = "") -> str:
    post = f"Post {number}.\nIt goes on."
    return gap.join(["SUBREDDIT: r/pets", f"TITLE: Title {number}", f"POST: {post}", f"TL;DR:{end}"])


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's interface that downloading a dataset takes, over folders owner/name/commit/files.

    A file ``.revision`` beside them names the commit's branch.
    """

    root: Path
    requests: list[str]

    def do_GET(self) -> None:
        self._answer(send_content=True)

    def do_HEAD(self) -> None:
        self._answer(send_content=False)

    def _answer(self, *, send_content: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.requests.append(path)
        owner, name, action, rest = path.removeprefix("/api").removeprefix("/datasets/").split("/", 3)
        commits = {commit.name: commit for commit in (self.root / owner / name).glob("*")}
        if not commits:
            self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
            return
        commits |= {(commit / ".revision").read_text(): commit for commit in commits.values()}
        revision = next((known for known in commits if rest == known or rest.startswith(f"{known}/")), None)
        if revision is None:
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
            return
        commit = commits[revision]
        if action == "revision":
            self._send_json({"id": f"{owner}/{name}", "sha": commit.name, "siblings": []})
        elif action == "tree":
            self._send_json([_listed(file, commit) for file in commit.rglob("*") if file.is_file()])
        else:
            content = (commit / rest.removeprefix(f"{revision}/")).read_bytes()
            headers = {"ETag": f'"{sha256(content).hexdigest()}"', "X-Repo-Commit": commit.name}
            self._send(200, content, headers, send_content=send_content)

    def _send_json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str], *, send_content: bool = True) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if send_content:
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


def _listed(file: Path, commit: Path) -> dict[str, Any]:
    return {
        "type": "file",
        "path": file.relative_to(commit).as_posix(),
        "size": file.stat().st_size,
        "oid": "0" * 40,
    }


@contextmanager
def running_hub(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve a folder as a hub; its address, and the paths that were asked for."""
    requests: list[str] = []
    handler = type("HubOfFolder", (Hub,), {"root": root, "requests": requests})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()
