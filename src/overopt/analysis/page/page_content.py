"""What the report's page is made of: sections of sentences and tables. The template shows any of them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from overopt.analysis.laws.intervals import Estimate
from overopt.analysis.page.number_text import interval_text, number_text, spread_text


@dataclass(frozen=True)
class Column:
    """A column of a :class:`PageTable`.

    Attributes:
        label: what it holds.
        unit: of its numbers, and what their interval is.
        numeric: sorted as numbers, by each cell's ``sort``, and set flush right.
        filterable: the page offers to show the rows of some of its values only.
        code: set like code.
        prose: sentences, broken into lines.
    """

    label: str
    unit: str = ""
    numeric: bool = False
    filterable: bool = False
    code: bool = False
    prose: bool = False


@dataclass(frozen=True)
class TableCell:
    """A cell of a :class:`PageTable`.

    Attributes:
        text: what is shown; line breaks are kept.
        sort: what a numeric column is sorted by, ``None`` or NaN where the number is missing; other columns
            are sorted by ``text``.
        url: page to open, or nothing.
    """

    text: str
    sort: float | None = None
    url: str = ""

    @property
    def sort_text(self) -> str:
        """``sort`` as JavaScript reads it; empty where it is missing."""
        if self.sort is None or math.isnan(self.sort):
            return ""
        if math.isinf(self.sort):
            return "Infinity" if self.sort > 0 else "-Infinity"
        return f"{self.sort:.12g}"


@dataclass(frozen=True)
class PageTable:
    """A table whose columns the reader can sort, and filter where they say so.

    Attributes:
        anchor: identifier in the page.
        title: shown above it.
        columns: from left to right.
        rows: a cell for each column.
        note: how to read it.
        folded: only its title is shown until the reader opens it.

    Raises:
        ValueError: a row has more or fewer cells than there are columns.
    """

    anchor: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[TableCell]]
    note: str = ""
    folded: bool = False

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(
                    f"table {self.anchor}: row {number} has {len(row)} cells for {len(self.columns)} columns"
                )


@dataclass(frozen=True)
class Drawing:
    """A figure on the page.

    Attributes:
        name: its anchor.
        title: what it shows.
        caption: how to read it.
        svg: an element that :func:`overopt.analysis.page.page.inline_svg` made.
    """

    name: str
    title: str
    caption: str
    svg: str


@dataclass(frozen=True)
class PageSection:
    """A part of the page with an entry of its own among the contents.

    Attributes:
        anchor: identifier in the page.
        title: its heading.
        sentences: each a paragraph.
        tables: in this order.
        drawings: between the sentences and the tables.
    """

    anchor: str
    title: str
    sentences: Sequence[str] = ()
    tables: Sequence[PageTable] = field(default_factory=tuple)
    drawings: Sequence[Drawing] = field(default_factory=tuple)


def number_cell(value: Any, template: str = "{:.3g}") -> TableCell:
    """A number without an interval; missing where it is ``None``, NA or NaN."""
    return TableCell(number_text(value, template), _sort(value))


def spread_cell(value: Any, half_width: Any, digits: int) -> TableCell:
    """A number ± half the width of its interval."""
    return TableCell(spread_text(value, half_width, digits), _sort(value))


def interval_cell(estimate: Estimate, shown: Callable[[float], str], *, lines: int = 1) -> TableCell:
    """A value with its interval beside it, or below it with ``lines`` = 2."""
    text = interval_text(estimate, shown)
    return TableCell(text.replace(" [", "\n[") if lines == 2 else text, _sort(estimate.value))


def _sort(value: Any) -> float | None:
    return None if value is None or pd.isna(value) else float(value)
