import math

import pytest
import torch

from overopt.modules.reward_modeling import RewardModule
from tiny import FAST, Losses


@pytest.fixture
def make_reward_data(make_data, sft_checkpoint):
    def make(**changes):
        return make_data(**{"examples": "preferences", "tokenizer": str(sft_checkpoint)} | changes)

    return make


def test_the_first_loss_is_log_2(make_reward_data, make_trainer, sft_checkpoint):
    losses = Losses()
    make_trainer(callbacks=[losses]).fit(RewardModule(str(sft_checkpoint), FAST), datamodule=make_reward_data())
    values = list(losses.by_examples.values())
    assert values[0] == pytest.approx(math.log(2), rel=1e-6)
    assert values[-1] != values[0]


@pytest.mark.parametrize("micro_batch_tokens", [60, 200, 4096])
def test_validation_is_over_all_held_out_pairs(make_reward_data, make_trainer, sft_checkpoint, micro_batch_tokens):
    module = RewardModule(str(sft_checkpoint), FAST)
    data = make_reward_data(micro_batch_tokens=micro_batch_tokens)
    trainer = make_trainer(max_epochs=3, limit_val_batches=1.0)
    trainer.fit(module, datamodule=data)
    (metrics,) = trainer.validate(module, datamodule=data, verbose=False)
    differences = []
    for place in range(len(data.evaluation_set)):
        batch = data.evaluation_set.collate([place])
        with torch.inference_mode():
            chosen, rejected = module.reward_model(batch.tokens).tolist()
        differences.append(chosen - rejected)
    assert len({d > 0 for d in differences}) == 2
    expected = sum(math.log1p(math.exp(-d)) for d in differences) / len(differences)
    assert metrics["val/loss"] == pytest.approx(expected, rel=1e-5)
    assert metrics["val/accuracy"] == pytest.approx(sum(d > 0 for d in differences) / len(differences))
    gaps = dict.fromkeys(range(10), 0.0)  # outcome less confidence, in bins of 0.05
    for d in differences:
        confidence = 1 / (1 + math.exp(-abs(d)))
        gaps[int((confidence - 0.5) * 20)] += (d > 0) - confidence
    assert metrics["val/calibration_error"] == pytest.approx(sum(map(abs, gaps.values())) / len(differences), rel=1e-4)
    brier = sum(1 / (1 + math.exp(d)) ** 2 for d in differences) / len(differences)
    assert metrics["val/brier_score"] == pytest.approx(brier, rel=1e-5)
    (tested,) = trainer.test(module, datamodule=data, verbose=False)
    assert (tested["test/loss"], tested["test/accuracy"]) == (metrics["val/loss"], metrics["val/accuracy"])


def test_predictions_are_the_rewards_of_held_out_pairs(make_reward_data, make_trainer, sft_checkpoint):
    module, data = RewardModule(str(sft_checkpoint), FAST), make_reward_data()
    trainer = make_trainer()
    trainer.fit(module, datamodule=data)
    rows = [row for batch in trainer.predict(module, datamodule=data) for row in batch]
    assert len(rows) == len(data.evaluation_set)
    batch = data.evaluation_set.collate([place for places in data.val_dataloader().batches for place in places])
    chosen, rejected = module.reward_model(batch.tokens).view(-1, 2).unbind(dim=1)
    assert [row["chosen_reward"] for row in rows] == pytest.approx(chosen.tolist(), rel=1e-4, abs=1e-6)
    assert [row["rejected_reward"] for row in rows] == pytest.approx(rejected.tolist(), rel=1e-4, abs=1e-6)


def test_training_learns_a_preference_that_is_plain(make_data, make_trainer, sft_checkpoint, tmp_path):
    """Chosen responses say yes, rejected ones no: accuracy on held-out pairs must reach 1."""
    import json

    rows = [{"prompt": f"Post {i}:", "chosen": "yes", "rejected": "no"} for i in range(60)]
    (tmp_path / "plain.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = make_data(path=str(tmp_path / "plain.jsonl"), examples="preferences", tokenizer=str(sft_checkpoint))
    module, trainer = RewardModule(str(sft_checkpoint), FAST), make_trainer(max_epochs=3, limit_val_batches=1.0)
    trainer.fit(module, datamodule=data)
    (metrics,) = trainer.validate(module, datamodule=data, verbose=False)
    assert metrics["val/accuracy"] == 1
