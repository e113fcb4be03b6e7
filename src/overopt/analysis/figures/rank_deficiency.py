"""Figures of the regression view (Sec. 4): what preferences leave free, and what takes it away."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from overopt.analysis.figures.style import (
    INK,
    LINESTYLES,
    MUTED,
    beta_styles,
    grid_of_axes,
    label_rows,
    log_scale,
    style_handles,
    title_panel,
)
from overopt.analysis.laws.curves import objective_title

REGULARISER_NAMES = {"none": "none", "nll": "NLL of chosen", "kl": "on-policy KL", "chi_squared": "chi-squared"}
_COLORS = {"none": INK, "nll": "#0072b2", "kl": "#c2410c", "chi_squared": "#7c3aed"}
_MARKERS = {"none": "o", "nll": "s", "kl": "^", "chi_squared": "D"}
# The curves of KL and chi-squared lie on each other in places.
_SIZES = {"nll": 5.5, "kl": 9.0, "chi_squared": 4.5}
_MASSES = {
    "chosen_mass": ("chosen", "#0072b2"),
    "rejected_mass": ("rejected", "#c2410c"),
    "demonstrated_mass": ("demonstrated only", "#7c3aed"),
}
# Masses from near 0 to near 1.
_LOGIT_TICKS = (0.0001, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)


def log_odds(mass: np.ndarray) -> np.ndarray:
    """log(m / (1 - m)) of masses, those at 0 and 1 at a distance that a plot can show.

    >>> log_odds(np.array([0.5, 0.0])).round(2).tolist()
    [0.0, -11.51]
    """
    inside = np.clip(np.asarray(mass, dtype=float), 1e-5, 1 - 1e-5)
    return np.asarray(np.log(inside) - np.log1p(-inside))


@dataclass(frozen=True)
class EqualLossPanel:
    """One beta.

    Attributes:
        beta: of the losses [reward / nat].
        losses: objective -> ood_mass and loss, the policies of equal loss.
        masses: ood_mass, chosen_mass, rejected_mass, demonstrated_mass of the same policies [fraction].
        largest_difference: of losses of one objective.
    """

    beta: float
    losses: dict[str, pd.DataFrame]
    masses: pd.DataFrame
    largest_difference: float


def equal_losses(table: pd.DataFrame) -> list[EqualLossPanel]:
    """What the figure of equal losses plots, one panel a beta."""
    panels = []
    for _, same in table.groupby("beta", sort=True):
        by_objective = {str(name): rows for name, rows in same.groupby("objective", sort=False)}
        masses = same.drop_duplicates("ood_mass").sort_values("ood_mass")
        panels.append(
            EqualLossPanel(
                float(same["beta"].iloc[0]),
                {name: rows.sort_values("ood_mass")[["ood_mass", "loss"]] for name, rows in by_objective.items()},
                masses[["ood_mass", *_MASSES]].reset_index(drop=True),
                max(float(rows["loss"].max() - rows["loss"].min()) for rows in by_objective.values()),
            )
        )
    return panels


def draw_equal_losses(table: pd.DataFrame) -> Figure:
    """A column a beta: losses above, which are flat, and where the probability is below, which is not."""
    panels = equal_losses(table)
    figure, axes = grid_of_axes(2, len(panels), panel=(4.0, 2.7))
    for (above, below), panel in zip(axes.T, panels, strict=True):
        above.set_title(f"beta {panel.beta:g}")
        above.set_title(_difference(panel.largest_difference), loc="right", size=8.5, weight="normal", color=MUTED)
        for (name, losses), linestyle in zip(panel.losses.items(), LINESTYLES * len(panel.losses), strict=False):
            above.plot(
                log_odds(losses["ood_mass"].to_numpy()), losses["loss"], color=INK, linestyle=linestyle, marker="o",
                markersize=4, label=objective_title(name),
            )  # fmt: skip
        top = max(float(losses["loss"].max()) for losses in panel.losses.values())
        above.set_ylim(-0.08 * max(top, 0.1), 1.3 * max(top, 0.1))
        for column, (label, color) in _MASSES.items():
            mass = panel.masses[column].to_numpy(float)
            if (mass > 0).any():
                below.plot(
                    log_odds(panel.masses["ood_mass"].to_numpy()), np.maximum(mass, 1e-300), color=color, marker="o",
                    markersize=4, label=label,
                )  # fmt: skip
        below.set_yscale("log")
        below.yaxis.set_major_formatter("{x:.0e}")
        for ax in (above, below):
            _mass_axis(ax, vertical=False)
        below.set_xlabel("OOD mass of the policy\n[fraction, log odds]")
    axes[0, 0].set_ylabel("Mean loss on the preferences")
    axes[1, 0].set_ylabel("Probability of\n[fraction, logarithmic]")
    handles = [handle for row in axes[:, 0] for handle in row.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, loc="outside right upper", title="loss of, above;\nresponses, below")
    return figure


def draw_preferences_needed(table: pd.DataFrame) -> Figure:
    """Freedom, range of OOD mass and share of orders that are determined, against preferences drawn."""
    figure, axes = grid_of_axes(1, 3, panel=(4.0, 3.0))
    freedom, mass, share = axes[0]
    drawn = table["preferences"]
    band = {"color": "#0072b2", "alpha": 0.18, "linewidth": 0}
    freedom.fill_between(drawn, table["freedom_q05"], table["freedom_q95"], **band)
    freedom.plot(drawn, table["freedom"], color="#0072b2", linewidth=1.8, label="random (90% of orders)")
    independent = np.maximum(table["freedom"].iloc[0] - drawn, 0)
    freedom.plot(drawn, independent, color=INK, linestyle="--", linewidth=1.2, label="independent")
    freedom.plot(
        drawn, table["never_compared"], color=MUTED, linestyle=":", linewidth=1.6, label="responses in none yet"
    )
    freedom.set_title("Freedom left")
    freedom.set_ylabel("Dimensions or responses")
    mass.fill_between(drawn, table["mass_low_q05"], table["mass_high_q95"], **band, label="90% of orders")
    mass.fill_between(
        drawn, table["mass_low"], table["mass_high"], color="#0072b2", alpha=0.4, linewidth=0, label="median order"
    )
    mass.set_title("OOD mass that losses allow")
    mass.set_ylabel("Probability of the OOD responses\n[fraction]")
    mass.set_ylim(-0.03, 1.03)
    share.plot(drawn, table["determined"], color="#0072b2", linewidth=1.8, label="random orders")
    if table["random_graph"].notna().any():
        share.plot(drawn, table["random_graph"], color=INK, linestyle="--", linewidth=1.2, label="random-graph limit")
    share.set_title("Nothing left free")
    share.set_ylabel("Share of orders [fraction]")
    share.set_ylim(-0.03, 1.03)
    for ax, place in ((freedom, "upper right"), (mass, "upper right"), (share, "upper left")):
        ax.set_xlabel("Preferences drawn")
        ax.legend(loc=place)
    return figure


@dataclass(frozen=True)
class OptimaPanel:
    """One objective and beta.

    Attributes:
        objective: column of the figure.
        beta: row of the figure [reward / nat].
        reference: OOD mass of the reference [fraction].
        low: smallest OOD mass of an optimum without a regulariser [fraction].
        high: largest.
        lines: regulariser -> strength, ood_mass, attained.
    """

    objective: str
    beta: float
    reference: float
    low: float
    high: float
    lines: dict[str, pd.DataFrame]


def regularised_optima(table: pd.DataFrame) -> list[OptimaPanel]:
    """What the figure of regularised optima plots."""
    panels = []
    for (objective, _), same in table.groupby(["objective", "beta"], sort=False):
        free = same[same["regulariser"] == "none"].iloc[0]
        lines = {
            str(name): rows.sort_values("strength").assign(ood_mass=rows["ood_low"])[
                ["strength", "ood_mass", "attained"]
            ]
            for name, rows in same[same["regulariser"] != "none"].groupby("regulariser", sort=False)
        }
        reference = float(same["reference_ood_mass"].iloc[0])
        panels.append(
            OptimaPanel(
                str(objective),
                float(same["beta"].iloc[0]),
                reference,
                float(free["ood_low"]),
                float(free["ood_high"]),
                lines,
            )
        )
    return panels


def draw_regularised_optima(table: pd.DataFrame) -> Figure:
    """A column an objective, a row a beta: OOD mass at the optimum against the regulariser's weight."""
    panels = regularised_optima(table)
    objectives = list(dict.fromkeys(panel.objective for panel in panels))
    betas = sorted({panel.beta for panel in panels})
    figure, axes = grid_of_axes(len(betas), len(objectives), panel=(4.0, 2.5))
    top = max(float(line["ood_mass"].max()) for panel in panels for line in panel.lines.values())
    top = 1.15 * max(top, *(panel.reference for panel in panels), 0.01)
    for panel in panels:
        ax = axes[betas.index(panel.beta), objectives.index(panel.objective)]
        title_panel(ax, panel.objective, f"beta {panel.beta:g}; without: {panel.low:.2g} to {panel.high:.2g}")
        ax.axhline(panel.reference, color=MUTED, linestyle=":", linewidth=1.4)
        for name, line in panel.lines.items():
            ax.plot(line["strength"], line["ood_mass"], color=_COLORS[name], linewidth=1.4, zorder=3)
            for attained, dots in line.groupby("attained"):
                ax.plot(
                    dots["strength"], dots["ood_mass"], linestyle="none", marker=_MARKERS[name], color=_COLORS[name],
                    markerfacecolor=_COLORS[name] if attained else "white", markersize=_SIZES[name], zorder=4,
                )  # fmt: skip
        log_scale(ax, table.loc[table["strength"] > 0, "strength"])
        ax.set_ylim(-0.06 * top, top)
        if panel.beta == betas[-1]:
            ax.set_xlabel("lambda, weight of the regulariser")
    label_rows(axes, "OOD mass at the optimum\n[fraction]")
    handles = [_handle(name) for name in REGULARISER_NAMES if name != "none"]
    handles += [
        Line2D([], [], color=MUTED, linestyle=":", linewidth=1.4, label="the reference's"),
        Line2D(
            [],
            [],
            color=MUTED,
            linestyle="none",
            marker="o",
            markerfacecolor="white",
            label="approached,\nnot attained",
        ),
    ]
    figure.legend(handles=handles, loc="outside right upper", title="regulariser")
    return figure


def draw_starts(table: pd.DataFrame) -> Figure:
    """A column an objective: OOD mass at the end of a descent against that at its start."""
    objectives = list(dict.fromkeys(table["objective"]))
    figure, axes = grid_of_axes(1, len(objectives), panel=(3.7, 3.3))
    for ax, objective in zip(axes[0], objectives, strict=True):
        mine = table[table["objective"] == objective]
        strength = mine["strength"].max()
        title_panel(ax, objective, f"beta {mine['beta'].iloc[0]:g}, lambda {strength:g}")
        for name, line in mine.groupby("regulariser", sort=False):
            ax.plot(
                log_odds(line["start_ood_mass"].to_numpy()), log_odds(line["end_ood_mass"].to_numpy()),
                color=_COLORS[name], marker=_MARKERS[name], markersize=5.5, linewidth=1.4,
            )  # fmt: skip
        _mass_axis(ax, vertical=False)
        _mass_axis(ax, vertical=True)
        ax.set_xlabel("OOD mass at the start\n[fraction, log odds]")
    label_rows(axes, "OOD mass at the end\n[fraction, log odds]")
    figure.legend(handles=[_handle(name) for name in REGULARISER_NAMES], loc="outside right upper", title="regulariser")
    return figure


def draw_rewards_of_equal_loss(table: pd.DataFrame) -> Figure:
    """OOD mass of RLHF's optimum against where rewards of equal loss put the unseen responses, a line a beta."""
    figure, axes = grid_of_axes(1, 1, panel=(6.4, 3.4))
    ax = axes[0, 0]
    styles = beta_styles(table["beta"])
    for _, line in table.groupby("beta", sort=True):
        style = styles[float(line["beta"].iloc[0])]
        ax.plot(
            line["shift"], line["ood_mass"], color=style.color, marker=style.marker, markevery=10, markersize=5,
            linewidth=1.6,
        )  # fmt: skip
    ax.set_title("Eq. 3 at rewards of equal loss")
    spread = float(table["reward_loss"].max() - table["reward_loss"].min())
    ax.set_title(_difference(spread), loc="right", size=8.5, weight="normal", color=MUTED)
    ax.axvline(0, color=MUTED, linestyle=":", linewidth=1.2)
    ax.set_ylim(-0.03, 1.03)
    ax.set_xlabel("Added to the reward of unseen responses [reward]; 0 is the ridge fit")
    ax.set_ylabel("OOD mass of the optimum\n[fraction]")
    figure.legend(handles=style_handles(styles, linestyle="-"), loc="outside right upper", title="beta\n[reward / nat]")
    return figure


def _mass_axis(ax: Axes, *, vertical: bool) -> None:
    ticks = log_odds(np.array(_LOGIT_TICKS))
    labels = [f"{tick:g}" for tick in _LOGIT_TICKS]
    if vertical:
        ax.set_yticks(ticks, labels)
        ax.set_ylim(*log_odds(np.array([0.0, 1.0])) * 1.05)
    else:
        ax.set_xticks(ticks[1:-1], labels[1:-1], rotation=45)


def _difference(largest: float) -> str:
    return f"losses differ by {largest:.0e}" if largest else "losses are the same"


def _handle(name: str) -> Line2D:
    return Line2D(
        [], [], color=_COLORS[name], marker=_MARKERS[name], markersize=5.5, linewidth=1.4, label=REGULARISER_NAMES[name]
    )
