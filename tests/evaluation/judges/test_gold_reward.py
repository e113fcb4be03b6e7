import math

import pytest
import torch

from overopt.data.packing import Packing
from overopt.evaluation.judges.gold_reward import GoldRewardJudge
from overopt.evaluation.records import Comparison
from overopt.models.reward_model import RewardModel, reward_model_from_policy
from tiny import sampled_pairs, seeded_policy


@pytest.fixture
def reward_model(tiny_tokenizer) -> RewardModel:
    reward_model = reward_model_from_policy(seeded_policy(0, tiny_tokenizer, scale=5.0))
    torch.nn.init.normal_(reward_model.head.weight, generator=torch.Generator().manual_seed(0))
    return reward_model


def reward(reward_model: RewardModel, prompt: str, response: str) -> float:
    """One response alone, by hand."""
    tokenizer = reward_model.tokenizer
    tokens = tokenizer(prompt).input_ids + tokenizer(response).input_ids + [tokenizer.eos_token_id]
    with torch.inference_mode():
        hidden = reward_model.backbone(input_ids=torch.tensor([tokens])).last_hidden_state[0, -1]
        return float(hidden @ reward_model.head.weight[0])


def comparisons() -> list[Comparison]:
    return [Comparison(p.id, p.prompt, sample=p.first, opponent=p.human) for p in sampled_pairs()[:11]]


@pytest.mark.parametrize("packing", [Packing(max_tokens=50), Packing(), Packing(one_row=False)])
def test_a_verdict_is_the_bradley_terry_probability_of_the_rewards(reward_model, packing):
    judge = GoldRewardJudge(reward_model, max_response_tokens=60, packing=packing)
    verdicts = judge.judge(comparisons())
    assert len({round(v.win_probability, 2) for v in verdicts}) > 3
    for verdict, comparison in zip(verdicts, comparisons(), strict=True):
        sample, opponent = (
            reward(reward_model, comparison.prompt, r) for r in (comparison.sample, comparison.opponent)
        )
        assert verdict.kind == "graded"
        assert verdict.sample_reward == pytest.approx(sample, rel=1e-4, abs=1e-5)
        assert verdict.win_probability == pytest.approx(1 / (1 + math.exp(opponent - sample)), rel=1e-4)


def test_swapping_the_responses_gives_the_other_probability(reward_model):
    judge = GoldRewardJudge(reward_model, max_response_tokens=60, packing=Packing())
    swapped = [Comparison(c.prompt_id, c.prompt, c.opponent, c.sample) for c in comparisons()]
    for there, back in zip(judge.judge(comparisons()), judge.judge(swapped), strict=True):
        assert there.win_probability + back.win_probability == pytest.approx(1, abs=1e-6)


def test_opponents_are_read_once_for_all_checkpoints(reward_model, monkeypatch):
    judge, asked = GoldRewardJudge(reward_model, max_response_tokens=60, packing=Packing()), []
    rewards = judge.rewards
    monkeypatch.setattr(
        judge, "rewards", lambda prompts, responses: asked.append(len(prompts)) or rewards(prompts, responses)
    )
    first, again = ([verdict.win_probability for verdict in judge.judge(comparisons())] for _ in range(2))
    assert first == again  # to the last digit, whatever this judge has seen before
    assert asked == [11, 11, 11]


def test_one_opponent_text_under_two_prompts_is_two_opponents(reward_model):
    texts = ["Post 1: the cat sees.\nTL;DR:", "Post 2: a dog.\nTL;DR:"]
    both = [Comparison(str(i), prompt, " a red house.", " the cat sleeps.") for i, prompt in enumerate(texts)]
    judge = GoldRewardJudge(reward_model, max_response_tokens=60, packing=Packing())
    alone = [GoldRewardJudge(reward_model, max_response_tokens=60, packing=Packing()).judge([one])[0] for one in both]
    for together, single in zip(judge.judge(both), alone, strict=True):
        assert together.win_probability == pytest.approx(single.win_probability, rel=1e-5)


def test_no_comparisons_have_no_verdicts(reward_model):
    assert GoldRewardJudge(reward_model, max_response_tokens=60, packing=Packing()).judge([]) == []


def test_an_empty_sample_is_judged_like_any_other(reward_model):
    (verdict,) = GoldRewardJudge(reward_model, max_response_tokens=60, packing=Packing()).judge(
        [Comparison("1", "Post 1:", "", " a cat.")]
    )
    assert 0 < verdict.win_probability < 1
