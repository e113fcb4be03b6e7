"""Figures 2 and 8: win rate and KL along training, a line a beta."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from overopt.analysis.figures.missing import measured, missing_measurements
from overopt.analysis.figures.style import (
    ERROR_BAR_SE,
    DotStyle,
    beta_styles,
    draw_dots,
    grid_of_axes,
    label_rows,
    models_by_size,
    root_scale,
    share_range,
    style_handles,
    title_panel,
)
from overopt.analysis.laws.curves import training_fractions


@dataclass(frozen=True)
class Line:
    """One beta of one objective and model.

    Attributes:
        objective: column of the figure.
        model: pair of rows of the figure.
        beta: price of divergence in training [reward / nat].
        steps: training_fraction (of the whole run, 0 the reference); the averages over num_seeds seeds
            of win_rate and kl_nats, each with _low and _high (95%; NaN without a standard error); run_id and
            examples_seen of the one run, or an empty run_id where there are several.
    """

    objective: str
    model: str
    beta: float
    steps: pd.DataFrame


def training_dynamics(points: pd.DataFrame) -> list[Line]:
    """What Figs. 2 and 8 plot, models by size; lines without a measurement after the reference are left out."""
    models = models_by_size(points)
    lines = [
        Line(
            str(objective),
            str(model),
            float(runs["beta"].iloc[0]),
            averages_along_training(runs, {"win_rate": "win_rate_se", "kl_nats": "kl_se"}),
        )
        for (objective, model, _), runs in points.groupby(["objective", "model", "beta"], sort=True)
        if len(measured(runs, "win_rate")) or len(measured(runs, "kl_nats"))
    ]
    return sorted(lines, key=lambda line: models.index(line.model))


def averages_along_training(runs: pd.DataFrame, errors: Mapping[str, str | None]) -> pd.DataFrame:
    """A row for each fraction of training, averaged over runs that differ in their seed alone.

    Seeds end a step of some examples apart, so that the same checkpoint comes at slightly different fractions:
    those nearer to one another than a tenth of the way to a run's next checkpoint count as one.

    Error bars are the mean standard error of the seeds: they share prompts, so that averaging over seeds
    does not shrink it.

    Args:
        runs: rows of the points table.
        errors: column -> column of its standard error, if it has one.
    """
    runs = runs.reset_index(drop=True)
    fraction = training_fractions(runs)
    # A run of which only the reference was evaluated has no fraction, hence nothing to draw.
    fraction = fraction.dropna().sort_values()
    spacing = fraction.groupby(runs["run_id"]).diff().min()
    place = (fraction.diff() > 0.1 * spacing).cumsum()
    rows = []
    for _, seeds in runs.loc[fraction.index].groupby(place, sort=True):
        one = seeds.iloc[0]
        row = {
            "training_fraction": float(fraction[seeds.index].mean()),
            "num_seeds": len(seeds),
            "run_id": str(one["run_id"]) if len(seeds) == 1 else "",
            "examples_seen": int(one["examples_seen"]),
        }
        for value, error in errors.items():
            row[value] = mean = float(seeds[value].mean()) if value in seeds else np.nan
            half = ERROR_BAR_SE * float(seeds[error].mean()) if error in seeds else np.nan
            row |= {f"{value}_low": mean - half, f"{value}_high": mean + half}
        rows.append(row)
    return pd.DataFrame(rows)


def models_measured(points: pd.DataFrame) -> list[str]:
    """Models with a win rate and KL after the reference, by size."""
    return models_by_size(measured(points, "kl_nats", "win_rate"))


def missing_training_dynamics(points: pd.DataFrame) -> str:
    """Why Fig. 2 cannot be drawn; empty if it can."""
    return missing_measurements(points, "kl_nats", "win_rate")


def missing_smaller_models(points: pd.DataFrame) -> str:
    """Why Fig. 8 cannot be drawn; empty if it can."""
    if missing := missing_training_dynamics(points):
        return missing
    return "" if len(models_measured(points)) > 1 else "one model only, which fig02 shows"


def draw_largest_model(points: pd.DataFrame, fits: pd.DataFrame) -> Figure:
    """Fig. 2, a column an objective, of the largest model; win rate above and KL below."""
    return draw_lines(training_dynamics(points[points["model"] == models_measured(points)[-1]]))


def draw_smaller_models(points: pd.DataFrame, fits: pd.DataFrame) -> Figure:
    """Fig. 8: as Fig. 2, a pair of rows for each of the other models."""
    return draw_lines(training_dynamics(points[points["model"].isin(models_measured(points)[:-1])]))


def draw_lines(lines: list[Line]) -> Figure:
    """Numbers -> axes."""
    objectives = sorted({line.objective for line in lines})
    models = list(dict.fromkeys(line.model for line in lines))
    styles = beta_styles(line.beta for line in lines)
    figure, axes = grid_of_axes(2 * len(models), len(objectives), panel=(4.4, 2.8))
    for ax in axes.flat:
        ax.set_visible(False)
    for line in lines:
        row, column = 2 * models.index(line.model), objectives.index(line.objective)
        for ax, value in ((axes[row, column], "win_rate"), (axes[row + 1, column], "kl_nats")):
            if line.steps.loc[line.steps["training_fraction"] > 0, value].isna().all():
                continue
            if not ax.get_visible():
                prepare_fractions(ax, line.objective, line.model)
            draw_line(ax, line.steps, value, styles[line.beta])
    for row, model in enumerate(models):
        largest = np.nanmax([line.steps["kl_nats"].max() for line in lines if line.model == model])
        for ax in axes[2 * row + 1]:
            root_scale(ax, float(largest))
    share_range([ax for ax in axes[::2].flat if ax.get_visible()])
    label_rows(axes[::2], "Win rate against the\ndataset's response [fraction]")
    label_rows(axes[1::2], "KL(policy ‖ reference)\n[nats, square-root scale]")
    figure.legend(
        handles=style_handles(styles, linestyle="-"),
        loc="outside right upper",
        title="beta in training\n[reward / nat]",
    )
    return figure


def prepare_fractions(ax: Axes, objective: str, model: str) -> None:
    """Show axes whose horizontal one is the fraction of training."""
    ax.set_visible(True)
    title_panel(ax, objective, model)
    ax.set_xlabel("Fraction of training (0 = reference)")
    ax.set_xlim(-0.03, 1.03)


def draw_line(
    ax: Axes, steps: pd.DataFrame, value: str, style: DotStyle, *, linestyle: str = "-", filled: bool = True
) -> None:
    """One column of :func:`averages_along_training`, with its band and a dot at each checkpoint."""
    if steps[f"{value}_low"].notna().any():
        ax.fill_between(
            steps["training_fraction"],
            steps[f"{value}_low"],
            steps[f"{value}_high"],
            color=style.color,
            alpha=0.08,
            linewidth=0,
        )
    ax.plot(steps["training_fraction"], steps[value], color=style.color, linestyle=linestyle, linewidth=1.6)
    draw_dots(ax, steps, "training_fraction", value, style, filled=filled, size=6.5 if filled else 5.0)
