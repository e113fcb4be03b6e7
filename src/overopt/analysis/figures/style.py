"""How every figure looks: colours and markers, dots with names, and files that come out the same each time."""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from overopt.analysis.laws.curves import objective_title
from overopt.checkpoints.whole_file import whole_file

INK, MUTED = "#1f2328", "#6b7280"
WARNING = "#b45309"
LAW_STYLES: dict[str, dict[str, Any]] = {
    "log_law": {"color": INK, "linestyle": "-", "linewidth": 1.9},
    "quadratic_in_d": {"color": "#0072b2", "linestyle": (0, (5, 2)), "linewidth": 1.5},
    "quadratic_in_kl": {"color": "#c2410c", "linestyle": (0, (1, 1.4)), "linewidth": 1.7},
}
LineStyle = str | tuple[float, tuple[float, ...]]
LINESTYLES: tuple[LineStyle, ...] = ("-", (0.0, (5.0, 2.0)), (0.0, (1.0, 1.4)), (0.0, (5.0, 2.0, 1.0, 2.0)))
# Two-sided 95%, for error bars from a standard error.
ERROR_BAR_SE = 1.96

_MARKERS = "os^DvPX<>ph*"
_RC = {
    "font.size": 9.5,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.5,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#9aa1ab",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#eceef1",
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.title_fontsize": 8.5,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.fonttype": "path",
    # A model's name is text, whatever dollar signs it has.
    "text.parse_math": False,
    # Without a salt of its own, every SVG would get new random identifiers.
    "svg.hashsalt": "overopt",
}


class DotStyle(NamedTuple):
    """How the points of one beta, model or series are drawn."""

    color: tuple[float, float, float, float]
    marker: str


def beta_styles(betas: Iterable[float]) -> dict[float, DotStyle]:
    """Colour and marker of each beta, small (wide KL) to large.

    Lightness falls in one direction (viridis without its yellow end), so that the order survives greyscale
    and colour blindness; the marker tells neighbours apart.
    """
    ordered = sorted(set(betas))
    return dict(zip(ordered, _styles(len(ordered), "viridis", 0.0, 0.88), strict=True))


def model_styles(models: Iterable[str]) -> dict[str, DotStyle]:
    """Colour and marker of each model, in the order given: light for the first, dark for the last."""
    ordered = list(dict.fromkeys(models))
    return dict(zip(ordered, _styles(len(ordered), "inferno", 0.78, 0.15), strict=True))


def penalty_styles(penalties: Iterable[float]) -> dict[float, DotStyle]:
    """Colour and marker of each length penalty: dark for none, lighter as it grows."""
    ordered = sorted(set(penalties))
    return dict(zip(ordered, _styles(len(ordered), "plasma", 0.0, 0.72), strict=True))


def _styles(number: int, colormap: str, first: float, last: float) -> list[DotStyle]:
    colors = mpl.colormaps[colormap]
    step = (last - first) / max(number - 1, 1)
    return [DotStyle(colors(first + step * index), _MARKERS[index % len(_MARKERS)]) for index in range(number)]


def style_handles(styles: Mapping[Any, DotStyle], *, linestyle: str = "none") -> list[Line2D]:
    """Legend entries, one a style, labelled by its key."""
    return [
        Line2D(
            [],
            [],
            linestyle=linestyle,
            marker=style.marker,
            color=style.color,
            label=f"{key:g}" if isinstance(key, float) else str(key),
        )
        for key, style in styles.items()
    ]


def models_by_size(points: pd.DataFrame) -> list[str]:
    """The models of a table from the fewest parameters to the most, those of unknown size first."""
    counts = points["num_parameters"] if "num_parameters" in points else pd.Series(math.nan, points.index)
    sizes = pd.to_numeric(counts).astype("Float64").groupby(points["model"].astype(str)).max().fillna(-1.0)
    return sorted(sizes.index, key=lambda model: (float(sizes[model]), model))


def title_panel(ax: Axes, objective: str, detail: str) -> None:
    """The objective in bold at the left and a detail at the right, below it where both would not fit a line."""
    title = objective_title(objective)
    # Bold letters are about 1.5 times as wide as those of the detail; some 62 of the latter fit a panel.
    crowded = 1.5 * len(title) + len(detail) > 62
    ax.set_title(title + "\n" * crowded)
    ax.set_title(detail, loc="right", size=8.5, weight="normal", color=MUTED)


def label_rows(axes: Any, label: str) -> None:
    """A vertical label at the first visible axes of each row; axes[row, column]."""
    for row in axes:
        for ax in [ax for ax in row if ax.get_visible()][:1]:
            ax.set_ylabel(label)


def checkpoint_gid(run_id: str, examples_seen: int) -> str:
    """Name of a dot that stands for one checkpoint: in an SVG the id of its group, so that a page finds it.

    >>> checkpoint_gid("0123abc", 4096)
    'checkpoint:0123abc:4096'
    """
    return f"checkpoint:{run_id}:{examples_seen}"


def draw_error_bars(ax: Axes, dots: pd.DataFrame, x: str, y: str, style: DotStyle) -> None:
    """95% bars at dots by their columns y_low and y_high, and x_low and x_high where they exist."""
    ends = {}
    for value in (x, y):
        if {f"{value}_low", f"{value}_high"} <= set(dots):
            ends[value] = np.array([dots[value] - dots[f"{value}_low"], dots[f"{value}_high"] - dots[value]], float)
    if any(np.isfinite(both).any() for both in ends.values()):
        ax.errorbar(
            dots[x], dots[y], yerr=ends.get(y), xerr=ends.get(x),
            fmt="none", ecolor=style.color, elinewidth=0.9, alpha=0.35, zorder=2,
        )  # fmt: skip


def draw_dots(
    ax: Axes,
    dots: pd.DataFrame,
    x: str,
    y: str,
    style: DotStyle,
    *,
    filled: bool = True,
    size: float = 7.0,
    alpha: float = 1.0,
) -> None:
    """A dot for each row of ``dots``, by its columns ``x`` and ``y``, with the gid of its checkpoint.

    Rows with an empty ``run_id`` stand for several runs and get no gid.
    """
    for dot in dots[dots[[x, y]].notna().all(axis=1)].to_dict("records"):
        ax.plot(
            [dot[x]],
            [dot[y]],
            linestyle="none",
            marker=style.marker,
            markersize=size,
            markerfacecolor=style.color if filled else "white",
            markeredgecolor="white" if filled else style.color,
            markeredgewidth=0.5 if filled else 1.3,
            alpha=alpha,
            gid=checkpoint_gid(str(dot["run_id"]), int(dot["examples_seen"])) if dot["run_id"] else None,
            zorder=5 if filled else 4,
        )


@contextmanager
def drawing() -> Iterator[None]:
    """Draw and save inside: our settings over matplotlib's defaults, the caller's restored afterwards."""
    with mpl.rc_context():
        mpl.rcdefaults()  # a user's matplotlibrc must not change what a report looks like
        mpl.rcParams.update(_RC)
        yield


def grid_of_axes(rows: int, columns: int, *, panel: tuple[float, float]) -> tuple[Figure, Any]:
    """A figure with ``rows`` by ``columns`` axes, each about ``panel`` inches; axes[row, column]."""
    layout = ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.08, hspace=0.03, wspace=0.03)
    figure = Figure(figsize=(max(panel[0] * columns, 6.4), panel[1] * rows + 0.9), layout=layout)
    return figure, figure.subplots(rows, columns, squeeze=False)


def rendered(figure: Figure, file_format: str) -> bytes:
    """The figure as SVG or PNG, the same bytes for the same figure."""
    buffer = BytesIO()
    undated: dict[str, None] = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}[file_format]
    figure.savefig(buffer, format=file_format, dpi=160, metadata=undated)
    return buffer.getvalue()


def write_figures(folder: Path, figures: Iterable[tuple[str, Figure]]) -> list[Path]:
    """Write each figure as ``STEM.svg`` and ``STEM.png``; to be called inside :func:`drawing`."""
    paths = []
    for stem, figure in figures:
        for file_format in ("svg", "png"):
            paths.append(folder / f"{stem}.{file_format}")
            with whole_file(paths[-1]) as file:
                file.write(rendered(figure, file_format))
    return paths


def nats_ticks(largest: float) -> list[float]:
    """Round KL values [nats] that are evenly readable on a square-root scale from 0 to ``largest``.

    >>> nats_ticks(25.0)
    [0.0, 1.0, 4.0, 9.0, 16.0, 25.0]
    >>> nats_ticks(2.0)
    [0.0, 0.25, 1.0]
    """
    largest_d = math.sqrt(max(largest, 1e-6))
    steps = (base * 10.0**exponent for exponent in itertools.count(-4) for base in (1, 2, 5))
    step = next(step for step in steps if largest_d / step <= 6)
    return [round((step * k) ** 2, 8) for k in range(int(largest_d / step + 1e-9) + 1)]


def root_scale(ax: Axes, high: float, *, low: float = 0.0) -> None:
    """A vertical axis from beyond ``low`` to beyond ``high`` [nats], spaced by the square root of its distance to 0.

    That of a KL is the distance of Fig. 1.
    """
    low, high = 1.15 * min(low, 0.0), 1.15 * max(high, 0.0)
    ax.set_yscale(
        "function", functions=(lambda nats: np.sign(nats) * np.sqrt(np.abs(nats)), lambda d: np.sign(d) * d**2)
    )
    largest = max(high, -low)
    ticks = [sign * tick for sign in (-1, 1) for tick in nats_ticks(largest) if low <= sign * tick <= high]
    ticks = sorted({tick or 0.0 for tick in ticks})
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    # A little room for dots at 0, and for the line there.
    ax.set_ylim(low - 0.001 * largest * (low == 0), max(high, 0.003 * largest, 1e-3))


def log_ticks(low: float, high: float) -> list[float]:
    """Round values from ``low`` to ``high`` (above 0), few enough to be labelled on a logarithmic scale.

    >>> log_ticks(0.4, 200.0)
    [1.0, 3.0, 10.0, 30.0, 100.0]
    >>> log_ticks(0.7, 1.3)
    [0.7, 0.8, 0.9, 1.0, 1.2]
    """
    places = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for digits in (
        (10,),
        (10, 30),
        (10, 20, 50),
        (10, 15, 20, 30, 50, 70),
        (10, 12, 15, 20, 30, 40, 50, 60, 70, 80, 90),
    ):
        finer = [round(digit * 10.0 ** (place - 1), 12) for place in places for digit in digits]
        finer = [tick for tick in finer if low <= tick <= high]
        if len(finer) > 7:
            break
        ticks = finer
    return ticks


def log_scale(ax: Axes, values: Iterable[float]) -> None:
    """A horizontal logarithmic axis with round labels that holds ``values`` (above 0)."""
    smallest, largest = min(values), max(values)
    margin = max((largest / smallest) ** 0.05, 1.01)
    low, high = smallest / margin, largest * margin
    ax.set_xscale("log")
    ax.set_xlim(low, high)
    ticks = log_ticks(low, high)
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.set_xticks([], minor=True)


def share_range(axes: list[Axes]) -> None:
    """One vertical range for panels that are to be compared."""
    if not axes:
        return
    low, high = min(ax.get_ylim()[0] for ax in axes), max(ax.get_ylim()[1] for ax in axes)
    for ax in axes:
        ax.set_ylim(low, high)
