"""Figure 4: does accuracy or loss on held-out pairs tell the win rate? With rank correlations."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from overopt.analysis.figures.missing import measured, missing_measurements
from overopt.analysis.figures.style import (
    ERROR_BAR_SE,
    DotStyle,
    draw_dots,
    draw_error_bars,
    grid_of_axes,
    label_rows,
    log_scale,
    model_styles,
    models_by_size,
    share_range,
    title_panel,
)
from overopt.analysis.findings.rank_correlation import METRICS, POOLED, rank_correlations

METRIC_NAMES = {
    "implicit_reward_accuracy": "Implicit-reward accuracy on held-out pairs [fraction]",
    "loss": "Loss on held-out pairs [objective's unit, log scale]",
}


@dataclass(frozen=True)
class Panel:
    """One metric of one objective.

    Attributes:
        objective: column of the figure.
        metric: row of the figure.
        models: which models there are, by size.
        dots: run_id, examples_seen, model, metric (its value), win_rate, and win_rate_low and win_rate_high
            (95%; NaN without a standard error).
        correlations: rows of :func:`rank_correlations` by model, pooled first where there are several models.
    """

    objective: str
    metric: str
    models: list[str]
    dots: pd.DataFrame
    correlations: pd.DataFrame


def reward_metrics(points: pd.DataFrame) -> list[Panel]:
    """What Fig. 4 plots. The reference, which ties with itself, is left out."""
    correlations = rank_correlations(points)
    panels = []
    for metric in METRICS:
        kept = measured(points, metric, "win_rate")
        for objective, group in kept.groupby("objective", sort=True):
            models = models_by_size(group)
            half = ERROR_BAR_SE * group.get("win_rate_se", np.nan)
            dots = pd.DataFrame(
                {
                    "run_id": group["run_id"].astype(str),
                    "examples_seen": group["examples_seen"],
                    "model": group["model"].astype(str),
                    "metric": group[metric].astype(float),
                    "win_rate": group["win_rate"].astype(float),
                    "win_rate_low": group["win_rate"] - half,
                    "win_rate_high": group["win_rate"] + half,
                }
            ).reset_index(drop=True)
            mine = correlations[(correlations["objective"] == objective) & (correlations["metric"] == metric)]
            shown = [POOLED, *models] if len(models) > 1 else models
            panels.append(Panel(str(objective), metric, models, dots, mine.set_index("model").loc[shown]))
    return panels


def missing_reward_metrics(points: pd.DataFrame) -> str:
    """Why Fig. 4 cannot be drawn; empty if it can."""
    missing = [missing_measurements(points, metric, "win_rate") for metric in METRICS]
    return "; ".join(dict.fromkeys(missing)) if all(missing) else ""


def draw_reward_metrics(points: pd.DataFrame, fits: pd.DataFrame) -> Figure:
    """Fig. 4, a column an objective, accuracy above and loss below."""
    return draw_panels(reward_metrics(points), models=models_by_size(points))


def draw_panels(panels: list[Panel], *, models: list[str]) -> Figure:
    """Numbers -> axes."""
    objectives = sorted({panel.objective for panel in panels})
    metrics = [metric for metric in METRICS if any(panel.metric == metric for panel in panels)]
    styles = model_styles(models)
    figure, axes = grid_of_axes(len(metrics), len(objectives), panel=(4.4, 3.9))
    for ax in axes.flat:
        ax.set_visible(False)
    for panel in panels:
        ax = axes[metrics.index(panel.metric), objectives.index(panel.objective)]
        ax.set_visible(True)
        title_panel(ax, panel.objective, "")
        ax.set_xlabel(METRIC_NAMES[panel.metric])
        if panel.metric == "loss" and (panel.dots["metric"] > 0).all():
            log_scale(ax, panel.dots["metric"])
        for model, dots in panel.dots.groupby("model"):
            style = styles[str(model)]
            draw_error_bars(ax, dots, "metric", "win_rate", style)
            draw_dots(ax, dots, "metric", "win_rate", style, filled=False, size=5.5)
        _print_correlations(ax, panel, styles)
    shown = [ax for ax in axes.flat if ax.get_visible()]
    share_range(shown)
    _share_accuracies(axes, metrics)
    label_rows(axes, "Win rate against the\ndataset's response [fraction]")
    return figure


def _share_accuracies(axes: np.ndarray, metrics: list[str]) -> None:
    """Accuracies compare between objectives; losses do not."""
    if "implicit_reward_accuracy" not in metrics:
        return
    row = [ax for ax in axes[metrics.index("implicit_reward_accuracy")] if ax.get_visible()]
    low, high = min(ax.get_xlim()[0] for ax in row), max(ax.get_xlim()[1] for ax in row)
    for ax in row:
        ax.set_xlim(low, high)


def _print_correlations(ax: Axes, panel: Panel, styles: dict[str, DotStyle]) -> None:
    """Below the axes, where no dot is in the way; the list is the legend as well."""
    handles = []
    for model, row in panel.correlations.iterrows():
        style = styles.get(str(model))
        handles.append(
            Line2D(
                [],
                [],
                linestyle="none",
                marker=style.marker if style else "",
                markerfacecolor="white",
                markeredgewidth=1.3,
                color=style.color if style else "black",
                label=f"{'all sizes' if model == POOLED else model}: {correlation_text(row)}",
            )
        )
    ax.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(-0.02, -0.2),
        borderaxespad=0.0,
        handletextpad=0.2,
        labelspacing=0.25,
        title="Rank correlation with win rate [95% interval]",
        alignment="left",
    )


def correlation_text(row: pd.Series) -> str:
    """A row of :func:`rank_correlations` as it is printed.

    >>> correlation_text(pd.Series({"correlation": -0.5, "low": -0.75, "high": 0.125, "num_runs": 7}))
    '-0.50 [-0.75, +0.12], 7 runs'
    """

    def signed(value: float) -> str:
        return f"{value:+.2f}"

    runs = f"{row['num_runs']:.0f} run{'s' if row['num_runs'] != 1 else ''}"
    if np.isnan(row["correlation"]):
        return f"none to be had, {runs}"
    if np.isnan(row["low"]):
        return f"{signed(row['correlation'])}, {runs}, too few for an interval"
    return f"{signed(row['correlation'])} [{signed(row['low'])}, {signed(row['high'])}], {runs}"
