"""Reward models read as a person reads: prompt and response as text, tokenised anew, by one of them or an ensemble."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from overopt.checkpoints.format import read_model_checkpoint
from overopt.data.datamodule import data_of_checkpoint
from overopt.data.packing import Packing
from overopt.data.prompt_format import encode_prompts
from overopt.data.tokenization import encode_responses, padding_id
from overopt.models.compute import stage_device
from overopt.models.reward_ensemble import COMBINATIONS, require_combination, reward_scales
from overopt.models.reward_model import RewardModel, load_reward_model
from overopt.packed_tokens import PackedTokens, PromptGroup


class TextRewards:
    """A reward model's rewards of texts.

    Args:
        reward_model: on the device to use.
        max_response_tokens: longer responses are cut, the end of text counted.
        packing: how responses go through the model.
    """

    def __init__(self, reward_model: RewardModel, *, max_response_tokens: int, packing: Packing) -> None:
        self._reward_model = reward_model.eval()
        self._max_response_tokens = max_response_tokens
        self._packing = packing

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Float64[np.ndarray, " response"]:
        """Reward of each response to its prompt [logits]; what is equal is scored once, and so ties."""
        tokenizer = self._reward_model.tokenizer
        device = self._reward_model.head.weight.device
        places = {pair: place for place, pair in enumerate(dict.fromkeys(zip(prompts, responses, strict=True)))}
        encoded_prompts = encode_prompts([prompt for prompt, _ in places], tokenizer)
        encoded_responses = encode_responses([text for _, text in places], tokenizer, self._max_response_tokens)
        groups = [
            PromptGroup.of(prompt, response.token_ids)
            for prompt, response in zip(encoded_prompts, encoded_responses, strict=True)
        ]

        def reward(tokens: PackedTokens) -> Float[Tensor, " response"]:
            of_responses: Tensor = self._reward_model(move_data_to_device(tokens, device)).double()
            return of_responses

        rewards = self._packing.scores(groups, reward, padding_id(tokenizer))
        of_pairs = np.array([of_response for (of_response,) in rewards], dtype=np.float64)
        return np.asarray(of_pairs[[places[pair] for pair in zip(prompts, responses, strict=True)]])


class OpenedRewardModel(NamedTuple):
    """A reward model out of a checkpoint, and the limits it was trained with.

    Attributes:
        reward_model: on the device of stages.
        max_response_tokens: of its data.
        packing: of its data.
        digest: of the file.
    """

    reward_model: RewardModel
    max_response_tokens: int
    packing: Packing
    digest: str


def open_reward_model(checkpoint: Path) -> OpenedRewardModel:
    """A reward model that a ``fit`` of stage reward wrote.

    Raises:
        ValueError: no such file, or it holds no reward model.
    """
    reward_model = load_reward_model(checkpoint).to(stage_device())
    data = data_of_checkpoint(read_model_checkpoint(checkpoint), checkpoint)
    with checkpoint.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return OpenedRewardModel(reward_model, data.max_response_tokens, data.packing, digest[:16])


def open_text_rewards(checkpoint: Path) -> TextRewards:
    """The same as rewards of texts."""
    opened = open_reward_model(checkpoint)
    return TextRewards(opened.reward_model, max_response_tokens=opened.max_response_tokens, packing=opened.packing)


def combined_rewards(
    members: Float[np.ndarray, "member response"], combine: str, price: float = 0.5
) -> Float64[np.ndarray, " response"]:
    """Several reward models' rewards of the same responses as one reward [logits].

    As in :class:`overopt.models.reward_ensemble.RewardEnsemble`, each member is taken relative to its mean over the
    responses, in its standard deviation: only differences of its rewards have meaning, and the constant would decide
    alone whose reward is the worst. The result is in the members' mean standard deviation again. One member is left as
    it is.

    Args:
        members: rewards of each.
        combine: a name in :data:`overopt.models.reward_ensemble.COMBINATIONS`.
        price: of disagreement, for ``uncertainty_weighted`` [1 / standard deviation].

    Raises:
        ValueError: an unknown combination, or a member that gives all responses the same reward.
    """
    require_combination(combine, price)
    if len(members) == 1:
        return np.asarray(members[0], dtype=np.float64)
    rewards = torch.from_numpy(members)
    found = reward_scales(rewards)
    combined: Tensor = COMBINATIONS[combine](found.standardised(rewards), price) * found.scales.mean()
    return np.asarray(combined.numpy(), dtype=np.float64)
