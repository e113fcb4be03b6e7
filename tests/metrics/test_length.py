"""Lengths by hand, and Eq. 6 against numpy's and statsmodels' least squares."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from overopt.metrics.length import LengthRegression, ResponseLength, length_regression


def policy_samples(count, seed):
    """Log-ratios [nats] that grow with length [tokens], with noise."""
    random = np.random.default_rng(seed)
    tokens = random.integers(1, 60, size=count)
    return torch.tensor(0.2 * tokens + random.normal(0, 3, size=count) + 1), torch.tensor(tokens)


def measured(*batches):
    metric = LengthRegression()
    for batch in batches:
        metric.update(*batch)
    return metric


# Lengths


def test_lengths_and_unfinished_responses_are_averaged_over_responses():
    metric = ResponseLength()
    metric.update(torch.tensor([24, 24, 3]), torch.tensor([True, False, False]))
    metric.update(torch.tensor([9]), torch.tensor([True]))
    estimate = metric.compute()
    assert (estimate.response_tokens, estimate.unfinished_share, estimate.num_responses) == (15, 0.5, 4)


def test_length_states_merge():
    one, other = ResponseLength(), ResponseLength()
    one.update(torch.tensor([1]), torch.tensor([True]))
    other.update(torch.tensor([4, 7, 8]), torch.tensor([False, False, False]))
    one.merge_state(other)
    estimate = one.compute()
    assert (estimate.response_tokens, estimate.unfinished_share, estimate.num_responses) == (5, 0.25, 4)


def test_without_responses_lengths_are_unknown():
    with pytest.warns(UserWarning, match="called before"):
        estimate = ResponseLength().compute()
    assert estimate.response_tokens.isnan()
    assert estimate.unfinished_share.isnan()


# Eq. 6


@settings(deadline=None, max_examples=50)
@given(count=st.integers(3, 40), seed=st.integers(0, 1000))
def test_the_fit_is_numpys_least_squares_without_intercept(count, seed):
    y, x = (tensor.numpy().astype(float) for tensor in policy_samples(count, seed))
    (gamma,), (ssr,), *_ = np.linalg.lstsq(x[:, None], y, rcond=None)
    fit = length_regression(*policy_samples(count, seed))
    assert fit.gamma.item() == pytest.approx(gamma, rel=1e-12)
    assert fit.r2_centred.item() == pytest.approx(1 - ssr / ((y - y.mean()) ** 2).sum(), rel=1e-9, abs=1e-9)
    assert fit.r2_uncentred.item() == pytest.approx(1 - ssr / (y**2).sum(), rel=1e-9, abs=1e-9)
    assert fit.num_responses == count


def test_the_fit_is_statsmodels_fit_without_intercept():
    statsmodels = pytest.importorskip("statsmodels.api")
    log_ratios, tokens = policy_samples(50, seed=0)
    theirs = statsmodels.OLS(log_ratios.numpy(), tokens.numpy()).fit()
    ours = length_regression(log_ratios, tokens)
    assert ours.gamma.item() == pytest.approx(theirs.params[0])
    assert ours.gamma_standard_error.item() == pytest.approx(theirs.bse[0])
    assert ours.r2_uncentred.item() == pytest.approx(theirs.rsquared)  # theirs is uncentred here
    assert ours.r2_centred.item() == pytest.approx(1 - theirs.ssr / theirs.centered_tss)
    assert ours.r2_uncentred > ours.r2_centred + 0.05  # or the two names would go untested


def test_log_ratios_proportional_to_length_are_explained_whole():
    tokens = torch.tensor([3, 10, 41])
    fit = length_regression(-0.7 * tokens.double(), tokens)
    assert fit.gamma.item() == pytest.approx(-0.7)
    assert fit.r2_centred.item() == pytest.approx(1)
    assert fit.r2_uncentred.item() == pytest.approx(1)
    assert fit.gamma_standard_error.item() == pytest.approx(0, abs=1e-8)


def test_a_trend_away_from_the_origin_has_a_negative_centred_r2():
    # 11 - x: gamma = (10 + 10) / (1 + 100), SSR = 101 - 400/101, sum (y - mean)^2 = 40.5.
    fit = length_regression(torch.tensor([10.0, 1.0]), torch.tensor([1, 10]))
    ssr = 101 - 400 / 101
    assert fit.gamma.item() == pytest.approx(20 / 101)
    assert fit.r2_centred.item() == pytest.approx(1 - ssr / 40.5)
    assert fit.r2_centred < 0 < fit.r2_uncentred


def test_log_ratios_of_zero_leave_nothing_to_explain():
    fit = length_regression(torch.zeros(4), torch.tensor([1, 2, 3, 4]))
    assert (fit.gamma, fit.gamma_standard_error) == (0, 0)
    assert fit.r2_centred.isnan()
    assert fit.r2_uncentred.isnan()


@pytest.mark.parametrize("value", [0.1, -7.3, 1e-9, 1e9])
@pytest.mark.parametrize("count", [3, 1000])
def test_equal_log_ratios_have_no_centred_r2(value, count):
    fit = length_regression(torch.full((count,), value, dtype=torch.float64), torch.arange(1, count + 1))
    assert fit.r2_centred.isnan()
    assert 0 < fit.r2_uncentred < 1


def test_one_response_has_a_slope_without_uncertainty():
    fit = length_regression(torch.tensor([3.0]), torch.tensor([6]))
    assert fit.gamma == 0.5
    assert fit.gamma_standard_error.isnan()
    assert fit.r2_centred.isnan()


def test_without_responses_nothing_is_known():
    with pytest.warns(UserWarning, match="called before"):
        fit = LengthRegression().compute()
    assert all(value.isnan() for value in fit[:4])
    assert fit.num_responses == 0


def test_empty_responses_have_no_slope():
    assert length_regression(torch.tensor([1.0, 2.0]), torch.tensor([0, 0])).gamma.isnan()


def test_a_nan_log_ratio_is_not_hidden():
    fit = length_regression(torch.tensor([1.0, math.nan]), torch.tensor([1, 2]))
    assert all(value.isnan() for value in fit[:4])


@settings(deadline=None, max_examples=50)
@given(cuts=st.lists(st.integers(0, 30), max_size=4), seed=st.integers(0, 100))
def test_uneven_batches_fit_what_one_batch_fits(cuts, seed):
    log_ratios, tokens = policy_samples(30, seed)
    batches = [
        (log_ratios[start:stop], tokens[start:stop]) for start, stop in itertools.pairwise([0, *sorted(cuts), 30])
    ]
    torch.testing.assert_close(measured(*batches).compute(), length_regression(log_ratios, tokens))


def test_regression_states_of_two_processes_merge_into_those_of_one():
    log_ratios, tokens = policy_samples(30, seed=3)
    one, other = measured((log_ratios[:4], tokens[:4])), measured((log_ratios[4:], tokens[4:]))
    one.merge_state(other)
    torch.testing.assert_close(one.compute(), length_regression(log_ratios, tokens))


def test_scaling_log_ratios_by_beta_scales_gamma_and_leaves_r2():
    log_ratios, tokens = policy_samples(30, seed=4)
    fit, scaled = length_regression(log_ratios, tokens), length_regression(0.05 * log_ratios, tokens)
    torch.testing.assert_close(scaled.gamma, 0.05 * fit.gamma)
    torch.testing.assert_close(scaled.r2_centred, fit.r2_centred)
    torch.testing.assert_close(scaled.r2_uncentred, fit.r2_uncentred)
