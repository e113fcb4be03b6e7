import math

import numpy as np
import pandas as pd
import pytest

from overopt.analysis.laws.intervals import Estimate
from overopt.analysis.page.number_text import fixed
from overopt.analysis.page.page_content import Column, PageTable, TableCell, interval_cell, number_cell, spread_cell


@pytest.mark.parametrize("missing", [None, math.nan, pd.NA, np.float64("nan")])
def test_a_missing_number_is_a_dash_and_sorts_by_nothing(missing) -> None:
    for cell in (number_cell(missing), spread_cell(missing, 0.1, 2)):
        assert (cell.text, cell.sort_text) == ("-", "")


def test_a_number_sorts_by_its_value_whatever_is_shown() -> None:
    assert number_cell(np.int64(12_345), "{:,.0f}") == TableCell("12,345", 12345.0)
    assert spread_cell(0.5123, 0.03, 2) == TableCell("0.51 ± 0.03", 0.5123)
    assert interval_cell(Estimate(0.5123, 0.4, math.inf), fixed(2), lines=2) == TableCell("0.51\n[0.40, ∞]", 0.5123)
    assert number_cell(-math.inf).sort_text == "-Infinity"


def test_a_row_that_does_not_fit_the_columns_is_refused() -> None:
    with pytest.raises(ValueError, match="table peaks: row 1 has 1 cells for 2 columns"):
        PageTable("peaks", "", (Column("a"), Column("b")), [(TableCell("1"), TableCell("2")), (TableCell("3"),)])
