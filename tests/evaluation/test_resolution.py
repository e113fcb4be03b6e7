import math

import numpy as np
import pytest
from scipy.stats import binom, norm
from statsmodels.stats.power import NormalIndPower, TTestPower
from statsmodels.stats.proportion import (
    power_proportions_2indep,
    proportion_confint,
    samplesize_proportions_2indep_onetail,
)

from overopt.evaluation.resolution import (
    half_width,
    prompts_for_difference,
    prompts_for_distance_from_half,
    prompts_for_paired_difference,
    smallest_difference,
    smallest_distance_from_half,
    smallest_paired_difference,
)


@pytest.mark.parametrize("num_prompts", [64, 256, 1000])
@pytest.mark.parametrize(("level", "power"), [(0.95, 0.8), (0.9, 0.9), (0.99, 0.5)])
def test_differences_agree_with_statsmodels(num_prompts, level, power):
    settings = {"nobs1": num_prompts, "alpha": 1 - level, "power": power}
    two_samples, one_sample = (NormalIndPower().solve_power(**settings, ratio=ratio) for ratio in (1, 0))
    resolved = {"level": level, "power": power}
    # Relative 1e-3: statsmodels counts differences found with the wrong sign, too.
    assert smallest_difference(num_prompts, **resolved) == pytest.approx(0.5 * two_samples, rel=1e-3)
    assert smallest_distance_from_half(num_prompts, **resolved) == pytest.approx(0.5 * one_sample, rel=1e-3)
    paired = smallest_paired_difference(num_prompts, standard_deviation=0.3, **resolved)
    assert paired == pytest.approx(0.3 * one_sample, rel=1e-3)


@pytest.mark.parametrize("win_rate", [0.2, 0.5, 0.7])
@pytest.mark.parametrize("num_prompts", [256, 1000])
def test_two_proportions_have_the_power_that_was_asked_for(num_prompts, win_rate):
    difference = smallest_difference(num_prompts, standard_deviation=math.sqrt(win_rate * (1 - win_rate)))
    power = power_proportions_2indep(difference, win_rate - difference / 2, num_prompts).power
    assert power == pytest.approx(0.8, abs=0.015)
    assert power > 0.8  # on the safe side
    needed = samplesize_proportions_2indep_onetail(difference, win_rate - difference / 2, 0.8)
    assert needed == pytest.approx(num_prompts, rel=0.04)


@pytest.mark.parametrize("num_prompts", [100, 256, 1000])
def test_the_exact_binomial_power_of_a_rate_is_near_what_was_asked_for(num_prompts):
    distance = smallest_distance_from_half(num_prompts)
    wins = np.arange(num_prompts + 1)
    found = np.abs(wins / num_prompts - 0.5) > norm.ppf(0.975) * 0.5 / math.sqrt(num_prompts)
    assert binom.pmf(wins, num_prompts, 0.5)[found].sum() == pytest.approx(0.05, abs=0.015)
    assert binom.pmf(wins, num_prompts, 0.5 + distance)[found].sum() == pytest.approx(0.8, abs=0.03)


def test_pairs_of_policies_are_told_apart_as_often_as_was_asked_for():
    draw = np.random.default_rng(0)
    values = [-1.0, 0.0, 1.0]  # wins of one less wins of the other
    spread = 0.6
    difference = smallest_paired_difference(256, standard_deviation=spread)
    either = spread**2 + difference**2  # share of prompts on which they differ
    shares = [(either - difference) / 2, 1 - either, (either + difference) / 2]
    differences = draw.choice(values, (20_000, 256), p=shares)
    assert differences.std() == pytest.approx(spread, rel=0.01)
    z = differences.mean(axis=1) / (differences.std(axis=1, ddof=1) / 16)
    assert np.mean(np.abs(z) > norm.ppf(0.975)) == pytest.approx(0.8, abs=0.015)
    t_test = TTestPower().solve_power(effect_size=difference / spread, nobs=256, alpha=0.05)
    assert t_test == pytest.approx(0.8, abs=0.005)


def test_256_prompts_give_six_points_and_tell_twelve():
    low, high = proportion_confint(128, 256, method="normal")
    assert half_width(256) == pytest.approx((high - low) / 2)
    assert half_width(256) == pytest.approx(0.06, abs=0.002)
    assert smallest_difference(256) == pytest.approx(0.12, abs=0.005)


@pytest.mark.parametrize(
    ("prompts_for", "smallest", "settings"),
    [
        (prompts_for_difference, smallest_difference, {}),
        (prompts_for_difference, smallest_difference, {"standard_deviation": 0.3, "level": 0.9, "power": 0.95}),
        (prompts_for_distance_from_half, smallest_distance_from_half, {}),
        (prompts_for_paired_difference, smallest_paired_difference, {"standard_deviation": 0.6}),
    ],
)
@pytest.mark.parametrize("difference", [0.011, 0.05, 0.3, 0.5])
def test_the_number_of_prompts_is_the_fewest_that_resolve_it(prompts_for, smallest, settings, difference):
    needed = prompts_for(difference, **settings)
    assert smallest(needed, **settings) <= difference
    assert needed == 1 or smallest(needed - 1, **settings) > difference


def test_too_few_prompts_resolve_nothing_that_there_is():
    assert smallest_difference(3) == math.inf
    assert smallest_distance_from_half(7) == math.inf
    assert smallest_distance_from_half(8) < 0.5
    assert smallest_paired_difference(1, standard_deviation=1.0) == math.inf


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: smallest_difference(0), "num_prompts > 0, got 0"),
        (lambda: half_width(10, standard_deviation=-0.1), "standard_deviation > 0"),
        (lambda: half_width(10, level=95.0), "level between 0 and 1"),
        (lambda: smallest_difference(10, power=1.0), "power between 0 and 1"),
        (lambda: prompts_for_difference(0.0), "difference > 0"),
        (lambda: prompts_for_difference(5.0), "at most 1, got 5"),
        (lambda: prompts_for_distance_from_half(0.6), "at most 0.5, got 0.6"),
    ],
)
def test_bad_input_is_refused(ask, message):
    with pytest.raises(ValueError, match=message):
        ask()
