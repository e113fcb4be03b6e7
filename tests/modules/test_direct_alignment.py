import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from overopt.checkpoints.format import read_model_checkpoint
from overopt.models.policy import load_policy, weights_hash
from overopt.modules import direct_alignment
from overopt.modules.checkpoint_schedule import CheckpointSchedule
from overopt.modules.direct_alignment import (
    AlignmentObjective,
    DirectAlignmentModule,
    PairScores,
    attach_reference_log_probs,
)
from overopt.objectives.likelihood import ResponseLikelihood
from overopt.objectives.preference import PREFERENCE_LOSSES
from tiny import FAST, Losses, seeded_policy

BETA = 0.5
AT_ZERO = {
    "dpo": math.log(2),
    "ipo": 1.0,
    "ipo_azar": 1 / BETA**2,
    "slic": 1.0,
    "squared_hinge": 1.0,
    "exponential": 1.0,
    "savage": 0.25,
}


@pytest.fixture
def make_pairs(make_data, sft_checkpoint):
    def make(**changes):
        return make_data(**{"examples": "preferences", "tokenizer": str(sft_checkpoint)} | changes)

    return make


@pytest.fixture
def align(make_pairs, make_trainer, sft_checkpoint):
    """Train, and give the module, its trainer and its data."""

    def run(objective="dpo", beta=BETA, data=None, callbacks=(), optimizer=FAST, trainer=None, **module):
        module = DirectAlignmentModule(str(sft_checkpoint), objective, beta, **module, optimizer=optimizer)
        data = make_pairs(**(data or {}))
        made = make_trainer(**{"callbacks": [*callbacks], "limit_val_batches": 1.0, "max_epochs": 3} | (trainer or {}))
        made.fit(module, datamodule=data)
        return module, made, data

    return run


def test_every_objective_has_a_known_value_at_the_start():
    assert AT_ZERO.keys() == PREFERENCE_LOSSES.keys()


@pytest.mark.parametrize("objective", AT_ZERO)
def test_the_first_loss_is_the_objectives_value_at_zero_margin(align, objective):
    losses = Losses()
    align(objective, callbacks=[losses], trainer={"max_epochs": 1})
    first, *rest = losses.by_examples.values()
    assert first == pytest.approx(AT_ZERO[objective], rel=1e-5)
    assert abs(rest[-1] - first) > 1e-4 * first  # it trains


def test_the_length_penalty_and_label_smoothing_reach_the_loss(align, make_pairs):
    losses, alpha, eps = Losses(), 0.03, 0.2
    arguments = {"length_penalty": alpha, "label_smoothing": eps, "smoothing": "robust"}
    _, _, data = align(callbacks=[losses], trainer={"max_steps": 1}, data={"batch_size": 100}, **arguments)
    z = [alpha * (len(pair.chosen_ids) - len(pair.rejected_ids)) for pair in data.train_set.tokenized]
    clean, flipped = ([math.log1p(math.exp(-sign * value)) for value in z] for sign in (1, -1))
    expected = sum((1 - eps) * a - eps * b for a, b in zip(clean, flipped, strict=True)) / len(z) / (1 - 2 * eps)
    assert next(iter(losses.by_examples.values())) == pytest.approx(expected, rel=1e-5)
    assert abs(expected - math.log(2)) > 1e-3


class FirstLogRatios(Callback):
    """Mean log-ratio of chosen and rejected responses in the first step."""

    def on_train_batch_end(self, trainer, *_):
        names = ("train/chosen_log_ratio", "train/rejected_log_ratio")
        self.values = torch.stack([trainer.callback_metrics[name] for name in names])


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_reference_is_computed_in_the_precision_that_trains(
    make_pairs, make_trainer, tiny_tokenizer, tmp_path, precision
):
    policy = seeded_policy(0, tiny_tokenizer, scale=20.0)  # far from uniform, so that rounding shows
    policy.causal_lm.save_pretrained(tmp_path / "reference")
    policy.tokenizer.save_pretrained(tmp_path / "reference")
    data, first = make_pairs(batch_size=100, tokenizer=str(tmp_path / "reference")), FirstLogRatios()
    trainer = make_trainer(max_steps=1, precision=precision, callbacks=[first])
    trainer.fit(DirectAlignmentModule(str(tmp_path / "reference"), optimizer=FAST), datamodule=data)
    trained_in = data.train_set.reference_log_probs
    attach_reference_log_probs(load_policy(tmp_path / "reference"), data)
    rounding = np.abs((trained_in - data.train_set.reference_log_probs).mean(axis=0))
    if precision == "32-true":
        assert (rounding == 0).all()
        assert first.values.abs().max() < 1e-4
    else:  # had the reference been in float32, the first log-ratios would be these differences
        assert (first.values.abs().numpy() < 0.1 * rounding).all()


def test_reference_log_probs_are_sums_over_response_tokens_of_the_reference(sft_checkpoint, make_pairs):
    policy, data = load_policy(sft_checkpoint), make_pairs()
    data.setup("fit")
    attach_reference_log_probs(policy, data)
    for pairs in (data.train_set, data.evaluation_set):
        for row, known in zip(pairs.tokenized, pairs.reference_log_probs, strict=True):
            for response, log_prob in zip((row.chosen_ids, row.rejected_ids), known, strict=True):
                tokens = torch.tensor(np.concatenate([row.prompt_ids, response])[None].astype(np.int64))
                with torch.inference_mode():
                    log_softmax = policy.causal_lm(input_ids=tokens).logits[0, :-1].log_softmax(dim=-1)
                of_tokens = log_softmax.gather(1, tokens[0, 1:, None])
                expected = float(of_tokens[len(row.prompt_ids) - 1 :].sum())
                assert log_prob == pytest.approx(expected, rel=1e-5)


def test_the_reference_is_computed_once_for_all_objectives_betas_and_seeds(align, monkeypatch, tmp_path):
    align("dpo", 0.1)
    (folder,) = (tmp_path / "cache").iterdir()
    entries = sorted(folder.iterdir())
    assert len(entries) == 2  # training and held-out pairs

    def recomputed(*_: object) -> None:
        raise AssertionError("the reference was asked again")

    monkeypatch.setattr(direct_alignment, "response_totals", recomputed)
    for objective, beta, seed in (("ipo", 0.5, 0), ("slic", 0.1, 3)):
        losses = Losses()
        align(objective, beta, callbacks=[losses], data={"seed": seed, "batch_size": 8})
        assert next(iter(losses.by_examples.values())) == pytest.approx(1, rel=1e-5)
    assert sorted(folder.iterdir()) == entries
    with pytest.raises(AssertionError, match="asked again"):
        align(data={"max_response_tokens": 7})  # another truncation, other values


def test_another_references_values_are_not_taken(align, make_pairs, sft_checkpoint, tmp_path):
    module, _, _ = align()
    trained = tmp_path / "trained"
    module.policy.causal_lm.save_pretrained(trained)
    module.policy.tokenizer.save_pretrained(trained)
    assert weights_hash(load_policy(trained)) != weights_hash(load_policy(sft_checkpoint))
    data = make_pairs()
    data.setup("fit")
    attach_reference_log_probs(load_policy(sft_checkpoint), data)
    first = data.train_set.reference_log_probs
    attach_reference_log_probs(load_policy(trained), data)
    assert np.abs(data.train_set.reference_log_probs - first).max() > 1e-3


def held_out_scores(module, data) -> PairScores:
    """Log-ratios one pair at a time, against the reference file itself."""
    reference = load_policy(module.reference)
    rows = []
    for place in range(len(data.evaluation_set)):
        tokens = data.evaluation_set.collate([place]).tokens
        with torch.inference_mode():
            log_probs = tokens.sums(module.policy(tokens))
            log_ratio = log_probs - tokens.sums(reference(tokens))
        lengths = tokens.lengths()
        rows.append((log_ratio[0], log_ratio[1], lengths[0] - lengths[1], -log_probs[0], lengths[0]))
    chosen, rejected, margin, nll, length = (torch.stack(column) for column in zip(*rows, strict=True))
    return PairScores(chosen, rejected, margin, ResponseLikelihood(nll, length))


@pytest.mark.parametrize("micro_batch_tokens", [60, 200, 4096])
def test_validation_over_uneven_batches_is_that_over_all_pairs_at_once(align, micro_batch_tokens):
    module, trainer, data = align(data={"micro_batch_tokens": micro_batch_tokens}, length_penalty=0.01)
    (metrics,) = trainer.validate(module, datamodule=data, verbose=False)
    scores = held_out_scores(module, data)
    margin = scores.chosen_log_ratios - scores.rejected_log_ratios
    z = BETA * margin + 0.01 * scores.length_margin
    assert metrics["val/loss"] == pytest.approx(float(torch.log1p(torch.exp(-z)).mean()), rel=1e-4)
    assert metrics["val/implicit_reward_accuracy"] == pytest.approx(float((margin > 0).double().mean()))
    assert metrics["val/forward_kl_nats"] == pytest.approx(-float(scores.chosen_log_ratios.mean()), rel=1e-3)
    assert scores.chosen_log_ratios.abs().mean() > 0.1  # it has moved
    (tested,) = trainer.test(module, datamodule=data, verbose=False)
    assert tested["test/loss"] == metrics["val/loss"]


def test_predictions_are_implicit_rewards_of_held_out_pairs(align):
    module, trainer, data = align()
    rows = [row for batch in trainer.predict(module, datamodule=data) for row in batch]
    scores = held_out_scores(module, data)
    assert len(rows) == len(data.evaluation_set)
    places = [place for batch in data.val_dataloader().batches for place in batch]
    chosen = [row["chosen_implicit_reward"] for row in rows]
    rejected = [row["rejected_implicit_reward"] for row in rows]
    assert chosen == pytest.approx((BETA * scores.chosen_log_ratios[places]).tolist(), rel=1e-3, abs=1e-4)
    assert rejected == pytest.approx((BETA * scores.rejected_log_ratios[places]).tolist(), rel=1e-3, abs=1e-4)


def test_training_raises_the_margin(align):
    module, _, data = align(optimizer=type(FAST)("adamw", 5e-3, warmup_steps=2), trainer={"max_epochs": 10})
    train = data.train_set.collate(range(len(data.train_set)))
    with torch.inference_mode():
        scores = direct_alignment.score_pairs(module.policy, train)
    assert (scores.chosen_log_ratios - scores.rejected_log_ratios).mean() > 1


def test_a_checkpoint_says_which_objective_and_reference_made_it(align, tmp_path, sft_checkpoint):
    schedule = CheckpointSchedule(str(tmp_path / "c"))
    align("ipo", 0.2, length_penalty=0.01, callbacks=[schedule], trainer={"enable_checkpointing": True})
    training = read_model_checkpoint(tmp_path / "c" / "last.ckpt").training
    objective = AlignmentObjective(**{name: training[name] for name in asdict(AlignmentObjective())})
    assert objective == AlignmentObjective("ipo", 0.2, 0.01)
    assert training["reference"] == str(sft_checkpoint)
    assert training["stage"] == "align"
    assert training["examples_seen"] == 96


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"objective": "dop"}, "unknown objective 'dop'; one of dpo, ipo"),
        ({"beta": 0.0}, "beta=0.0"),
        ({"beta": -1.0}, "beta=-1.0"),
        ({"beta": math.nan}, "beta=nan"),
        ({"length_penalty": -0.1}, "length_penalty=-0.1"),
        ({"label_smoothing": 0.5}, "label_smoothing"),
    ],
    ids=str,
)
def test_bad_settings_are_refused_before_anything_is_opened(arguments, message):
    with pytest.raises(ValueError, match=message):
        DirectAlignmentModule("nowhere.ckpt", **arguments)


def test_a_missing_reference_is_named(make_pairs, make_trainer, tmp_path):
    with pytest.raises(ValueError, match=f"no policy at {tmp_path}/none.ckpt"):
        make_trainer().fit(DirectAlignmentModule(str(tmp_path / "none.ckpt")), datamodule=make_pairs())


def test_demonstrations_are_refused(make_pairs, make_trainer, sft_checkpoint):
    with pytest.raises(ValueError, match="this data holds demonstrations"):
        make_trainer().fit(DirectAlignmentModule(str(sft_checkpoint)), datamodule=make_pairs(examples="demonstrations"))
