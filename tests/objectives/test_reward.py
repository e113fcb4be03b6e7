"""The Bradley-Terry loss against Eq. 1 and Eq. 2 written out."""

import math

import numpy as np
import pytest
import torch

from overopt.objectives.reward import bradley_terry_loss


def test_the_loss_is_minus_the_log_of_eq_1():
    chosen, rejected = np.array([1.0, -2.0, 0.3]), np.array([0.5, 1.0, 0.3])
    probability = np.exp(chosen) / (np.exp(chosen) + np.exp(rejected))
    loss = bradley_terry_loss(torch.from_numpy(chosen), torch.from_numpy(rejected))
    np.testing.assert_allclose(loss, -np.log(probability), rtol=1e-14)


def test_equal_rewards_cost_log_2():
    rewards = torch.tensor([-7.0, 0.0, 3.0])
    assert bradley_terry_loss(rewards, rewards).tolist() == pytest.approx([math.log(2)] * 3)


def test_the_gradient_is_the_probability_of_the_wrong_order():
    chosen = torch.tensor([2.0, -1.0], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([0.5, 1.0], dtype=torch.float64, requires_grad=True)
    bradley_terry_loss(chosen, rejected).sum().backward()
    wrong = 1 / (1 + np.exp([1.5, -2.0]))
    np.testing.assert_allclose(chosen.grad, -wrong, rtol=1e-14)
    np.testing.assert_allclose(rejected.grad, wrong, rtol=1e-14)
    assert torch.autograd.gradcheck(bradley_terry_loss, (chosen, rejected))


def test_a_constant_on_both_rewards_changes_nothing():
    chosen = torch.tensor([1.0, -2.0], dtype=torch.float64)
    rejected = torch.tensor([0.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(bradley_terry_loss(chosen + 40, rejected + 40), bradley_terry_loss(chosen, rejected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_and_gradient_are_finite_at_differences_of_200(dtype):
    chosen = torch.tensor([100.0, -100.0], dtype=dtype, requires_grad=True)
    loss = bradley_terry_loss(chosen, -chosen.detach())
    loss.sum().backward()
    np.testing.assert_allclose(loss.detach(), [math.exp(-200), 200.0], atol=1e-30)
    np.testing.assert_allclose(chosen.grad, [-math.exp(-200), -1.0], atol=1e-30)
