"""The gold reward model as an offline judge: win probability sigmoid(gold(sample) - gold(opponent))."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from overopt.data.packing import Packing
from overopt.evaluation.judges.budget import Budget
from overopt.evaluation.judges.protocol import Judge, OnVerdict, ignore
from overopt.evaluation.judges.reward_difference import RewardDifference
from overopt.evaluation.records import Comparison, Verdict
from overopt.evaluation.text_rewards import TextRewards, open_reward_model
from overopt.models.reward_model import RewardModel


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
        self._text_rewards = TextRewards(reward_model, max_response_tokens=max_response_tokens, packing=packing)
        self._max_response_tokens = max_response_tokens
        self._temperature = temperature
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

    def rewards(self, prompts: Sequence[str], responses: Sequence[str]) -> Float64[np.ndarray, " response"]:
        """Gold reward of each response to its prompt."""
        return np.asarray(self._text_rewards(prompts, responses) / self._temperature)


def gold_reward_judge(checkpoint: Path, temperature: float = 1.0) -> GoldRewardJudge:
    """The gold reward model that a ``fit`` of stage reward wrote.

    Args:
        checkpoint: a .ckpt file of a reward model.
        temperature: rewards are divided by it, as they were when pairs were labelled.
    """
    opened = open_reward_model(checkpoint)
    return GoldRewardJudge(
        opened.reward_model,
        max_response_tokens=opened.max_response_tokens,
        packing=opened.packing,
        temperature=temperature,
        name=f"gold reward model {opened.digest}",
    )
