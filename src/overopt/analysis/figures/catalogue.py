"""The figures by name."""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure

from overopt.analysis.figures.missing import missing_measurements
from overopt.analysis.figures.training_dynamics import (
    draw_largest_model,
    draw_smaller_models,
    missing_smaller_models,
    missing_training_dynamics,
)
from overopt.analysis.figures.win_rate_vs_kl import draw_win_rate_vs_forward_kl, draw_win_rate_vs_kl


@dataclass(frozen=True)
class PaperFigure:
    """One figure of the report.

    Attributes:
        stem: name of its files, without an extension.
        title: what it shows, in a few words.
        caption: how to read it, in plain words.
        draw: the points and fits tables -> axes. Call it inside
            :func:`overopt.analysis.figures.style.drawing`, and only where nothing is missing.
        missing: the points -> what they lack for this figure, in words; empty if it can be drawn.
    """

    stem: str
    title: str
    caption: str
    draw: Callable[[pd.DataFrame, pd.DataFrame], Figure]
    missing: Callable[[pd.DataFrame], str]


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
        missing=lambda points: missing_measurements(points, "kl_nats", "win_rate"),
    ),
    "fig02": PaperFigure(
        stem="fig02_training_dynamics",
        title="Win rate and divergence during training",
        caption=(
            "The same checkpoints of the largest model in the order of training, a line for each beta (the price "
            "of divergence). Bands are 95% intervals over prompts. A line that bends down above while it still "
            "rises below is over-optimizing; a dip that training recovers from is not."
        ),
        draw=draw_largest_model,
        missing=missing_training_dynamics,
    ),
    "fig05": PaperFigure(
        stem="fig05_win_rate_vs_forward_kl",
        title="Win rate against forward divergence",
        caption=(
            "As fig01, but against the forward KL: how much less likely the policy finds the preferred responses "
            "of held-out pairs than the reference does. A hump says that some loss of likelihood comes with "
            "better responses, and too much with worse."
        ),
        draw=draw_win_rate_vs_forward_kl,
        missing=lambda points: missing_measurements(points, "forward_kl_nats", "win_rate"),
    ),
    "fig08": PaperFigure(
        stem="fig08_training_dynamics_of_smaller_models",
        title="Win rate and divergence during training, smaller models",
        caption="As fig02, for the models that it does not show, small to large.",
        draw=draw_smaller_models,
        missing=missing_smaller_models,
    ),
}
"""Names are the paper's figure numbers."""
