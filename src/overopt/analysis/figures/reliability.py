"""Reliability diagrams: how often reward models are right against how sure they are."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from overopt.analysis.figures.style import INK, MUTED, grid_of_axes, label_rows

#: Columns of the table that is drawn.
COLUMNS = ("reward_model", "confidence_low", "confidence_high", "pairs", "confidence", "accuracy", "low", "high")
_MOST_COLUMNS = 4
_COLOR = "#0072b2"


@dataclass(frozen=True)
class Panel:
    """One reward model.

    Attributes:
        reward_model: its name.
        bins: a bin of confidence that has pairs a row: confidence (its mean), accuracy with low and high (95%), and
            share, of all pairs.
        edges: of all bins.
        shares: of all pairs in each bin.
        error: expected calibration error.
        error_if_calibrated: the same of right probabilities.
    """

    reward_model: str
    bins: pd.DataFrame
    edges: np.ndarray
    shares: np.ndarray
    error: float
    error_if_calibrated: float


def reliability(table: pd.DataFrame, errors: pd.DataFrame) -> list[Panel]:
    """What the diagrams plot, a panel a reward model in the table's order.

    Args:
        table: bins, with :data:`COLUMNS`.
        errors: by ``reward_model``, its ``calibration_error`` and ``calibration_error_if_calibrated``.
    """
    of_models = errors.set_index("reward_model").to_dict("index")
    panels = []
    for name, bins in table.groupby("reward_model", sort=False):
        shares = bins["pairs"] / bins["pairs"].sum()
        filled = bins.assign(share=shares)[bins["pairs"] > 0].reset_index(drop=True)
        row = of_models[name]
        panels.append(
            Panel(
                reward_model=str(name),
                bins=filled[["confidence", "accuracy", "low", "high", "share"]],
                edges=np.append(bins["confidence_low"].to_numpy(float), float(bins["confidence_high"].iloc[-1])),
                shares=shares.to_numpy(float),
                error=float(row["calibration_error"]),
                error_if_calibrated=float(row["calibration_error_if_calibrated"]),
            )
        )
    return panels


def draw_reliability(panels: list[Panel]) -> Figure:
    """Numbers -> axes."""
    columns = 3 if len(panels) in (5, 6) else min(len(panels), _MOST_COLUMNS)
    rows = -(-len(panels) // columns)
    figure, axes = grid_of_axes(rows, columns, panel=(3.3, 3.3))
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    lowest = min([0.5, *(float(panel.bins["low"].min()) for panel in panels)])
    for ax, panel in zip(axes.flat, panels, strict=False):
        _draw(ax, panel, max(0.0, lowest - 0.03))
    for ax in axes.flat[max(0, len(panels) - columns) : len(panels)]:  # the last one of each column
        ax.set_xlabel("Probability of the preferred response,\nsaid by the model")
    label_rows(axes, "Pairs ranked as labelled [fraction]")
    return figure


def _draw(ax: Axes, panel: Panel, lowest: float) -> None:
    ax.set(xlim=(0.49, 1.01), ylim=(lowest, 1.02))
    ax.plot([0.5, 1], [0.5, 1], color=MUTED, linewidth=1, linestyle=(0, (2, 3)), zorder=1)
    # How many pairs a bin has, along the bottom.
    ax.bar(
        panel.edges[:-1], 0.25 * (1.02 - lowest) * panel.shares, np.diff(panel.edges),
        bottom=lowest, align="edge", color=MUTED, alpha=0.25, linewidth=0, zorder=0,
    )  # fmt: skip
    bins = panel.bins
    spread = np.clip([bins["accuracy"] - bins["low"], bins["high"] - bins["accuracy"]], 0, None)
    ax.errorbar(
        bins["confidence"], bins["accuracy"], yerr=spread,
        color=_COLOR, marker="o", markersize=5, linewidth=1.4, elinewidth=0.9, ecolor=(*_rgb(), 0.45), zorder=3,
    )  # fmt: skip
    ax.set_title(panel.reward_model, size=9.5)
    ax.text(
        0.03, 0.97, f"error {panel.error:.3f}\n({panel.error_if_calibrated:.3f} if calibrated)",
        transform=ax.transAxes, va="top", size=8.5, color=INK,
        bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1.5},
    )  # fmt: skip


def _rgb() -> tuple[float, float, float]:
    return tuple(int(_COLOR[place : place + 2], 16) / 255 for place in (1, 3, 5))  # type: ignore[return-value]
