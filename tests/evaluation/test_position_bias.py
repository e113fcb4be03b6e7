import math

import numpy as np
import pytest
from scipy.stats import bootstrap, sem
from statsmodels.stats.proportion import proportion_confint

from overopt.evaluation.position_bias import position_bias
from overopt.evaluation.records import Verdict


def preferring(*firsts: float | None) -> list[Verdict]:
    return [Verdict("graded", 0.7, first_preferred=first) for first in firsts]


def test_bare_preferences_give_a_share_less_one_half_with_wilsons_interval():
    bias = position_bias(preferring(*[1.0] * 30, *[0.0] * 10))
    assert bias.bias == 0.25
    assert bias.standard_error == pytest.approx(sem([1.0] * 30 + [0.0] * 10))
    low, high = proportion_confint(30, 40, method="wilson")
    assert (bias.low, bias.high) == pytest.approx((low - 0.5, high - 0.5))
    assert bias.num_verdicts == 40


def test_averages_over_both_orders_give_a_bootstrap():
    values = np.random.default_rng(0).choice([0.0, 0.5, 1.0], 300, p=[0.1, 0.6, 0.3])
    bias = position_bias(preferring(*values.tolist()))
    expected = bootstrap((values,), np.mean, method="percentile", rng=1).confidence_interval
    assert bias.bias == pytest.approx(values.mean() - 0.5)
    assert (bias.low, bias.high) == pytest.approx((expected.low - 0.5, expected.high - 0.5), abs=0.005)
    assert 0 < bias.low < bias.high


def test_a_judge_that_always_takes_the_first_is_not_a_sure_one_half():
    bias = position_bias(preferring(*[1.0] * 20))
    assert bias.bias == 0.5
    assert 0.3 < bias.low < bias.high == 0.5


def test_verdicts_that_do_not_say_are_left_out():
    assert position_bias(preferring(None, 1.0, None, 0.0, 1.0)) == position_bias(preferring(1.0, 0.0, 1.0))


@pytest.mark.parametrize("verdicts", [[], preferring(None, None)])
def test_without_any_there_is_no_number(verdicts):
    bias = position_bias(verdicts)
    assert bias.num_verdicts == 0
    assert all(map(math.isnan, bias[:4]))


def test_one_verdict_has_no_standard_error():
    assert math.isnan(position_bias(preferring(1.0)).standard_error)


def test_swapping_first_and_second_turns_the_sign():
    values = [0.1, 0.9, 1.0, 0.8, 0.5]
    bias, swapped = (position_bias(preferring(*of)) for of in (values, [1 - value for value in values]))
    assert swapped.bias == pytest.approx(-bias.bias)
    assert (swapped.low, swapped.high) == pytest.approx((-bias.high, -bias.low))
