"""The gold reward model as an offline judge: win probability sigmoid(gold(sample) - gold(opponent))."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float64
from scipy.special import expit

from overopt.data.prompt_format import encode_prompts
from overopt.data.tokenization import (
    TokenizedDemonstration,
    collate_demonstrations,
    encode_responses,
    padding_id,
)
from overopt.evaluation.records import Comparison, Verdict
from overopt.models.reward_model import RewardModel


class GoldRewardJudge:
    """Grades a comparison by the gold reward model's Bradley-Terry probability (Eq. 1).

    Rewards depend on text alone, as a person's would: a sample is read as text and tokenised anew.

    Args:
        reward_model: the gold reward model, on the device to use.
        max_response_tokens: longer responses are cut, the end of text counted.
        temperature: rewards are divided by it: below 1 the judge is more decisive than the model it was trained as.
        batch_size: responses per forward pass.
    """

    def __init__(
        self,
        reward_model: RewardModel,
        *,
        max_response_tokens: int,
        temperature: float = 1.0,
        batch_size: int = 256,
    ) -> None:
        if temperature <= 0:
            raise ValueError(f"need a gold temperature > 0, got {temperature}")
        self._reward_model = reward_model.eval()
        self._max_response_tokens = max_response_tokens
        self._temperature = temperature
        self._batch_size = batch_size
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
        rows = [
            TokenizedDemonstration("", np.asarray(prompt, np.int32), np.asarray(response.token_ids, np.int32))
            for prompt, response in zip(encoded_prompts, encoded_responses, strict=True)
        ]
        rewards = np.empty(len(rows), dtype=np.float64)
        # By length, so that a batch has little padding.
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].prompt_ids) + len(rows[i].response_ids))
        for first in range(0, len(order), self._batch_size):
            places = order[first : first + self._batch_size]
            batch = collate_demonstrations([rows[i] for i in places], padding_id(tokenizer))
            values = self._reward_model(batch.input_ids.to(device), batch.response_mask.to(device))
            rewards[places] = values.double().cpu().numpy()
        return rewards / self._temperature
