"""Figure 3, left: does a length penalty in the objective change the curve of win rate against sqrt(KL)?"""

import re
from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from overopt.analysis.figures.missing import measured, missing_measurements
from overopt.analysis.figures.style import (
    LINESTYLES,
    MUTED,
    DotStyle,
    LineStyle,
    draw_dots,
    draw_error_bars,
    grid_of_axes,
    label_rows,
    models_by_size,
    penalty_styles,
    share_range,
    title_panel,
)
from overopt.analysis.figures.win_rate_vs_kl import Panel, win_rate_vs_kl
from overopt.analysis.laws.fit_tables import fit_points

MEASURES = {"win_rate": "win rate as judged", "win_rate_length_controlled": "corrected for length"}
_PENALTY = re.compile(r", length penalty (?P<price>[^,]+)")


@dataclass(frozen=True)
class Comparison:
    """One pair of axes: an objective of one model without and with length penalties.

    Attributes:
        objective: without its penalty.
        model: row of the figure, together with the objective.
        measure: column of the figure, see :data:`MEASURES`.
        series: length penalty [reward / token], 0 for the plain objective -> its checkpoints, law and peak.
    """

    objective: str
    model: str
    measure: str
    series: dict[float, Panel]


def split_penalty(objective: str) -> tuple[str, float]:
    """An objective's name without its length penalty, and the penalty [reward / token].

    >>> split_penalty("dpo, length penalty 0.01, robust label smoothing 0.1")
    ('dpo, robust label smoothing 0.1', 0.01)
    >>> split_penalty("ipo")
    ('ipo', 0.0)
    """
    found = _PENALTY.search(objective)
    return (_PENALTY.sub("", objective), float(found["price"])) if found else (objective, 0.0)


def length_regularization(points: pd.DataFrame, fits: pd.DataFrame) -> list[Comparison]:
    """What Fig. 3 (left) plots, models by size: only objectives that were run with and without a penalty.

    The laws of the length-controlled win rate are fitted here, as those of the win rate are in ``fits``.
    """
    comparisons = []
    for measure in MEASURES:
        table = points
        if measure != "win_rate":
            if not len(measured(points, "kl_nats", measure)):
                continue
            table = points.assign(win_rate=points[measure], win_rate_se=points.get(f"{measure}_se", float("nan")))
            fits = fit_points(table).table
        found: dict[tuple[str, str], dict[float, Panel]] = {}
        for panel in win_rate_vs_kl(table, fits):
            if panel.points == "all":
                plain, price = split_penalty(panel.objective)
                found.setdefault((plain, panel.model), {})[price] = panel
        comparisons += [
            Comparison(objective, model, measure, dict(sorted(series.items())))
            for (objective, model), series in found.items()
            if 0.0 in series and len(series) > 1
        ]
    models = models_by_size(points)
    return sorted(comparisons, key=lambda one: (one.objective, models.index(one.model)))


def missing_length_regularization(points: pd.DataFrame) -> str:
    """Why Fig. 3 (left) cannot be drawn; empty if it can."""
    kept = measured(points, "kl_nats", "win_rate")
    if not len(kept):
        return missing_measurements(points, "kl_nats", "win_rate")
    cells = [
        (*split_penalty(str(objective)), model)
        for objective, model in zip(kept["objective"], kept["model"], strict=True)
    ]
    plain = {(objective, model) for objective, price, model in cells if price == 0}
    penalised = {(objective, model) for objective, price, model in cells if price != 0}
    if not penalised:
        return "no run with a length penalty"
    return "" if plain & penalised else "no objective and model was run both with and without a length penalty"


def draw_length_regularization(points: pd.DataFrame, fits: pd.DataFrame) -> Figure:
    """Fig. 3 (left), a row an objective and model; the win rate and, beside it, the length-controlled one."""
    return draw_comparisons(length_regularization(points, fits))


def draw_comparisons(comparisons: list[Comparison]) -> Figure:
    """Numbers -> axes."""
    rows = list(dict.fromkeys((one.objective, one.model) for one in comparisons))
    measures = [measure for measure in MEASURES if any(one.measure == measure for one in comparisons)]
    styles = penalty_styles(price for one in comparisons for price in one.series)
    linestyles = dict(zip(styles, LINESTYLES * len(styles), strict=False))
    figure, axes = grid_of_axes(len(rows), len(measures), panel=(5.2, 3.5))
    for ax in axes.flat:
        ax.set_visible(False)
    for one in comparisons:
        ax = axes[rows.index((one.objective, one.model)), measures.index(one.measure)]
        ax.set_visible(True)
        title_panel(ax, one.objective, f"{one.model}, {MEASURES[one.measure]}")
        ax.set_xlabel("√KL(policy ‖ reference) [√nats]")
        ax.set_xlim(
            _distances([other for other in comparisons if (other.objective, other.model) == (one.objective, one.model)])
        )
        for place, (price, panel) in enumerate(one.series.items()):
            _draw_series(ax, panel, styles[price], linestyles[price], place)
    shown = [ax for ax in axes.flat if ax.get_visible()]
    share_range(shown)
    most = max(len(one.series) for one in comparisons)
    for ax in shown:  # room at the bottom for a peak of each series
        low, high = ax.get_ylim()
        ax.set_ylim(low - 0.06 * most * (high - low), high)
    label_rows(axes, "Win rate against the\ndataset's response [fraction]")
    handles = [
        Line2D(
            [],
            [],
            color=style.color,
            marker=style.marker,
            linestyle=linestyles[price],
            linewidth=1.9,
            label=f"length penalty {price:g}" if price else "no length penalty",
        )
        for price, style in styles.items()
    ]
    handles += [
        Line2D([], [], color=MUTED, linewidth=1, linestyle=(0, (2, 3)), label="reference, R0"),
        Line2D([], [], color=MUTED, marker="o", linestyle="none", label="final checkpoint"),
        Line2D([], [], color=MUTED, marker="o", markerfacecolor="white", linestyle="none", label="earlier checkpoint"),
        Line2D([], [], color=MUTED, marker="|", markersize=9, markeredgewidth=2, linewidth=3, alpha=0.55,
               label="peak of the law, 95% interval"),
    ]  # fmt: skip
    figure.legend(
        handles=handles, loc="outside lower center", ncols=3, title="Length penalty in training [reward / token]"
    )
    return figure


def _distances(comparisons: list[Comparison]) -> tuple[float, float]:
    widest = max(float(panel.curve_d[-1]) for one in comparisons for panel in one.series.values()) or 1.0
    return -0.03 * widest, 1.04 * widest


def _draw_series(ax: Axes, panel: Panel, style: DotStyle, linestyle: LineStyle, place: int) -> None:
    ax.axhline(panel.reference_win_rate, color=MUTED, linewidth=1, linestyle=(0, (2, 3)), zorder=1)
    if "log_law" in panel.curves:
        ax.plot(panel.curve_d, panel.curves["log_law"], color=style.color, linestyle=linestyle, linewidth=1.9, zorder=3)
    for final, dots in panel.dots.groupby("final"):
        draw_error_bars(ax, dots, "d", "win_rate", style)
        draw_dots(ax, dots, "d", "win_rate", style, filled=bool(final), size=7.0 if final else 5.5)
    d_star, low, high = panel.d_star
    if d_star < float(panel.curve_d[-1]):  # a peak, and among the points
        # Series one above the other, in data for the place and in parts of the axes for the height.
        across, height = ax.get_xaxis_transform(), [0.03 + 0.045 * place] * 2
        ax.plot(
            [low, min(high, ax.get_xlim()[1])], height, transform=across, color=style.color, linewidth=3, alpha=0.55
        )
        ax.plot([d_star], height[:1], transform=across, color=style.color, marker="|", markersize=9, markeredgewidth=2)
