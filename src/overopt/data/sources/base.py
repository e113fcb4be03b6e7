"""The interface that every data source keeps."""

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

from overopt.data.schema import Demonstration, PreferenceExample
from overopt.data.splits import SplitFractions


@dataclass(frozen=True)
class SourceRead:
    """Everything a source holds, read once.

    Attributes:
        demonstrations: prompts with the response to imitate, in a stable order.
        preferences: labelled pairs, in a stable order.
        left_out: rows not taken, by reason; pairs of ratings where the reason says so.
        irregular: rows taken although something about them is unusual, by what it is.
        rows: rows seen, those left out included.
        origin: what was read: a path, or a dataset and its commit.
    """

    demonstrations: list[Demonstration]
    preferences: list[PreferenceExample]
    left_out: Counter[str] = field(default_factory=Counter)
    irregular: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    # Where the same examples were found makes them no others.
    origin: str = field(default="", compare=False)

    @property
    def examples(self) -> list[Demonstration | PreferenceExample]:
        """Demonstrations, then pairs."""
        return [*self.demonstrations, *self.preferences]


class TokenLimits(NamedTuple):
    """How long prompts and responses of a source may be [tokens].

    Attributes:
        prompt: longer prompts have their post cut.
        response: longer responses are cut; the end of text counts.
    """

    prompt: int
    response: int


@runtime_checkable
class Source(Protocol):
    """Reads examples from one kind of data."""

    @property
    def name(self) -> str:
        """The source's name in configuration."""
        ...

    @property
    def split_fractions(self) -> SplitFractions:
        """How its posts are split unless the user says otherwise."""
        ...

    @property
    def token_limits(self) -> TokenLimits:
        """How long its prompts and responses are taken unless the user says otherwise."""
        ...

    def read(self) -> SourceRead:
        """All examples, or a ValueError that names the file and line at fault."""
        ...
