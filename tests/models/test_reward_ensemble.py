import numpy as np
import pytest
import torch

from overopt.models.reward_ensemble import COMBINATIONS, RewardEnsemble, load_reward_ensemble
from overopt.models.reward_model import RewardModel, reward_model_from_policy
from overopt.packed_tokens import PackedTokens, PromptGroup, pack
from tiny import seeded_policy


@pytest.fixture
def members(tiny_tokenizer) -> list[RewardModel]:
    """Three that find different responses good, on different scales."""
    made = []
    for seed in range(3):
        member = reward_model_from_policy(seeded_policy(seed, tiny_tokenizer, scale=5.0))
        torch.nn.init.normal_(member.head.weight, std=10.0**seed, generator=torch.Generator().manual_seed(seed))
        made.append(member)
    return made


@pytest.fixture
def tokens() -> PackedTokens:
    draw = np.random.default_rng(1)
    prompts = draw.integers(2, 300, (4, 3), dtype=np.int32)
    return pack([PromptGroup(p, tuple(draw.integers(2, 300, (2, 5), dtype=np.int32))) for p in prompts])


def test_combinations_by_hand(members, tokens):
    rewards = torch.stack([member(tokens) for member in members]).detach().numpy()
    expected = {
        "mean": rewards.mean(axis=0),
        "worst": rewards.min(axis=0),
        "uncertainty_weighted": rewards.mean(axis=0) - 0.3 * rewards.var(axis=0),
    }
    assert expected.keys() == COMBINATIONS.keys()
    for combine, values in expected.items():
        combined = RewardEnsemble(members, combine, price=0.3)(tokens).detach().numpy()
        np.testing.assert_allclose(combined, values, rtol=1e-4)


def test_one_member_is_its_own_mean_and_worst_case(members, tokens):
    for combine in COMBINATIONS:
        torch.testing.assert_close(RewardEnsemble(members[:1], combine)(tokens), members[0](tokens))


def test_centred_members_have_one_scale_and_no_constant_decides_who_is_worst(members, tokens):
    ensemble = RewardEnsemble(members, "worst")
    ensemble.centre([tokens])
    rewards = ensemble.member_rewards(tokens).detach()
    torch.testing.assert_close(rewards.mean(dim=1), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(rewards.std(dim=1, unbiased=False), torch.ones(3), atol=1e-4, rtol=0)
    assert set(rewards.argmin(dim=0).tolist()) != {0}
    torch.testing.assert_close(ensemble(tokens), rewards.amin(dim=0))


def test_what_makes_no_ensemble_is_refused(members, tokens, tmp_path):
    with pytest.raises(ValueError, match="at least one"):
        RewardEnsemble([])
    with pytest.raises(ValueError, match="mean, worst, uncertainty_weighted"):
        RewardEnsemble(members, "best")
    with pytest.raises(ValueError, match=">= 0"):
        RewardEnsemble(members, "uncertainty_weighted", price=-1.0)(tokens)
    torch.nn.init.zeros_(members[1].head.weight)
    with pytest.raises(ValueError, match="same reward"):
        RewardEnsemble(members).centre([tokens])
    with pytest.raises(ValueError, match="no reward model"):
        load_reward_ensemble([tmp_path / "nothing.ckpt"])
