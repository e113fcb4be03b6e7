"""The soft Bellman equation (Eq. 8 and 9) where it can be solved: backward induction over a tree.

A quantity of all states of a tree is a list with one tensor a level. At level t it has one axis for each action taken
so far, and where it belongs to the action taken there, one more: V_t has t axes, Q_t and log pi_t have t + 1.
"""

from collections.abc import Iterable
from itertools import product
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from overopt.theory.token_q_values import soft_maximum
from overopt.theory.tree_mdp import TreeMDP

Levels = list[Float[Tensor, "..."]]
"""A tensor a level of a tree, from the start on."""


class SoftValues(NamedTuple):
    """Values of all states of a tree, a tensor a level [reward].

    Attributes:
        q_values: Q_t of each state and action, t + 1 axes.
        values: V_t of each state, t axes; V_0 is the start's.
    """

    q_values: Levels
    values: Levels

    def log_probs(self, beta: float) -> Levels:
        """The policy that they mean (Eq. 10), a tensor a level [nats]."""
        return [(q - v[..., None]) / beta for q, v in zip(self.q_values, self.values, strict=True)]


def backward_induction(rewards: Float[Tensor, "*actions"], reference_log_probs: Levels, beta: float) -> SoftValues:
    """Solve Eq. 8 and 9 from the leaves up, for rewards at the leaves only.

    Args:
        rewards: of each trajectory, an axis an action [reward].
        reference_log_probs: log pi_ref of each state's actions, a tensor a level [nats].
        beta: price of divergence, > 0 [reward / nat].

    Raises:
        ValueError: beta is not positive.
    """
    q_values: list[Tensor] = []
    values: list[Tensor] = []
    after = rewards
    for log_probs in reversed(reference_log_probs):
        q_values.insert(0, after + beta * log_probs)
        after = soft_maximum(q_values[0], beta)
        values.insert(0, after)
    return SoftValues(q_values, values)


def trajectory_log_probs(log_probs: Levels) -> Float[Tensor, "*actions"]:
    """Of each trajectory, out of those of each state's actions [nats]."""
    total = log_probs[0]
    for level in log_probs[1:]:
        total = total[..., None] + level
    return total


def conditional_log_probs(trajectories: Float[Tensor, "*actions"]) -> Levels:
    """Of each state's actions, out of those of trajectories [nats], which may lack a common constant."""
    levels: list[Tensor] = []
    reached = trajectories
    while reached.ndim:
        before = reached.logsumexp(dim=-1)
        levels.insert(0, reached - before[..., None])
        reached = before
    return levels


def implied_values(log_probs: Levels, reference_log_probs: Levels, beta: float) -> SoftValues:
    """What a policy implies in the sparse gauge: V = beta log_ratio so far, Q = V + beta log pi."""
    q_values: list[Tensor] = []
    values: list[Tensor] = []
    so_far = torch.zeros_like(log_probs[0].sum())
    for policy, reference in zip(log_probs, reference_log_probs, strict=True):
        values.append(so_far)
        q_values.append(so_far[..., None] + beta * policy)
        so_far = so_far[..., None] + beta * (policy - reference)
    return SoftValues(q_values, values)


def bellman_residual(
    q_values: Levels,
    rewards: Float[Tensor, "*actions"],
    reference_log_probs: Levels,
    beta: float,
) -> float:
    """Largest difference between the two sides of Eq. 8, V worked out from Q by Eq. 9 [reward].

    Args:
        q_values: a tensor a level.
        rewards: of each trajectory, paid at its leaf; an axis an action.
        reference_log_probs: a tensor a level [nats].
        beta: price of divergence, > 0 [reward / nat].
    """
    after = [soft_maximum(q, beta) for q in q_values[1:]] + [rewards]
    sides = zip(q_values, reference_log_probs, after, strict=True)
    return max(float((q - (beta * reference + v)).abs().max()) for q, reference, v in sides)


class TreeCheck(NamedTuple):
    """How exactly the equations hold on one tree, each the largest absolute difference.

    Attributes:
        policy_nats: optimal policy by backward induction against pi_ref exp(r / beta) / Z.
        bellman: Eq. 8 for the values that a policy implies [reward].
        induction: those values against backward induction from the rewards that the policy implies [reward].
    """

    policy_nats: float
    bellman: float
    induction: float


def check_tree(tree: TreeMDP, beta: float, seed: int) -> TreeCheck:
    """Random rewards, reference and policy on a tree, in float64.

    Args:
        tree: the tree.
        beta: price of divergence, > 0 [reward / nat].
        seed: fixes the draws.

    Raises:
        ValueError: beta is not positive.
    """
    draws = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn((tree.branching,) * tree.depth, generator=draws, dtype=torch.float64)

    reference, policy, rewards = conditional_log_probs(normal()), conditional_log_probs(normal()), normal()
    optimum = backward_induction(rewards, reference, beta)
    closed_form = trajectory_log_probs(reference) + rewards / beta
    closed_form = closed_form - torch.logsumexp(closed_form.flatten(), dim=0)
    by_induction = trajectory_log_probs(optimum.log_probs(beta))
    implied = implied_values(policy, reference, beta)
    implied_rewards = beta * (trajectory_log_probs(policy) - trajectory_log_probs(reference))
    induced = backward_induction(implied_rewards, reference, beta)
    return TreeCheck(
        policy_nats=float((by_induction - closed_form).abs().max()),
        bellman=bellman_residual(implied.q_values, implied_rewards, reference, beta),
        induction=max(
            float((one - other).abs().max())
            for one, other in zip(
                [*implied.q_values, *implied.values], [*induced.q_values, *induced.values], strict=True
            )
        ),
    )


def check_trees(
    branchings: Iterable[int], depths: Iterable[int], betas: Iterable[float], seed: int = 0
) -> dict[tuple[int, int, float], TreeCheck]:
    """:func:`check_tree` for each branching, depth and beta."""
    return {
        (branching, depth, beta): check_tree(TreeMDP(branching, depth), beta, seed)
        for branching, depth, beta in product(branchings, depths, betas)
    }
