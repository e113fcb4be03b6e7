"""Figure 3, right: how much of the log ratio length explains (Eq. 6), against KL, by model size."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from overopt.analysis.figures.missing import measured, missing_measurements
from overopt.analysis.figures.style import (
    LINESTYLES,
    draw_dots,
    grid_of_axes,
    label_rows,
    log_scale,
    model_styles,
    models_by_size,
    share_range,
    style_handles,
    title_panel,
)

MEASURES = {"length_r2": "centred", "length_r2_uncentred": "uncentred"}
# Points behind each place of a trend line, at least; a median of fewer says little.
POINTS_PER_STEP = 5
TREND_STEPS = 5


@dataclass(frozen=True)
class Scatter:
    """One model's checkpoints in one panel.

    Attributes:
        objective: column of the figure.
        measure: row of the figure, see :data:`MEASURES`.
        model: colour, marker and line style.
        dots: run_id, examples_seen, kl_nats and r2 (share of variance).
        trend: kl_nats and r2, the medians of groups of about as many checkpoints, from small KL to large.
    """

    objective: str
    measure: str
    model: str
    dots: pd.DataFrame
    trend: pd.DataFrame


def length_extrapolation(points: pd.DataFrame) -> list[Scatter]:
    """What Fig. 3 (right) plots, models by size.

    A logarithmic axis has no place for the few checkpoints whose estimated KL is not above 0: left out.
    """
    models = models_by_size(points)
    scatters = []
    for measure in MEASURES:
        kept = measured(points, "kl_nats", measure)
        for (objective, model), group in kept[kept["kl_nats"] > 0].groupby(["objective", "model"], sort=True):
            dots = pd.DataFrame(
                {
                    "run_id": group["run_id"].astype(str),
                    "examples_seen": group["examples_seen"],
                    "kl_nats": group["kl_nats"].astype(float),
                    "r2": group[measure].astype(float),
                }
            ).sort_values(["kl_nats", "run_id"], ignore_index=True)
            scatters.append(Scatter(str(objective), measure, str(model), dots, median_trend(dots)))
    return sorted(scatters, key=lambda scatter: models.index(scatter.model))


def median_trend(dots: pd.DataFrame) -> pd.DataFrame:
    """Medians of kl_nats and r2 in consecutive groups of rows, which go by KL; empty for too few rows."""
    steps = min(TREND_STEPS, len(dots) // POINTS_PER_STEP)
    groups = np.array_split(np.arange(len(dots)), steps) if steps > 1 else []
    return pd.DataFrame(
        [dots.iloc[group][["kl_nats", "r2"]].median() for group in groups], columns=["kl_nats", "r2"]
    ).reset_index(drop=True)


def missing_length_extrapolation(points: pd.DataFrame) -> str:
    """Why Fig. 3 (right) cannot be drawn; empty if it can."""
    if length_extrapolation(points):
        return ""
    return missing_measurements(points, "kl_nats", "length_r2") or "no checkpoint has a KL above 0"


def draw_length_extrapolation(points: pd.DataFrame, fits: pd.DataFrame) -> Figure:
    """Fig. 3 (right), a column an objective, the centred R² above the uncentred one."""
    return draw_scatters(length_extrapolation(points))


def draw_scatters(scatters: list[Scatter]) -> Figure:
    """Numbers -> axes."""
    objectives = sorted({scatter.objective for scatter in scatters})
    measures = [measure for measure in MEASURES if any(scatter.measure == measure for scatter in scatters)]
    styles = model_styles(scatter.model for scatter in scatters)
    linestyles = dict(zip(styles, LINESTYLES * len(styles), strict=False))
    figure, axes = grid_of_axes(len(measures), len(objectives), panel=(4.4, 3.1))
    for ax in axes.flat:
        ax.set_visible(False)
    everywhere = [kl for scatter in scatters for kl in scatter.dots["kl_nats"]]
    for scatter in scatters:
        ax = axes[measures.index(scatter.measure), objectives.index(scatter.objective)]
        if not ax.get_visible():
            ax.set_visible(True)
            title_panel(ax, scatter.objective, f"{MEASURES[scatter.measure]} R²")
            ax.set_xlabel("KL(policy ‖ reference) [nats, logarithmic scale]")
            log_scale(ax, everywhere)
        style = styles[scatter.model]
        draw_dots(ax, scatter.dots, "kl_nats", "r2", style, filled=False, size=5.0)
        ax.plot(
            scatter.trend["kl_nats"],
            scatter.trend["r2"],
            color=style.color,
            linestyle=linestyles[scatter.model],
            linewidth=2.2,
            zorder=6,
        )
    for row in axes:
        share_range([ax for ax in row if ax.get_visible()])
    label_rows(axes, "R² of log ratio on length\n[fraction of variance]")
    handles = style_handles(styles)
    for handle, model in zip(handles, styles, strict=True):
        handle.set(linestyle=linestyles[model], linewidth=2.2, markerfacecolor="white")
    figure.legend(handles=handles, loc="outside right upper", title="model\n(line: medians)")
    return figure
