"""The figures by name."""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure

from overopt.analysis.figures.training_dynamics import draw_training_dynamics
from overopt.analysis.figures.win_rate_vs_kl import draw_win_rate_vs_kl


@dataclass(frozen=True)
class PaperFigure:
    """One figure of the report.

    Attributes:
        stem: name of its files, without an extension.
        title: what it shows, in a few words.
        caption: how to read it, in plain words.
        draw: the points and fits tables -> axes. Call it inside
            :func:`overopt.analysis.figures.style.drawing`.
    """

    stem: str
    title: str
    caption: str
    draw: Callable[[pd.DataFrame, pd.DataFrame], Figure]


FIGURES: dict[str, PaperFigure] = {
    "fig01": PaperFigure(
        stem="fig01_win_rate_vs_kl",
        title="Win rate against divergence",
        caption=(
            "Each point is a checkpoint: how often its responses beat the dataset's, against how far it moved "
            "from the reference. Upper row: the last checkpoint of each run; lower row: earlier checkpoints "
            "too (hollow). Bars are 95% intervals over prompts. Lines are fitted laws through the "
            "reference's own win rate (dotted horizontal). The shaded region lies past the peak of law (a): "
            "there, moving further costs quality. A question mark says that the points do not rule out a "
            "peak beyond them."
        ),
        draw=draw_win_rate_vs_kl,
    ),
    "fig02": PaperFigure(
        stem="fig02_training_dynamics",
        title="Win rate and divergence during training",
        caption=(
            "The same checkpoints in the order of training, a line for each beta (the price of divergence). "
            "Bands are 95% intervals over prompts. A line that bends down above while it still rises below "
            "is over-optimizing; a dip that training recovers from is not."
        ),
        draw=draw_training_dynamics,
    ),
}
"""Names are the paper's figure numbers."""
