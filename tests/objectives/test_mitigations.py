"""Each term against its formula, in numpy or worked out on paper."""

import math

import numpy as np
import pytest
import torch

from overopt.objectives.likelihood import ResponseLikelihood
from overopt.objectives.mitigations import (
    HIGHEST_EXPONENT,
    LIKELIHOOD_LOSSES,
    LINKS,
    chi_squared_link,
    clip_reward_margin,
    lost_likelihood,
)
from overopt.theory.chi_po import chi_po_link

LOG_RATIOS = torch.linspace(-30, 15, 46, dtype=torch.float64)


def test_the_chi_squared_link_is_the_one_that_the_theory_has():
    np.testing.assert_allclose(chi_squared_link(LOG_RATIOS), chi_po_link(LOG_RATIOS.numpy()), rtol=1e-14)


def test_the_chi_squared_links_slope_is_the_ratio_plus_one():
    log_ratio = LOG_RATIOS.clone().requires_grad_()
    chi_squared_link(log_ratio).sum().backward()
    np.testing.assert_allclose(log_ratio.grad, 1 + np.exp(LOG_RATIOS.numpy()), rtol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_chi_squared_link_is_finite_and_rises_at_any_ratio_of_sequences(dtype):
    log_ratio = torch.tensor([-1e6, -500.0, -88.0, 0.0, 19.0, 21.0, 90.0, 800.0, 1e6], dtype=dtype, requires_grad=True)
    link = chi_squared_link(log_ratio)
    link.sum().backward()
    assert link.isfinite().all()
    assert (link.diff() > 0).all()
    assert log_ratio.grad.isfinite().all()
    assert log_ratio.grad[[0, -1]].tolist() == [1, 1]  # beyond the clip the logarithm's own
    assert float(link[-2]) == pytest.approx(math.exp(HIGHEST_EXPONENT) + 800, rel=1e-6)


def test_the_log_link_leaves_log_ratios_as_they_are():
    assert LINKS["log"](LOG_RATIOS) is LOG_RATIOS


def test_a_clipped_logit_is_that_within_twice_the_largest_reward_and_still_beyond():
    logit = torch.tensor([-7.0, -4.1, -3.9, 0.5, 3.9, 4.1, 70.0], requires_grad=True)
    clipped = clip_reward_margin(logit, max_reward=2.0)
    clipped.sum().backward()
    assert clipped.tolist() == [-4, -4, *logit[2:5].tolist(), 4, 4]
    assert logit.grad.tolist() == [0, 0, 1, 1, 1, 0, 0]


@pytest.mark.parametrize("max_reward", [0.0, -1.0, math.inf, math.nan])
def test_a_largest_reward_is_a_positive_number(max_reward):
    with pytest.raises(ValueError, match="max_reward > 0"):
        clip_reward_margin(torch.zeros(1), max_reward=max_reward)


def test_likelihood_is_lost_below_the_reference_only():
    log_ratio = torch.tensor([-3.0, -0.5, 0.0, 2.0], requires_grad=True)
    lost = lost_likelihood(log_ratio)
    lost.sum().backward()
    assert lost.tolist() == [3, 0.5, 0, 0]
    assert log_ratio.grad.tolist() == [-1, -1, 0, 0]


def test_the_likelihood_term_is_the_mean_over_own_tokens_or_the_sum():
    nll = torch.tensor([6.0, 1.0], requires_grad=True)
    chosen = ResponseLikelihood(nll, torch.tensor([4, 1]))
    assert LIKELIHOOD_LOSSES["token"](chosen).tolist() == [1.5, 1]
    assert LIKELIHOOD_LOSSES["response"](chosen).tolist() == [6, 1]
    (per_token,) = torch.autograd.grad(LIKELIHOOD_LOSSES["token"](chosen).sum(), nll)
    assert per_token.tolist() == [0.25, 1]


def test_a_response_without_a_predicted_token_has_no_likelihood_term():
    assert LIKELIHOOD_LOSSES["token"](ResponseLikelihood(torch.zeros(1), torch.tensor([0]))).tolist() == [0]
