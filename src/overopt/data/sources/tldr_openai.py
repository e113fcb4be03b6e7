"""OpenAI's TL;DR rows, and its original files of them: human comparisons, ratings, and the filtered SFT set.

Source: Stiennon et al. 2020, "Learning to summarize from human feedback" (arXiv:2009.01325).
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import ClassVar, NamedTuple

from overopt.data.prompt_format import normalise_response, tldr_prompt
from overopt.data.schema import Demonstration, PreferenceExample, Prompt
from overopt.data.sources.base import SourceRead, TokenLimits
from overopt.data.sources.examples import CNN_DM, ExampleIds, post_text_id, source_read, text_id
from overopt.data.sources.rows import JSON_LINES, Row, read_rows
from overopt.data.splits import SplitFractions

IDENTICAL = "both summaries are the same"
NO_POST_ID = "no post id: that of the same post elsewhere, or a hash of its text, stands in"
NO_EXTRA = "no extra information (confidence)"
LABELLED_AGAIN = "pair labelled before, alike"
LABELLED_OTHERWISE = "pair labelled before, the other way"
NO_RATING = "no overall rating"
LONE_RATING = "rating without another of the same post by the same worker"
EQUAL_RATINGS = "pair of ratings that are equal"


@dataclass(frozen=True)
class TldrOpenaiSource:
    """Local files of the rows that :func:`read_openai_rows` takes: ``comparisons/batch*.json``, ``axis_evals/*.json``
    or ``tldr_3_filtered``.

    Attributes:
        path: a ``*.json`` or ``*.jsonl`` file, or a folder of them, in JSON Lines format.
    """

    path: Path
    name: ClassVar[str] = "tldr_openai"
    split_fractions: ClassVar[SplitFractions] = SplitFractions(evaluation=0.1, gold=0.0)
    token_limits: ClassVar[TokenLimits] = TokenLimits(prompt=448, response=64)

    def read(self) -> SourceRead:
        """All pairs and demonstrations.

        Raises:
            ValueError: a row is malformed (names file, line and key), or no row can be used.
        """
        return read_openai_rows(read_rows(self.path, JSON_LINES), str(self.path))


def read_openai_rows(rows: Iterable[Row], origin: str) -> SourceRead:
    """Examples out of comparisons or ratings, and SFT rows, in any order.

    A comparison (key ``summaries``) is a pair. Ratings (keys ``info`` and ``summary``, "axis" on the hub) become
    pairs by our own convention: two summaries of one post whose overall quality one worker rated differently, the
    higher one chosen; equal ratings say nothing and are counted. Demonstrations are the SFT rows, or else the chosen
    summaries. Pairs that several workers labelled are kept as often, contradictions included: label noise is part of
    the data.

    Args:
        rows: from files or a hub.
        origin: where they came from, for messages and the record.

    Raises:
        ValueError: a row is malformed (names place and key), comparisons and ratings are mixed, or no row can be used.
    """
    reading = _Reading()
    count = 0
    for row in rows:
        count += 1
        reading.sort_in(row)
    if reading.comparisons and reading.ratings:
        raise ValueError(
            f"{origin} holds comparisons and ratings (axis), which are different judgements: give the path of one kind"
        )
    preferences = reading.compared() + reading.rated()
    demonstrations = reading.demonstrations()
    return source_read(demonstrations, preferences, reading.left_out, reading.irregular, count, origin)


class _Rating(NamedTuple):
    summary: str
    overall: float
    split: str | None
    prompt: Prompt


@dataclass
class _Reading:
    """One pass over the rows; posts without an id wait for its end, when all ids are known."""

    left_out: Counter[str] = field(default_factory=Counter)
    irregular: Counter[str] = field(default_factory=Counter)
    id_of_post: dict[str, str] = field(default_factory=dict)
    comparisons: list[Row] = field(default_factory=list)
    ratings: list[Row] = field(default_factory=list)
    sft: list[Row] = field(default_factory=list)
    ids: ExampleIds = field(default_factory=ExampleIds)

    def sort_in(self, row: Row) -> None:
        if "summaries" in row or ("summary" in row and "info" in row):
            post = row.part("info")
            if "post" not in post and "article" in post:
                self.left_out[CNN_DM] += 1
                return
            (self.comparisons if "summaries" in row else self.ratings).append(row)
        elif "summary" in row:
            post = row
            self.sft.append(row)
        else:
            found = ", ".join(repr(key) for key in row.fields) or "none"
            raise ValueError(
                f"{row.place}: expected a comparison (key 'summaries'), a rating (keys 'info' and 'summary') or an SFT"
                f" row (key 'summary'); keys found: {found}"
            )
        if "id" in post:
            self.id_of_post.setdefault(_same_post(post), post.identifier("id"))

    def compared(self) -> list[PreferenceExample]:
        chosen_before: dict[tuple[str, frozenset[str]], str] = {}
        preferences = []
        for row in self.comparisons:
            post = row.part("info")
            prompt = _prompt(post)
            texts = [normalise_response(summary.text("text"), row.place) for summary in _two_summaries(row)]
            choice = _choice(row)
            chosen, rejected = texts[choice], texts[1 - choice]
            if chosen == rejected:
                self.left_out[IDENTICAL] += 1
                continue
            post_id = self._post_id(post)
            if not _has_extra(row):
                self.irregular[NO_EXTRA] += 1
            pair = (post_id, frozenset(texts))
            if pair in chosen_before:
                self.irregular[LABELLED_AGAIN if chosen_before[pair] == chosen else LABELLED_OTHERWISE] += 1
            chosen_before[pair] = chosen
            preferences.append(self._preference(post_id, prompt, chosen, rejected, row.split))
        return preferences

    def rated(self) -> list[PreferenceExample]:
        ratings_of: defaultdict[tuple[str, str], list[_Rating]] = defaultdict(list)
        for row in self.ratings:
            post, summary = row.part("info"), row.part("summary")
            overall = _overall(summary)
            if overall is None:
                self.left_out[NO_RATING] += 1
                continue
            text = normalise_response(summary.text("text"), row.place)
            key = self._post_id(post), row.identifier("worker")
            ratings_of[key].append(_Rating(text, overall, row.split, _prompt(post)))
        preferences = []
        for (post_id, _), ratings in ratings_of.items():
            if len(ratings) == 1:
                self.left_out[LONE_RATING] += 1
            for pair in combinations(ratings, 2):
                worse, better = sorted(pair, key=lambda rating: rating.overall)
                if worse.summary == better.summary:
                    self.left_out[IDENTICAL] += 1
                elif worse.overall == better.overall:
                    self.left_out[EQUAL_RATINGS] += 1
                else:
                    preferences.append(
                        self._preference(post_id, better.prompt, better.summary, worse.summary, better.split)
                    )
        return preferences

    def demonstrations(self) -> list[Demonstration]:
        ids = ExampleIds()
        demonstrations = []
        for row in self.sft:
            response = normalise_response(row.text("summary"), row.place)
            post_id = self._post_id(row)
            demonstrations.append(Demonstration(ids.made(post_id), post_id, _prompt(row), response, row.split))
        return demonstrations

    def _post_id(self, post: Row) -> str:
        if "id" in post:
            return post.identifier("id")
        self.irregular[NO_POST_ID] += 1
        # The id that the same text has elsewhere: otherwise a held-out post could be trained on.
        return self.id_of_post.get(_same_post(post)) or post_text_id(post.text("post"))

    def _preference(
        self, post_id: str, prompt: Prompt, chosen: str, rejected: str, split: str | None
    ) -> PreferenceExample:
        example_id = self.ids.made(f"{post_id}:{text_id(prompt.text, chosen, rejected)}")
        return PreferenceExample(example_id, post_id, prompt, chosen, rejected, split)


def _prompt(post: Row) -> Prompt:
    return tldr_prompt(post.text("subreddit"), post.text("title"), post.text("post"))


def _same_post(post: Row) -> str:
    return " ".join(post.text("post").split())


def _two_summaries(row: Row) -> list[Row]:
    summaries = row.parts("summaries")
    if len(summaries) != 2:
        raise ValueError(f"{row.place}: 'summaries' must be two, found {len(summaries)}")
    return summaries


def _has_extra(row: Row) -> bool:
    extra = row.fields.get("extra")
    # Parquet has every key: empty there means that all are null.
    return any(value is not None for value in extra.values()) if isinstance(extra, dict) else bool(extra)


def _choice(row: Row) -> int:
    choice = row.value("choice")
    if isinstance(choice, bool) or choice not in (0, 1):
        raise ValueError(f"{row.place}: 'choice' must be 0 or 1, found {choice!r}")
    return int(choice)


def _overall(summary: Row) -> float | None:
    axes = summary.part("axes")
    if "overall" not in axes:
        return None
    overall = axes.value("overall")
    if isinstance(overall, bool) or not isinstance(overall, int | float):
        raise ValueError(f"{summary.place}: '{axes.group}overall' must be a number, found {overall!r}")
    return float(overall)
