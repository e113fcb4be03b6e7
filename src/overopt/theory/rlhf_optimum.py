"""What standard RLHF makes of the same preferences: a reward fitted by Eq. 2, and the policy best for it by Eq. 3.

The reward's loss sees rewards by the same query matrix as a direct alignment loss sees log-ratios: its null space is
the same, only it is the reward that moves in it.
"""

import numpy as np
import torch
from jaxtyping import Float

from overopt.objectives.reward import bradley_terry_loss
from overopt.theory.newton import Derivatives, newton_minimum
from overopt.theory.rank_deficiency import query_matrix, row_space_basis
from overopt.theory.response_set import ResponseSet, normalised


def rlhf_policy(
    responses: ResponseSet, reward: Float[np.ndarray, " response"], *, beta: float
) -> Float[np.ndarray, " response"]:
    """Log probabilities of the one policy that is best by Eq. 3: in proportion to pi_ref exp(r / beta).

    Args:
        responses: the set.
        reward: of each entry.
        beta: price of divergence, > 0 [reward / nat].

    Raises:
        ValueError: ``beta`` is not positive and finite.
    """
    if not 0 < beta < np.inf:
        raise ValueError(f"need finite beta > 0, got {beta=}")
    return normalised(responses.log_reference + reward / beta, responses.prompt_of, responses.num_prompts)


def reward_loss(responses: ResponseSet, reward: Float[np.ndarray, " response"]) -> float:
    """Eq. 2, mean over preferences [nats]."""
    rewards = torch.as_tensor(reward, dtype=torch.float64)
    chosen, rejected = (rewards[torch.as_tensor(side)] for side in (responses.chosen, responses.rejected))
    return float(bradley_terry_loss(chosen, rejected).mean())


def ridge_reward(responses: ResponseSet, *, ridge: float) -> Float[np.ndarray, " response"]:
    """The reward that minimises Eq. 2 plus ``ridge / 2`` times its squared norm; without a ridge there may be none.

    It has no part in the null space: it is 0 for every response in no preference.

    Raises:
        ValueError: ``ridge`` is not positive and finite, or the fit has not converged.
    """
    if not 0 < ridge < np.inf:
        raise ValueError(f"need finite ridge > 0, got {ridge=}")
    basis = row_space_basis(responses)
    to_margins = query_matrix(responses) @ basis

    def derivatives(point: np.ndarray) -> Derivatives:
        margins = torch.tensor(to_margins @ point, requires_grad=True)
        losses = bradley_terry_loss(margins, torch.zeros_like(margins))
        [slopes] = torch.autograd.grad(losses.sum(), margins, create_graph=True)
        [curvatures] = torch.autograd.grad(slopes.sum(), margins)
        number = len(margins)
        return (
            float(losses.detach().mean()) + ridge / 2 * float(point @ point),
            to_margins.T @ slopes.detach().numpy() / number + ridge * point,
            (to_margins.T * curvatures.numpy()) @ to_margins / number + ridge * np.eye(len(point)),
        )

    end = newton_minimum(derivatives, np.zeros(basis.shape[1]))
    if end.status != "minimum":
        raise ValueError(f"the reward has not converged: gradient {end.gradient_norm:.1e}; take a larger ridge")
    return np.asarray(basis @ end.point)
