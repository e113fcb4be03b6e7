"""What readers of rows share when they make examples: stable ids, and demonstrations where there are only pairs."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable

from overopt.data.schema import Demonstration, PreferenceExample
from overopt.data.sources.base import SourceRead
from overopt.data.splits import TRAIN_SPLIT

CNN_DM = "CNN/DM article, not a TL;DR post"


def text_id(*texts: str) -> str:
    """64 bits of the texts' SHA-256 as 16 hexadecimal digits: an id for what came without one."""
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]


def post_text_id(post: str) -> str:
    """An id for a post that came without one: of its text, whatever its white space.

    Copies of TL;DR differ in the newlines of their posts, and a post must not be trained on in one and held
    out in another.
    """
    return text_id(" ".join(post.split()))


class ExampleIds:
    """Keeps the ids of a source's examples unique.

    >>> ids = ExampleIds()
    >>> ids.made("a"), ids.given("b", place="line 2"), ids.made("a")
    ('a', 'b', 'a#2')
    """

    def __init__(self) -> None:
        self._place_of: dict[str, str] = {}
        self._times_made: Counter[str] = Counter()

    def given(self, example_id: str, place: str) -> str:
        """An id that the data gives.

        Raises:
            ValueError: it was used before.
        """
        if example_id in self._place_of:
            raise ValueError(f"{place}: id {example_id!r} was used before: {self._place_of[example_id]}")
        self._place_of[example_id] = place
        return example_id

    def made(self, candidate: str) -> str:
        """An id made from an example's content, counted where the content repeats (labels of one pair do)."""
        while True:
            self._times_made[candidate] += 1
            count = self._times_made[candidate]
            example_id = candidate if count == 1 else f"{candidate}#{count}"
            if example_id not in self._place_of:
                return self.given(example_id, place="an example without one")


def source_read(
    demonstrations: list[Demonstration],
    preferences: list[PreferenceExample],
    left_out: Counter[str],
    irregular: Counter[str],
    rows: int,
    origin: str,
) -> SourceRead:
    """What was read, the chosen responses standing in where nothing was a demonstration.

    Raises:
        ValueError: nothing was taken.
    """
    demonstrations = demonstrations or demonstrations_of_chosen(preferences)
    if not demonstrations:
        reasons = "; ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise ValueError(f"empty source: none of the {rows} rows in {origin} can be used ({reasons or 'no rows'})")
    return SourceRead(demonstrations, preferences, left_out, irregular, rows, origin)


def demonstrations_of_chosen(preferences: Iterable[PreferenceExample]) -> list[Demonstration]:
    """The chosen responses as demonstrations, each once for each prompt, in order of appearance.

    One that was chosen in several published splits is of ``train`` if that is among them.
    """
    demonstrations: dict[tuple[str, str, str], Demonstration] = {}
    for pair in preferences:
        key = (pair.post_id, pair.prompt.text, pair.chosen)
        if key not in demonstrations or (pair.split == TRAIN_SPLIT and demonstrations[key].split != TRAIN_SPLIT):
            example_id = f"{pair.post_id}:{text_id(pair.prompt.text, pair.chosen)}"
            demonstrations[key] = Demonstration(example_id, pair.post_id, pair.prompt, pair.chosen, pair.split)
    return list(demonstrations.values())
