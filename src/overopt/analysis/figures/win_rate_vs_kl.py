"""Figures 1 and 5: win rate against sqrt(KL), final checkpoints above, all of them below, with fitted laws."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from overopt.analysis.figures.style import (
    ERROR_BAR_SE,
    LAW_STYLES,
    MUTED,
    WARNING,
    DotStyle,
    beta_styles,
    draw_dots,
    draw_error_bars,
    grid_of_axes,
    label_rows,
    models_by_size,
    style_handles,
    title_panel,
)
from overopt.analysis.laws.curves import AXES, POINT_SETS, final_checkpoints
from overopt.analysis.laws.intervals import Estimate
from overopt.analysis.laws.laws import COMPARED, LAWS, distance

AXES_SE = {"kl": "kl_se", "forward_kl": "forward_kl_se"}
AXIS_NAMES = {"kl": "KL(policy ‖ reference)", "forward_kl": "KL(reference ‖ policy)"}
POINTS_NAMES = {"final": "final checkpoints", "all": "all checkpoints"}
_PEAK_COLUMNS = ("d_star", "d_star_low", "d_star_high")


@dataclass(frozen=True)
class Panel:
    """What one pair of axes shows.

    Attributes:
        objective: column of the figure.
        model: group of rows of the figure.
        points: final or all, see :data:`POINT_SETS`.
        dots: run_id, beta, seed, examples_seen, d [sqrt(nats)], win_rate, final (whether it is its run's
            last checkpoint), and the ends of 95% intervals, d_low, d_high, win_rate_low and win_rate_high
            (NaN where there is no standard error).
        reference_win_rate: R0; NaN where it was not measured.
        curve_d: distances at which the curves are drawn [sqrt(nats)].
        curves: law name -> win rate at ``curve_d``.
        d_star: where the log law peaks, with its interval [sqrt(nats)]; NaN without a hump.
    """

    objective: str
    model: str
    points: str
    dots: pd.DataFrame
    reference_win_rate: float
    curve_d: Float[np.ndarray, " place"]
    curves: dict[str, Float[np.ndarray, " place"]]
    d_star: Estimate


def win_rate_vs_kl(points: pd.DataFrame, fits: pd.DataFrame, *, axis: str = "kl") -> list[Panel]:
    """What Fig. 1 plots (and Fig. 5, with ``axis="forward_kl"``).

    Models follow one another by size. Curves are drawn from 0 to the largest distance of their own panel: a
    law says nothing beyond its points. Points without a divergence or win rate are left out, and panels
    without a point.
    """
    column, column_se = AXES[axis], AXES_SE[axis]
    models = models_by_size(points)
    panels = []
    for (objective, model), group in points.groupby(["objective", "model"], sort=True):
        trained = group[group["examples_seen"] > 0]
        finals = final_checkpoints(trained).index
        for which in POINT_SETS:
            chosen = trained.loc[finals] if which == "final" else trained
            chosen = chosen[chosen[[column, "win_rate"]].notna().all(axis=1)]
            if not len(chosen):
                continue
            kl, kl_half = chosen[column], ERROR_BAR_SE * chosen.get(column_se, math.nan)
            win_rate, half = chosen["win_rate"], ERROR_BAR_SE * chosen.get("win_rate_se", math.nan)
            dots = pd.DataFrame(
                {
                    "run_id": chosen["run_id"].astype(str),
                    "beta": chosen["beta"].astype(float),
                    "seed": chosen["seed"],
                    "examples_seen": chosen["examples_seen"],
                    "d": distance(kl.to_numpy(float)),
                    "d_low": distance((kl - kl_half).to_numpy(float)),
                    "d_high": distance((kl + kl_half).to_numpy(float)),
                    "win_rate": win_rate.astype(float),
                    "win_rate_low": win_rate - half,
                    "win_rate_high": win_rate + half,
                    "final": chosen.index.isin(finals),
                }
            )
            fitted = fits[
                (fits["objective"] == objective)
                & (fits["model"] == model)
                & (fits["axis"] == axis)
                & (fits["points"] == which)
            ]
            by_law = {str(fit["law"]): fit for fit in fitted.to_dict("records")}
            peak = by_law.get("log_law", {})
            curve_d = np.linspace(0.0, float(dots["d"].max()), 201)
            panels.append(
                Panel(
                    objective=str(objective),
                    model=str(model),
                    points=which,
                    dots=dots.reset_index(drop=True),
                    reference_win_rate=float(group[group["examples_seen"] == 0]["win_rate"].mean()),
                    curve_d=curve_d,
                    curves={law: _curve(fit, curve_d) for law, fit in by_law.items() if law in COMPARED},
                    d_star=Estimate(*(float(peak.get(name, math.nan)) for name in _PEAK_COLUMNS)),
                )
            )
    return sorted(panels, key=lambda panel: models.index(panel.model))


def _curve(fit: Mapping[Any, Any], d: Float[np.ndarray, " place"]) -> Float[np.ndarray, " place"]:
    law = LAWS[str(fit["law"])]
    return float(fit["r0"]) + law.gain(d, np.array([float(fit[name]) for name in law.coefficients]))


def draw_win_rate_vs_kl(points: pd.DataFrame, fits: pd.DataFrame) -> Figure:
    """Fig. 1, a column an objective and two rows a model."""
    return draw_panels(win_rate_vs_kl(points, fits), axis="kl")


def draw_win_rate_vs_forward_kl(points: pd.DataFrame, fits: pd.DataFrame) -> Figure:
    """Fig. 5, as Fig. 1."""
    return draw_panels(win_rate_vs_kl(points, fits, axis="forward_kl"), axis="forward_kl")


def draw_panels(panels: list[Panel], *, axis: str) -> Figure:
    """Numbers -> axes."""
    objectives = sorted({panel.objective for panel in panels})
    models = list(dict.fromkeys(panel.model for panel in panels))
    rows = [(model, which) for model in models for which in POINT_SETS]
    styles = beta_styles(beta for panel in panels for beta in panel.dots["beta"])
    figure, axes = grid_of_axes(len(rows), len(objectives), panel=(4.4, 3.1))
    for ax in axes.flat:
        ax.set_visible(False)
    for panel in panels:
        ax = axes[rows.index((panel.model, panel.points)), objectives.index(panel.objective)]
        ax.set_visible(True)
        # Panels of one model compare; a smaller model that went ten times as far must not squeeze the others.
        ax.set(xlim=_distances([other for other in panels if other.model == panel.model]), ylim=_win_rates(panels))
        _draw_over_optimized(ax, panel)
        _draw_curves(ax, panel)
        _draw_points(ax, panel, styles)
        title_panel(ax, panel.objective, f"{panel.model}, {POINTS_NAMES[panel.points]}")
        ax.set_xlabel(f"√{AXIS_NAMES[axis]} [√nats]")
    label_rows(axes, "Win rate against the\ndataset's response [fraction]")
    figure.legend(handles=style_handles(styles), loc="outside right upper", title="beta in training\n[reward / nat]")
    figure.legend(handles=_line_handles(panels), loc="outside lower center", ncols=2 if len(objectives) == 1 else 4)
    return figure


def _distances(panels: list[Panel]) -> tuple[float, float]:
    widest = max(float(panel.curve_d[-1]) for panel in panels) or 1.0
    return -0.03 * widest, 1.04 * widest


def _win_rates(panels: list[Panel]) -> tuple[float, float]:
    rates = np.concatenate(
        [
            *(panel.dots[["win_rate", "win_rate_low", "win_rate_high"]].to_numpy(float).ravel() for panel in panels),
            [panel.reference_win_rate for panel in panels],
        ]
    )
    rates = rates[np.isfinite(rates)]
    low, high = float(rates.min()), float(rates.max())
    span = max(high - low, 0.02)
    # Room below for the peak's interval, and above for the region's name.
    return low - 0.09 * span, high + 0.14 * span


def _draw_over_optimized(ax: Axes, panel: Panel) -> None:
    """The region past the log law's peak, and the interval of that peak along the bottom."""
    d_star, low, high = panel.d_star
    largest = float(panel.curve_d[-1])
    if not d_star < largest:  # no hump, or a peak beyond the points
        return
    sure = high < largest
    right = ax.get_xlim()[1]
    ax.axvspan(d_star, right, color=WARNING, alpha=0.09 if sure else 0.045, linewidth=0, zorder=0)
    ax.text(
        0.985,
        0.965,
        "over-optimized, by law (a)" if sure else "over-optimized?",
        transform=ax.transAxes,
        ha="right",
        va="top",
        size=9,
        style="italic",
        color=WARNING,
        bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1.5},
        zorder=6,
    )
    bottom = ax.get_xaxis_transform()
    ax.plot([low, min(high, right)], [0.03, 0.03], transform=bottom, color=WARNING, linewidth=3, alpha=0.55)
    ax.plot([d_star], [0.03], transform=bottom, color=WARNING, marker="|", markersize=9, markeredgewidth=2)


def _draw_curves(ax: Axes, panel: Panel) -> None:
    ax.axhline(panel.reference_win_rate, color=MUTED, linewidth=1, linestyle=(0, (2, 3)), zorder=1)
    for law, curve in panel.curves.items():
        ax.plot(panel.curve_d, curve, **LAW_STYLES[law], zorder=3)


def _draw_points(ax: Axes, panel: Panel, styles: dict[float, DotStyle]) -> None:
    for (_, final), dots in panel.dots.groupby(["beta", "final"]):
        style = styles[float(dots["beta"].iloc[0])]
        draw_error_bars(ax, dots, "d", "win_rate", style)
        draw_dots(ax, dots, "d", "win_rate", style, filled=bool(final), size=7.0 if final else 5.5)


def _line_handles(panels: list[Panel]) -> list[Line2D]:
    drawn = [law for law in LAWS.values() if any(law.name in panel.curves for panel in panels)]
    handles: list[Line2D] = [
        Line2D([], [], **LAW_STYLES[law.name], label=f"({law.letter}) {law.formula}") for law in drawn
    ]
    handles += [
        Line2D([], [], color=MUTED, linewidth=1, linestyle=(0, (2, 3)), label="reference, R0"),
        Line2D([], [], color=MUTED, marker="o", linestyle="none", label="final checkpoint"),
        Line2D([], [], color=MUTED, marker="o", markerfacecolor="white", linestyle="none", label="earlier checkpoint"),
    ]
    if "log_law" in {law.name for law in drawn}:
        handles.append(Line2D([], [], color=WARNING, linewidth=3, alpha=0.55, label="peak of (a), 95% interval"))
    return handles
