"""Section 3.5: the likelihood of chosen and rejected responses along training and against KL."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from overopt.analysis.figures.missing import measured, missing_measurements
from overopt.analysis.figures.style import (
    ERROR_BAR_SE,
    MUTED,
    DotStyle,
    beta_styles,
    draw_dots,
    draw_error_bars,
    grid_of_axes,
    label_rows,
    models_by_size,
    root_scale,
    style_handles,
    title_panel,
)
from overopt.analysis.figures.training_dynamics import averages_along_training, draw_line, prepare_fractions
from overopt.analysis.laws.laws import distance

RESPONSES = {"chosen_log_ratio": "chosen", "rejected_log_ratio": "rejected"}
# The forward KL is minus the mean log ratio of the chosen: they share a standard error. That of the rejected
# is not measured.
ERRORS = {"chosen_log_ratio": "forward_kl_se", "rejected_log_ratio": None}


@dataclass(frozen=True)
class Panel:
    """One objective and model.

    Attributes:
        objective: column of the figure.
        model: pair of rows of the figure.
        lines: beta -> the log ratios along training [nats], averaged over seeds, see
            :func:`averages_along_training`.
        dots: run_id, examples_seen, beta, d (root of KL(policy || reference)) [sqrt(nats)], and
            chosen_log_ratio and rejected_log_ratio [nats], each with _low and _high (95%; NaN without a
            standard error).
        num_fallen: runs whose last checkpoint finds the chosen responses less likely than the reference does.
        num_runs: of how many.
    """

    objective: str
    model: str
    lines: dict[float, pd.DataFrame]
    dots: pd.DataFrame
    num_fallen: int
    num_runs: int


def likelihoods(points: pd.DataFrame) -> list[Panel]:
    """What the figure of Sec. 3.5 plots, models by size."""
    models = models_by_size(points)
    panels = []
    kept = measured(points, *RESPONSES)
    for (objective, model), trained in kept.groupby(["objective", "model"], sort=True):
        reference = points[
            (points["objective"] == objective) & (points["model"] == model) & (points["examples_seen"] == 0)
        ]
        runs = pd.concat([reference[reference["run_id"].isin(trained["run_id"])], trained])
        last = trained.loc[trained.groupby("run_id")["examples_seen"].idxmax()]
        kl = trained["kl_nats"].to_numpy(float) if "kl_nats" in trained else np.full(len(trained), np.nan)
        dots = pd.DataFrame(
            {
                "run_id": trained["run_id"].astype(str),
                "examples_seen": trained["examples_seen"],
                "beta": trained["beta"].astype(float),
                "d": distance(kl),
            }
        )
        for value, error in ERRORS.items():
            half = ERROR_BAR_SE * trained.get(error, np.nan)
            dots = dots.assign(
                **{value: trained[value], f"{value}_low": trained[value] - half, f"{value}_high": trained[value] + half}
            )
        panels.append(
            Panel(
                objective=str(objective),
                model=str(model),
                lines={
                    float(same["beta"].iloc[0]): averages_along_training(same, ERRORS)
                    for _, same in runs.groupby("beta", sort=True)
                },
                dots=dots.reset_index(drop=True),
                num_fallen=int((last["chosen_log_ratio"] < 0).sum()),
                num_runs=len(last),
            )
        )
    return sorted(panels, key=lambda panel: models.index(panel.model))


def missing_likelihoods(points: pd.DataFrame) -> str:
    """Why the figure cannot be drawn; empty if it can."""
    return missing_measurements(points, *RESPONSES)


def draw_likelihoods(points: pd.DataFrame, fits: pd.DataFrame) -> Figure:
    """A column an objective; for each model the log ratios along training and, below, against sqrt(KL)."""
    return draw_panels(likelihoods(points))


def draw_panels(panels: list[Panel]) -> Figure:
    """Numbers -> axes."""
    objectives = sorted({panel.objective for panel in panels})
    models = list(dict.fromkeys(panel.model for panel in panels))
    styles = beta_styles(beta for panel in panels for beta in panel.lines)
    figure, axes = grid_of_axes(2 * len(models), len(objectives), panel=(4.4, 2.9))
    for ax in axes.flat:
        ax.set_visible(False)
    for panel in panels:
        row, column = 2 * models.index(panel.model), objectives.index(panel.objective)
        _draw_along_training(axes[row, column], panel, styles)
        if panel.dots["d"].notna().any():
            _draw_against_kl(axes[row + 1, column], panel, styles)
    for row, model in enumerate(models):
        mine = [panel for panel in panels if panel.model == model]
        ratios = np.concatenate([panel.dots[list(RESPONSES)].to_numpy(float).ravel() for panel in mine])
        widest = max(float(panel.dots["d"].max()) for panel in mine) or 1.0
        for along, against in axes[2 * row : 2 * row + 2].T:
            for ax in (along, against):
                root_scale(ax, float(ratios.max()), low=float(ratios.min()))
            if np.isfinite(widest):
                against.set_xlim(-0.03 * widest, 1.04 * widest)
    label_rows(axes, "Mean log ratio to the reference\n[nats, square-root scale]")
    figure.legend(handles=style_handles(styles), loc="outside right upper", title="beta in training\n[reward / nat]")
    figure.legend(
        handles=[
            Line2D([], [], color=MUTED, marker="o", linewidth=1.6, label="chosen responses"),
            Line2D(
                [], [], color=MUTED, marker="o", markerfacecolor="white", linestyle="--", label="rejected responses"
            ),
        ],
        loc="outside lower center",
        ncols=2,
    )
    return figure


def _draw_along_training(ax: Axes, panel: Panel, styles: dict[float, DotStyle]) -> None:
    prepare_fractions(ax, panel.objective, panel.model)
    ax.axhline(0.0, color=MUTED, linewidth=1, linestyle=(0, (2, 3)), zorder=1)
    for beta, steps in panel.lines.items():
        draw_line(ax, steps, "rejected_log_ratio", styles[beta], linestyle="--", filled=False)
        draw_line(ax, steps, "chosen_log_ratio", styles[beta])
    ax.text(
        0.02,
        0.04,
        f"chosen less likely at the\nend in {panel.num_fallen} of {panel.num_runs} runs",
        transform=ax.transAxes,
        size=8.5,
        color=MUTED,
        bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1.5},
        zorder=6,
    )


def _draw_against_kl(ax: Axes, panel: Panel, styles: dict[float, DotStyle]) -> None:
    ax.set_visible(True)
    title_panel(ax, panel.objective, panel.model)
    ax.set_xlabel("√KL(policy ‖ reference) [√nats]")
    ax.axhline(0.0, color=MUTED, linewidth=1, linestyle=(0, (2, 3)), zorder=1)
    for _, dots in panel.dots.groupby("beta"):
        style = styles[float(dots["beta"].iloc[0])]
        for value in RESPONSES:
            draw_error_bars(ax, dots, "d", value, style)
            draw_dots(ax, dots, "d", value, style, filled=value == "chosen_log_ratio", size=5.5)
