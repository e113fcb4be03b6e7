"""OpenAI's original TL;DR files: human comparisons of summaries, and the filtered SFT set.

Source: Stiennon et al. 2020, "Learning to summarize from human feedback" (arXiv:2009.01325).
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from overopt.data.prompt_format import normalise_response, tldr_prompt
from overopt.data.schema import Demonstration, PreferenceExample
from overopt.data.sources.base import SourceRead, TokenLimits
from overopt.data.sources.examples import ExampleIds, demonstrations_of_chosen, text_id
from overopt.data.sources.rows import JSON_LINES, Row, read_rows
from overopt.data.splits import SplitFractions

CNN_DM = "CNN/DM article, not a TL;DR post"
IDENTICAL = "both summaries are the same"
NO_POST_ID = "no post id: that of the same post elsewhere, or a hash of its text, stands in"
NO_EXTRA = "no extra information (confidence)"
LABELLED_AGAIN = "pair labelled before, alike"
LABELLED_OTHERWISE = "pair labelled before, the other way"


@dataclass(frozen=True)
class TldrOpenaiSource:
    """Comparisons (``comparisons/batch*.json``) and SFT rows (``tldr_3_filtered``), in one path or several.

    Demonstrations are the SFT rows, or the chosen summaries where the path holds no SFT rows. Pairs that
    several workers labelled are kept as often, contradictions included: label noise is part of the data.

    Attributes:
        path: a ``*.json`` or ``*.jsonl`` file, or a folder of them, in JSON Lines format.
    """

    path: Path
    name: ClassVar[str] = "tldr_openai"
    split_fractions: ClassVar[SplitFractions] = SplitFractions(evaluation=0.1, gold=0.0)
    token_limits: ClassVar[TokenLimits] = TokenLimits(prompt=448, response=64)

    def read(self) -> SourceRead:
        """All comparisons and demonstrations.

        Raises:
            ValueError: a row is malformed (names file, line and key), or no row can be used.
        """
        return _Reading().of(self.path)


@dataclass
class _Reading:
    """One pass over the files; posts without an id wait for its end, when all ids are known."""

    left_out: Counter[str] = field(default_factory=Counter)
    irregular: Counter[str] = field(default_factory=Counter)
    id_of_post: dict[str, str] = field(default_factory=dict)
    comparisons: list[Row] = field(default_factory=list)
    sft: list[Row] = field(default_factory=list)

    def of(self, path: Path) -> SourceRead:
        rows = 0
        for row in read_rows(path, JSON_LINES):
            rows += 1
            self._sort_in(row)
        preferences = self._preferences()
        demonstrations = self._demonstrations() or demonstrations_of_chosen(preferences)
        if not demonstrations:
            reasons = "; ".join(f"{count} {reason}" for reason, count in self.left_out.items())
            raise ValueError(f"empty source: none of the {rows} rows in {path} can be used ({reasons or 'no rows'})")
        return SourceRead(demonstrations, preferences, self.left_out, self.irregular, rows)

    def _sort_in(self, row: Row) -> None:
        if "summaries" in row:
            post = row.part("info")
            if "post" not in post and "article" in post:
                self.left_out[CNN_DM] += 1
                return
            self.comparisons.append(row)
        elif "summary" in row:
            post = row
            self.sft.append(row)
        else:
            found = ", ".join(repr(key) for key in row.fields) or "none"
            raise ValueError(
                f"{row.place}: expected a comparison (key 'summaries') or an SFT row (key 'summary');"
                f" keys found: {found}"
            )
        if "id" in post:
            self.id_of_post.setdefault(_same_post(post), post.identifier("id"))

    def _post_id(self, post: Row) -> str:
        if "id" in post:
            return post.identifier("id")
        self.irregular[NO_POST_ID] += 1
        # The id that the same text has elsewhere: otherwise a held-out post could be trained on.
        return self.id_of_post.get(_same_post(post)) or text_id(_same_post(post))

    def _preferences(self) -> list[PreferenceExample]:
        ids = ExampleIds()
        chosen_before: dict[tuple[str, frozenset[str]], str] = {}
        preferences = []
        for row in self.comparisons:
            post = row.part("info")
            prompt = tldr_prompt(post.text("subreddit"), post.text("title"), post.text("post"))
            texts = [normalise_response(summary.text("text"), row.place) for summary in _two_summaries(row)]
            choice = _choice(row)
            chosen, rejected = texts[choice], texts[1 - choice]
            if chosen == rejected:
                self.left_out[IDENTICAL] += 1
                continue
            post_id = self._post_id(post)
            if not row.fields.get("extra"):
                self.irregular[NO_EXTRA] += 1
            pair = (post_id, frozenset(texts))
            if pair in chosen_before:
                self.irregular[LABELLED_AGAIN if chosen_before[pair] == chosen else LABELLED_OTHERWISE] += 1
            chosen_before[pair] = chosen
            example_id = ids.made(f"{post_id}:{text_id(prompt.text, chosen, rejected)}")
            preferences.append(PreferenceExample(example_id, post_id, prompt, chosen, rejected))
        return preferences

    def _demonstrations(self) -> list[Demonstration]:
        ids = ExampleIds()
        demonstrations = []
        for row in self.sft:
            prompt = tldr_prompt(row.text("subreddit"), row.text("title"), row.text("post"))
            response = normalise_response(row.text("summary"), row.place)
            post_id = self._post_id(row)
            demonstrations.append(Demonstration(ids.made(post_id), post_id, prompt, response))
        return demonstrations


def _same_post(post: Row) -> str:
    return " ".join(post.text("post").split())


def _two_summaries(row: Row) -> list[Row]:
    summaries = row.parts("summaries")
    if len(summaries) != 2:
        raise ValueError(f"{row.place}: 'summaries' must be two, found {len(summaries)}")
    return summaries


def _choice(row: Row) -> int:
    choice = row.value("choice")
    if isinstance(choice, bool) or choice not in (0, 1):
        raise ValueError(f"{row.place}: 'choice' must be 0 or 1, found {choice!r}")
    return int(choice)
