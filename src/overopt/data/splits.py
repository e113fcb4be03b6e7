"""Which part of the data a post belongs to, decided by its id alone."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from typing import Literal

from overopt.data.schema import Demonstration, PreferenceExample

Part = Literal["train", "gold", "evaluation"]


def post_position(post_id: str) -> float:
    """A number in [0, 1) from the SHA-256 of the post id: uniform over posts, the same on every machine."""
    first_53_bits = int.from_bytes(hashlib.sha256(post_id.encode()).digest()[:8]) >> 11
    return first_53_bits / 2**53  # what a float holds exactly: 64 bits could round up to 1


@dataclass(frozen=True)
class SplitFractions:
    """Shares of the *posts*, so that all examples of a post fall in one part.

    Attributes:
        evaluation: held out for every measurement.
        gold: kept for the gold reward model, which may not be trained on what a policy is trained on.

    Raises:
        ValueError: a fraction is outside [0, 1), or none is left to train on.

    The posts of the evaluation part depend on its own fraction only.

    >>> SplitFractions(evaluation=0.1, gold=0.25).train
    0.65
    """

    evaluation: float
    gold: float

    def __post_init__(self) -> None:
        if not (0 <= self.evaluation < 1 and 0 <= self.gold < 1 and self.evaluation + self.gold < 1):
            raise ValueError(
                "split fractions must lie in [0, 1) and leave posts to train on,"
                f" got evaluation={self.evaluation}, gold={self.gold}"
            )

    @property
    def train(self) -> float:
        """What the other parts leave."""
        return 1 - self.evaluation - self.gold

    def part_of(self, post_id: str) -> Part:
        """The part that the post belongs to."""
        position = post_position(post_id)
        if position < self.evaluation:
            return "evaluation"
        return "gold" if position < self.evaluation + self.gold else "train"


def fingerprint(examples: Iterable[Demonstration | PreferenceExample]) -> str:
    """SHA-256 (hexadecimal) of the examples' ids and texts in any order: what a run record calls its data."""
    records = sorted(
        # JSON keeps the fields apart: joined bare, ("a", "bc") and ("ab", "c") would be one.
        json.dumps(astuple(example))
        for example in examples
    )
    return hashlib.sha256("\n".join(records).encode()).hexdigest()
