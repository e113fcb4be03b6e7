import math

import numpy as np
import pytest

from overopt.evaluation.judges.reward_difference import RewardDifference
from overopt.evaluation.records import Comparison, Verdict


def test_every_verdict_is_told_in_order_and_each_opponent_is_asked_for_once():
    asked: list[str] = []

    def rewards(prompts, responses):
        asked.extend(responses)
        return np.array([float(len(response)) for response in responses])

    # 600 comparisons of 50 opponents, more than are asked for at a time.
    comparisons = [
        Comparison(str(i), f"post {i % 50}", "s" * (i % 7), "o" * (i % 50 % 5) + f"{i % 50:02d}") for i in range(600)
    ]
    told: list[tuple[int, Verdict]] = []
    verdicts = RewardDifference().verdicts(comparisons, rewards, lambda place, verdict: told.append((place, verdict)))
    assert told == list(enumerate(verdicts))
    assert len(asked) == 600 + 50
    for i, verdict in enumerate(verdicts):
        sample, opponent = i % 7, i % 50 % 5 + 2
        assert verdict.sample_reward == sample
        assert verdict.win_probability == pytest.approx(1 / (1 + math.exp(opponent - sample)))


def test_a_reward_that_is_no_number_is_never_a_verdict():
    comparisons = [Comparison("post 1", "Post:", "a", "b"), Comparison("post 2", "Post:", "worse", "b")]
    told: list[int] = []
    with pytest.raises(ValueError, match="'post 2' has rewards nan and 1"):
        RewardDifference().verdicts(
            comparisons,
            lambda _, responses: np.array([math.nan if r == "worse" else 1.0 for r in responses]),
            lambda place, _: told.append(place),
        )
    assert told == []
