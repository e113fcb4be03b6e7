"""TR-DPO: the reference that moves, against a plain loop, against restarts, and over a kill."""

import contextlib
import copy

import pytest
import torch

from overopt.checkpoints.format import read_checkpoint, read_model_checkpoint
from overopt.models.policy import load_policy, weights_hash
from overopt.modules.checkpoint_schedule import CheckpointSchedule
from overopt.modules.direct_alignment import DirectAlignmentModule
from overopt.modules.moving_reference import MovingReference, ReferenceUpdates
from overopt.trainers import FullyShardedStrategy
from tiny import FAST, KilledError, Losses, StopAfter, seeded_policy

BETA, STEPS = 0.5, 6  # of an epoch: 32 pairs, 6 a step


@pytest.fixture
def make_pairs(make_data, sft_checkpoint):
    def make(**changes):
        return make_data(**{"examples": "preferences", "tokenizer": str(sft_checkpoint)} | changes)

    return make


@pytest.fixture
def train(make_pairs, make_trainer, sft_checkpoint, tmp_path):
    """Train an epoch; the losses by examples seen, and the module."""

    def run(updates=None, folder=None, resume=None, callbacks=(), fractions=(0.5, 1.0), trainer=None, **settings):
        losses = Losses()
        schedule = [] if folder is None else [CheckpointSchedule(str(tmp_path / folder), fractions=fractions)]
        module = DirectAlignmentModule(
            **{"reference": str(sft_checkpoint), "beta": BETA, "moving_reference": updates, "optimizer": FAST}
            | settings
        )
        made = make_trainer(
            callbacks=[losses, *schedule, *callbacks], enable_checkpointing=bool(schedule), **(trainer or {})
        )
        with contextlib.suppress(KilledError):
            made.fit(module, datamodule=make_pairs(), ckpt_path=resume, weights_only=True)
        return losses.by_examples, module

    return run


def plain_loop(sft_checkpoint, data, alpha, every):
    """DPO with a moving reference in plain torch: gradients clipped, RMSprop with two steps of warm-up."""
    policy = load_policy(sft_checkpoint)
    reference = copy.deepcopy(policy)
    optimizer = torch.optim.RMSprop(policy.parameters(), lr=FAST.learning_rate, alpha=0.99, eps=1e-8)
    losses = []
    for step, batch in enumerate(data.train_dataloader(), start=1):
        total = 0
        optimizer.param_groups[0]["lr"] = FAST.learning_rate * min(1, step / 2)
        optimizer.zero_grad()
        for micro_batch in batch.micro_batches:
            tokens = micro_batch.tokens
            with torch.no_grad():
                known = tokens.sums(reference(tokens))
            chosen, rejected = (tokens.sums(policy(tokens)) - known).view(-1, 2).T
            loss = torch.log1p(torch.exp(-BETA * (chosen - rejected))).sum() / batch.num_examples
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 10.0)
        optimizer.step()
        losses.append(total)
        if step % every == 0:
            for old, new in zip(reference.parameters(), policy.parameters(), strict=True):
                old.data = (1 - alpha) * old.data + alpha * new.data
    return losses


@pytest.mark.parametrize(
    ("updates", "alpha", "every"),
    [
        (ReferenceUpdates("hard", every=2), 1.0, 2),
        (ReferenceUpdates("soft", 0.3), 0.3, 1),
        (ReferenceUpdates("soft", 0.6, every=3), 0.6, 3),
    ],
    ids=str,
)
def test_training_is_that_of_a_plain_loop(train, make_pairs, sft_checkpoint, updates, alpha, every):
    data = make_pairs()
    data.setup("fit")
    losses, _ = train(updates)
    assert list(losses.values()) == pytest.approx(plain_loop(sft_checkpoint, data, alpha, every), rel=2e-4)
    fixed, _ = train()
    assert max(abs(a - b) for a, b in zip(losses.values(), fixed.values(), strict=True)) > 1e-3


def test_soft_updates_with_the_policys_whole_weight_are_hard_ones(train):
    for every in (1, 2):
        soft, _ = train(ReferenceUpdates("soft", 1.0, every))
        assert soft == train(ReferenceUpdates("hard", every=every))[0]


def test_a_reference_that_moves_by_nothing_or_never_is_a_fixed_one(train):
    fixed, policy = train()
    for updates in (ReferenceUpdates("soft", 0.0), ReferenceUpdates("hard", every=STEPS + 1)):
        losses, module = train(updates)
        assert losses == pytest.approx(fixed, rel=1e-5)
        assert module._moving.state()["weights"].keys() == policy.policy.state_dict().keys()


def test_a_hard_update_is_a_restart_with_the_policy_as_the_new_reference(train, tmp_path):
    """Half an epoch against the original; then the same optimiser goes on against what came of it."""
    moving, _ = train(ReferenceUpdates("hard", every=STEPS // 2))
    first, _ = train(folder="first")
    half = tmp_path / "first" / "examples-00000018.ckpt"
    second, restarted = train(reference=str(half), resume=half)
    assert weights_hash(load_policy(half)) != weights_hash(restarted.policy)
    expected = {examples: (first if examples <= 18 else second)[examples] for examples in moving}
    assert moving == pytest.approx(expected, rel=1e-5)
    assert any(abs(second[examples] - first[examples]) > 1e-3 for examples in second)


@pytest.mark.parametrize("updates", [ReferenceUpdates("hard", every=2), ReferenceUpdates("soft", 0.4)], ids=str)
def test_killed_and_resumed_the_losses_go_on_as_if_nothing_had_happened(train, tmp_path, updates):
    whole, module = train(updates, "whole")
    killed, _ = train(updates, "killed", callbacks=[StopAfter(24)])
    assert max(killed) == 24
    resumed, again = train(updates, resume=tmp_path / "killed" / "examples-00000018.ckpt")
    assert resumed == {examples: loss for examples, loss in whole.items() if examples > 18}
    for name, weight in module._moving.state()["weights"].items():
        assert torch.equal(weight, again._moving.state()["weights"][name])


def test_a_checkpoint_holds_the_moved_reference_beside_the_policy(train, tmp_path, sft_checkpoint):
    _, module = train(ReferenceUpdates("hard", every=4), "c")
    state = read_checkpoint(tmp_path / "c" / "last.ckpt")["moving_reference"]
    assert state["steps"] == STEPS
    original, trained = (load_policy(path).state_dict() for path in (sft_checkpoint, tmp_path / "c" / "last.ckpt"))
    name = next(name for name in original if "attention.dense.weight" in name)
    assert not torch.equal(state["weights"][name], original[name])
    assert not torch.equal(state["weights"][name], trained[name])  # two steps on
    checkpoint = read_model_checkpoint(tmp_path / "c" / "last.ckpt", "policy.")
    assert checkpoint.training["reference"] == str(sft_checkpoint)  # what evaluation measures KL against
    assert module.parameters_to_log()["moving_reference"] == "hard every 4"


def test_what_is_held_out_is_measured_against_the_original_reference(train, make_trainer, sft_checkpoint):
    _, module = train(ReferenceUpdates("hard"))
    data = module.data
    (moved,) = make_trainer(limit_val_batches=1.0).validate(module, datamodule=data, verbose=False)
    with torch.inference_mode():
        batch = data.evaluation_set.collate(range(len(data.evaluation_set)))
        policies = module.policy, load_policy(sft_checkpoint)
        ours, reference = (batch.tokens.sums(p(batch.tokens)).view(-1, 2)[:, 0] for p in policies)
    assert moved["val/forward_kl_nats"] == pytest.approx(float((reference - ours).mean()), rel=1e-3)
    assert abs(moved["val/forward_kl_nats"]) > 1e-2


def test_only_the_policy_trains_and_counts(train):
    _, module = train(ReferenceUpdates("soft", 0.5))
    assert sum(p.numel() for p in module.parameters()) == module.policy.num_parameters
    (optimizer,) = module.trainer.optimizers
    assert sum(p.numel() for group in optimizer.param_groups for p in group["params"]) == module.policy.num_parameters


def test_an_update_mixes_the_weights(tiny_tokenizer):
    reference, policy = seeded_policy(0, tiny_tokenizer), seeded_policy(1, tiny_tokenizer)
    expected = [0.75 * a + 0.25 * b for a, b in zip(reference.parameters(), policy.parameters(), strict=True)]
    moving = MovingReference(reference, ReferenceUpdates("soft", 0.25, every=2))
    before = copy.deepcopy(reference.state_dict())
    moving.after_step(policy)
    assert all(torch.equal(weight, before[name]) for name, weight in reference.state_dict().items())
    moving.after_step(policy)
    for weight, mixed in zip(reference.parameters(), expected, strict=True):
        torch.testing.assert_close(weight.data, mixed.data)
        assert not weight.requires_grad


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "hard", "alpha": 0.5}, "alpha=0.5 is for mode soft"),
        ({"mode": "soft"}, "needs alpha in"),
        ({"mode": "soft", "alpha": 1.5}, "got alpha=1.5"),
        ({"mode": "soft", "alpha": float("nan")}, "got alpha=nan"),
        ({"every": 0}, "got every=0"),
    ],
    ids=str,
)
def test_bad_updates_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ReferenceUpdates(**arguments)


def test_a_run_is_not_gone_on_with_under_the_other_kind_of_reference(train, tmp_path):
    updates = ReferenceUpdates("hard", every=2)
    train(folder="fixed")
    train(updates, "moving")
    with pytest.raises(ValueError, match="trained without a moving_reference, this run is with one"):
        train(updates, resume=tmp_path / "fixed" / "examples-00000018.ckpt")
    with pytest.raises(ValueError, match="trained with a moving_reference, this run is without one"):
        train(resume=tmp_path / "moving" / "examples-00000018.ckpt")


def test_a_policy_that_is_set_before_has_no_reference_to_move(make_pairs, make_trainer, tiny_tokenizer):
    module = DirectAlignmentModule("nowhere", moving_reference=ReferenceUpdates(), optimizer=FAST)
    module.policy = seeded_policy(0, tiny_tokenizer)
    with pytest.raises(ValueError, match="needs the module to open its reference"):
        make_trainer().fit(module, datamodule=make_pairs())


def test_sharding_is_refused_before_anything_is_opened():
    module = DirectAlignmentModule("nowhere", moving_reference=ReferenceUpdates(), optimizer=FAST)
    module.trainer = type("ShardingTrainer", (), {"strategy": FullyShardedStrategy()})()
    with pytest.raises(ValueError, match="moving_reference keeps a whole second model on each device"):
        module.configure_model()


def test_a_policy_may_start_from_elsewhere_than_its_reference(train, tmp_path, sft_checkpoint):
    train(folder="first")
    half = tmp_path / "first" / "examples-00000018.ckpt"
    losses, module = train(policy=str(half))
    first, _ = train()
    assert next(iter(losses.values())) != pytest.approx(next(iter(first.values())), rel=1e-3)
    assert module.parameters_to_log()["policy"] == str(half)
    assert module.parameters_to_log()["reference"] == str(sft_checkpoint)
    same, _ = train(policy=str(sft_checkpoint))
    assert same == pytest.approx(first, rel=1e-5)


def test_a_policy_with_another_tokenizer_than_its_reference_is_refused(train, tmp_path, tiny_tokenizer):
    other = copy.deepcopy(tiny_tokenizer)
    other.add_tokens(["unheard-of"])
    policy = seeded_policy(0, other)
    policy.causal_lm.save_pretrained(tmp_path / "other")
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="different tokenizers"):
        train(policy=str(tmp_path / "other"))
