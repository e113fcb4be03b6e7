import math

import numpy as np
import pytest
import statsmodels.api as sm
from scipy.special import expit, logit

from overopt.evaluation.length_control import length_controlled_win_rate, length_feature
from overopt.evaluation.records import Verdict
from overopt.evaluation.win_rate import win_rate

WIN, LOSS, TIE, UNREADABLE = (
    Verdict("win", 1.0),
    Verdict("loss", 0.0),
    Verdict("tie", 0.5),
    Verdict("unreadable", None),
)


def graded(values) -> list[Verdict]:
    return [Verdict("graded", float(value)) for value in values]


def drawn(kind: str, seed: int, count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Verdicts that like length, and length differences [words]."""
    draw = np.random.default_rng(seed)
    differences = np.round(draw.normal(3, 9, count))
    shares = expit(draw.normal() + 1.2 * np.tanh(differences / 9) + draw.normal(0, 0.5, count))
    values = {
        "bare": draw.binomial(1, shares),
        "graded": shares,
        "tied": np.where(draw.random(count) < 0.3, 0.5, draw.binomial(1, shares)),
        "decisive": draw.beta(0.05, 0.05, count),
    }[kind]
    return values.astype(float), differences


@pytest.mark.parametrize("kind", ["bare", "graded", "tied", "decisive"])
@pytest.mark.parametrize(("seed", "count"), [(0, 200), (1, 30), (2, 2000)])
def test_the_model_is_statsmodels_with_the_published_feature(kind, seed, count):
    values, differences = drawn(kind, seed, count)
    scale = math.sqrt(sum((d - differences.mean()) ** 2 for d in differences) / (count - 1))
    design = np.column_stack([np.ones(count), [math.tanh(d / scale) for d in differences]])
    model = sm.GLM(values, design, family=sm.families.Binomial()).fit(cov_type="HC0", tol=1e-12)
    at_equal = model.get_prediction(np.array([[1.0, 0.0]])).summary_frame()
    rate = length_controlled_win_rate(graded(values), differences.tolist())
    assert rate.note == ""
    assert rate.win_rate == pytest.approx(at_equal["mean"].item(), abs=1e-9)
    assert rate.standard_error == pytest.approx(at_equal["mean_se"].item(), abs=1e-9)
    interval = at_equal[["mean_ci_lower", "mean_ci_upper"]].to_numpy().ravel()
    assert (rate.low, rate.high) == pytest.approx(tuple(interval), abs=1e-9)
    assert rate.length_coefficient == pytest.approx(model.params[1], abs=1e-8)
    of_length = (rate.length_coefficient_low, rate.length_coefficient_high)
    assert of_length == pytest.approx(tuple(model.conf_int()[1]), abs=1e-8)
    assert rate.length_scale == pytest.approx(scale)


def test_the_feature_is_bounded_odd_and_without_unit():
    differences = np.array([-40.0, -3.0, 0.0, 3.0, 40.0])
    feature = length_feature(differences)
    assert feature == pytest.approx([math.tanh(d / math.sqrt(804.5)) for d in differences])  # 2 (40^2 + 3^2) / 4
    assert feature == pytest.approx(length_feature(6 * differences))
    assert feature[2] == 0


def test_a_rate_that_is_all_length_is_one_half_at_equal_length():
    # By hand: 3 of 4 where longer and 1 of 4 where shorter, so logit(3/4) either way and 0 in the middle.
    verdicts = ([WIN] * 3 + [LOSS]) * 6 + ([WIN] + [LOSS] * 3) * 2
    differences = [10] * 24 + [-10] * 8
    rate = length_controlled_win_rate(verdicts, differences)
    assert win_rate(verdicts).win_rate == 0.625
    assert rate.win_rate == pytest.approx(0.5)
    at_ten = math.tanh(10 / np.std(differences, ddof=1))
    assert rate.length_coefficient == pytest.approx(logit(0.75) / at_ten)
    assert 0 < rate.length_coefficient_low < rate.length_coefficient < rate.length_coefficient_high
    assert 0 < rate.low < 0.5 < rate.high < 1


def test_sample_and_opponent_swapped_give_the_other_share():
    values, differences = drawn("tied", 5)
    rate = length_controlled_win_rate(graded(values), differences.tolist())
    swapped = length_controlled_win_rate(graded(1 - values), (-differences).tolist())
    assert swapped.win_rate == pytest.approx(1 - rate.win_rate)
    assert (swapped.low, swapped.high) == pytest.approx((1 - rate.high, 1 - rate.low))
    assert swapped.length_coefficient == pytest.approx(rate.length_coefficient)


def test_equal_lengths_give_the_plain_win_rate():
    verdicts = [WIN] * 30 + [LOSS] * 8 + [TIE] * 2
    rate, plain = length_controlled_win_rate(verdicts, [0] * 40), win_rate(verdicts)
    assert rate.win_rate == pytest.approx(plain.win_rate)
    assert rate.standard_error == pytest.approx(plain.standard_error * math.sqrt(39 / 40))
    assert rate.low < plain.win_rate < rate.high
    assert math.isnan(rate.length_coefficient)
    assert rate.note == ""


def test_unreadable_verdicts_are_left_out_with_their_lengths():
    values, differences = drawn("bare", 4)
    rate = length_controlled_win_rate(graded(values), differences.tolist())
    more = length_controlled_win_rate([UNREADABLE, *graded(values), UNREADABLE], [900.0, *differences.tolist(), -5.0])
    assert more == rate


@pytest.mark.parametrize(
    ("verdicts", "differences", "why"),
    [
        ([WIN] * 6, [-2, -1, 0, 1, 2, 3], "every verdict is a win"),
        ([LOSS] * 6, [-2, -1, 0, 1, 2, 3], "every verdict is a loss"),
        ([WIN] * 6, [0] * 6, "every verdict is a win"),
        ([LOSS, LOSS, LOSS, WIN, WIN, WIN], [-3, -2, -1, 1, 2, 3], "length alone tells wins"),
        ([WIN, WIN, LOSS, LOSS], [-3, -2, 1, 2], "length alone tells wins"),
        # Quasi-separation: both at one length, where they meet.
        ([LOSS, LOSS, LOSS, WIN, WIN, WIN], [-3, -2, 1, 1, 2, 3], "length alone tells wins"),
        ([LOSS, LOSS, TIE, WIN, WIN], [-3, -2, 0, 2, 3], "length alone tells wins"),
        ([WIN, LOSS, WIN, LOSS], [4, 4, 4, 4], "every sample is longer"),
        ([WIN, LOSS, WIN, LOSS], [-4, -9, -8, -3], "every sample is shorter"),
        ([WIN, UNREADABLE, LOSS, UNREADABLE], [1, 2, -3, 4], "fewer than three"),
        ([UNREADABLE] * 5, [1, 2, -3, 4, 0], "fewer than three"),
    ],
)
def test_where_the_model_says_nothing_there_is_no_number(verdicts, differences, why):
    rate = length_controlled_win_rate(verdicts, differences)
    assert why in rate.note
    numbers = rate[:8]
    assert len(numbers) == 8
    assert all(map(math.isnan, numbers))


def test_one_more_verdict_ends_separation():
    separate = [LOSS, LOSS, LOSS, WIN, WIN, WIN]
    rate = length_controlled_win_rate([*separate, LOSS, WIN], [-3, -2, -1, 1, 2, 3, 2, -2])
    assert rate.note == ""
    assert rate.length_coefficient > 0


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="no verdicts"):
        length_controlled_win_rate([], [])
    with pytest.raises(ValueError, match="got 2 for 3 verdicts"):
        length_controlled_win_rate([WIN, LOSS, WIN], [1, 2])
    with pytest.raises(ValueError, match="finite length differences, got nan"):
        length_controlled_win_rate([WIN, LOSS, WIN], [1.0, math.nan, 2.0])
