import numpy as np
import pytest
import torch

from overopt.models.policy import load_policy
from overopt.models.reward_model import RewardModel, load_reward_model, reward_model_from_policy
from overopt.modules.checkpoint_schedule import CheckpointSchedule
from overopt.modules.reward_modeling import RewardModule
from overopt.packed_tokens import PromptGroup, pack
from tiny import FAST, seeded_policy


@pytest.fixture
def reward_model(tiny_tokenizer) -> RewardModel:
    """One that does not find all responses equal."""
    reward_model = reward_model_from_policy(seeded_policy(0, tiny_tokenizer, scale=5.0))
    torch.nn.init.normal_(reward_model.head.weight, generator=torch.Generator().manual_seed(0))
    return reward_model


@pytest.fixture
def reward_checkpoint(sft_checkpoint, make_data, make_trainer, tmp_path):
    data = make_data(examples="preferences", tokenizer=str(sft_checkpoint))
    schedule = CheckpointSchedule(str(tmp_path / "reward"))
    make_trainer(callbacks=[schedule], enable_checkpointing=True).fit(
        RewardModule(str(sft_checkpoint), FAST), datamodule=data
    )
    return tmp_path / "reward" / "last.ckpt"


def prompt_group(draw: np.random.Generator, prompt: int, *responses: int) -> PromptGroup:
    prompt_ids, *of_responses = (draw.integers(2, 300, length, dtype=np.int32) for length in (prompt, *responses))
    return PromptGroup(prompt_ids, tuple(of_responses))


@pytest.mark.parametrize("one_row", [True, False])
def test_the_reward_is_read_at_each_responses_last_token(reward_model, one_row):
    draw = np.random.default_rng(1)
    groups = [prompt_group(draw, 2, 4, 7), prompt_group(draw, 5, 1), prompt_group(draw, 3, 2, 2, 9)]
    rewards = reward_model(pack(groups, one_row=one_row))
    expected = []
    for prompt, responses in groups:
        for response in responses:
            ids = torch.tensor(np.concatenate([prompt, response])[None].astype(np.int64))
            hidden = reward_model.backbone(input_ids=ids, use_cache=False).last_hidden_state
            expected.append(hidden[0, -1] @ reward_model.head.weight[0])
    torch.testing.assert_close(rewards, torch.stack(expected), rtol=1e-5, atol=1e-6)
    assert rewards.std() > 0.01


def test_a_fresh_reward_model_favours_nothing(tiny_policy):
    group = prompt_group(np.random.default_rng(0), 3, 2, 4)
    assert reward_model_from_policy(tiny_policy)(pack([group])).tolist() == [0, 0]


def test_a_reward_model_out_of_a_checkpoint_is_the_one_that_was_trained(reward_checkpoint):
    loaded, content = load_reward_model(reward_checkpoint), torch.load(reward_checkpoint, weights_only=True)
    trained = {k.removeprefix("reward_model."): v for k, v in content["state_dict"].items() if "reward_model." in k}
    weights = loaded.state_dict()
    assert weights.keys() == trained.keys()
    assert all(torch.equal(weights[name], trained[name]) for name in trained)
    assert loaded.head.weight.abs().max() > 0


def test_a_policy_and_a_reward_model_are_not_taken_for_each_other(reward_checkpoint, sft_checkpoint):
    for load, path in ((load_policy, reward_checkpoint), (load_reward_model, sft_checkpoint)):
        with pytest.raises(ValueError, match=r"holds .*; expected") as error:
            load(path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


def test_a_missing_reward_model_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"no reward model at {tmp_path}/none.ckpt"):
        load_reward_model(tmp_path / "none.ckpt")
