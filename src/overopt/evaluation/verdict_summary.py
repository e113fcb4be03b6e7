"""Verdicts to everything that is said of them: numbers for a tracking store, lines for people."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from overopt.evaluation.length_control import LengthControlledWinRate, length_controlled_win_rate
from overopt.evaluation.position_bias import PositionBias, position_bias
from overopt.evaluation.records import Comparison, Verdict
from overopt.evaluation.resolution import smallest_difference, smallest_distance_from_half
from overopt.evaluation.win_rate import WinRate, win_rate


class VerdictSummary(NamedTuple):
    """What a list of verdicts, one a prompt, comes to.

    Attributes:
        rate: win rate with its interval, ties and unreadable verdicts; refused ones are among these.
        half_width: half the width of the rate's 95% interval.
        length_controlled: win rate at equal length.
        position: position bias.
        first_preferred: mean probability that the text read first is preferred; NaN where no verdict says.
        refused_share: refused among all verdicts.
        standard_deviation: of a verdict, for what can be resolved; one half for won-or-lost verdicts, whose own says
            little about another policy's.
        num_verdicts: all of them, readable or not.
        cost: of all answers with a price, in the currency of the price table; NaN where none has one.
        num_priced: verdicts with a price.
        input_tokens: of all answers, as the endpoint counted.
        output_tokens: likewise.
    """

    rate: WinRate
    half_width: float
    length_controlled: LengthControlledWinRate
    position: PositionBias
    first_preferred: float
    refused_share: float
    standard_deviation: float
    num_verdicts: int
    cost: float
    num_priced: int
    input_tokens: int
    output_tokens: int

    def metrics(self) -> dict[str, float]:
        """By the contract's names, ``eval/...``; what could not be had is absent."""
        metrics = {
            "eval/win_rate": self.rate.win_rate,
            "eval/win_rate_se": self.rate.standard_error,
            "eval/win_rate_low": self.rate.low,
            "eval/win_rate_high": self.rate.high,
            "eval/win_rate_length_controlled": self.length_controlled.win_rate,
            "eval/win_rate_length_controlled_se": self.length_controlled.standard_error,
            "eval/tie_share": self.rate.tie_share,
            "eval/unreadable_share": self.rate.unreadable_share,
            "eval/refused_share": self.refused_share,
            "eval/position_bias": self.position.bias,
            "eval/position_bias_se": self.position.standard_error,
            "eval/judge_cost": self.cost,
        }
        if self.input_tokens or self.output_tokens:  # else nobody counted
            metrics["eval/judge_input_tokens"] = float(self.input_tokens)
            metrics["eval/judge_output_tokens"] = float(self.output_tokens)
        return {name: value for name, value in metrics.items() if not math.isnan(value)}

    def lines(self) -> list[str]:
        """For people: what was found, how sure it is, and what could have been found at all."""
        lines = [self._win_rate_line()]
        if self.rate.num_readable:
            lines += [self._resolution_line(), self._length_line(), self._position_line()]
        if self.rate.unreadable_share:
            unreadable = self.num_verdicts - self.rate.num_readable
            refused = round(self.refused_share * self.num_verdicts)
            lines.append(
                f"no verdict on {unreadable} of {self.num_verdicts} prompts ({self.rate.unreadable_share:.1%}): "
                f"{unreadable - refused} unreadable, {refused} refused"
            )
        if self.input_tokens or self.output_tokens or self.num_priced:
            lines.append(self._cost_line())
        return lines

    def _win_rate_line(self) -> str:
        rate = self.rate
        if not rate.num_readable:
            return f"no win rate: none of {self.num_verdicts} verdicts is readable"
        return (
            f"win rate {rate.win_rate:.3f}, 95% interval {rate.low:.3f} to {rate.high:.3f} "
            f"(+- {100 * self.half_width:.1f} points) from {rate.num_readable} prompts; ties {rate.tie_share:.1%}"
        )

    def _resolution_line(self) -> str:
        count, spread = self.rate.num_readable, self.standard_deviation
        of_half = smallest_distance_from_half(count, standard_deviation=spread)
        of_two = smallest_difference(count, standard_deviation=spread)
        if math.isinf(of_two):
            return f"{count} prompts are too few to tell any two policies apart"
        from_half = "never" if math.isinf(of_half) else f"when {100 * of_half:.1f} points away"
        return (
            f"{count} prompts tell a rate from one half {from_half}, two policies when {100 * of_two:.1f} points apart "
            "(80% power)"
        )

    def _length_line(self) -> str:
        at_equal = self.length_controlled
        if at_equal.note:
            return f"no win rate at equal length: {at_equal.note}"
        return (
            f"win rate at equal length {at_equal.win_rate:.3f}, 95% interval {at_equal.low:.3f} to {at_equal.high:.3f}"
        )

    def _position_line(self) -> str:
        if not self.position.num_verdicts:
            return "no position bias: no verdict says what was read first"
        bias = self.position
        return (
            f"position bias {bias.bias:+.3f}, 95% interval {bias.low:+.3f} to {bias.high:+.3f}: the judge prefers what "
            f"it reads first in {self.first_preferred:.1%} of cases"
        )

    def _cost_line(self) -> str:
        tokens = f"{self.input_tokens:,} input and {self.output_tokens:,} output tokens"
        if not self.num_priced:
            return f"judged with {tokens}, of unknown price"
        unpriced = self.num_verdicts - self.num_priced
        return f"judged for {self.cost:.4g}, with {tokens}" + (f"; {unpriced} verdicts have no price" * bool(unpriced))


def summarise(
    verdicts: Sequence[Verdict],
    sample_lengths: Sequence[float] | Sequence[int],
    opponent_lengths: Sequence[float] | Sequence[int],
) -> VerdictSummary:
    """Everything that is said of verdicts.

    Args:
        verdicts: one a prompt.
        sample_lengths: of each sample, in any unit; words, in a run's metrics.
        opponent_lengths: of each opponent, in the same unit.

    Raises:
        ValueError: no verdicts, or another number of lengths.

    >>> summary = summarise([Verdict("win", 1.0), Verdict("loss", 0.0)] * 128, [20] * 256, [20] * 256)
    >>> for line in summary.lines()[:2]:
    ...     print(line)
    win rate 0.500, 95% interval 0.439 to 0.561 (+- 6.1 points) from 256 prompts; ties 0.0%
    256 prompts tell a rate from one half when 8.8 points away, two policies when 12.4 points apart (80% power)
    """
    if not len(sample_lengths) == len(opponent_lengths) == len(verdicts):
        raise ValueError(
            f"need a length of each sample and opponent, got {len(sample_lengths)} and {len(opponent_lengths)} for "
            f"{len(verdicts)} verdicts"
        )
    rate = win_rate(verdicts)
    position = position_bias(verdicts)
    costs = [verdict.cost for verdict in verdicts if verdict.cost is not None]
    differences = np.subtract(sample_lengths, opponent_lengths, dtype=np.float64)
    return VerdictSummary(
        rate=rate,
        half_width=(rate.high - rate.low) / 2,
        length_controlled=length_controlled_win_rate(verdicts, differences.tolist()),
        position=position,
        first_preferred=position.bias + 0.5,
        refused_share=sum(verdict.kind == "refused" for verdict in verdicts) / len(verdicts),
        standard_deviation=_standard_deviation(verdicts),
        num_verdicts=len(verdicts),
        cost=float(sum(costs)) if costs else math.nan,
        num_priced=len(costs),
        input_tokens=sum(verdict.input_tokens for verdict in verdicts),
        output_tokens=sum(verdict.output_tokens for verdict in verdicts),
    )


def _standard_deviation(verdicts: Sequence[Verdict]) -> float:
    values = [verdict.win_probability for verdict in verdicts if verdict.win_probability is not None]
    if all(value in (0, 1) for value in values):
        return 0.5
    # Grades that are all the same would promise to resolve anything.
    return float(np.std(values, ddof=1)) or 0.5 if len(values) > 1 else 0.5


def summarise_by_words(comparisons: Sequence[Comparison], verdicts: Sequence[Verdict]) -> VerdictSummary:
    """The same of comparisons and their verdicts, lengths in words."""
    return summarise(
        verdicts,
        [len(comparison.sample.split()) for comparison in comparisons],
        [len(comparison.opponent.split()) for comparison in comparisons],
    )
