import numpy as np
import pytest

from overopt.analysis.advice.peak_rule import Measured, PeakRule

BEYOND_CHANCE = PeakRule(standard_errors=2.0)


def checkpoint(kl, win_probabilities):
    wins = np.array([np.nan if p is None else p for p in win_probabilities], dtype=float)
    return Measured(float(kl), float(np.nanmean(wins)), wins=wins)


def run(*rows):
    return {100 * i: checkpoint(kl, probabilities) for i, (kl, probabilities) in enumerate(rows)}


def test_the_best_is_the_trained_checkpoint_that_wins_most_within_the_budget():
    rows = run((0, [0.9, 0.9]), (2, [0.4, 0.6]), (8, [0.6, 0.7]), (30, [0.8, 0.8]))
    assert PeakRule().best(rows) == 300
    assert PeakRule(kl_budget=10.0).best(rows) == 200
    assert PeakRule(kl_budget=2.0).best(rows) == 100
    assert PeakRule(kl_budget=1.0).best(rows) == 0  # nothing trained is allowed: the reference


def test_a_run_is_past_its_peak_when_it_loses_prompt_by_prompt_by_more_than_chance():
    spread = np.linspace(0.1, 0.9, 50)
    lower = spread - 0.05  # far less than the spread over prompts, but on every prompt
    assert BEYOND_CHANCE.past_peak(run((0, spread), (5, spread), (9, lower + 0.001 * np.sin(np.arange(50)))))
    noise = np.random.default_rng(0).normal(0, 0.1, 50)
    assert not BEYOND_CHANCE.past_peak(run((0, spread), (5, spread), (9, spread + noise - noise.mean() - 0.01)))
    assert not BEYOND_CHANCE.past_peak(run((0, spread), (5, lower), (9, spread)))


def test_the_fall_is_from_the_best_checkpoint_not_from_the_one_before():
    best, low = np.full(20, 0.7), np.full(20, 0.5)
    wobble = 0.01 * np.arange(20) / 20
    assert BEYOND_CHANCE.past_peak(run((0, low), (2, best), (4, low), (6, low + wobble)))


def test_a_run_beyond_the_budget_is_over_and_one_that_has_no_rule_never_is():
    rows = run((0, [0.4, 0.5]), (12, [0.6, 0.7]))
    assert PeakRule(10.0, 2.0).past_peak(rows)
    assert not PeakRule(15.0, 2.0).past_peak(rows)
    assert not PeakRule(10.0).past_peak(rows)
    assert not PeakRule(10.0, 2.0).past_peak(run((0, [0.4, 0.5])))


def test_unreadable_verdicts_are_left_out_of_the_comparison():
    best, low = [0.7, 0.72, 0.69, None, 0.7], [0.5, 0.5, 0.51, 0.9, None]
    assert BEYOND_CHANCE.past_peak(run((0, low), (2, best), (4, low)))


def test_without_verdicts_by_prompt_the_two_errors_add():
    def rows(fall, se=0.03):
        return {0: Measured(0.0, 0.4, se), 100: Measured(3.0, 0.6, se), 200: Measured(6.0, 0.6 - fall, se)}

    # Two standard errors of the difference are 2 * 0.03 * sqrt(2) = 0.0849.
    assert BEYOND_CHANCE.past_peak(rows(0.086))
    assert not BEYOND_CHANCE.past_peak(rows(0.084))
    assert not BEYOND_CHANCE.past_peak(rows(0.3, se=np.nan))  # of what nobody knows the error, nothing is concluded


def test_where_nobody_judges_the_most_trained_checkpoint_within_the_budget_is_best():
    rows = {0: Measured(0.0), 100: Measured(4.0), 200: Measured(9.0), 300: Measured(12.0)}
    rule = PeakRule(10.0, 2.0)
    assert rule.best(rows) == 200
    assert rule.past_peak(rows)
    assert not rule.past_peak({seen: rows[seen] for seen in (0, 100, 200)})


@pytest.mark.parametrize("limits", [{"kl_budget": 0.0}, {"standard_errors": -1.0}, {"kl_budget": float("nan")}])
def test_limits_that_are_not_positive_are_refused(limits):
    with pytest.raises(ValueError, match="is positive, got"):
        PeakRule(**limits)
