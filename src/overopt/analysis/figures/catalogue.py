"""The figures by name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from overopt.analysis.figures.length_extrapolation import draw_length_extrapolation, missing_length_extrapolation
from overopt.analysis.figures.length_regularization import draw_length_regularization, missing_length_regularization
from overopt.analysis.figures.likelihoods import draw_likelihoods, missing_likelihoods
from overopt.analysis.figures.methods import draw_methods, missing_methods
from overopt.analysis.figures.missing import missing_measurements
from overopt.analysis.figures.reward_metrics import draw_reward_metrics, missing_reward_metrics
from overopt.analysis.figures.training_dynamics import (
    draw_largest_model,
    draw_smaller_models,
    missing_smaller_models,
    missing_training_dynamics,
)
from overopt.analysis.figures.win_rate_vs_kl import draw_win_rate_vs_forward_kl, draw_win_rate_vs_kl
from overopt.analysis.findings.method_curves import MethodPoints


class FigureTables(NamedTuple):
    """What figures are drawn from.

    Attributes:
        points: rows as :func:`overopt.tracking.tables.read_points` gives them.
        fits: the table of :func:`overopt.analysis.laws.fit_tables.fit_points`.
        methods: what methods are compared by.
    """

    points: pd.DataFrame
    fits: pd.DataFrame
    methods: MethodPoints


@dataclass(frozen=True)
class PaperFigure:
    """One figure of the report.

    Attributes:
        stem: name of its files, without an extension.
        title: what it shows, in a few words.
        caption: how to read it, in plain words.
        draw: tables -> axes. Call it inside :func:`overopt.analysis.figures.style.drawing`, and only where nothing is
            missing.
        missing: what the tables lack for this figure, in words; empty if it can be drawn.
    """

    stem: str
    title: str
    caption: str
    draw: Callable[[FigureTables], Figure]
    missing: Callable[[FigureTables], str]


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
        draw=lambda tables: draw_win_rate_vs_kl(tables.points, tables.fits),
        missing=lambda tables: missing_measurements(tables.points, "kl_nats", "win_rate"),
    ),
    "fig02": PaperFigure(
        stem="fig02_training_dynamics",
        title="Win rate and divergence during training",
        caption=(
            "The same checkpoints of the largest model in the order of training, a line for each beta (the price "
            "of divergence). Bands are 95% intervals over prompts. A line that bends down above while it still "
            "rises below is over-optimizing; a dip that training recovers from is not."
        ),
        draw=lambda tables: draw_largest_model(tables.points, tables.fits),
        missing=lambda tables: missing_training_dynamics(tables.points),
    ),
    "fig03_left": PaperFigure(
        stem="fig03_left_length_regularization",
        title="Win rate against divergence, with and without a length penalty",
        caption=(
            "The same objective without and with a price on length in training. Left: win rate as judged; right: "
            "what is left of it for responses as long as the dataset's. Lines are law (a), fitted to all "
            "checkpoints, dotted the reference's own win rate; marks along the bottom show where each line "
            "peaks, with 95% intervals. A penalty that cured over-optimization would take the fall away."
        ),
        draw=lambda tables: draw_length_regularization(tables.points, tables.fits),
        missing=lambda tables: missing_length_regularization(tables.points),
    ),
    "fig03_right": PaperFigure(
        stem="fig03_right_length_extrapolation",
        title="How much of the implicit reward is length",
        caption=(
            "For each checkpoint, how much of the spread of log ratios over its own responses their length "
            "alone explains (R² of a line through the origin, Eq. 6). The centred R² measures the spread about "
            "the mean, and is below 0 where the line does worse than the mean; the uncentred one measures it "
            "from 0, so that it is high as soon as all log ratios have one sign. Lines join medians of groups "
            "of checkpoints with like KL. The paper finds smaller models higher, and small KL higher than large."
        ),
        draw=lambda tables: draw_length_extrapolation(tables.points, tables.fits),
        missing=lambda tables: missing_length_extrapolation(tables.points),
    ),
    "fig04": PaperFigure(
        stem="fig04_reward_metrics",
        title="Accuracy and loss on held-out pairs against win rate",
        caption=(
            "Each point is a checkpoint after the reference; bars are 95% intervals over prompts. Above: how "
            "often the implicit reward ranks the chosen response of a held-out pair first; below: the loss on "
            "those pairs. Below each panel, rank correlations with win rate over all sizes and within each; "
            "their 95% intervals draw whole runs again and again, since the checkpoints of a run are alike. A "
            "correlation over all sizes that vanishes within each only says that larger models do better."
        ),
        draw=lambda tables: draw_reward_metrics(tables.points, tables.fits),
        missing=lambda tables: missing_reward_metrics(tables.points),
    ),
    "fig05": PaperFigure(
        stem="fig05_win_rate_vs_forward_kl",
        title="Win rate against forward divergence",
        caption=(
            "As fig01, but against the forward KL: how much less likely the policy finds the preferred responses "
            "of held-out pairs than the reference does. A hump says that some loss of likelihood comes with "
            "better responses, and too much with worse."
        ),
        draw=lambda tables: draw_win_rate_vs_forward_kl(tables.points, tables.fits),
        missing=lambda tables: missing_measurements(tables.points, "forward_kl_nats", "win_rate"),
    ),
    "fig08": PaperFigure(
        stem="fig08_training_dynamics_of_smaller_models",
        title="Win rate and divergence during training, smaller models",
        caption="As fig02, for the models that it does not show, small to large.",
        draw=lambda tables: draw_smaller_models(tables.points, tables.fits),
        missing=lambda tables: missing_smaller_models(tables.points),
    ),
    "sec35_likelihoods": PaperFigure(
        stem="sec35_likelihoods",
        title="Likelihood of chosen and rejected responses",
        caption=(
            "How much likelier (above 0) or less likely (below 0) than the reference the policy finds the chosen "
            "and rejected responses of held-out pairs: along training, and against how far it moved. Bands and "
            "bars are 95% intervals over pairs, for the chosen. Both fall in direct alignment; the gap between "
            "them is what it optimizes. The fall of the chosen is the forward KL, and fig05 shows the win rate "
            "against it."
        ),
        draw=lambda tables: draw_likelihoods(tables.points, tables.fits),
        missing=lambda tables: missing_likelihoods(tables.points),
    ),
    "methods": PaperFigure(
        stem="methods",
        title="Methods against divergence: gold and proxy reward, and win rate",
        caption=(
            "Above: how much better than the reference's the responses are by the gold reward (solid, what counts) "
            "and by the proxy (dashed, a reward model of the same preferences as the policy's). A dashed line that "
            "still rises where its solid one falls is over-optimization: the policy gets better at pleasing the proxy "
            "only. Below: the win rate. Lines are means over seeds of smooth curves through the reference, as far as "
            "every seed went; bands are 95% intervals over seeds, from three seeds on. Faint dots are checkpoints, "
            "hollow by the proxy; of best-of-n, an n. Plain DPO is repeated in grey."
        ),
        draw=lambda tables: draw_methods(tables.methods),
        missing=lambda tables: missing_methods(tables.points, tables.methods),
    ),
}
"""Names are the paper's figure and section numbers, where it has the figure."""
