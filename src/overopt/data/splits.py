"""Which part of the data a post belongs to: by its id alone, or by the splits its data was published with."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from typing import Literal, Protocol, runtime_checkable

from overopt.data.schema import Demonstration, PreferenceExample

Part = Literal["train", "gold", "evaluation"]
PARTS: tuple[Part, ...] = ("train", "gold", "evaluation")
# What every publisher of splits calls the one to train on.
TRAIN_SPLIT = "train"


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


@runtime_checkable
class Splits(Protocol):
    """Decides which part each example belongs to; no post has examples in two parts."""

    @property
    def statement(self) -> str:
        """What was done, for the run's record."""
        ...

    def part_of(self, example: Demonstration | PreferenceExample) -> Part | None:
        """The example's part; ``None`` for one that is in none."""
        ...


@dataclass(frozen=True)
class HashSplits:
    """By the hash of the post id: the same on every machine, whatever else the data holds."""

    fractions: SplitFractions

    @property
    def statement(self) -> str:
        """The fractions."""
        f = self.fractions
        return f"by post, SHA-256 of the post id: evaluation {f.evaluation:g}, gold {f.gold:g}, train {f.train:g}"

    def part_of(self, example: Demonstration | PreferenceExample) -> Part | None:
        """By the post alone."""
        return self.fractions.part_of(example.post_id)


@dataclass(frozen=True)
class PublishedSplits:
    """The splits that the data was published with: ``train`` to train on, all others held out.

    A post that the publisher has both in ``train`` and elsewhere is trained on; what other splits say about it
    is left out, so that nothing held out has been trained on.

    Attributes:
        train_posts: ids of the posts of split ``train``.
        held_out: names of the other splits.
        gold: share of the train posts kept for the gold reward model, by the hash of the post id.
        left_out: examples of other splits whose posts are trained on.
    """

    train_posts: frozenset[str]
    held_out: tuple[str, ...]
    gold: float
    left_out: int

    @property
    def statement(self) -> str:
        """Which splits became which parts."""
        carved = f"; gold {self.gold:g} of its posts, by SHA-256 of the post id" if self.gold else ""
        return (
            f"as published: train is split {TRAIN_SPLIT}{carved}; evaluation is {', '.join(self.held_out)}"
            f" without the posts that are also in {TRAIN_SPLIT} ({self.left_out} examples left out)"
        )

    def part_of(self, example: Demonstration | PreferenceExample) -> Part | None:
        """By the example's published split and its post."""
        if example.split == TRAIN_SPLIT:
            return "gold" if post_position(example.post_id) < self.gold else "train"
        return None if example.post_id in self.train_posts else "evaluation"


def published_splits(
    examples: Iterable[Demonstration | PreferenceExample], gold: float, source: str
) -> PublishedSplits:
    """The published splits of everything a source holds: a post's place does not depend on what is trained on.

    Args:
        examples: demonstrations and pairs.
        gold: share of the train posts kept for the gold reward model.
        source: its name, for messages.

    Raises:
        ValueError: an example names no split, none is in ``train``, or none is held out.
    """
    examples = list(examples)
    names = sorted({example.split for example in examples if example.split is not None})
    nameless = sum(example.split is None for example in examples)
    cure = "leave --data.splits at hash, which splits by the post id"
    if nameless:
        found = f"; the others are in {', '.join(names)}" if names else ""
        raise ValueError(
            f"published splits were asked for, but {nameless} of {len(examples)} examples of source {source}"
            f" name none{found}: give data with a field 'split', or in files or folders named train, validation"
            f" and the like, or {cure}"
        )
    train_posts = frozenset(example.post_id for example in examples if example.split == TRAIN_SPLIT)
    outside = [example.post_id in train_posts for example in examples if example.split != TRAIN_SPLIT]
    if not train_posts or all(outside):
        lacking = "no post is outside train" if train_posts else "no split is called train"
        raise ValueError(
            f"published splits were asked for, but source {source} has {', '.join(names)}, and {lacking}: {cure}"
        )
    held_out = tuple(name for name in names if name != TRAIN_SPLIT)
    return PublishedSplits(train_posts, held_out, gold, left_out=sum(outside))


def fingerprint(examples: Iterable[Demonstration | PreferenceExample]) -> str:
    """SHA-256 (hexadecimal) of the examples' ids and texts in any order: what a run record calls its data."""
    records = sorted(
        # JSON keeps the fields apart: joined bare, ("a", "bc") and ("ab", "c") would be one.
        json.dumps(astuple(example))
        for example in examples
    )
    return hashlib.sha256("\n".join(records).encode()).hexdigest()
