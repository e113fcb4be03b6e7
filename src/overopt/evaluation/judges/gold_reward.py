"""The gold reward model as an offline judge: win probability sigmoid(gold(sample) - gold(opponent))."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float64
from lightning.fabric.utilities import move_data_to_device
from scipy.special import expit
from torch import Tensor

from overopt.data.packing import Packing
from overopt.data.prompt_format import encode_prompts
from overopt.data.tokenization import encode_responses, padding_id
from overopt.evaluation.records import Comparison, Verdict
from overopt.models.reward_model import RewardModel
from overopt.packed_tokens import PackedTokens, PromptGroup


class GoldRewardJudge:
    """Grades a comparison by the gold reward model's Bradley-Terry probability (Eq. 1).

    Rewards depend on text alone, as a person's would: a sample is read as text and tokenised anew.

    Args:
        reward_model: the gold reward model, on the device to use.
        max_response_tokens: longer responses are cut, the end of text counted.
        packing: how responses go through the model.
        temperature: rewards are divided by it: below 1 the judge is more decisive than the model it was trained as.
    """

    def __init__(
        self,
        reward_model: RewardModel,
        *,
        max_response_tokens: int,
        packing: Packing,
        temperature: float = 1.0,
    ) -> None:
        if temperature <= 0:
            raise ValueError(f"need a gold temperature > 0, got {temperature}")
        self._reward_model = reward_model.eval()
        self._max_response_tokens = max_response_tokens
        self._temperature = temperature
        self._packing = packing
        # The opponents are the same for every checkpoint of a sweep.
        self._opponent_rewards: dict[tuple[str, str], float] = {}

    def judge(self, comparisons: Sequence[Comparison]) -> list[Verdict]:
        """Graded verdicts, each with the sample's gold reward."""
        unknown = sorted({(c.prompt, c.opponent) for c in comparisons} - self._opponent_rewards.keys())
        rewards = self.rewards([prompt for prompt, _ in unknown], [response for _, response in unknown])
        self._opponent_rewards.update(zip(unknown, rewards.tolist(), strict=True))
        opponents = np.array([self._opponent_rewards[c.prompt, c.opponent] for c in comparisons])
        samples = self.rewards([c.prompt for c in comparisons], [c.sample for c in comparisons])
        wins = expit(samples - opponents)
        return [
            Verdict("graded", win, sample_reward=reward)
            for win, reward in zip(wins.tolist(), samples.tolist(), strict=True)
        ]

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
