"""The gold reward model as an offline judge: win probability sigmoid(gold(sample) - gold(opponent))."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

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
from overopt.evaluation.judges.budget import Budget
from overopt.evaluation.judges.protocol import Judge, OnVerdict, ignore
from overopt.evaluation.judges.reward_difference import RewardDifference
from overopt.evaluation.records import Comparison, Verdict
from overopt.models.compute import stage_device
from overopt.models.reward_model import RewardModel, load_reward_model
from overopt.packed_tokens import PackedTokens, PromptGroup


class GoldRewardJudge(Judge):
    """Grades a comparison by the gold reward model's Bradley-Terry probability (Eq. 1).

    Rewards depend on text alone, as a person's would: a sample is read as text and tokenised anew.

    Args:
        reward_model: the gold reward model, on the device to use.
        max_response_tokens: longer responses are cut, the end of text counted.
        packing: how responses go through the model.
        temperature: rewards are divided by it: below 1 the judge is more decisive than the model it was trained as.
        name: of the reward model, for the record.
    """

    def __init__(
        self,
        reward_model: RewardModel,
        *,
        max_response_tokens: int,
        packing: Packing,
        temperature: float = 1.0,
        name: str = "gold reward model",
    ) -> None:
        if temperature <= 0:
            raise ValueError(f"need a gold temperature > 0, got {temperature}")
        self._reward_model = reward_model.eval()
        self._max_response_tokens = max_response_tokens
        self._temperature = temperature
        self._packing = packing
        self._name = name
        self._difference = RewardDifference()

    @property
    def settings(self) -> dict[str, str]:
        """The reward model and how decisive it is."""
        return {
            "judge": self._name,
            "judge_temperature": f"{self._temperature:g}",
            "judge_max_response_tokens": str(self._max_response_tokens),
        }

    def judge(
        self, comparisons: Sequence[Comparison], on_verdict: OnVerdict = ignore, budget: Budget | None = None
    ) -> list[Verdict]:
        """Graded verdicts, each with the sample's gold reward."""
        return self._difference.verdicts(comparisons, self.rewards, on_verdict)

    @torch.inference_mode()
    def rewards(self, prompts: Sequence[str], responses: Sequence[str]) -> Float64[np.ndarray, " response"]:
        """Gold reward of each response to its prompt."""
        tokenizer = self._reward_model.tokenizer
        device = self._reward_model.head.weight.device
        encoded_prompts = encode_prompts(prompts, tokenizer)
        encoded_responses = encode_responses(responses, tokenizer, self._max_response_tokens)
        groups = [
            PromptGroup(np.asarray(prompt, np.int32), (np.asarray(response.token_ids, np.int32),))
            for prompt, response in zip(encoded_prompts, encoded_responses, strict=True)
        ]

        def reward(tokens: PackedTokens) -> Float[Tensor, " response"]:
            of_responses: Tensor = self._reward_model(move_data_to_device(tokens, device)).double()
            return of_responses

        rewards = self._packing.scores(groups, reward, padding_id(tokenizer))
        return np.array([of_response for (of_response,) in rewards], dtype=np.float64) / self._temperature


def gold_reward_judge(checkpoint: Path, temperature: float = 1.0) -> GoldRewardJudge:
    """The gold reward model that a ``fit`` of stage reward wrote.

    Args:
        checkpoint: a .ckpt file of a reward model.
        temperature: rewards are divided by it, as they were when pairs were labelled.
    """
    reward_model = load_reward_model(checkpoint).to(stage_device())
    data = data_of_checkpoint(read_model_checkpoint(checkpoint), checkpoint)
    with checkpoint.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return GoldRewardJudge(
        reward_model,
        max_response_tokens=data.max_response_tokens,
        packing=data.packing,
        temperature=temperature,
        name=f"gold reward model {digest[:16]}",
    )
