"""Stands in for ``python -m overopt judge --judge api`` until there is one: the same options, live mode only.

    python tests/stand_in_judge.py COMPLETIONS.jsonl --judge api --judge.model NAME --judge.base_url URL ...

It is rougher than a judge should be, but real: it asks over HTTP, keeps answers in SQLite and goes on where it was.
"""

import argparse
import asyncio
import json
import os
import random
import sqlite3
import sys
import time
from email.utils import parsedate_to_datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import openai

KEY_VARIABLE = "OVEROPT_JUDGE_API_KEY"
_SPACING = 0.004  # between two requests [s]
_TEXT = (
    "{post}\n<first>\n{first}\n</first>\n<second>\n{second}\n</second>\n"
    'Which summary is better? Begin your answer with "Preferred: A" for the first or "Preferred: B" for the second.'
)
_SCHEMA = {
    "type": "object",
    "properties": {"comparison": {"type": "string"}, "preferred": {"type": "string", "enum": ["A", "B"]}},
    "required": ["comparison", "preferred"],
    "additionalProperties": False,
}


class Asker:
    """Asks one comparison after another, none while a pause is in force."""

    def __init__(self, options: argparse.Namespace, cache: sqlite3.Connection) -> None:
        self.options, self.cache = options, cache
        self.api = openai.AsyncOpenAI(
            base_url=options.base_url, api_key=os.environ.get(KEY_VARIABLE, "none"), max_retries=0, timeout=None
        )
        self.pause_until = 0.0
        self.starting = asyncio.Lock()
        self.wanted: dict[str, Any] = {}
        if options.answers == "structured":
            schema = {"name": "verdict", "strict": True, "schema": _SCHEMA}
            self.wanted["response_format"] = {"type": "json_schema", "json_schema": schema}

    async def ask(self, message: str) -> bool:
        """Ask until there is an answer, which is kept; false if all attempts went wrong."""
        for attempt in range(self.options.max_attempts):
            if attempt:
                await asyncio.sleep(random.uniform(0, min(0.1 * 2**attempt, 1)))
            # One at a time: 64 that start at once keep the loop from reading that there is a pause.
            async with self.starting:
                await asyncio.sleep(_SPACING)
                while (left := self.pause_until - time.time()) > 0:
                    await asyncio.sleep(left + 0.005)
            try:
                async with asyncio.timeout(self.options.timeout):
                    answer = await self.api.chat.completions.create(
                        model=self.options.model,
                        messages=[{"role": "user", "content": message}],
                        temperature=0,
                        max_tokens=80,
                        **self.wanted,
                    )
                said = answer.choices[0].message
                refusal = getattr(said, "refusal", None)
                kept = {"content": said.content, "refusal": refusal, "tokens": answer.usage.total_tokens}
            except openai.APIStatusError as error:
                if error.status_code in (400, 401, 404, 422):
                    sys.exit(_stop(f"the judge answered {error.status_code}"))
                self.pause_until = max(self.pause_until, time.time() + _pause(error.response.headers))
            except (openai.OpenAIError, TimeoutError, ValueError, AttributeError, TypeError, IndexError):
                pass
            else:
                with self.cache:
                    self.cache.execute("INSERT OR IGNORE INTO answers VALUES (?, ?)", (_key(message), json.dumps(kept)))
                return True
        return False


def _pause(headers: Any) -> float:
    """What an answer asks for [s]."""
    if "retry-after-ms" in headers:
        return float(headers["retry-after-ms"]) / 1000
    wait = headers.get("retry-after", "0")
    return float(wait) if wait.isdigit() else parsedate_to_datetime(wait).timestamp() - time.time()


def _key(message: str) -> str:
    return sha256(message.encode()).hexdigest()


def _stop(line: str) -> int:
    print(line, file=sys.stderr)
    return 2


def _message(row: dict[str, Any]) -> tuple[str, bool]:
    """The question, and whether the sample comes first in it."""
    sample_first = int(_key(row["prompt_id"]), 16) % 2 == 0
    texts = [row["response"].strip(), row["opponent"].strip()]
    first, second = texts if sample_first else texts[::-1]
    return _TEXT.format(post=row["prompt"], first=first, second=second), sample_first


def _judged(row: dict[str, Any], kept: dict[str, Any], *, structured: bool, sample_first: bool) -> dict[str, Any]:
    said, verdict = kept["content"], "unreadable"
    if kept["refusal"]:
        said, verdict = kept["refusal"], "refused"
    else:
        try:
            letter = json.loads(said)["preferred"] if structured else said.split("Preferred: ")[1][:1]
            verdict = {"A": "win", "B": "loss"}[letter] if sample_first else {"A": "loss", "B": "win"}[letter]
        except (ValueError, KeyError, IndexError, TypeError):
            pass
    win_probability = {"win": 1.0, "loss": 0.0}.get(verdict)
    counted = {"judge_answer": said, "judge_tokens": kept["tokens"]}
    return {**row, "verdict": verdict, "win_probability": win_probability, **counted}


async def _run(options: argparse.Namespace) -> int:
    rows = [json.loads(line) for line in options.completions.read_text().splitlines()]
    cache = sqlite3.connect(options.cache)
    # A full sync at every commit holds up the loop for a tenth of a second at times.
    cache.execute("PRAGMA journal_mode = WAL")
    cache.execute("PRAGMA synchronous = NORMAL")
    cache.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT)")
    asker = Asker(options, cache)
    answers = dict(cache.execute("SELECT key, answer FROM answers"))
    unknown = iter([message for message, _ in map(_message, rows) if _key(message) not in answers])

    async def work() -> int:
        return sum([not await asker.ask(message) for message in unknown])

    failed = sum(await asyncio.gather(*(work() for _ in range(options.max_concurrent))))
    if failed:
        return _stop(f"{failed} comparisons got no answer in {options.max_attempts} attempts; the same command goes on")
    answers = {key: json.loads(answer) for key, answer in cache.execute("SELECT key, answer FROM answers")}
    structured = options.answers == "structured"
    with options.out.open("w") as file:
        for row in rows:
            message, sample_first = _message(row)
            judged = _judged(row, answers[_key(message)], structured=structured, sample_first=sample_first)
            file.write(json.dumps(judged) + "\n")
    return 0


def main() -> int:
    """Judge a file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("completions", type=Path)
    parser.add_argument("--judge")
    parser.add_argument("--judge.model", dest="model")
    parser.add_argument("--judge.base_url", dest="base_url")
    parser.add_argument("--judge.max_concurrent", dest="max_concurrent", type=int, default=16)
    parser.add_argument("--judge.timeout", dest="timeout", type=float, default=60)
    parser.add_argument("--judge.max_attempts", dest="max_attempts", type=int, default=8)
    parser.add_argument("--judge.answers", dest="answers", default="structured")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--order")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--tracking-uri")
    return asyncio.run(_run(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
