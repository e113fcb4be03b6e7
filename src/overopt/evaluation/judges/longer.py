"""The longer text wins: the baseline that any judge has to beat."""

from collections.abc import Sequence
from typing import Literal

from overopt.evaluation.judges.budget import Budget
from overopt.evaluation.judges.higher_wins import higher_wins
from overopt.evaluation.judges.protocol import Judge, OnVerdict, ignore
from overopt.evaluation.records import Comparison, Verdict

Unit = Literal["words", "characters"]


def length(text: str, unit: Unit) -> int:
    """Length of a text: words between white space, or characters without the white space around it.

    >>> length(" The cat  sleeps. ", "words"), length(" The cat  sleeps. ", "characters")
    (3, 16)
    """
    return len(text.split()) if unit == "words" else len(text.strip())


class LongerJudge(Judge):
    """Prefers the longer text; equal lengths are a tie.

    People choose the longer of two TL;DR summaries in about 65% of comparisons: a judge that does not do better has
    not been shown to read.

    Args:
        unit: in which length is counted: words or characters.
    """

    def __init__(self, unit: Unit = "words") -> None:
        self._unit: Unit = unit

    @property
    def settings(self) -> dict[str, str]:
        """The unit."""
        return {"judge": f"longer text, in {self._unit}"}

    def judge(
        self, comparisons: Sequence[Comparison], on_verdict: OnVerdict = ignore, budget: Budget | None = None
    ) -> list[Verdict]:
        """A win for the longer sample, a loss for the shorter."""
        verdicts = []
        for place, comparison in enumerate(comparisons):
            sample, opponent = (length(text, self._unit) for text in (comparison.sample, comparison.opponent))
            verdict = higher_wins(float(sample), float(opponent))
            on_verdict(place, verdict)
            verdicts.append(verdict)
        return verdicts
