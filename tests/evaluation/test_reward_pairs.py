import math

import numpy as np
import pytest
import torch

from overopt.data.packing import Packing
from overopt.evaluation.reward_pairs import evaluate_pairs, gold_agreement
from overopt.evaluation.text_rewards import TextRewards, combined_rewards
from overopt.evaluation.win_rate import wilson_interval
from overopt.models.reward_ensemble import RewardEnsemble
from overopt.models.reward_model import reward_model_from_policy
from overopt.packed_tokens import PromptGroup, pack
from tiny import sampled_pairs, seeded_policy


def test_accuracy_keeps_ties_apart():
    evaluation = evaluate_pairs(np.array([[1.0, 0.0], [2.0, 2.0], [0.0, 3.0], [5.0, 1.0]]))
    assert evaluation.accuracy == (0.5, *wilson_interval(0.5, 4))
    assert evaluation.tie_share == 0.25
    assert evaluation.mean_margin == pytest.approx((1 + 0 - 3 + 4) / 4)
    assert evaluation.mean_margin_se == pytest.approx(np.std([1, 0, -3, 4], ddof=1) / 2)
    assert evaluation.loss == pytest.approx(np.mean([math.log1p(math.exp(-m)) for m in (1, 0, -3, 4)]))


def test_one_pair_has_no_standard_error_and_is_not_logged_as_nan():
    metrics = evaluate_pairs(np.array([[1.0, 0.0]])).metrics()
    assert "eval/mean_margin_se" not in metrics
    assert metrics["eval/accuracy"] == 1


@pytest.mark.parametrize(
    ("rewards", "message"),
    [(np.zeros((0, 2)), "no held-out pairs"), (np.array([[1.0, math.nan]]), "no finite number")],
)
def test_bad_rewards_are_refused(rewards, message):
    with pytest.raises(ValueError, match=message):
        evaluate_pairs(rewards)


def test_agreement_ignores_a_constant_a_prompt_where_it_should():
    generator = np.random.default_rng(0)
    gold = generator.normal(size=(200, 2))
    shifted = 3 * gold + generator.normal(scale=20, size=(200, 1))
    agreement = gold_agreement(shifted, gold)
    assert agreement.same_order.value == 1
    assert agreement.margin_rank_correlation.value == pytest.approx(1)
    assert agreement.rank_correlation.value < 0.5


def test_agreement_does_not_depend_on_which_response_was_chosen():
    generator = np.random.default_rng(0)
    gold = generator.normal(size=(100, 2))
    proxy = gold + generator.normal(size=(100, 2))
    flipped = generator.random(100) < 0.5
    swap = np.where(flipped[:, None], [1, 0], [0, 1])
    here, there = (
        gold_agreement(*(np.take_along_axis(r, order, axis=1) for r in (proxy, gold)))
        for order in (swap, np.tile([0, 1], (100, 1)))
    )
    for mine, other in zip(here, there, strict=True):
        assert mine == pytest.approx(other)
    low, high = here.margin_rank_correlation.low, here.margin_rank_correlation.high
    assert 0 < low < here.margin_rank_correlation.value < high < 1


def test_rewards_that_never_differ_have_no_correlation():
    agreement = gold_agreement(np.zeros((5, 2)), np.random.default_rng(0).normal(size=(5, 2)))
    assert all(math.isnan(interval.value) for interval in agreement)
    assert agreement.metrics() == {}


@pytest.mark.parametrize("combine", ["mean", "worst", "uncertainty_weighted"])
def test_combined_rewards_are_those_of_the_ensemble_up_to_its_unit(tiny_tokenizer, combine):
    members = []
    for seed in range(3):
        members.append(reward_model_from_policy(seeded_policy(seed, tiny_tokenizer, scale=5.0)))
        torch.nn.init.normal_(members[-1].head.weight, generator=torch.Generator().manual_seed(seed))
    groups = [
        PromptGroup(np.array(tiny_tokenizer(pair.prompt).input_ids, np.int32), (np.array(ids, np.int32),))
        for pair in sampled_pairs()[:10]
        for ids in [[*tiny_tokenizer(pair.first).input_ids, tiny_tokenizer.eos_token_id]]
    ]
    ensemble = RewardEnsemble(members, combine)
    tokens = pack(groups)
    ensemble.centre([tokens])
    pairs = sampled_pairs()[:10]
    with torch.inference_mode():
        expected = ensemble(tokens).double().numpy() * ensemble.scales.double().mean().item()
    rewards = np.stack(
        [
            TextRewards(member, max_response_tokens=60, packing=Packing())(
                [pair.prompt for pair in pairs], [pair.first for pair in pairs]
            )
            for member in members
        ]
    )
    assert combined_rewards(rewards, combine) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_equal_texts_have_equal_rewards_and_go_through_once(tiny_tokenizer):
    reward_model = reward_model_from_policy(seeded_policy(0, tiny_tokenizer, scale=5.0))
    torch.nn.init.normal_(reward_model.head.weight, generator=torch.Generator().manual_seed(0))
    rewards = TextRewards(reward_model, max_response_tokens=60, packing=Packing(max_tokens=60))
    pair = sampled_pairs()[0]
    twice = rewards([pair.prompt] * 5, [pair.first, pair.second, pair.first, pair.human, pair.first])
    assert twice[0] == twice[2] == twice[4] != twice[1]


def test_an_ensemble_of_one_is_that_one_and_an_unknown_combination_is_refused():
    assert combined_rewards(np.array([[1.0, 5.0]]), "worst").tolist() == [1, 5]
    with pytest.raises(ValueError, match="unknown combination"):
        combined_rewards(np.zeros((2, 3)), "best")
    with pytest.raises(ValueError, match="has no scale"):
        combined_rewards(np.zeros((2, 3)), "mean")
