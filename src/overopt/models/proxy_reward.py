"""What policies are optimised against: frozen reward models that read the sampled token ids."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from overopt.models.reward_ensemble import load_reward_ensemble
from overopt.packed_tokens import PackedTokens


class ProxyReward:
    """One reward model, or several combined, none of which is trained.

    Rewards are in the reward models' own unit, so that a ``beta`` in reward / nat means the same for one model and for
    several: what several give, which is relative to their means on the reference's responses and in units of their
    standard deviations there, is multiplied by the mean of these. One alone is taken as it comes.

    Args:
        checkpoints: of reward models, of one tokenizer.
        combine: how several become one: mean, worst or uncertainty_weighted.
        price: of their disagreement, for ``uncertainty_weighted`` [1 / standard deviation].

    Raises:
        ValueError: no checkpoint, or see :func:`overopt.models.reward_ensemble.load_reward_ensemble`.
    """

    def __init__(self, checkpoints: Sequence[str | Path], combine: str = "mean", price: float = 0.5) -> None:
        self.checkpoints = [str(path) for path in checkpoints]
        self._combine, self._price = combine, price
        self._ensemble = load_reward_ensemble(checkpoints, combine, price).eval().requires_grad_(False)

    @property
    def needs_centre(self) -> bool:
        """Whether rewards depend on where each member's zero is."""
        return len(self.checkpoints) > 1

    def to(self, device: torch.device | str) -> "ProxyReward":
        """Itself, on another device."""
        self._ensemble.to(device)
        return self

    def require_tokenizer(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Refuse a policy of another tokenizer.

        Raises:
            ValueError: the same token ids mean other texts to the reward models.
        """
        if self._ensemble.tokenizer.get_vocab() != tokenizer.get_vocab():
            raise ValueError(
                f"the reward model {self.checkpoints[0]} has another tokenizer than the policy, whose token ids it is "
                "to read: train one on the policy's (fit of RewardModule with model.policy that policy)"
            )

    def centre(self, samples: Sequence[PackedTokens]) -> None:
        """Settle each member's zero and unit; see :meth:`overopt.models.reward_ensemble.RewardEnsemble.centre`."""
        self._ensemble.centre(samples)

    @torch.no_grad()
    def __call__(self, tokens: PackedTokens) -> Float[Tensor, " response"]:
        """Reward of each response, computed in float32 whatever the training's precision is."""
        # bfloat16 has three digits, and only differences of rewards count.
        with torch.autocast(tokens.input_ids.device.type, enabled=False):
            rewards: Tensor = self._ensemble(tokens) * self._ensemble.scales.mean()
        return rewards

    def describe(self) -> dict[str, Any]:
        """Plain values from which :meth:`from_description` opens it again, zeros and units included."""
        return {
            "reward": self.checkpoints,
            "reward_combination": self._combine,
            "disagreement_price": self._price,
            "reward_centres": self._ensemble.centres.tolist(),
            "reward_scales": self._ensemble.scales.tolist(),
        }

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> "ProxyReward":
        """What :meth:`describe` told of, on the CPU."""
        proxy = cls(description["reward"], description["reward_combination"], description["disagreement_price"])
        proxy._ensemble.centres.copy_(torch.tensor(description["reward_centres"]))
        proxy._ensemble.scales.copy_(torch.tensor(description["reward_scales"]))
        return proxy
