"""Methods beside each other: what the gold and the proxy reward do as policies go further, and the win rate."""

import itertools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from overopt.analysis.figures.missing import missing_measurements
from overopt.analysis.figures.style import (
    LINESTYLES,
    MUTED,
    DotStyle,
    draw_dots,
    grid_of_axes,
    models_by_size,
    share_range,
)
from overopt.analysis.findings.method_curves import (
    MEASURES,
    Band,
    MethodPoints,
    compared_models,
    method_curve,
    seed_band,
)
from overopt.analysis.findings.method_names import ANCHOR, FAMILIES, Family, family, in_order
from overopt.analysis.laws.curves import objective_title

# Okabe and Ito 2008, without yellow, which is not seen on white; neighbours differ in lightness.
_COLORS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#882255", "#cc79a7", "#1f2328")
# Of another number than colours, so that no pair comes twice among forty methods.
_MARKERS = "os^DvPX<>p"
_ANCHOR_STYLE = DotStyle(to_rgba(MUTED), "o")
_FAMILY_TITLES: dict[Family, str] = {
    "direct alignment": "Direct alignment",
    "mitigations": "Mitigations",
    "RLHF and best-of-n": "RLHF and best-of-n",
}
_LINES = {"gold_reward": LINESTYLES[0], "proxy_reward": LINESTYLES[1], "win_rate": LINESTYLES[0]}
ROWS = {"reward": ("gold_reward", "proxy_reward"), "win_rate": ("win_rate",)}
"""Rows of a model, with the measures that each shows."""
_LABELS = {
    "reward": "Mean reward over that\nof the reference [logits]",
    "win_rate": "Win rate against the\ndataset's response [fraction]",
}


class Line(NamedTuple):
    """A method's mean over seeds.

    Attributes:
        d: distances [sqrt(nats)], as far as all seeds went; none where there are too few checkpoints for a curve.
        band: the mean there and its 95% interval.
        num_seeds: behind it.
    """

    d: Float[np.ndarray, " place"]
    band: Band
    num_seeds: int


@dataclass(frozen=True)
class Series:
    """One method and measure in one panel.

    Attributes:
        method: as the objective in the points table.
        measure: win_rate, gold_reward or proxy_reward.
        line: mean over seeds.
        dots: run_id, examples_seen, d and value of each checkpoint; none of the anchor.
        is_anchor: plain DPO among methods of another family.
    """

    method: str
    measure: str
    line: Line
    dots: pd.DataFrame
    is_anchor: bool


@dataclass(frozen=True)
class Panel:
    """What one pair of axes shows.

    Attributes:
        model: group of rows.
        family: column.
        row: a key of :data:`ROWS`.
        series: its methods, and the anchor.
        reference: win rate of the reference, mean over methods; 0 for rewards, which are gains.
    """

    model: str
    family: Family
    row: str
    series: list[Series]
    reference: float


def method_panels(found: MethodPoints) -> list[Panel]:
    """What the figure plots: models with several methods, by size; panels without a checkpoint left out."""
    table = found.table
    panels = []
    for model in [model for model in models_by_size(table) if model in compared_models(table)]:
        rows = table[table["model"] == model]
        by_family: dict[Family, list[str]] = {}
        for method in in_order(rows["method"].unique()):
            by_family.setdefault(family(method), []).append(method)
        for kind, (row, measures) in itertools.product(FAMILIES, ROWS.items()):
            methods = by_family.get(kind, [])
            own = [_series(rows, method, measure, is_anchor=False) for method in methods for measure in measures]
            own = [series for series in own if len(series.dots)]
            if not own:
                continue
            if ANCHOR not in methods:
                anchors = [_series(rows, ANCHOR, measure, is_anchor=True) for measure in measures]
                own = [series for series in anchors if len(series.line.d)] + own
            reference = float(rows["reference_win_rate"].mean()) if row == "win_rate" else 0.0
            panels.append(Panel(model, kind, row, own, reference))
    return panels


def _series(rows: pd.DataFrame, method: str, measure: str, *, is_anchor: bool) -> Series:
    kept = rows[(rows["method"] == method) & rows[measure].notna()]
    dots = pd.DataFrame(
        {
            "run_id": kept["run_id"],
            "examples_seen": kept["step"].astype(int),
            "d": kept["d"],
            "value": kept[measure],
        }
    )
    curve = method_curve(kept, str(kept["model"].iloc[0]), method, measure) if len(kept) else None
    if curve is None:
        nothing = np.empty(0)
        line = Line(nothing, Band(nothing, nothing, nothing), 0)
    else:
        line = Line(curve.places, seed_band(curve.at(curve.places)), len(curve.seeds))
    return Series(method, measure, line, dots.iloc[: 0 if is_anchor else None].reset_index(drop=True), is_anchor)


def missing_methods(points: pd.DataFrame, found: MethodPoints) -> str:
    """Why the figure of some points cannot be drawn; empty if it can."""
    if not len(found.table):
        reason = missing_measurements(points, "kl_nats", "win_rate")
        return reason or "no run has a checkpoint beside its own reference"
    if not compared_models(found.table):
        return "no model was aligned by more than one method"
    return ""


def draw_methods(found: MethodPoints) -> Figure:
    """A column a family of methods; a row of rewards and one of win rates a model."""
    return draw_panels(method_panels(found))


def draw_panels(panels: list[Panel]) -> Figure:
    """Numbers -> axes."""
    families = [kind for kind in FAMILIES if any(panel.family == kind for panel in panels)]
    models = list(dict.fromkeys(panel.model for panel in panels))
    rows = [key for key in itertools.product(models, ROWS) if any((panel.model, panel.row) == key for panel in panels)]
    figure, axes = grid_of_axes(len(rows), len(families), panel=(4.7, 3.3))
    for ax in axes.flat:
        ax.set_visible(False)
    styles = method_styles(panels)
    for panel in panels:
        ax = axes[rows.index((panel.model, panel.row)), families.index(panel.family)]
        ax.set_visible(True)
        _draw_panel(ax, panel, styles)
        ax.set_title(_FAMILY_TITLES[panel.family])
        ax.set_title(panel.model, loc="right", size=8.5, weight="normal", color=MUTED)
        ax.set_xlabel("√KL(policy ‖ reference) [√nats]")
        ax.set_ylabel(_LABELS[panel.row])
    for place, (_, row) in enumerate(rows):
        if row == "win_rate":
            share_range([ax for ax in axes[place] if ax.get_visible()])
    for column, kind in enumerate(families):
        last = [ax for ax in axes[:, column] if ax.get_visible()][-1]
        shown = [panel for panel in panels if panel.family == kind]
        last.legend(handles=_method_handles(shown, styles), loc="upper center", bbox_to_anchor=(0.5, -0.2))
    figure.legend(handles=_line_handles(panels), loc="outside lower center", ncols=2 if len(families) == 1 else 3)
    return figure


def method_styles(panels: list[Panel]) -> dict[tuple[str, bool], DotStyle]:
    """Colour and marker by method and whether it is an anchor, which is grey."""
    keys = dict.fromkeys((one.method, one.is_anchor) for panel in panels for one in panel.series)
    own = [key for key in keys if not key[1]]
    looks = [
        DotStyle(to_rgba(_COLORS[place % len(_COLORS)]), _MARKERS[place % len(_MARKERS)]) for place in range(len(own))
    ]
    return {**dict.fromkeys(keys, _ANCHOR_STYLE), **dict(zip(own, looks, strict=True))}


def _draw_panel(ax: Axes, panel: Panel, styles: dict[tuple[str, bool], DotStyle]) -> None:
    ax.axhline(panel.reference, color=MUTED, linewidth=1, linestyle=LINESTYLES[2], zorder=1)
    own = [series for series in panel.series if not series.is_anchor]
    widest = max(float(series.dots["d"].max()) for series in own) or 1.0
    for place, series in enumerate(panel.series):
        style = styles[series.method, series.is_anchor]
        is_proxy = series.measure == "proxy_reward"
        draw_dots(ax, series.dots, "d", "value", style, filled=not is_proxy, size=4.0, alpha=0.28)
        shown = series.line.d <= 1.02 * widest
        d, band = series.line.d[shown], Band(*(ends[shown] for ends in series.line.band))
        if not len(d):
            continue
        ax.fill_between(d, band.low, band.high, color=style.color, alpha=0.13, linewidth=0, zorder=2)
        # Markers of different methods at different places, so that lines above each other are told apart.
        every = max(len(d) // 5, 1)
        start = min((place * every) // max(len(panel.series), 1), len(d) - 1)
        ax.plot(
            d, band.mean, color=style.color, linestyle=_LINES[series.measure], linewidth=1.5 if series.is_anchor else 2,
            marker=style.marker, markevery=(start, every), markersize=6,
            markerfacecolor="white" if is_proxy else style.color, zorder=3 if series.is_anchor else 6,
        )  # fmt: skip
    ax.set_xlim(-0.03 * widest, 1.04 * widest)


def _method_handles(panels: list[Panel], styles: dict[tuple[str, bool], DotStyle]) -> list[Line2D]:
    keys = dict.fromkeys((one.method, one.is_anchor) for panel in panels for one in panel.series)
    return [
        Line2D([], [], color=styles[key].color, marker=styles[key].marker, linewidth=2, label=objective_title(key[0]))
        for key in keys
    ]


def _line_handles(panels: list[Panel]) -> list[Line2D]:
    measures = {series.measure for panel in panels for series in panel.series}
    solid = " or ".join(MEASURES[measure] for measure in ("gold_reward", "win_rate") if measure in measures)
    handles = [
        Line2D([], [], color=MUTED, linestyle=LINESTYLES[dashed], linewidth=2, label=f"{name}, mean of seeds")
        for dashed, name in ((0, solid), (1, MEASURES["proxy_reward"] * ("proxy_reward" in measures)))
        if name
    ]
    if any(series.line.num_seeds >= 3 for panel in panels for series in panel.series):
        handles.append(Line2D([], [], color=MUTED, linewidth=7, alpha=0.25, label="95% interval over seeds"))
    return [
        *handles,
        Line2D([], [], color=MUTED, marker="o", linestyle="none", markersize=4, alpha=0.5, label="checkpoint, or an n"),
        Line2D([], [], color=MUTED, linewidth=1, linestyle=LINESTYLES[2], label="reference"),
    ]
