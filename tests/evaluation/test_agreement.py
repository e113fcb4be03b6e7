import math

import numpy as np
import pytest
from statsmodels.stats.inter_rater import cohens_kappa as statsmodels_kappa
from statsmodels.stats.proportion import proportion_confint

from overopt.evaluation.agreement import agreement, choice, cohens_kappa
from overopt.evaluation.records import Verdict

WIN, LOSS, TIE = Verdict("win", 1.0), Verdict("loss", 0.0), Verdict("tie", 0.5)
UNREADABLE, REFUSED = Verdict("unreadable", None), Verdict("refused", None)


def verdicts_of(table) -> tuple[list[Verdict], list[Verdict]]:
    """Two lists whose table of wins, losses and ties this is."""
    kinds = [WIN, LOSS, TIE]
    pairs = [(kinds[i], kinds[j]) for i in range(3) for j in range(3) for _ in range(table[i][j])]
    return [a for a, _ in pairs], [b for _, b in pairs]


TABLES = [
    [[20, 5, 0], [10, 15, 0], [0, 0, 0]],
    [[44, 5, 1], [7, 20, 3], [9, 5, 6]],
    [[1, 9, 4], [8, 0, 2], [1, 1, 0]],
    [[0, 7, 0], [0, 3, 0], [0, 2, 0]],
    [[300, 60, 12], [51, 290, 20], [9, 8, 3]],
]


@pytest.mark.parametrize("table", TABLES)
def test_kappa_and_its_interval_agree_with_statsmodels(table):
    expected = statsmodels_kappa(table)
    found = agreement(*verdicts_of(table))
    assert found.kappa == pytest.approx(expected.kappa, abs=1e-12)
    assert found.kappa_standard_error == pytest.approx(expected.std_kappa, abs=1e-12)
    assert (found.kappa_low, found.kappa_high) == pytest.approx((expected.kappa_low, expected.kappa_upp), abs=1e-12)


def test_random_tables_agree_with_statsmodels():
    draw, compared = np.random.default_rng(0), 0
    for _ in range(200):
        table = draw.multinomial(int(draw.integers(5, 500)), draw.dirichlet(np.full(9, 0.5))).reshape(3, 3)
        expected = statsmodels_kappa(table)
        if math.isfinite(expected.kappa):
            compared += 1
            assert cohens_kappa(table) == pytest.approx((expected.kappa, expected.std_kappa), abs=1e-7)
    assert compared > 190


def test_the_share_has_wilsons_interval():
    found = agreement(*verdicts_of(TABLES[0]))
    assert found.share == 0.7
    assert found.kappa == pytest.approx(0.4)  # by hand: chance agrees in 0.5 x 0.6 + 0.5 x 0.4 = 0.5
    assert (found.low, found.high) == pytest.approx(proportion_confint(35, 50, method="wilson"), abs=1e-12)
    assert (found.num_compared, found.num_left_out) == (50, 0)


def test_agreement_does_not_ask_who_is_first():
    a, b = verdicts_of(TABLES[1])
    assert agreement(a, b)[:7] == pytest.approx(agreement(b, a)[:7])


def test_what_either_could_not_read_is_left_out_and_counted():
    found = agreement([WIN, LOSS, UNREADABLE, REFUSED, TIE], [WIN, UNREADABLE, LOSS, REFUSED, LOSS])
    assert (found.num_compared, found.num_left_out) == (2, 3)
    assert (found.unreadable_by_first, found.unreadable_by_second) == (2, 2)
    assert found.share == 0.5
    assert found[:7] == agreement([WIN, TIE], [WIN, LOSS])[:7]


@pytest.mark.parametrize(
    ("probability", "expected"),
    [(1.0, "win"), (0.500001, "win"), (0.5, "tie"), (0.499999, "loss"), (0.0, "loss"), (None, None)],
)
def test_a_graded_verdict_is_the_choice_it_leans_to(probability, expected):
    assert choice(Verdict("graded", probability)) == expected


def test_kappa_is_no_number_where_both_always_say_the_same():
    found = agreement([WIN] * 8, [WIN] * 8)
    assert found.share == 1
    assert all(map(math.isnan, found[3:7]))


def test_full_agreement_on_several_choices_is_kappa_one():
    found = agreement([WIN, LOSS, LOSS, TIE], [WIN, LOSS, LOSS, TIE])
    assert (found.kappa, found.kappa_high) == (1, 1)
    assert found.kappa_standard_error == pytest.approx(0, abs=1e-7)


def test_the_interval_stays_within_what_kappa_can_be():
    expected = statsmodels_kappa([[6, 1, 0], [0, 3, 0], [0, 0, 0]])
    found = agreement(*verdicts_of([[6, 1, 0], [0, 3, 0], [0, 0, 0]]))
    assert expected.kappa_upp > 1
    assert found.kappa_high == 1
    assert found.kappa_low == pytest.approx(expected.kappa_low)


def test_nothing_in_common_is_no_number():
    found = agreement([UNREADABLE, WIN], [LOSS, REFUSED])
    assert (found.num_compared, found.num_left_out) == (0, 2)
    assert all(map(math.isnan, found[:7]))


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="same comparisons, got 1 and 2"):
        agreement([WIN], [WIN, LOSS])
    with pytest.raises(ValueError, match="no verdicts"):
        agreement([], [])
