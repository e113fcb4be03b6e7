"""The regression view of Sec. 4: the query matrix, what it leaves free, and policies that use that freedom.

A direct alignment loss sees a policy only through Q (log pi - log pi_ref). Whatever is added to log pi inside the null
space of Q leaves every margin, hence the loss of every objective at every beta, where it was.
"""

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import null_space, orth

from overopt.objectives.preference import preference_logit, preference_loss
from overopt.theory.response_set import ResponseSet, group_logsumexp, normalised
from overopt.theory.tree_mdp import TreeMDP


def query_matrix(responses: ResponseSet) -> Float[np.ndarray, "pair response"]:
    """One row a preference: +1 for the chosen entry, -1 for the rejected one."""
    queries = np.zeros((responses.num_preferences, responses.num_responses))
    rows = np.arange(responses.num_preferences)
    queries[rows, responses.chosen] = 1.0
    queries[rows, responses.rejected] = -1.0
    return queries


def null_space_basis(responses: ResponseSet) -> Float[np.ndarray, "response direction"]:
    """Orthonormal basis of the directions that no preference sees."""
    return np.asarray(null_space(query_matrix(responses)))


def row_space_basis(responses: ResponseSet) -> Float[np.ndarray, "response direction"]:
    """Orthonormal basis of the directions that preferences see; as many as the rank."""
    return np.asarray(orth(query_matrix(responses).T))


def rank(responses: ResponseSet) -> int:
    """Rank of the query matrix: the number of independent preferences."""
    return int(np.linalg.matrix_rank(query_matrix(responses)))


def freedom(responses: ResponseSet) -> int:
    """Dimensions in which a policy can move without a change of any margin.

    The null space has one dimension more for each prompt: a row of Q sums to zero over its prompt, so the same constant
    on all log probabilities of a prompt is in it, but normalisation takes that constant back.

    As a graph: the preferences fix the distribution within each connected component, and say nothing of how
    probability is shared between components. The freedom is that of the shares, components less prompts.
    """
    return responses.num_responses - rank(responses) - responses.num_prompts


def log_ratio_margins(responses: ResponseSet, log_policy: Float[np.ndarray, " response"]) -> Float[np.ndarray, " pair"]:
    """Log pi/pi_ref of the chosen minus the rejected response of each preference [nats]."""
    log_ratio = log_policy - responses.log_reference
    return np.asarray(log_ratio[responses.chosen] - log_ratio[responses.rejected])


def policy_loss(margins: Float[np.ndarray, " pair"], *, objective: str, beta: float) -> float:
    """Mean loss over preferences of a named objective, by the functions that training uses, in float64.

    Raises:
        ValueError: there is no such objective, or ``beta`` is not positive and finite.
    """
    margin = torch.as_tensor(margins, dtype=torch.float64)
    logit = preference_logit(margin, torch.zeros(len(margin), dtype=torch.int64), beta=beta)
    return float(preference_loss(objective)(logit, beta=beta).mean())


def least_norm_policy(responses: ResponseSet, *, beta: float) -> Float[np.ndarray, " response"]:
    """Log probabilities of the policy that IPO asks for, with the log-ratio of least norm before normalisation.

    Every margin is 1 / beta if preferences can all be met, else as near as least squares comes: the exact minimum of
    the IPO loss, and where SLiC's is 0 too.
    """
    queries = query_matrix(responses)
    log_ratio = np.linalg.lstsq(queries, np.full(len(queries), 1 / beta))[0]
    return normalised(responses.log_reference + log_ratio, responses.prompt_of, responses.num_prompts)


def move_in_null_space(
    responses: ResponseSet,
    log_policy: Float[np.ndarray, " response"],
    coordinates: Float[np.ndarray, " direction"],
) -> Float[np.ndarray, " response"]:
    """Log probabilities of the policy so far along each direction of :func:`null_space_basis` [nats], renormalised."""
    moved = log_policy + null_space_basis(responses) @ coordinates
    return normalised(moved, responses.prompt_of, responses.num_prompts)


def policy_with_ood_mass(
    responses: ResponseSet, log_policy: Float[np.ndarray, " response"], ood_mass: float
) -> Float[np.ndarray, " response"]:
    """Log probabilities of the policy of equal margins with a given probability of unseen responses.

    Unseen responses are in no preference: adding the same t to their log probabilities is a move in the null space.
    After renormalisation a mass m has become m e^t / (1 - m + m e^t), so t = logit(wanted) - logit(m).

    Args:
        responses: the set.
        log_policy: normalised log probabilities [nats].
        ood_mass: wanted in every prompt that has seen and unseen responses; elsewhere the mass can't move.

    Raises:
        ValueError: the mass is not strictly between 0 and 1, or there is no such prompt.
    """
    if not 0 < ood_mass < 1:
        raise ValueError(f"need 0 < OOD mass < 1, got {ood_mass}")
    sides = 2 * responses.prompt_of + responses.unseen
    log_masses = group_logsumexp(log_policy, sides, 2 * responses.num_prompts).reshape(-1, 2)
    movable = np.isfinite(log_masses).all(axis=1)
    if not movable.any():
        raise ValueError("no prompt has both seen and unseen responses: OOD mass can't move")
    wanted = np.log(ood_mass) - np.log1p(-ood_mass)
    shift = np.zeros(responses.num_prompts)
    shift[movable] = wanted - (log_masses[movable, 1] - log_masses[movable, 0])
    moved = log_policy + shift[responses.prompt_of] * responses.unseen
    return normalised(moved, responses.prompt_of, responses.num_prompts)


def chain_rule_log_probs(
    tree: TreeMDP, probabilities: Float[np.ndarray, " response"]
) -> Float[np.ndarray, " response"]:
    """Log probabilities of all trajectories [nats] as a language model has them: summed over its tokens.

    The policy's token probabilities are the shares of a state's visits that take each action. They are made from
    plain probabilities, not from logarithms: a path of its own to the numbers that null-space policies are checked by.
    """
    visits = probabilities.reshape((tree.branching,) * tree.depth)
    log_probs = np.zeros_like(visits)
    for level in range(tree.depth):
        through_action = visits.sum(axis=tuple(range(level + 1, tree.depth)), keepdims=True)
        log_probs = log_probs + np.log(through_action / through_action.sum(axis=level, keepdims=True))
    return log_probs.reshape(-1)
