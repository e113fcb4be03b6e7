import math

import numpy as np
import pytest
from statsmodels.stats.proportion import proportion_confint

from overopt.evaluation.records import Verdict
from overopt.evaluation.win_rate import bootstrap_interval, wilson_interval, win_rate

WIN, LOSS, TIE, UNREADABLE = (
    Verdict("win", 1.0),
    Verdict("loss", 0.0),
    Verdict("tie", 0.5),
    Verdict("unreadable", None),
)


@pytest.mark.parametrize(("wins", "count"), [(0, 7), (1, 8), (64, 256), (128, 256), (255, 256), (9, 9)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_wilsons_interval_agrees_with_statsmodels(wins, count, level):
    expected = proportion_confint(wins, count, alpha=1 - level, method="wilson")
    assert wilson_interval(wins / count, count, level=level) == pytest.approx(expected, abs=1e-12)


def test_bare_verdicts_give_a_share_with_wilsons_interval():
    rate = win_rate([WIN] * 30 + [LOSS] * 10)
    assert rate.win_rate == 0.75
    assert (rate.low, rate.high) == pytest.approx(proportion_confint(30, 40, method="wilson"), abs=1e-12)
    assert rate.standard_error == pytest.approx(math.sqrt(0.75 * 0.25 / 39))
    assert (rate.tie_share, rate.unreadable_share, rate.num_readable) == (0, 0, 40)


def test_256_prompts_give_six_points():
    rate = win_rate([WIN, LOSS] * 128)
    assert (rate.high - rate.low) / 2 == pytest.approx(0.06, abs=0.002)


def test_graded_verdicts_give_a_bootstrap_that_agrees_with_normal_theory():
    values = np.random.default_rng(0).beta(2, 3, size=500)
    rate = win_rate([Verdict("graded", float(value)) for value in values])
    half_width = 1.96 * values.std(ddof=1) / math.sqrt(500)
    assert rate.win_rate == pytest.approx(values.mean())
    assert rate.low == pytest.approx(values.mean() - half_width, abs=0.1 * half_width)
    assert rate.high == pytest.approx(values.mean() + half_width, abs=0.1 * half_width)


def test_the_bootstrap_is_narrower_for_grades_than_for_wins_and_losses():
    graded = win_rate([Verdict("graded", p) for p in (0.4, 0.6) * 100])
    bare = win_rate([WIN, LOSS] * 100)
    assert graded.high - graded.low < 0.25 * (bare.high - bare.low)


def test_ties_count_one_half_and_are_reported():
    rate = win_rate([WIN] * 5 + [LOSS] * 1 + [TIE] * 4)
    assert rate.win_rate == 0.7
    assert rate.tie_share == 0.4
    assert 0 < rate.low < 0.7 < rate.high <= 1


def test_unreadable_verdicts_are_a_class_of_their_own():
    rate = win_rate([WIN, LOSS, LOSS, LOSS, UNREADABLE])
    assert rate.win_rate == 0.25
    assert rate.unreadable_share == 0.2
    assert rate.num_readable == 4
    assert (rate.low, rate.high) == win_rate([WIN, LOSS, LOSS, LOSS])[2:4]


def test_nothing_readable_is_no_number():
    rate = win_rate([UNREADABLE] * 3)
    assert math.isnan(rate.win_rate)
    assert math.isnan(rate.low)
    assert (rate.unreadable_share, rate.num_readable) == (1, 0)


def test_one_verdict_has_no_standard_error():
    assert math.isnan(win_rate([WIN]).standard_error)


def test_no_verdicts_are_refused():
    with pytest.raises(ValueError, match="no verdicts"):
        win_rate([])


def test_the_bootstrap_is_fixed_by_its_seed():
    values = np.random.default_rng(1).random(50)
    assert bootstrap_interval(values, seed=0) == bootstrap_interval(values, seed=0)
    assert bootstrap_interval(values, seed=0) != bootstrap_interval(values, seed=1)
