"""What readers of rows share when they make examples: stable ids, and demonstrations out of pairs."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable

from overopt.data.schema import Demonstration, PreferenceExample


def text_id(*texts: str) -> str:
    """64 bits of the texts' SHA-256 as 16 hexadecimal digits: an id for what came without one."""
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]


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


def demonstrations_of_chosen(preferences: Iterable[PreferenceExample]) -> list[Demonstration]:
    """The chosen responses as demonstrations, each once for each prompt, in order of appearance."""
    demonstrations: dict[tuple[str, str, str], Demonstration] = {}
    for pair in preferences:
        key = (pair.post_id, pair.prompt.text, pair.chosen)
        if key not in demonstrations:
            example_id = f"{pair.post_id}:{text_id(pair.prompt.text, pair.chosen)}"
            demonstrations[key] = Demonstration(example_id, pair.post_id, pair.prompt, pair.chosen)
    return list(demonstrations.values())
