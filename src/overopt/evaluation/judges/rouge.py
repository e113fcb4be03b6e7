"""ROUGE-L as a judge: whoever shares the longer sequence of words with a reference wins."""

from collections.abc import Sequence
from typing import Literal

from torchmetrics.functional.text.rouge import rouge_score

from overopt.evaluation.judges.budget import Budget
from overopt.evaluation.judges.higher_wins import higher_wins
from overopt.evaluation.judges.protocol import Judge, OnVerdict, ignore
from overopt.evaluation.records import Comparison, Verdict


def rouge_l(text: str, reference: str) -> float:
    """ROUGE-L F-measure: 2 LCS / (words of the text + words of the reference), in [0, 1].

    Words are runs of a-z and 0-9 in lower case, unstemmed; a text without any has 0. Source: Lin 2004, "ROUGE: A
    Package for Automatic Evaluation of Summaries"; computed by torchmetrics.

    >>> rouge_l("the old cat", "The cat, the dog!")
    0.5714285969734192
    """
    return float(rouge_score(text, reference, rouge_keys="rougeL")["rougeL_fmeasure"])


class RougeJudge(Judge):
    """Prefers the text with the higher ROUGE-L F-measure; equal ones are a tie.

    A plain baseline that knows English words only, and rewards copying.

    Args:
        against: what both texts are held against: the reference, a summary that a person wrote, which must not be the
            opponent; or the prompt, for data without one.
    """

    def __init__(self, against: Literal["reference", "prompt"] = "reference") -> None:
        self._against = against
        # The opponents are the same for every checkpoint of a sweep.
        self._opponents: dict[tuple[str, str], float] = {}

    @property
    def settings(self) -> dict[str, str]:
        """What both texts are held against."""
        return {"judge": f"ROUGE-L against the {self._against}"}

    def judge(
        self, comparisons: Sequence[Comparison], on_verdict: OnVerdict = ignore, budget: Budget | None = None
    ) -> list[Verdict]:
        """A win for the higher ROUGE-L.

        Raises:
            ValueError: a comparison has no reference, or its opponent is the reference.
        """
        references = [self._reference(comparison) for comparison in comparisons]
        verdicts = []
        for place, (comparison, reference) in enumerate(zip(comparisons, references, strict=True)):
            sample = rouge_l(comparison.sample, reference)
            opponent = self._of_opponent(comparison.opponent, reference)
            verdict = higher_wins(sample, opponent)
            on_verdict(place, verdict)
            verdicts.append(verdict)
        return verdicts

    def require(self, comparisons: Sequence[Comparison], max_cost: float | None = None) -> None:
        """References.

        Raises:
            ValueError: a comparison has none, or its opponent is the reference.
        """
        for comparison in comparisons:
            self._reference(comparison)

    def _reference(self, comparison: Comparison) -> str:
        if self._against == "prompt":
            return comparison.prompt
        if comparison.reference is None:
            raise ValueError(
                f"comparison {comparison.prompt_id!r} has no reference, and ROUGE-L needs one: give references, or "
                "hold both texts against the prompt (against: prompt)"
            )
        if comparison.opponent.strip() == comparison.reference.strip():
            raise ValueError(
                f"comparison {comparison.prompt_id!r} has its reference for opponent, which no sample can beat: give "
                "another opponent or reference, or hold both texts against the prompt (against: prompt)"
            )
        return comparison.reference

    def _of_opponent(self, opponent: str, reference: str) -> float:
        if (opponent, reference) not in self._opponents:
            self._opponents[opponent, reference] = rouge_l(opponent, reference)
        return self._opponents[opponent, reference]
