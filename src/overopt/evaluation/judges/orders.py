"""In which order a judge reads the two texts: by a seed, or both ways, so that its bias to a place can be measured."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from overopt.evaluation.judges.budget import Budget
from overopt.evaluation.judges.protocol import Estimate, Judge, OnVerdict, ignore
from overopt.evaluation.records import Comparison, Verdict

Order = Literal["seeded", "both"]
_MIRRORED = {"win": "loss", "loss": "win"}


def in_order(judge: Judge, order: Order, seed: int = 0) -> Judge:
    """A judge asked in random or both orders; one that weighs each text by itself stays as it is."""
    if not judge.reads_both:
        return judge
    return BothOrders(judge) if order == "both" else SeededOrder(judge, seed)


class SeededOrder(Judge):
    """Half of all comparisons, by a hash, are read with the opponent first.

    Args:
        judge: reads both texts, the sample first.
        seed: of the hash; with it, a comparison's order never changes.
    """

    def __init__(self, judge: Judge, seed: int = 0) -> None:
        self._judge = judge
        self._seed = seed

    @property
    def settings(self) -> dict[str, str]:
        """The judge's, and the seed."""
        return {**self._judge.settings, "judge_order": f"seeded {self._seed}"}

    def judge(
        self, comparisons: Sequence[Comparison], on_verdict: OnVerdict = ignore, budget: Budget | None = None
    ) -> list[Verdict]:
        """Verdicts on the sample, whichever was read first."""
        flips = [self.opponent_first(comparison) for comparison in comparisons]
        verdicts: list[Verdict] = [Verdict("unreadable", None)] * len(comparisons)

        def keep(place: int, verdict: Verdict) -> None:
            verdicts[place] = on_the_sample(verdict, opponent_first=flips[place])
            on_verdict(place, verdicts[place])

        self._judge.judge(self._asked(comparisons), keep, budget)
        return verdicts

    def estimate(self, comparisons: Sequence[Comparison]) -> Estimate:
        """The judge's."""
        return self._judge.estimate(self._asked(comparisons))

    def opponent_first(self, comparison: Comparison) -> bool:
        """Fixed for a seed, a prompt and its two texts."""
        texts = (comparison.prompt_id, comparison.prompt, comparison.sample, comparison.opponent)
        return hashlib.sha256("\0".join([str(self._seed), *texts]).encode()).digest()[0] % 2 == 1

    def _asked(self, comparisons: Sequence[Comparison]) -> list[Comparison]:
        return [flipped(c) if self.opponent_first(c) else c for c in comparisons]


class BothOrders(Judge):
    """Each comparison is read both ways, and the two verdicts averaged; one that can't be read spoils both.

    Args:
        judge: reads both texts, the sample first.
    """

    def __init__(self, judge: Judge) -> None:
        self._judge = judge

    @property
    def settings(self) -> dict[str, str]:
        """The judge's."""
        return {**self._judge.settings, "judge_order": "both"}

    def judge(
        self, comparisons: Sequence[Comparison], on_verdict: OnVerdict = ignore, budget: Budget | None = None
    ) -> list[Verdict]:
        """One verdict a comparison, out of two answers."""
        count = len(comparisons)
        answers: list[Verdict | None] = [None] * (2 * count)
        verdicts: list[Verdict] = [Verdict("unreadable", None)] * count

        def keep(place: int, verdict: Verdict) -> None:
            answers[place] = on_the_sample(verdict, opponent_first=place >= count)
            there, back = answers[place % count], answers[place % count + count]
            if there is not None and back is not None:
                verdicts[place % count] = averaged(there, back)
                on_verdict(place % count, verdicts[place % count])

        self._judge.judge(self._asked(comparisons), keep, budget)
        return verdicts

    def estimate(self, comparisons: Sequence[Comparison]) -> Estimate:
        """Of both orders."""
        return self._judge.estimate(self._asked(comparisons))

    def _asked(self, comparisons: Sequence[Comparison]) -> list[Comparison]:
        return [*comparisons, *map(flipped, comparisons)]


def flipped(comparison: Comparison) -> Comparison:
    """The same two texts in the other order."""
    return replace(comparison, sample=comparison.opponent, opponent=comparison.sample)


def on_the_sample(verdict: Verdict, *, opponent_first: bool) -> Verdict:
    """What a verdict on the text read first says of the sample."""
    first = verdict.win_probability
    if not opponent_first or first is None:
        return replace(verdict, first_preferred=first)
    return replace(
        verdict,
        kind=_MIRRORED.get(verdict.kind, verdict.kind),
        win_probability=1 - first,
        sample_reward=None,
        first_preferred=first,
    )


def averaged(there: Verdict, back: Verdict) -> Verdict:
    """One verdict out of two on the sample, which was read first ``there`` and second ``back``.

    A win and a loss are a tie. Where either can't be read or was refused, so is the whole.
    """
    costs = [verdict.cost for verdict in (there, back) if verdict.cost is not None]
    answers = (("sample first", there.answer), ("sample second", back.answer))
    both = Verdict(
        kind=there.kind,
        win_probability=None,
        answer="\n\n".join(f"[{order}] {answer}" for order, answer in answers if answer is not None) or None,
        answered_by=there.answered_by,
        cost=sum(costs) if costs else None,
        input_tokens=there.input_tokens + back.input_tokens,
        output_tokens=there.output_tokens + back.output_tokens,
    )
    if there.win_probability is None or back.win_probability is None:
        kinds = {v.kind for v in (there, back) if v.win_probability is None}
        return replace(both, kind="refused" if "refused" in kinds else "unreadable")
    win = (there.win_probability + back.win_probability) / 2
    if there.kind != back.kind:
        both = replace(both, kind="tie" if win == 0.5 else "graded")
    return replace(both, win_probability=win, first_preferred=(there.win_probability + 1 - back.win_probability) / 2)
