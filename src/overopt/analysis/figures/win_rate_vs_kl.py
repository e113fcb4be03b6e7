"""Figure 1: win rate against sqrt(KL), final checkpoints above, all of them below, with fitted laws."""

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

from overopt.analysis.curves import AXES, OBJECTIVE_NAMES, POINT_SETS, final_checkpoints
from overopt.analysis.figures.style import (
    ERROR_BAR_SE,
    LAW_STYLES,
    MUTED,
    WARNING,
    BetaStyle,
    beta_handles,
    beta_styles,
    grid_of_axes,
)
from overopt.analysis.fitting import Estimate
from overopt.analysis.laws import COMPARED, LAWS, distance

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
        dots: beta, seed, examples_seen, d [sqrt(nats)], win_rate, half_width (95%; NaN where there is no
            standard error) and final (whether it is its run's last checkpoint).
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

    Curves are drawn from 0 to the largest distance of their own panel: a law says nothing beyond its points.
    Points without a divergence or win rate are left out.
    """
    column = AXES[axis]
    panels = []
    for (objective, model), group in points.groupby(["objective", "model"], sort=True):
        trained = group[group["examples_seen"] > 0]
        finals = final_checkpoints(trained).index
        for which in POINT_SETS:
            chosen = trained.loc[finals] if which == "final" else trained
            chosen = chosen[chosen[[column, "win_rate"]].notna().all(axis=1)]
            errors = chosen.get("win_rate_se", math.nan)
            dots = pd.DataFrame(
                {
                    "beta": chosen["beta"].astype(float),
                    "seed": chosen["seed"],
                    "examples_seen": chosen["examples_seen"],
                    "d": distance(chosen[column].to_numpy(float)),
                    "win_rate": chosen["win_rate"].astype(float),
                    "half_width": ERROR_BAR_SE * errors,
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
            curve_d = np.linspace(0.0, float(dots["d"].max()) if len(dots) else 0.0, 201)
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
    return panels


def _curve(fit: Mapping[Any, Any], d: Float[np.ndarray, " place"]) -> Float[np.ndarray, " place"]:
    law = LAWS[str(fit["law"])]
    return float(fit["r0"]) + law.gain(d, np.array([float(fit[name]) for name in law.coefficients]))


def draw_win_rate_vs_kl(points: pd.DataFrame, fits: pd.DataFrame) -> Figure:
    """Fig. 1, a column an objective and two rows a model."""
    return draw_panels(win_rate_vs_kl(points, fits), axis="kl")


def draw_panels(panels: list[Panel], *, axis: str) -> Figure:
    """Numbers -> axes."""
    objectives = list(dict.fromkeys(panel.objective for panel in panels))
    rows = [(model, which) for model in sorted({panel.model for panel in panels}) for which in POINT_SETS]
    styles = beta_styles(beta for panel in panels for beta in panel.dots["beta"])
    figure, axes = grid_of_axes(len(rows), len(objectives), panel=(4.4, 3.1))
    for ax in axes.flat:
        ax.set_visible(False)
    limits = _limits(panels)
    for panel in panels:
        row, column = rows.index((panel.model, panel.points)), objectives.index(panel.objective)
        ax = axes[row, column]
        ax.set_visible(True)
        ax.set(xlim=limits[0], ylim=limits[1])
        _draw_over_optimized(ax, panel)
        _draw_curves(ax, panel)
        _draw_dots(ax, panel, styles)
        ax.set_title(OBJECTIVE_NAMES.get(panel.objective, panel.objective))
        ax.set_title(
            f"{panel.model}, {POINTS_NAMES[panel.points]}", loc="right", size=8.5, weight="normal", color=MUTED
        )
        if column == 0:
            ax.set_ylabel("Win rate against the\ndataset's response [fraction]")
        ax.set_xlabel(f"√{AXIS_NAMES[axis]} [√nats]")
    figure.legend(handles=beta_handles(styles), loc="outside right upper", title="beta in training")
    figure.legend(handles=_line_handles(panels), loc="outside lower center", ncols=2 if len(objectives) == 1 else 4)
    return figure


def _limits(panels: list[Panel]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Axes shared by all panels, so that eyes can compare them."""
    widest = max((float(panel.curve_d[-1]) for panel in panels), default=0.0) or 1.0
    bars = [panel.dots["half_width"].fillna(0.0) for panel in panels]
    rates = np.concatenate(
        [
            *(panel.dots["win_rate"] - bar for panel, bar in zip(panels, bars, strict=True)),
            *(panel.dots["win_rate"] + bar for panel, bar in zip(panels, bars, strict=True)),
            [panel.reference_win_rate for panel in panels],
        ]
    )
    rates = rates[np.isfinite(rates)] if np.isfinite(rates).any() else np.array([0.0, 1.0])
    low, high = float(rates.min()), float(rates.max())
    span = max(high - low, 0.02)
    # Room below for the peak's interval, and above for the region's name.
    return (-0.03 * widest, 1.04 * widest), (low - 0.09 * span, high + 0.14 * span)


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
    )
    bottom = ax.get_xaxis_transform()
    ax.plot([low, min(high, right)], [0.03, 0.03], transform=bottom, color=WARNING, linewidth=3, alpha=0.55)
    ax.plot([d_star], [0.03], transform=bottom, color=WARNING, marker="|", markersize=9, markeredgewidth=2)


def _draw_curves(ax: Axes, panel: Panel) -> None:
    ax.axhline(panel.reference_win_rate, color=MUTED, linewidth=1, linestyle=(0, (2, 3)), zorder=1)
    for law, curve in panel.curves.items():
        ax.plot(panel.curve_d, curve, **LAW_STYLES[law], zorder=3)


def _draw_dots(ax: Axes, panel: Panel, styles: dict[float, BetaStyle]) -> None:
    for (_, final), dots in panel.dots.groupby(["beta", "final"]):
        style = styles[float(dots["beta"].iloc[0])]
        if dots["half_width"].notna().any():
            ax.errorbar(
                dots["d"], dots["win_rate"], dots["half_width"], fmt="none", ecolor=style.color, elinewidth=0.9,
                alpha=0.3, zorder=2,
            )  # fmt: skip
        ax.plot(
            dots["d"],
            dots["win_rate"],
            linestyle="none",
            marker=style.marker,
            markersize=7 if final else 5.5,
            markerfacecolor=style.color if final else "white",
            markeredgecolor="white" if final else style.color,
            markeredgewidth=0.5 if final else 1.3,
            zorder=5 if final else 4,
        )


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
