"""Local JSON Lines or Parquet files of one's own."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from overopt.data.prompt_format import normalise_response, tldr_prompt
from overopt.data.schema import Demonstration, PreferenceExample, Prompt
from overopt.data.sources.base import SourceRead, TokenLimits
from overopt.data.sources.examples import ExampleIds, demonstrations_of_chosen, text_id
from overopt.data.sources.rows import JSON_LINES, PARQUET, Row, read_rows
from overopt.data.splits import SplitFractions

IDENTICAL = "chosen and rejected are the same"


@dataclass(frozen=True)
class JsonlSource:
    """Rows with a prompt and either a labelled pair or a response to imitate.

    A row is a pair (keys ``chosen`` and ``rejected``) or a demonstration (key ``response``). Its prompt is
    either ``prompt``, plain text, or ``subreddit``, ``title`` and ``post``, put into the TL;DR template.
    A plain prompt is never cut, unless the row also gives as ``post`` the part of it that may be. Optional:
    ``id``, unique in the source, and ``post_id``, which keeps rows about one document in one part of the
    split; by default rows with the same prompt stay together. Where no row is a demonstration, the chosen
    responses are.

    Attributes:
        path: a ``*.jsonl``, ``*.json`` or ``*.parquet`` file, or a folder of them.
    """

    path: Path
    name: ClassVar[str] = "jsonl"
    split_fractions: ClassVar[SplitFractions] = SplitFractions(evaluation=0.1, gold=0.0)
    token_limits: ClassVar[TokenLimits] = TokenLimits(prompt=448, response=64)

    def read(self) -> SourceRead:
        """All pairs and demonstrations.

        Raises:
            ValueError: a row is malformed (names file, line and key), or no row can be used.
        """
        demonstrations: list[Demonstration] = []
        preferences: list[PreferenceExample] = []
        left_out: Counter[str] = Counter()
        ids = ExampleIds()
        rows = 0
        for row in read_rows(self.path, JSON_LINES + PARQUET):
            rows += 1
            prompt = _prompt(row)
            post_id = row.identifier("post_id") if "post_id" in row else text_id(prompt.text)
            if "chosen" in row or "rejected" in row:
                chosen = normalise_response(row.text("chosen"), f"{row.place}, chosen")
                rejected = normalise_response(row.text("rejected"), f"{row.place}, rejected")
                if chosen == rejected:
                    left_out[IDENTICAL] += 1
                    continue
                example_id = _example_id(row, ids, prompt.text, chosen, rejected)
                preferences.append(PreferenceExample(example_id, post_id, prompt, chosen, rejected))
            elif "response" in row:
                response = normalise_response(row.text("response"), row.place)
                example_id = _example_id(row, ids, prompt.text, response)
                demonstrations.append(Demonstration(example_id, post_id, prompt, response))
            else:
                found = ", ".join(repr(key) for key in row.fields) or "none"
                raise ValueError(
                    f"{row.place}: expected a pair (keys 'chosen' and 'rejected') or a demonstration"
                    f" (key 'response'); keys found: {found}"
                )
        demonstrations = demonstrations or demonstrations_of_chosen(preferences)
        if not demonstrations:
            reasons = "; ".join(f"{count} {reason}" for reason, count in left_out.items())
            raise ValueError(
                f"empty source: none of the {rows} rows in {self.path} can be used ({reasons or 'no rows'})"
            )
        return SourceRead(demonstrations, preferences, left_out, rows=rows)


def _example_id(row: Row, ids: ExampleIds, *texts: str) -> str:
    return ids.given(row.identifier("id"), row.place) if "id" in row else ids.made(text_id(*texts))


def _prompt(row: Row) -> Prompt:
    if "prompt" not in row and "post" in row:
        return tldr_prompt(row.text("subreddit"), row.text("title"), row.text("post"))
    text = row.text("prompt").rstrip(" ")  # the response brings its own
    if not text.strip():
        raise ValueError(f"{row.place}: the prompt is empty")
    if "post" not in row:
        return Prompt(text)
    post = row.text("post").strip()
    if not post or text.count(post) != 1:
        raise ValueError(
            f"{row.place}: 'post' must be the one part of 'prompt' that may be cut,"
            f" but 'prompt' holds it {text.count(post) if post else 0} times"
        )
    prefix, _, suffix = text.partition(post)
    return Prompt(prefix, post, suffix)
