"""Rows with a prompt and a labelled pair or a response, and local JSON Lines or Parquet files of them."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

from overopt.data.prompt_format import is_news_prompt, normalise_response, recognise_tldr_prompt, tldr_prompt
from overopt.data.schema import Demonstration, PreferenceExample, Prompt
from overopt.data.sources.base import SourceRead, TokenLimits
from overopt.data.sources.examples import CNN_DM, ExampleIds, post_text_id, source_read, text_id
from overopt.data.sources.rows import JSON_LINES, PARQUET, Row, read_rows
from overopt.data.splits import SplitFractions

IDENTICAL = "chosen and rejected are the same"
# What people call the response to imitate: we, TRL, CarperAI.
RESPONSE_KEYS = ("response", "completion", "label")


@dataclass(frozen=True)
class JsonlSource:
    """Local files of the rows that :func:`read_prompt_rows` takes.

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
        return read_prompt_rows(read_rows(self.path, JSON_LINES + PARQUET), str(self.path))


def read_prompt_rows(rows: Iterable[Row], origin: str) -> SourceRead:
    """Examples out of rows with a prompt and either a labelled pair or a response to imitate.

    A row is a pair (keys ``chosen`` and ``rejected``) or a demonstration (key ``response``, ``completion`` or
    ``label``). Its prompt is either ``prompt``, plain text, or ``subreddit``, ``title`` and ``post``, put into the
    TL;DR template. A plain prompt that is in that template is recognised, and its post may be cut; beside such
    prompts, news articles (CNN/DM) are left out. Any other plain prompt is never cut, unless the row also gives as
    ``post`` the part of it that may be. Optional: ``id``, unique in the source; ``post_id``, which keeps rows about
    one document in one part of the split (by default rows with the same TL;DR post, or the same prompt, stay
    together); and ``split``, the published split. Where no row is a demonstration, the chosen responses are.

    Args:
        rows: from files or a hub.
        origin: where they came from, for messages and the record.

    Raises:
        ValueError: a row is malformed (names place and key), or no row can be used.
    """
    demonstrations: list[Demonstration] = []
    preferences: list[PreferenceExample] = []
    left_out: Counter[str] = Counter()
    ids = ExampleIds()
    prompted = [_prompted(row) for row in rows]
    news_is_foreign = any(is_tldr for *_, is_tldr in prompted)
    for row, prompt, post_id, _ in prompted:
        if news_is_foreign and is_news_prompt(prompt.text):
            left_out[CNN_DM] += 1
        elif "chosen" in row or "rejected" in row:
            chosen = normalise_response(row.text("chosen"), f"{row.place}, chosen")
            rejected = normalise_response(row.text("rejected"), f"{row.place}, rejected")
            if chosen == rejected:
                left_out[IDENTICAL] += 1
                continue
            example_id = _example_id(row, ids, prompt.text, chosen, rejected)
            preferences.append(PreferenceExample(example_id, post_id, prompt, chosen, rejected, row.split))
        else:
            response = normalise_response(_response(row), row.place)
            example_id = _example_id(row, ids, prompt.text, response)
            demonstrations.append(Demonstration(example_id, post_id, prompt, response, row.split))
    return source_read(demonstrations, preferences, left_out, Counter(), len(prompted), origin)


class _Prompted(NamedTuple):
    row: Row
    prompt: Prompt
    post_id: str
    is_tldr: bool


def _example_id(row: Row, ids: ExampleIds, *texts: str) -> str:
    return ids.given(row.identifier("id"), row.place) if "id" in row else ids.made(text_id(*texts))


def _response(row: Row) -> str:
    keys = [key for key in RESPONSE_KEYS if key in row]
    if len(keys) == 1:
        return row.text(keys[0])
    found = ", ".join(repr(key) for key in row.fields) or "none"
    raise ValueError(
        f"{row.place}: expected a pair (keys 'chosen' and 'rejected') or a demonstration"
        f" (one of the keys {', '.join(map(repr, RESPONSE_KEYS))}); keys found: {found}"
    )


def _prompted(row: Row) -> _Prompted:
    is_tldr = False
    if "prompt" not in row and "post" in row:
        prompt = tldr_prompt(row.text("subreddit"), row.text("title"), row.text("post"))
        is_tldr = True
    elif "post" in row:
        prompt = _prompt_with_post(row)
    else:
        text = _prompt_text(row)
        recognised = recognise_tldr_prompt(text)
        prompt, is_tldr = recognised or Prompt(text), recognised is not None
    if "post_id" in row:
        post_id = row.identifier("post_id")
    else:
        post_id = post_text_id(prompt.post) if is_tldr and prompt.post else text_id(prompt.text)
    return _Prompted(row, prompt, post_id, is_tldr)


def _prompt_text(row: Row) -> str:
    text = row.text("prompt").rstrip(" ")  # the response brings its own
    if not text.strip():
        raise ValueError(f"{row.place}: the prompt is empty")
    return text


def _prompt_with_post(row: Row) -> Prompt:
    text, post = _prompt_text(row), row.text("post").strip()
    if not post or text.count(post) != 1:
        raise ValueError(
            f"{row.place}: 'post' must be the one part of 'prompt' that may be cut,"
            f" but 'prompt' holds it {text.count(post) if post else 0} times"
        )
    prefix, _, suffix = text.partition(post)
    return Prompt(prefix, post, suffix)
