"""How every figure looks: a colour and a marker for each beta, and files that come out the same each time."""

import itertools
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

INK, MUTED = "#1f2328", "#6b7280"
WARNING = "#b45309"
LAW_STYLES: dict[str, dict[str, Any]] = {
    "log_law": {"color": INK, "linestyle": "-", "linewidth": 1.9},
    "quadratic_in_d": {"color": "#0072b2", "linestyle": (0, (5, 2)), "linewidth": 1.5},
    "quadratic_in_kl": {"color": "#c2410c", "linestyle": (0, (1, 1.4)), "linewidth": 1.7},
}
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


class BetaStyle(NamedTuple):
    """How points of one beta are drawn."""

    color: tuple[float, float, float, float]
    marker: str


def beta_styles(betas: Iterable[float]) -> dict[float, BetaStyle]:
    """Colour and marker of each beta, small (wide KL) to large.

    Lightness falls in one direction (viridis without its yellow end), so that the order survives greyscale
    and colour blindness; the marker tells neighbours apart.
    """
    ordered = sorted(set(betas))
    colors = mpl.colormaps["viridis"]
    last = max(len(ordered) - 1, 1)
    return {
        beta: BetaStyle(colors(0.88 * index / last), _MARKERS[index % len(_MARKERS)])
        for index, beta in enumerate(ordered)
    }


def beta_handles(styles: dict[float, BetaStyle], *, linestyle: str = "none") -> list[Line2D]:
    """Legend entries, one a beta."""
    return [
        Line2D([], [], linestyle=linestyle, marker=style.marker, color=style.color, label=f"{beta:g}")
        for beta, style in styles.items()
    ]


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
