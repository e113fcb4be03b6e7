import math

import pytest

from overopt.embedded.cells import Cell
from overopt.sweep.beta_search import BetaSearch

SEARCH = BetaSearch(Cell("ipo", size="0.4M", seed=3), 0.02, 1.0, runs=7)


def hump(peak):
    """A win rate that falls by 0.02 a decade squared on both sides of a beta."""
    return lambda cell: 0.55 - 0.02 * math.log10(cell.beta / peak) ** 2


def search_all(search, win_rate):
    values = {cell: win_rate(cell) for cell in search.first_cells()}
    while (cell := search.next_cell(values)) is not None:
        assert cell not in values
        values[cell] = win_rate(cell)
    return values


@pytest.mark.parametrize("peak", [0.02, 0.05, 0.13, 0.4, 1.0])
def test_seven_runs_come_close_to_the_peak_of_a_hump(peak):
    values = search_all(SEARCH, hump(peak))
    assert len(values) <= 7
    best = max(values, key=values.__getitem__)
    assert 0.55 - values[best] < 0.002
    assert {(cell.objective, cell.size, cell.seed) for cell in values} == {("ipo", "0.4M", 3)}
    assert all(0.02 <= cell.beta <= 1.0 for cell in values)


def test_whoever_asks_is_told_the_same():
    values = {cell: hump(0.1)(cell) for cell in SEARCH.first_cells()}
    assert SEARCH.next_cell(values) == SEARCH.next_cell(dict(reversed(values.items()))) == SEARCH.next_cell(values)


def test_starts_are_spread_over_the_range_in_log_beta():
    betas = [cell.beta for cell in BetaSearch(Cell(), 0.01, 10.0, 5).first_cells()]
    assert betas == [0.0316, 0.316, 3.16]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lowest": 0.0}, "two positive numbers, got 0 to 1"),
        ({"lowest": 2.0}, "two positive numbers, got 2 to 1"),
        ({"runs": 2}, "starts with 3 runs, got a budget of 2"),
    ],
)
def test_bad_searches_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        BetaSearch(**{"cell": Cell(), "lowest": 0.02, "highest": 1.0, "runs": 7, **changes})
