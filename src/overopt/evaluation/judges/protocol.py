"""The interface that every judge keeps."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from overopt.evaluation.records import Comparison, Verdict


@runtime_checkable
class Judge(Protocol):
    """Says how often a sample beats the dataset's response."""

    def judge(self, comparisons: Sequence[Comparison]) -> list[Verdict]:
        """One verdict per comparison, in their order; what can't be read is said so, never guessed."""
        ...
