"""Figure 2: win rate and KL along training, a line a beta."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from overopt.analysis.curves import OBJECTIVE_NAMES
from overopt.analysis.figures.style import (
    ERROR_BAR_SE,
    MUTED,
    BetaStyle,
    beta_handles,
    beta_styles,
    grid_of_axes,
    nats_ticks,
)


@dataclass(frozen=True)
class Line:
    """One beta of one objective and model.

    Attributes:
        objective: column of the figure.
        model: pair of rows of the figure.
        beta: price of divergence in training [reward / nat].
        steps: training_fraction (of the whole run, 0 the reference), win_rate, win_rate_low and
            win_rate_high (95%; NaN without a standard error), kl_nats, kl_low_nats and kl_high_nats;
            averages over num_seeds seeds.
    """

    objective: str
    model: str
    beta: float
    steps: pd.DataFrame


def training_dynamics(points: pd.DataFrame) -> list[Line]:
    """What Fig. 2 plots.

    Error bars are the mean standard error of the seeds: they share prompts, so that averaging over seeds
    does not shrink it.
    """
    fraction = points["examples_seen"] / points.groupby("run_id")["examples_seen"].transform("max")
    # A run of which only the reference was evaluated has nothing to draw.
    points = points.assign(training_fraction=fraction)[fraction.notna()]
    lines = []
    for (objective, model, _), runs in points.groupby(["objective", "model", "beta"], sort=True):
        rows = []
        for _, seeds in runs.groupby("training_fraction", sort=True):
            row = {"training_fraction": float(seeds["training_fraction"].iloc[0]), "num_seeds": float(len(seeds))}
            for value, error, low, high in (
                ("win_rate", "win_rate_se", "win_rate_low", "win_rate_high"),
                ("kl_nats", "kl_se", "kl_low_nats", "kl_high_nats"),
            ):
                row[value] = mean = float(seeds[value].mean()) if value in seeds else np.nan
                half = ERROR_BAR_SE * float(seeds[error].mean()) if error in seeds else np.nan
                row |= {low: mean - half, high: mean + half}
            rows.append(row)
        lines.append(Line(str(objective), str(model), float(runs["beta"].iloc[0]), pd.DataFrame(rows)))
    return lines


def draw_training_dynamics(points: pd.DataFrame, fits: pd.DataFrame) -> Figure:
    """Fig. 2, a column an objective; for each model win rate above and KL below."""
    return draw_lines(training_dynamics(points))


def draw_lines(lines: list[Line]) -> Figure:
    """Numbers -> axes."""
    objectives = list(dict.fromkeys(line.objective for line in lines))
    models = sorted({line.model for line in lines})
    styles = beta_styles(line.beta for line in lines)
    figure, axes = grid_of_axes(2 * len(models), len(objectives), panel=(4.4, 2.8))
    for ax in axes.flat:
        ax.set_visible(False)
    for line in lines:
        row, column = 2 * models.index(line.model), objectives.index(line.objective)
        upper, lower = axes[row, column], axes[row + 1, column]
        if not upper.get_visible():
            _prepare(upper, line, first=column == 0)
            _prepare(lower, line, first=column == 0)
            upper.set_ylabel("Win rate against the\ndataset's response [fraction]" if column == 0 else "")
            lower.set_ylabel("KL(policy ‖ reference)\n[nats, square-root scale]" if column == 0 else "")
            _root_scale(lower, lines)
        _draw(upper, line, "win_rate", "win_rate_low", "win_rate_high", styles[line.beta])
        _draw(lower, line, "kl_nats", "kl_low_nats", "kl_high_nats", styles[line.beta])
    for kind in (0, 1):
        _share_range([ax for ax in axes[kind::2].flat if ax.get_visible()])
    figure.legend(handles=beta_handles(styles, linestyle="-"), loc="outside right upper", title="beta in training")
    return figure


def _prepare(ax: Axes, line: Line, *, first: bool) -> None:
    ax.set_visible(True)
    ax.set_title(OBJECTIVE_NAMES.get(line.objective, line.objective))
    ax.set_title(line.model, loc="right", size=8.5, weight="normal", color=MUTED)
    ax.set_xlabel("Fraction of training (0 = reference)")
    ax.set_xlim(-0.03, 1.03)


def _root_scale(ax: Axes, lines: list[Line]) -> None:
    """Square root: the distance of Fig. 1, on which narrow and wide runs are both seen."""
    ax.set_yscale(
        "function", functions=(lambda kl: np.sqrt(np.maximum(kl, 0.0)), lambda d: np.square(np.maximum(d, 0.0)))
    )
    largest = max((float(line.steps["kl_nats"].max()) for line in lines), default=1.0)
    ticks = nats_ticks(1.15 * largest)
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.set_ylim(0.0, max(1.15 * largest, 1e-3))


def _share_range(axes: list[Axes]) -> None:
    """One vertical range for a row, so that columns compare."""
    if not axes:
        return
    low, high = min(ax.get_ylim()[0] for ax in axes), max(ax.get_ylim()[1] for ax in axes)
    for ax in axes:
        ax.set_ylim(low, high)


def _draw(ax: Axes, line: Line, value: str, low: str, high: str, style: BetaStyle) -> None:
    steps = line.steps
    if steps[low].notna().any():
        ax.fill_between(steps["training_fraction"], steps[low], steps[high], color=style.color, alpha=0.08, linewidth=0)
    ax.plot(
        steps["training_fraction"],
        steps[value],
        color=style.color,
        marker=style.marker,
        markersize=6.5,
        markeredgecolor="white",
        markeredgewidth=0.4,
        linewidth=1.6,
    )
