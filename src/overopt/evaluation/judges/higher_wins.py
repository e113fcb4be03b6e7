"""A number for each text -> a verdict that is won, lost or tied."""

from overopt.evaluation.records import Verdict


def higher_wins(sample: float, opponent: float) -> Verdict:
    """The text with the higher number wins; equal numbers are a tie.

    >>> higher_wins(3.0, 2.0).kind, higher_wins(2.0, 3.0).kind, higher_wins(2.0, 2.0).win_probability
    ('win', 'loss', 0.5)
    """
    if sample == opponent:
        return Verdict("tie", 0.5)
    kind, win = ("win", 1.0) if sample > opponent else ("loss", 0.0)
    return Verdict(kind, win)
