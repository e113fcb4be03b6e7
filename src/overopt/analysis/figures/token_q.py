"""App. D on real checkpoints: tokens coloured by their values, and how these move with training and with beta."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm, TwoSlopeNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from overopt.analysis.figures.style import (
    ERROR_BAR_SE,
    INK,
    MUTED,
    DotStyle,
    beta_styles,
    checkpoint_gid,
    grid_of_axes,
    label_rows,
    log_scale,
    log_ticks,
    style_handles,
)
from overopt.analysis.laws.curves import objective_title

END = "■"
"""Stands for the end of text, which is no text."""
OFF_DATA = "#e5e7eb"
"""Colour of a state that no labelled response reaches: nothing is seen there, so a share says nothing."""
LINE_LENGTH = 44
"""Characters in a line of a heat map."""
_FONT = "DejaVu Sans Mono"
_FONT_SIZE = 8.0
# What a character of the font is wide, and a line high [inches].
_CHARACTER, _LINE = 0.602 * _FONT_SIZE / 72, 2.1 * _FONT_SIZE / 72


def last_checkpoints(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of each run's last checkpoint."""
    return table[table["examples_seen"] == table.groupby("run")["examples_seen"].transform("max")]


@cache
def _has_glyph(character: str) -> bool:
    return get_font(findfont(FontProperties(family=_FONT))).get_char_index(ord(character)) != 0


def drawn_token(text: str) -> str:
    r"""A token as it can be drawn on one line, whatever it holds.

    >>> drawn_token(" if\n\tx"), drawn_token("<|endoftext|>"), drawn_token("\x00\u2028"), drawn_token("")
    (' if⏎→x', '■', '··', '∅')
    """
    if text.startswith("<|") and text.endswith("|>"):
        return END
    signs = {"\n": "⏎", "\r": "⏎", "\t": "→", "\N{REPLACEMENT CHARACTER}": "�"}
    drawn = [signs.get(character, character) for character in text]
    return "".join(c if c == " " or (c.isprintable() and _has_glyph(c)) else "·" for c in drawn) or "∅"


def lines_of(widths: Sequence[int], line_length: int = LINE_LENGTH) -> list[tuple[int, int]]:
    """Where each token of a text goes: line, and character in it; a token too long for the rest of a line opens one.

    >>> lines_of([3, 4, 2], line_length=7)
    [(0, 0), (0, 3), (1, 0)]
    """
    places = []
    line = used = 0
    for width in widths:
        if used and used + width > line_length:
            line, used = line + 1, 0
        places.append((line, used))
        used += width
    return places


@dataclass(frozen=True)
class HeatMapText:
    """One response of a heat map.

    Attributes:
        title: what response to which prompt.
        tokens: as they are drawn.
        values: of each token, by column of :data:`HEAT_MAP_COLUMNS`; shares are NaN off the data.
    """

    title: str
    tokens: tuple[str, ...]
    values: dict[str, np.ndarray]


HEAT_MAP_COLUMNS = {
    "reference_unseen_share": "Unseen share before the token, reference",
    "unseen_share": "Unseen share before the token, checkpoint",
    "implicit_reward": "Implicit reward so far, token included",
}


def heat_map_texts(tokens: pd.DataFrame, prompts: dict[str, str], num_prompts: int = 3) -> list[HeatMapText]:
    """The first prompts' responses of one checkpoint; a token longer than a line is cut.

    Args:
        tokens: rows of one checkpoint.
        prompts: text of each prompt.
        num_prompts: how many.
    """
    texts = []
    for prompt_id in tokens["prompt_id"].drop_duplicates().iloc[:num_prompts]:
        of_prompt = tokens[tokens["prompt_id"] == prompt_id]
        for response, rows in of_prompt.groupby("response", sort=False):
            ratios, on_data = rows["log_prob"] - rows["reference_log_prob"], rows["prefix_seen"].astype(bool)
            prompt = "".join(drawn_token(character) for character in prompts[prompt_id].rstrip())
            texts.append(
                HeatMapText(
                    title=f"{response}, after: {textwrap.shorten(prompt[-110:], 110, placeholder='')}",
                    tokens=tuple(drawn_token(token)[:LINE_LENGTH] for token in rows["token"]),
                    values={
                        "reference_unseen_share": rows["reference_unseen_share"].where(on_data).to_numpy(float),
                        "unseen_share": rows["unseen_share"].where(on_data).to_numpy(float),
                        "implicit_reward": (rows["beta"] * ratios).cumsum().to_numpy(float),
                    },
                )
            )
    return texts


def draw_heat_map(texts: list[HeatMapText], title: str) -> Figure:
    """Each token a box in the colour of its value: a row a response, a column a quantity.

    The implicit reward so far is V of the next state in the sparse gauge; it and the shares depend on no gauge.
    """
    largest = max([float(np.abs(text.values["implicit_reward"]).max()) for text in texts] + [1e-12])
    shares = mpl.colormaps["YlOrBr"].with_extremes(bad=OFF_DATA)
    scales = {
        # Most shares are near 1: the power spreads them.
        "reference_unseen_share": ScalarMappable(PowerNorm(3, 0, 1), shares),
        "unseen_share": ScalarMappable(PowerNorm(3, 0, 1), shares),
        "implicit_reward": ScalarMappable(TwoSlopeNorm(0, -largest, largest), "RdBu"),
    }
    places = [lines_of([len(token) for token in text.tokens]) for text in texts]
    num_lines = [of_text[-1][0] + 1 for of_text in places]
    margin, gap, above, top, bottom = 0.15, 0.25, 0.24, 0.75, 0.65
    width = LINE_LENGTH * _CHARACTER
    size = (2 * margin + 3 * width + 2 * gap, top + bottom + sum(above + _LINE * lines for lines in num_lines))
    figure = Figure(figsize=size)
    figure.text(margin / size[0], 1 - 0.22 / size[1], title, weight="bold", size=11, va="center")
    figure.text(
        1 - margin / size[0],
        1 - 0.22 / size[1],
        f"{END} end of text   ⏎ line break   · no glyph   grey: no labelled response has this prefix",
        size=7.5,
        color=MUTED,
        ha="right",
        va="center",
        family=_FONT,
    )
    lefts = {column: margin + place * (width + gap) for place, column in enumerate(scales)}
    for column, scale in scales.items():
        left = lefts[column] / size[0]
        figure.text(left, 1 - 0.52 / size[1], HEAT_MAP_COLUMNS[column], size=9, va="center")
        bar = figure.add_axes((left, 0.36 / size[1], width / size[0], 0.1 / size[1]))
        ticks = None if column == "implicit_reward" else [0, 0.5, 0.7, 0.8, 0.9, 1]
        figure.colorbar(scale, cax=bar, orientation="horizontal", ticks=ticks).minorticks_off()
        bar.tick_params(labelsize=7.5)
    y = size[1] - top
    for text, of_text, lines in zip(texts, places, num_lines, strict=True):
        figure.text(margin / size[0], (y - 0.6 * above) / size[1], text.title, size=7.5, color=MUTED, va="center")
        y -= above + lines * _LINE
        for column, scale in scales.items():
            box = (lefts[column] / size[0], y / size[1], width / size[0], lines * _LINE / size[1])
            _draw_tokens(figure.add_axes(box), text.tokens, of_text, scale.to_rgba(text.values[column]))
    return figure


def _draw_tokens(ax: Axes, tokens: Sequence[str], places: Sequence[tuple[int, int]], colors: Any) -> None:
    ax.set_xlim(0, LINE_LENGTH)
    ax.set_ylim(places[-1][0] + 1, 0)
    ax.axis("off")
    for token, (line, start), color in zip(tokens, places, colors, strict=True):
        ax.add_patch(
            Rectangle((start, line + 0.06), len(token), 0.88, facecolor=color, edgecolor="white", linewidth=0.7)
        )
        ink = INK if np.dot(to_rgb(color), (0.299, 0.587, 0.114)) > 0.5 else "white"
        ax.text(start, line + 0.5, token, family=_FONT, size=_FONT_SIZE, color=ink, va="center_baseline")


MOVED = {
    "unseen_share_change": "Unseen share of the bootstrap,\nless the reference's",
    "optimism": "Optimism V - E_ref R\n[reward]",
    "optimism_share": "Optimism, as a share of\nmax R - E_ref R",
}
"""Columns of the summary that curves are drawn of."""


def draw_over_training(summary: pd.DataFrame) -> Figure:
    """What moves along training: a column a kind of response, a line a run."""
    figure, axes, styles = _prepared(summary)
    most = int(summary["examples_seen"].max())
    for (_, response), rows in summary.groupby(["run", "response"], sort=False):
        steps = rows.sort_values("examples_seen")
        style = styles[float(rows["beta"].iloc[0])]
        for ax, value in zip(axes[:, _column(summary, response)], MOVED, strict=True):
            half = ERROR_BAR_SE * steps[f"{value}_se"].fillna(0.0)
            ax.fill_between(
                steps["examples_seen"], steps[value] - half, steps[value] + half,
                color=style.color, alpha=0.1, linewidth=0,
            )  # fmt: skip
            ax.plot(steps["examples_seen"], steps[value], color=style.color, linewidth=1.6)
            _draw_checkpoints(ax, steps, "examples_seen", value, style)
            ax.set_xlim(-0.03 * most, 1.04 * most)
            ax.set_xlabel("Examples seen")
    return figure


def draw_over_betas(summary: pd.DataFrame) -> Figure:
    """What the last checkpoint of each run gives against its beta: a column a kind of response."""
    last = last_checkpoints(summary)
    figure, axes, styles = _prepared(summary)
    for response, rows in last.groupby("response", sort=False):
        rows = rows.sort_values("beta")
        for ax, value in zip(axes[:, _column(summary, response)], MOVED, strict=True):
            ax.plot(rows["beta"], rows[value], color=MUTED, linewidth=1.0, zorder=1)
            ax.errorbar(
                rows["beta"], rows[value], ERROR_BAR_SE * rows[f"{value}_se"], fmt="none", ecolor=MUTED, elinewidth=0.9
            )
            for _, row in rows.groupby("run", sort=False):
                _draw_checkpoints(ax, row, "beta", value, styles[float(row["beta"].iloc[0])])
            log_scale(ax, rows["beta"])
            ax.set_xlabel("beta in training [reward / nat]")
    return figure


def _prepared(summary: pd.DataFrame) -> tuple[Figure, Any, dict[float, DotStyle]]:
    responses = list(summary["response"].drop_duplicates())
    figure, axes = grid_of_axes(len(MOVED), len(responses), panel=(3.9, 2.5))
    objectives = ", ".join(map(objective_title, summary["objective"].drop_duplicates()))
    for column, response in zip(axes.T, responses, strict=True):
        level = summary.loc[summary["response"] == response, "reference_unseen_share"].mean()
        column[0].set_title(f"{objectives}: {response}")
        column[0].set_title(f"reference's: {level:.3f}", loc="right", size=8.5, weight="normal", color=MUTED)
        for ax in column:
            ax.axhline(0.0, color=MUTED, linewidth=1, linestyle=(0, (2, 3)), zorder=1)
    for row, label in zip(axes, MOVED.values(), strict=True):
        label_rows(row[None], label)
    styles = beta_styles(summary["beta"])
    handles = style_handles(styles, linestyle="-")
    figure.legend(handles=handles, loc="outside right upper", title="beta in training\n[reward / nat]")
    return figure, axes, styles


def _column(summary: pd.DataFrame, response: Any) -> int:
    return list(summary["response"].drop_duplicates()).index(response)


def _draw_checkpoints(ax: Axes, rows: pd.DataFrame, x: str, y: str, style: DotStyle) -> None:
    for row in rows.to_dict("records"):
        ax.plot(
            [row[x]], [row[y]], marker=style.marker, color=style.color, markeredgecolor="white", markersize=6.5,
            markeredgewidth=0.5, zorder=5, gid=checkpoint_gid(str(row["run"]), int(row["examples_seen"])),
        )  # fmt: skip


AT_OTHER_BETAS = {
    "at_fixed_reward": ("Fixed reward-to-go R", "V - E_ref R [reward]"),
    "at_fixed_q": ("Fixed Q, as in Eq. 12", "V - max Q [reward]"),
}


def draw_values_against_beta(values: pd.DataFrame) -> Figure:
    """V of the last checkpoints' states were the price another: with the rewards, and with Q, left as they are."""
    response = values["response"].iloc[0]
    last = values[values["response"] == response]
    styles = beta_styles(last["beta"])
    figure, axes = grid_of_axes(1, len(AT_OTHER_BETAS), panel=(5.0, 3.6))
    own = last.loc[((last["other_beta"] - last["beta"]).abs()).groupby(last["run"]).idxmin()]
    for ax, (column, (title, label)) in zip(axes[0], AT_OTHER_BETAS.items(), strict=True):
        for run, rows in last.groupby("run", sort=False):
            rows = rows.sort_values("other_beta")
            style = styles[float(rows["beta"].iloc[0])]
            ax.plot(rows["other_beta"], rows[column], color=style.color, linewidth=1.6)
            _draw_checkpoints(ax, own[own["run"] == run], "other_beta", column, style)
            if column == "at_fixed_reward":
                limit = float(rows["at_fixed_reward_limit"].iloc[0])
                ax.plot(rows["other_beta"].iloc[[0, 5]], [limit] * 2, color=style.color, linewidth=1, linestyle=":")
        log_scale(ax, last["other_beta"])
        largest = float(last[column].max())
        low, high = min(1e-4 * largest, 0.5 * float(own[column].min())), 2 * largest
        ax.set_yscale("log")
        ax.set_ylim(low, high)
        ticks = log_ticks(low, high)
        ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.set_yticks([], minor=True)
        ax.set_title(title)
        ax.set_title(f"{response} responses", loc="right", size=8.5, weight="normal", color=MUTED)
        ax.set_xlabel("beta that V is taken at [reward / nat]")
        ax.set_ylabel(label)
    figure.legend(
        handles=style_handles(styles, linestyle="-"),
        loc="outside right upper",
        title="beta in training\n[reward / nat]",
    )
    figure.legend(
        handles=[
            Line2D([], [], color=MUTED, marker="o", linestyle="none", label="at the policy's own beta"),
            Line2D([], [], color=MUTED, linestyle=":", label="max R - E_ref R"),
        ],
        loc="outside lower center",
        ncols=2,
    )
    return figure
