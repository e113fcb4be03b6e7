import itertools
import math

import numpy as np
import pytest
import torch

from overopt.theory.soft_bellman import (
    backward_induction,
    bellman_residual,
    check_trees,
    conditional_log_probs,
    implied_values,
    trajectory_log_probs,
)

BETAS = (0.02, 0.3, 1.0, 5.0)
SHAPES = [(2, 1), (2, 4), (3, 3), (4, 2)]


def drawn(branching, depth, seed):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(branching,) * depth))


def states(branching, depth):
    return [prefix for length in range(depth) for prefix in itertools.product(range(branching), repeat=length)]


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize(("branching", "depth"), SHAPES)
def test_backward_induction_gives_the_values_and_the_policy_that_a_sum_over_all_trajectories_gives(
    branching, depth, beta
):
    reference, rewards = conditional_log_probs(drawn(branching, depth, 0)), drawn(branching, depth, 1)
    found = backward_induction(rewards, reference, beta)
    # By listing trajectories, in plain Python: pi_ref(y) exp(r / beta), summed over those that go through a state.
    weight, log_ref = {}, {}
    for y in itertools.product(range(branching), repeat=depth):
        log_ref[y] = sum(float(reference[t][y[: t + 1]]) for t in range(depth))
        weight[y] = math.exp(log_ref[y] + float(rewards[y]) / beta)
    total = sum(weight.values())
    optimum = found.log_probs(beta)
    for prefix in states(branching, depth):
        level = len(prefix)
        through = [y for y in weight if y[:level] == prefix]
        log_ref_prefix = sum(float(reference[t][prefix[: t + 1]]) for t in range(level))
        value = beta * (math.log(sum(weight[y] for y in through)) - log_ref_prefix)
        assert float(found.values[level][prefix]) == pytest.approx(value, rel=1e-9, abs=1e-10)
        for action in range(branching):
            share = sum(weight[y] for y in through if y[level] == action) / sum(weight[y] for y in through)
            assert float(optimum[level][(*prefix, action)]) == pytest.approx(math.log(share), rel=1e-8, abs=1e-9)
    assert float(found.values[0]) == pytest.approx(beta * math.log(total), rel=1e-9)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize(("branching", "depth"), SHAPES)
def test_the_values_that_any_policy_implies_satisfy_the_soft_bellman_equation(branching, depth, beta):
    policy = conditional_log_probs(drawn(branching, depth, 2))
    reference = conditional_log_probs(drawn(branching, depth, 3))
    implied = implied_values(policy, reference, beta)
    largest = 0.0
    for prefix in states(branching, depth):
        for action in range(branching):
            after = (*prefix, action)
            if len(after) < depth:
                rewarded, q_after = 0.0, implied.q_values[len(after)][after]
                value_after = beta * math.log(sum(math.exp(float(q) / beta) for q in q_after))
            else:
                value_after = 0.0
                rewarded = beta * sum(
                    float(policy[t][after[: t + 1]]) - float(reference[t][after[: t + 1]]) for t in range(depth)
                )
            left = float(implied.q_values[len(prefix)][after])
            right = rewarded + beta * float(reference[len(prefix)][after]) + value_after
            largest = max(largest, abs(left - right))
    assert largest < 1e-12 * max(1.0, beta)


def test_the_residual_sees_a_wrong_value_and_a_shift_of_the_gauge():
    policy, reference = conditional_log_probs(drawn(3, 3, 4)), conditional_log_probs(drawn(3, 3, 5))
    rewards = 0.5 * (trajectory_log_probs(policy) - trajectory_log_probs(reference))
    q_values = implied_values(policy, reference, 0.5).q_values
    assert bellman_residual(q_values, rewards, reference, 0.5) < 1e-14
    assert bellman_residual(q_values, rewards, reference, 0.6) > 1e-2
    q_values[1][2, 0] += 0.25
    assert bellman_residual(q_values, rewards, reference, 0.5) == pytest.approx(0.25, rel=1e-9)


def test_conditional_and_trajectory_log_probs_undo_each_other():
    trajectories = drawn(3, 4, 6).flatten().log_softmax(dim=0).view(3, 3, 3, 3)
    levels = conditional_log_probs(trajectories)
    assert [level.ndim for level in levels] == [1, 2, 3, 4]
    for level in levels:
        assert torch.allclose(level.exp().sum(dim=-1), torch.ones(()).double())
    assert torch.allclose(trajectory_log_probs(levels), trajectories, atol=1e-13)


def test_the_equations_hold_on_trees_of_many_shapes_and_betas():
    checks = check_trees((2, 3, 5), (1, 3, 5), BETAS)
    assert len(checks) == 36
    for (_, _, beta), check in checks.items():
        assert check.bellman < 1e-13 * max(1.0, beta)
        assert check.induction < 1e-13 * max(1.0, beta)
        assert check.policy_nats < 1e-14 / min(beta, 1e-2)  # rewards over beta are large where beta is small
    with pytest.raises(ValueError, match="positive beta"):
        check_trees((2,), (2,), (0.0,))
