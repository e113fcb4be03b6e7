"""The objective of reward modelling."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def bradley_terry_loss(
    chosen_reward: Float[Tensor, " pair"], rejected_reward: Float[Tensor, " pair"]
) -> Float[Tensor, " pair"]:
    """-log sigmoid(r(chosen) - r(rejected)): Eq. 2, one value a pair [nats]; log 2 for equal rewards.

    Only the difference of rewards counts, so a reward model is fixed up to a constant per prompt. Finite
    for any finite difference.

    Args:
        chosen_reward: reward of the preferred response [logits].
        rejected_reward: reward of the other response to the same prompt [logits].

    Source: Bradley and Terry 1952; Stiennon et al. 2020 (arXiv:2009.01325).
    """
    return -F.logsigmoid(chosen_reward - rejected_reward)
