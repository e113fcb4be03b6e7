"""Several reward models as one: the mean, the worst case, or the mean less a price of disagreement."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from overopt.models.reward_model import RewardModel, load_reward_model
from overopt.packed_tokens import PackedTokens

Rewards = Float[Tensor, "member response"]


def mean_reward(rewards: Rewards) -> Float[Tensor, " response"]:
    """The members' mean."""
    return rewards.mean(dim=0)


def worst_reward(rewards: Rewards) -> Float[Tensor, " response"]:
    """The least of the members' rewards: worst-case optimization. Coste et al. 2023 (arXiv:2310.02743)."""
    return rewards.amin(dim=0)


def uncertainty_weighted_reward(rewards: Rewards, *, price: float) -> Float[Tensor, " response"]:
    """Mean less ``price`` times the variance over members: Coste et al. 2023 (arXiv:2310.02743), Eq. 5.

    Args:
        rewards: of each member, on one scale.
        price: of variance, >= 0 [1 / reward].

    Raises:
        ValueError: ``price`` is negative.

    >>> uncertainty_weighted_reward(torch.tensor([[1.0, 4.0], [3.0, 4.0]]), price=0.5)
    tensor([1.5000, 4.0000])
    """
    _require_price(price)
    return rewards.mean(dim=0) - price * rewards.var(dim=0, unbiased=False)


#: How members' rewards become one; the price counts for ``uncertainty_weighted`` alone.
COMBINATIONS: dict[str, Callable[..., Tensor]] = {
    "mean": lambda rewards, price: mean_reward(rewards),
    "worst": lambda rewards, price: worst_reward(rewards),
    "uncertainty_weighted": lambda rewards, price: uncertainty_weighted_reward(rewards, price=price),
}


def require_combination(combine: str, price: float) -> None:
    """Raise a ValueError for an unknown combination, or a negative price."""
    if combine not in COMBINATIONS:
        raise ValueError(f"unknown combination {combine!r}; one of {', '.join(COMBINATIONS)}")
    _require_price(price)


def _require_price(price: float) -> None:
    if not 0 <= price < math.inf:
        raise ValueError(f"need a price of disagreement >= 0, got {price}")


def require_members(checkpoints: Sequence[str | Path]) -> None:
    """Raise a ValueError for no reward model, or one that is named twice."""
    if not checkpoints:
        raise ValueError("an ensemble needs at least one reward model: name its checkpoint")
    if len({Path(path).resolve() for path in checkpoints}) < len(checkpoints):
        raise ValueError("a reward model is named twice: an ensemble of copies is no ensemble")


class RewardScales(NamedTuple):
    """Where each member's zero is, and its unit.

    Attributes:
        centres: mean reward.
        scales: standard deviation.
    """

    centres: Float[Tensor, " member"]
    scales: Float[Tensor, " member"]

    def standardised(self, rewards: Rewards) -> Rewards:
        """Rewards relative to the centres, in the scales."""
        return (rewards - self.centres[:, None]) / self.scales[:, None]


def reward_scales(rewards: Rewards) -> RewardScales:
    """Of members' rewards of the same responses.

    Raises:
        ValueError: a member gives all of them the same reward.
    """
    scales = rewards.std(dim=1, unbiased=False)
    if not (scales > 0).all():
        raise ValueError(
            "a reward model gives all responses the same reward, which has no scale: is it trained, and are there "
            "two responses at least?"
        )
    return RewardScales(rewards.mean(dim=1), scales)


class RewardEnsemble(nn.Module):
    """Reward models that read the same token ids, combined; one alone is an ensemble of one.

    A reward model is fixed up to a constant per prompt, which would decide alone whose reward is the worst. Of these
    constants the mean over prompts is taken out: each member's rewards are relative to its mean on responses that
    :meth:`centre` was told of, in the unit of their standard deviation there, as Coste et al. 2023 normalise them. What
    constants differ by from prompt to prompt stays in the worst case and in the disagreement. Until then rewards are as
    they come.

    Args:
        members: reward models of one tokenizer.
        combine: a name in :data:`COMBINATIONS`.
        price: of disagreement, for ``uncertainty_weighted``.

    Raises:
        ValueError: no member, an unknown combination, or members of different tokenizers.
    """

    centres: Tensor
    scales: Tensor

    def __init__(self, members: Sequence[RewardModel], combine: str = "mean", price: float = 0.5) -> None:
        super().__init__()
        if not members:
            raise ValueError("an ensemble needs at least one reward model")
        require_combination(combine, price)
        vocabularies = [member.tokenizer.get_vocab() for member in members]
        if any(vocabulary != vocabularies[0] for vocabulary in vocabularies):
            raise ValueError("reward models of an ensemble read the same token ids: these have different tokenizers")
        self.members = nn.ModuleList(members)
        self.tokenizer = members[0].tokenizer
        self._combine = partial(COMBINATIONS[combine], price=price)
        self.register_buffer("centres", torch.zeros(len(members)))
        self.register_buffer("scales", torch.ones(len(members)))

    def forward(self, tokens: PackedTokens) -> Float[Tensor, " response"]:
        """Combined reward of each response."""
        combined: Tensor = self._combine(self.member_rewards(tokens))
        return combined

    def member_rewards(self, tokens: PackedTokens) -> Rewards:
        """Reward of each response by each member, centred and scaled."""
        return RewardScales(self.centres, self.scales).standardised(self._raw(tokens))

    @torch.no_grad()
    def centre(self, samples: Sequence[PackedTokens]) -> None:
        """Take rewards relative to each member's mean on these responses, in its standard deviation there.

        Args:
            samples: batches of responses, usually the reference's own; at least two responses that differ in reward.

        Raises:
            ValueError: a member gives all of them the same reward.
        """
        found = reward_scales(torch.cat([self._raw(tokens) for tokens in samples], dim=1))
        self.centres.copy_(found.centres)
        self.scales.copy_(found.scales)

    def _raw(self, tokens: PackedTokens) -> Rewards:
        return torch.stack([member(tokens) for member in self.members])


def load_reward_ensemble(
    checkpoints: Sequence[str | Path], combine: str = "mean", price: float = 0.5
) -> RewardEnsemble:
    """Open reward models that :mod:`overopt.modules.reward_modeling` trained, as one.

    Raises:
        ValueError: no such file, one that holds no reward model, or see :class:`RewardEnsemble`.
    """
    return RewardEnsemble([load_reward_model(path) for path in checkpoints], combine, price)
