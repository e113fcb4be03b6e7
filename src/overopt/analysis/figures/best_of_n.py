"""Best-of-n: what the proxy gains and what the gold model does, against the distance from the base policy and n."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from overopt.analysis.figures.style import ERROR_BAR_SE, INK, MUTED, grid_of_axes, log_scale

_PROXY = "#c2410c"
_STYLES: dict[str, dict[str, Any]] = {
    "gold": {"color": INK, "linestyle": "-", "marker": "o"},
    "proxy": {"color": _PROXY, "linestyle": (0, (5, 2)), "marker": "s"},
    "win_rate": {"color": INK, "linestyle": "-", "marker": "o"},
}


@dataclass(frozen=True)
class Curve:
    """One quantity for each n.

    Attributes:
        name: gold or proxy (gain over the base policy [logits]), or win_rate.
        values: by n, in order.
        half: half of each 95% interval; NaN without a standard error.
    """

    name: str
    values: np.ndarray
    half: np.ndarray


@dataclass(frozen=True)
class BestOfN:
    """What the figure shows.

    Attributes:
        n: in order.
        d: square root of the estimated KL [sqrt(nats)].
        kl: estimated [nats].
        kl_bound: log n - (n-1)/n [nats].
        gains: of the gold reward, where there is one, and of the proxy's.
        win_rate: ``None`` without a judge.
    """

    n: np.ndarray
    d: np.ndarray
    kl: np.ndarray
    kl_bound: np.ndarray
    gains: list[Curve]
    win_rate: Curve | None


def best_of_n(table: pd.DataFrame) -> BestOfN:
    """What the figure plots, from the rows of ``best_of_n.csv``.

    Rewards are gains over n = 1: their constants mean nothing. Against the estimated KL, not its bound.
    """
    table = table.sort_values("n")

    def curve(name: str, column: str) -> Curve | None:
        if column not in table or table[column].isna().all():
            return None
        return Curve(name, table[column].to_numpy(float), ERROR_BAR_SE * table[f"{column}_se"].to_numpy(float))

    kl = table["kl_nats"].to_numpy(float)
    gains = [curve("gold", "gold_reward_gain"), curve("proxy", "proxy_reward_gain")]
    return BestOfN(
        n=table["n"].to_numpy(int),
        d=np.sqrt(kl.clip(min=0.0)),
        kl=kl,
        kl_bound=table["kl_bound_nats"].to_numpy(float),
        gains=[gain for gain in gains if gain is not None],
        win_rate=curve("win_rate", "win_rate"),
    )


def draw_best_of_n(numbers: BestOfN, title: str) -> Figure:
    """Numbers -> axes."""
    rows = 1 if numbers.win_rate is None else 2
    figure, axes = grid_of_axes(rows, 3, panel=(3.7, 3.2))
    for ax, x in zip(axes[0], (numbers.d, numbers.n), strict=False):
        ax.axhline(0, color=MUTED, linewidth=1, linestyle=(0, (2, 3)), zorder=1)
        for gain in numbers.gains:
            _draw(ax, x, gain, label=f"{gain.name} reward")
    axes[0, 0].set_title(title)
    axes[0, 0].set_ylabel("Mean reward over that\nof the base policy [logits]")
    axes[0, 0].legend(loc="upper left")
    if numbers.win_rate is not None:
        for ax, x in zip(axes[1], (numbers.d, numbers.n), strict=False):
            _draw(ax, x, numbers.win_rate)
        axes[1, 0].set_ylabel("Win rate against the\ndataset's response [fraction]")
        axes[1, 2].set_visible(False)
    for row in axes:
        row[0].set_xlabel("√KL(best-of-n ‖ base policy) [√nats]")
        _n_axis(row[1], numbers.n)
    ax = axes[0, 2]
    everywhere = np.geomspace(1, max(2, numbers.n.max()), 200)
    bound = [math.log(n) - (n - 1) / n for n in everywhere]
    ax.plot(everywhere, bound, color=MUTED, linewidth=1.4, label="bound, log n - (n-1)/n")
    ax.plot(numbers.n, numbers.kl, color=INK, marker="o", linestyle="none", markersize=5, label="estimate")
    ax.set_ylabel("KL(best-of-n ‖ base policy) [nats]")
    ax.legend(loc="upper left")
    _n_axis(ax, numbers.n)
    return figure


def _draw(ax: Axes, x: np.ndarray, curve: Curve, label: str | None = None) -> None:
    ax.errorbar(
        x, curve.values, yerr=np.nan_to_num(curve.half), label=label,
        linewidth=1.6, markersize=4.5, elinewidth=0.9, zorder=3, **_STYLES[curve.name],
    )  # fmt: skip


def _n_axis(ax: Axes, n: np.ndarray) -> None:
    log_scale(ax, [1.0, *n.astype(float)])
    shown = n if len(n) <= 8 else n[:: math.ceil(len(n) / 8)]
    ax.set_xticks(shown, [str(each) for each in shown])
    ax.set_xlabel("n [samples, log scale]")
