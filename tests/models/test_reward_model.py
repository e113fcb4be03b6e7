import pytest
import torch

from overopt.models.policy import load_policy
from overopt.models.reward_model import RewardModel, load_reward_model, reward_model_from_policy
from overopt.modules.checkpoint_schedule import CheckpointSchedule
from overopt.modules.reward_modeling import RewardModule
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


def test_the_reward_is_read_at_the_responses_last_token(reward_model):
    tokens = torch.randint(2, 300, (1, 8), generator=torch.Generator().manual_seed(1))
    hidden = reward_model.backbone(input_ids=tokens[:, :6], use_cache=False).last_hidden_state
    expected = hidden[0, -1] @ reward_model.head.weight[0]
    mask = torch.tensor([[False, False, True, True, True, True, False, False]])
    reward = reward_model(tokens, mask)
    torch.testing.assert_close(reward, expected[None], rtol=1e-5, atol=0)
    assert abs(reward.item()) > 1e-3


def test_padding_changes_no_reward(reward_model):
    generator = torch.Generator().manual_seed(2)
    lengths = [4, 9, 6]
    rows = [torch.randint(2, 300, (n,), generator=generator) for n in lengths]
    alone = [reward_model(row[None], torch.arange(len(row))[None] >= 2).item() for row in rows]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=1)
    places = torch.arange(9).expand(3, 9)
    together = reward_model(padded, (places >= 2) & (places < torch.tensor(lengths)[:, None]))
    torch.testing.assert_close(together, torch.tensor(alone), rtol=1e-5, atol=1e-6)
    assert together.std() > 0.01


def test_a_fresh_reward_model_favours_nothing(tiny_policy):
    reward = reward_model_from_policy(tiny_policy)(torch.tensor([[5, 6, 7], [7, 8, 9]]), torch.ones(2, 3).bool())
    assert reward.tolist() == [0, 0]


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
