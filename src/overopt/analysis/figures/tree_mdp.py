"""Figures 7 and 9 to 18: where the probability goes on the tree MDP, for single runs and over many seeds."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from overopt.analysis.figures.style import (
    INK,
    MUTED,
    beta_styles,
    grid_of_axes,
    label_rows,
    share_range,
    style_handles,
)
from overopt.analysis.laws.curves import objective_title

# The paper's numbers of the figures that show one objective and beta.
PAPER_FIGURES = {
    ("dpo", 0.1): "fig09",
    ("ipo", 0.1): "fig10",
    ("slic", 0.1): "fig11",
    ("dpo", 0.01): "fig12",
    ("ipo", 0.01): "fig13",
    ("slic", 0.01): "fig14",
    ("dpo", 0.5): "fig15",
    ("ipo", 0.5): "fig16",
    ("slic", 0.5): "fig17",
}
FIG07_BETA = FIG18_BETA = 0.1
KINDS = {
    "chosen": ("#15803d", "chosen"),
    "rejected": ("#b91c1c", "rejected"),
    "demonstrated": ("#0072b2", "demonstrated, in no preference"),
    "unseen": ("#7c3aed", "unseen, all together"),
}
UNSEEN_COLORS = ("#7c3aed", "#c2410c", "#0891b2", "#a16207", "#be185d")
NAMED = len(UNSEEN_COLORS)
QUANTILES = {"quantile_05": 0.05, "median": 0.5, "quantile_95": 0.95}


def tree_figures(trajectories: pd.DataFrame, masses: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """All figures of one study that its settings allow, by the stem of their files.

    Args:
        trajectories: of some seeds: ``objective``, ``beta``, ``seed``, ``step``, ``trajectory`` (as the paper writes
            it), ``kind`` (chosen, rejected, demonstrated, unseen) and ``probability``.
        masses: of all seeds: ``objective``, ``beta`` and the columns of
            :func:`overopt.theory.trajectory_mass.mass_table`.
    """
    first = trajectories[trajectories["seed"] == trajectories["seed"].min()]
    objectives = list(dict.fromkeys(masses["objective"]))
    betas = sorted(masses["beta"].unique())
    at_beta = first[first["beta"] == (FIG07_BETA if FIG07_BETA in betas else betas[0])]
    yield (
        "fig07_tree_mdp",
        draw_runs([(objective_title(o), at_beta[at_beta["objective"] == o]) for o in objectives], pair_only=True),
    )
    for (objective, beta), run in first.groupby(["objective", "beta"], sort=False):
        stem = PAPER_FIGURES.get((str(objective), float(beta)), "tree")
        title = f"{objective_title(str(objective))}, beta {beta:g}"
        yield f"{stem}_{objective}_beta_{beta:g}", draw_runs([(title, run)])
    repeats = trajectories[(trajectories["objective"] == "dpo") & (trajectories["beta"] == FIG18_BETA)]
    others = [seed for seed in sorted(repeats["seed"].unique()) if seed != first["seed"].iloc[0]][:3]
    if others:
        yield (
            "fig18_dpo_repeats",
            draw_runs(
                [(f"DPO, beta {FIG18_BETA:g}, seed {seed}", repeats[repeats["seed"] == seed]) for seed in others]
            ),
        )
    yield "tree_masses", draw_masses(along_training(masses, list(KINDS)))
    yield "tree_concentration", draw_concentration(along_training(masses, ["unseen", "unseen_few", "unseen_effective"]))
    yield "tree_mass_vs_kl", draw_mass_vs_kl(masses)


def along_training(masses: pd.DataFrame, measures: Sequence[str]) -> pd.DataFrame:
    """Median over seeds and the quantiles 5% and 95%, a row a setting, step and measure."""
    settings = masses.groupby(["objective", "beta", "step"], sort=False)
    tables = []
    for measure in measures:
        values = settings[measure]
        quantiles = {name: values.quantile(level) for name, level in QUANTILES.items()}
        tables.append(pd.DataFrame(quantiles).reset_index().assign(measure=measure))
    return pd.concat(tables, ignore_index=True)


def most_likely_unseen(run: pd.DataFrame) -> list[str]:
    """The unseen trajectories that ever get most probability, most first."""
    unseen = run[run["kind"] == "unseen"]
    highest: pd.Series = unseen.groupby("trajectory")["probability"].max().sort_values(ascending=False)
    return [str(name) for name in highest.index]


def draw_runs(runs: Sequence[tuple[str, pd.DataFrame]], *, pair_only: bool = False) -> Figure:
    """A column a run: unseen trajectories above, those of the data below.

    Args:
        runs: titles and rows of the trajectories table.
        pair_only: below, leave out what is in no preference, as Fig. 7 does.
    """
    figure, axes = grid_of_axes(2, len(runs), panel=(4.6 if len(runs) > 1 else 6.4, 2.9))
    for (title, run), (above, below) in zip(runs, axes.T, strict=True):
        names = most_likely_unseen(run)
        lines = {str(key): rows.sort_values("step") for key, rows in run.groupby("trajectory", sort=False)}
        for name in names[NAMED:]:
            above.plot(lines[name]["step"], lines[name]["probability"], color="#9aa1ab", linewidth=0.8)
        for color, name in zip(UNSEEN_COLORS, names, strict=False):
            above.plot(lines[name]["step"], lines[name]["probability"], color=color, label=name)
        rest = len(names) - NAMED
        handles = [*above.get_legend_handles_labels()[0]]
        if rest > 0:
            handles.append(Line2D([], [], color="#9aa1ab", linewidth=0.8, label=f"{rest} others"))
        _legend_below(above, handles)
        for kind in KINDS if not pair_only else ("chosen", "rejected"):
            if kind == "unseen":
                continue
            for name in dict.fromkeys(run.loc[run["kind"] == kind, "trajectory"]):
                rows = lines[str(name)]
                below.plot(rows["step"], rows["probability"], color=KINDS[kind][0], label=f"{name} ({kind})")
        _legend_below(below, below.get_legend_handles_labels()[0])
        above.set_title(title)
        below.set_xlabel("optimiser steps of alignment")
        for ax in (above, below):
            ax.set_ylim(bottom=0)
    for row in axes:
        share_range(list(row))
    label_rows(axes[:1], "probability of\nunseen trajectories")
    label_rows(axes[1:], "probability of\ntrajectories of the data")
    return figure


def _legend_below(ax: Axes, handles: Sequence[Line2D]) -> None:
    ax.legend(handles=list(handles), loc="upper left", bbox_to_anchor=(0, -0.16), ncols=2, fontsize=7.5)


def _grid(table: pd.DataFrame, draw: Callable[[Axes, pd.DataFrame], None]) -> tuple[Figure, np.ndarray]:
    """A row a beta, a column an objective."""
    objectives, betas = list(dict.fromkeys(table["objective"])), sorted(table["beta"].unique())
    figure, axes = grid_of_axes(len(betas), len(objectives), panel=(3.9, 2.4))
    for row, beta in zip(axes, betas, strict=True):
        for ax, objective in zip(row, objectives, strict=True):
            draw(ax, table[(table["objective"] == objective) & (table["beta"] == beta)])
            ax.set_title(objective_title(objective))
            ax.set_title(f"beta {beta:g}", loc="right", size=8.5, weight="normal", color=MUTED)
    for ax in axes[-1]:
        ax.set_xlabel("optimiser steps of alignment")
    return figure, axes


def draw_masses(bands: pd.DataFrame) -> Figure:
    """Mass of each class along training: medians of the seeds, and where nine of ten seeds lie."""

    def draw(ax: Axes, setting: pd.DataFrame) -> None:
        for kind, (color, _) in KINDS.items():
            rows = setting[setting["measure"] == kind].sort_values("step")
            ax.fill_between(
                rows["step"], rows["quantile_05"], rows["quantile_95"], color=color, alpha=0.15, linewidth=0
            )
            ax.plot(rows["step"], rows["median"], color=color)
        ax.set_ylim(0, 1)

    figure, axes = _grid(bands, draw)
    label_rows(axes, "probability")
    handles = [Line2D([], [], color=color, label=label) for color, label in KINDS.values()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def draw_concentration(bands: pd.DataFrame) -> Figure:
    """By how many trajectories of equal probability the unseen mass might as well be held, along training."""

    def draw(ax: Axes, setting: pd.DataFrame) -> None:
        rows = setting[setting["measure"] == "unseen_effective"].sort_values("step")
        ax.fill_between(
            rows["step"], rows["quantile_05"], rows["quantile_95"], color="#7c3aed", alpha=0.15, linewidth=0
        )
        ax.plot(rows["step"], rows["median"], color="#7c3aed")
        ax.set_ylim(bottom=0)
        few = setting[setting["measure"] == "unseen_few"].sort_values("step")
        twin = ax.twinx()
        twin.plot(few["step"], few["median"], color=INK, linestyle=(0, (5, 2)), linewidth=1.2)
        twin.set_ylim(0, 1.02)
        twin.grid(visible=False)
        twin.set_yticks([0, 0.5, 1])

    figure, axes = _grid(bands, draw)
    label_rows(axes, "effective number\nof unseen trajectories")
    handles = [
        Line2D([], [], color="#7c3aed", label="exp(entropy) of the unseen (left), nine of ten seeds within the band"),
        Line2D([], [], color=INK, linestyle=(0, (5, 2)), label="share of the three likeliest of them, median (right)"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def mass_vs_distance(masses: pd.DataFrame) -> pd.DataFrame:
    """Medians over seeds at each step of the unseen mass, the chosen one's, and d = sqrt(KL) [sqrt(nats)]."""
    table = masses.assign(d=np.sqrt(masses["kl_nats"].clip(lower=0)))
    return table.groupby(["objective", "beta", "step"], sort=False)[["d", "unseen", "chosen"]].median().reset_index()


def draw_mass_vs_kl(masses: pd.DataFrame) -> Figure:
    """Unseen mass above and the chosen trajectory's below, against the distance of Fig. 1, a line a beta."""
    table = mass_vs_distance(masses)
    objectives = list(dict.fromkeys(table["objective"]))
    styles = beta_styles(table["beta"])
    figure, axes = grid_of_axes(2, len(objectives), panel=(4.0, 2.6))
    for column, objective in enumerate(objectives):
        for beta, rows in table[table["objective"] == objective].groupby("beta"):
            for ax, value in zip(axes[:, column], ("unseen", "chosen"), strict=True):
                ax.plot(rows["d"], rows[value], color=styles[float(str(beta))].color)
                ax.plot(rows["d"].iloc[-1:], rows[value].iloc[-1:], color=styles[float(str(beta))].color, marker="o")
                ax.set_ylim(0, 1)
        axes[0, column].set_title(objective_title(objective))
        axes[1, column].set_xlabel("√KL(policy ‖ reference) [√nats]")
    label_rows(axes[:1], "unseen mass,\nmedian of seeds")
    label_rows(axes[1:], "chosen trajectory's mass,\nmedian of seeds")
    figure.legend(handles=style_handles(styles, linestyle="-"), title="beta", loc="outside right upper")
    return figure


def draw_sensitivity(sensitivity: pd.DataFrame) -> Figure:
    """How what is left at the end depends on what the paper does not say: a row a factor, a column an objective.

    Args:
        sensitivity: ``factor``, ``value``, ``objective``, ``beta`` and ``unseen_change`` with ``_low`` and ``_high``
            (quantiles 5% and 95% of single seeds), in the order they are to be drawn.
    """
    factors = list(dict.fromkeys(sensitivity["factor"]))
    objectives = list(dict.fromkeys(sensitivity["objective"]))
    styles = beta_styles(sensitivity["beta"])
    figure, axes = grid_of_axes(len(factors), len(objectives), panel=(3.9, 1.9))
    for row, factor in zip(axes, factors, strict=True):
        of_factor = sensitivity[sensitivity["factor"] == factor]
        values = list(dict.fromkeys(of_factor["value"]))
        for ax, objective in zip(row, objectives, strict=True):
            of_objective = of_factor[of_factor["objective"] == objective]
            for shift, (beta, style) in zip(np.linspace(-0.22, 0.22, len(styles)), styles.items(), strict=True):
                rows = of_objective[of_objective["beta"] == beta]
                places = [values.index(value) + shift for value in rows["value"]]
                ends = [
                    rows["unseen_change"] - rows["unseen_change_low"],
                    rows["unseen_change_high"] - rows["unseen_change"],
                ]
                ax.errorbar(places, rows["unseen_change"], yerr=ends, fmt=style.marker, color=style.color, markersize=4)
            ax.axhline(0, color=MUTED, linewidth=0.8)
            ax.set_xticks(range(len(values)), values)
            ax.set_xlim(-0.6, len(values) - 0.4)
            ax.set_ylim(-1, 1)
            ax.set_title(objective_title(objective))
            ax.set_title(factor, loc="right", size=8.5, weight="normal", color=MUTED)
    label_rows(axes, "unseen mass, end\nless reference")
    figure.legend(handles=style_handles(styles), title="beta", loc="outside right upper")
    return figure
