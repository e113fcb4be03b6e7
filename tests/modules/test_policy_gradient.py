import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from overopt.checkpoints.format import POLICY_PREFIX, read_model_checkpoint
from overopt.data.packing import Packing
from overopt.data.tokenization import train_bpe
from overopt.evaluation.sampling import EvaluationPrompt, rescore
from overopt.models.generation import sample_several
from overopt.models.policy import load_policy
from overopt.models.proxy_reward import ProxyReward
from overopt.models.reward_model import load_reward_model
from overopt.modules.checkpoint_schedule import CheckpointSchedule
from overopt.modules.optimizers import OptimizerSettings
from overopt.modules.policy_gradient import PolicyGradientModule, PolicyGradientObjective, _seeds
from overopt.objectives.policy_gradient import ADVANTAGES
from overopt.packed_tokens import PromptGroup, pack
from overopt.trainers import FullyShardedStrategy
from tiny import KilledError, Losses, StopAfter, seeded_policy

GENTLE = OptimizerSettings("rmsprop", learning_rate=1e-4, warmup_steps=2)
KEEN = OptimizerSettings("adamw", learning_rate=6e-3, warmup_steps=2)
MEASURED = ("proxy_reward", "kl_nats", "response_tokens", "unfinished_share", "regularised_reward", "entropy_nats")


class Measured(Callback):
    """What each step logged, and what it stepped on."""

    def __init__(self):
        self.rows, self.micro_batches = [], []

    def on_train_batch_end(self, trainer, *_):
        rows = {name: float(trainer.callback_metrics[f"train/{name}"]) for name in MEASURED}
        self.rows.append(rows | {"loss": float(trainer.callback_metrics["train/loss"])})

    def column(self, name):
        return [row[name] for row in self.rows]


@pytest.fixture
def optimise(make_data, make_trainer, sft_checkpoint, reward_checkpoint):
    """Train, and give the module and what its steps logged."""

    def run(*callbacks, data=None, ckpt_path=None, optimizer=GENTLE, trainer=None, **module):
        measured = Measured()
        settings = {"reward": str(reward_checkpoint), "samples_per_prompt": 3, "beta": 0.05} | module
        module = PolicyGradientModule(str(sft_checkpoint), optimizer=optimizer, **settings)
        pairs = make_data(**{"examples": "preferences", "tokenizer": str(sft_checkpoint)} | (data or {}))
        saves = any(isinstance(c, CheckpointSchedule) for c in callbacks)
        made = make_trainer(**{"callbacks": [measured, *callbacks], "enable_checkpointing": saves} | (trainer or {}))
        made.fit(module, datamodule=pairs, ckpt_path=ckpt_path)
        return module, measured

    return run


def weights(module):
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


@pytest.mark.parametrize(
    "objective", [{}, {"kl": "penalty"}, {"objective": "reinforce"}, {"objective": "ppo"}], ids=str
)
def test_the_proxy_reward_of_own_samples_goes_up(optimise, objective):
    # All prompts in each step: what is left of noise is the samples', of which there are many.
    settings = {
        "optimizer": KEEN,
        "samples_per_prompt": 8,
        "data": {"batch_size": 32, "micro_batch_tokens": 2000},
        "trainer": {"max_epochs": 20},
    }
    _, measured = optimise(**settings, **objective)
    rewards = measured.column("proxy_reward")
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 3 * np.std(rewards[:5]) / math.sqrt(5)
    assert abs(measured.column("kl_nats")[0]) < 1e-4
    assert np.mean(measured.column("kl_nats")[-5:]) > 0.1


def test_a_dearer_divergence_keeps_the_policy_closer(optimise):
    kls = []
    for beta in (0.01, 5.0):
        data = {"batch_size": 32, "micro_batch_tokens": 2000}
        _, measured = optimise(optimizer=KEEN, data=data, trainer={"max_epochs": 15}, beta=beta)
        kls.append(np.mean(measured.column("kl_nats")[-4:]))
    assert kls[1] < 0.6 * kls[0]


def test_what_is_logged_is_the_sampled_token_ids_rescored(optimise, make_data, sft_checkpoint, reward_checkpoint):
    """The second step's samples, drawn and scored again from what evaluation uses."""
    first, _ = optimise(trainer={"max_steps": 1}, optimizer=KEEN)
    policy = first.policy.eval()
    seeds, seen = first._seeds(3), first.examples_seen
    assert seen == 6
    _, measured = optimise(trainer={"max_steps": 2}, optimizer=KEEN)
    data = first.data
    rows = data.train_set.tokenized
    order = np.random.default_rng([0, 0]).permutation(len(rows))[6:12]
    prompts = sorted(rows[i].prompt_ids.tolist() for i in order)
    drawn = sample_several(
        policy.causal_lm, prompts, eos_token_id=policy.tokenizer.eos_token_id, max_response_tokens=24, seeds=seeds
    )
    asked = [EvaluationPrompt("", "", prompt, "", "") for prompt in prompts for _ in range(3)]
    sampled = [response for of_prompt in drawn for response in of_prompt]
    rescored = rescore(policy, load_policy(sft_checkpoint), asked, sampled, packing=Packing())
    step = measured.rows[1]
    assert abs(step["kl_nats"]) > 1e-3
    assert step["kl_nats"] == pytest.approx(float(rescored.kl.k1.mean), rel=1e-3)
    assert step["entropy_nats"] == pytest.approx(-np.mean([c.policy_log_prob for c in rescored.completions]), rel=1e-4)
    assert step["response_tokens"] == pytest.approx(np.mean([len(s.token_ids) for s in sampled]))
    assert step["unfinished_share"] == pytest.approx(np.mean([not s.finished for s in sampled]))
    reward_model = load_reward_model(reward_checkpoint).eval()
    groups = [
        PromptGroup(np.array(p.token_ids, np.int32), (np.array(s.token_ids, np.int32),))
        for p, s in zip(asked, sampled, strict=True)
    ]
    with torch.inference_mode():
        reward = float(reward_model(pack(groups)).mean())
    assert step["proxy_reward"] == pytest.approx(reward, rel=1e-4)
    assert step["regularised_reward"] == pytest.approx(reward - 0.05 * step["kl_nats"], rel=1e-4)


@pytest.mark.parametrize("objective", [{}, {"kl": "penalty"}, {"objective": "ppo", "inner_epochs": 2}], ids=str)
def test_how_a_step_is_packed_changes_neither_samples_nor_weights(optimise, objective):
    module, expected = optimise(**objective)
    assert module.examples_seen % 6 != 0  # the last step is a partial one
    ways = [{"micro_batch_tokens": 70}, {"micro_batch_tokens": 2000}, {"packed": False}, {"shared_prompts": False}]
    for data in ways:
        parted, measured = optimise(data=data, **objective)
        for row, other in zip(measured.rows, expected.rows, strict=True):
            # Terms of a hundred nats, in float32, cancel in a loss near zero.
            assert other["loss"] == pytest.approx(row["loss"], abs=1e-4)
            assert other | {"loss": 0.0} == pytest.approx(row | {"loss": 0.0}, rel=1e-3, abs=1e-5)
        assert (weights(parted) - weights(module)).norm() < 1e-5 * weights(module).norm()
    start, _ = optimise(trainer={"max_steps": 0}, **objective)
    assert (weights(start) - weights(module)).norm() > 1e-3 * weights(module).norm()


@pytest.mark.parametrize("objective", ["rloo", "ppo"])
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(optimise, tmp_path, objective):
    settings = {"objective": objective, "inner_epochs": 2, "trainer": {"max_epochs": 2}}
    losses = Losses()
    whole, _ = optimise(losses, **settings)
    schedule = CheckpointSchedule(str(tmp_path / "checkpoints"), examples=[18])
    with pytest.raises(KilledError):
        optimise(schedule, StopAfter(24), **settings)
    after = Losses()
    resumed, _ = optimise(after, ckpt_path=tmp_path / "checkpoints" / "last.ckpt", **settings)
    assert min(after.by_examples) == 24
    assert after.by_examples == {seen: loss for seen, loss in losses.by_examples.items() if seen > 18}
    assert torch.equal(weights(resumed), weights(whole))


def test_a_step_counts_prompts_and_ppo_takes_several_on_the_same_samples(optimise):
    one, _ = optimise(trainer={"max_steps": 1})
    same, _ = optimise(trainer={"max_steps": 1}, objective="ppo", inner_epochs=1)
    several, measured = optimise(trainer={"max_steps": 1}, objective="ppo", inner_epochs=3)
    start, _ = optimise(trainer={"max_steps": 0})
    # A ratio of 1: the clipped surrogate has RLOO's gradient.
    assert (weights(same) - weights(one)).norm() < 1e-3 * (weights(one) - weights(start)).norm()
    assert (weights(several) - weights(start)).norm() > 1.5 * (weights(one) - weights(start)).norm()
    assert (one.examples_seen, several.examples_seen, len(measured.rows)) == (6, 6, 1)


def test_a_checkpoint_opens_alone_and_holds_the_policy_and_nothing_else(
    optimise, tmp_path, sft_checkpoint, reward_checkpoint
):
    schedule = CheckpointSchedule(str(tmp_path / "checkpoints"))
    module, _ = optimise(schedule, trainer={"max_steps": 2}, kl="penalty", gold=str(reward_checkpoint))
    path = tmp_path / "checkpoints" / "last.ckpt"
    checkpoint = read_model_checkpoint(path, POLICY_PREFIX)
    content = torch.load(path, weights_only=True)
    assert all(name.startswith(POLICY_PREFIX) for name in content["state_dict"])
    reopened = load_policy(path)
    assert torch.equal(weights(reopened), weights(module.policy))
    expected = {
        "stage": "rl",
        "objective": "rloo",
        "beta": 0.05,
        "kl": "penalty",
        "reference": str(sft_checkpoint),
        "reward": [str(reward_checkpoint)],
        "examples_seen": 12,
    }
    assert {name: checkpoint.training[name] for name in expected} == expected
    assert "clip_range" not in checkpoint.training


def test_the_length_limit_costs_what_is_asked_and_is_not_in_the_proxy(optimise):
    _, free = optimise(data={"batch_size": 32}, trainer={"max_steps": 1})
    module, priced = optimise(data={"batch_size": 32}, trainer={"max_steps": 1}, unfinished_penalty=4.0)
    assert 0 < free.rows[0]["unfinished_share"] < 1
    assert priced.rows[0]["proxy_reward"] == free.rows[0]["proxy_reward"]
    assert priced.rows[0]["loss"] != free.rows[0]["loss"]
    rewards, unfinished = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 1.0]])
    advantages = module.objective.advantages(rewards, torch.zeros(1, 2), unfinished)
    assert advantages.tolist() == [[3.0, -3.0]]  # 1 against 2 - 4


class Validated(Callback):
    def on_validation_end(self, trainer, *_):
        self.metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}


def test_held_out_prompts_are_sampled_and_a_watched_gold_model_stands_beside_the_proxy(optimise, reward_checkpoint):
    results = []
    for data in ({}, {"micro_batch_tokens": 90}):
        validated = Validated()
        optimise(
            validated,
            data=data,
            gold=str(reward_checkpoint),
            gold_temperature=0.5,
            optimizer=KEEN,
            trainer={
                "max_steps": 3,
                "limit_val_batches": 1.0,
                "val_check_interval": 3,
                "check_val_every_n_epoch": None,
            },
        )
        results.append(validated.metrics)
    metrics, again = results
    assert metrics.keys() == {
        f"val/{name}" for name in ("proxy_reward", "gold_reward", "kl_nats", "response_tokens", "unfinished_share")
    }
    # The same model here, in another unit.
    assert metrics["val/gold_reward"] == pytest.approx(2 * metrics["val/proxy_reward"], rel=1e-5)
    assert metrics["val/kl_nats"] != 0
    assert again == pytest.approx(metrics, rel=1e-2)


def test_watching_a_gold_model_changes_neither_training_nor_its_cost(optimise, reward_checkpoint, monkeypatch):
    whole = ProxyReward.__call__

    def slow_if_watched(self, tokens):
        if self.checkpoints == ["gold"]:
            time.sleep(0.5)
        return whole(self, tokens)

    def opened(self, checkpoints, *settings):
        made(self, [str(reward_checkpoint)] if checkpoints == ["gold"] else checkpoints, *settings)
        self.checkpoints = [str(path) for path in checkpoints]

    made = ProxyReward.__init__
    monkeypatch.setattr(ProxyReward, "__init__", opened)
    monkeypatch.setattr(ProxyReward, "__call__", slow_if_watched)
    began = time.perf_counter()
    watched, _ = optimise(gold="gold", trainer={"max_steps": 2})
    took = time.perf_counter() - began
    assert 0 < watched.cost.seconds < took - 1.0
    alone, _ = optimise(trainer={"max_steps": 2})
    assert torch.equal(weights(alone), weights(watched))
    assert alone.cost.tokens == watched.cost.tokens


def test_no_two_kinds_of_draws_share_a_stream():
    places = {
        "training": ([0, 0, 0], [0, 6, 0], [0, 0, 1], [1, 0, 0]),
        "held out": ([0, 0], [0, 1], [1, 0]),
        "scales": ([0], [1]),
    }
    drawn = [tuple(_seeds(kind, place, 2)) for kind, of_kind in places.items() for place in of_kind]
    assert len(set(drawn)) == len(drawn)


def test_predictions_are_implicit_rewards_of_the_pairs(make_data, make_trainer, sft_checkpoint, reward_checkpoint):
    module = PolicyGradientModule(str(sft_checkpoint), str(reward_checkpoint))
    data = make_data(examples="preferences", tokenizer=str(sft_checkpoint))
    rows = [row for batch in make_trainer().predict(module, datamodule=data) for row in batch]
    assert len(rows) == len(data.evaluation_set)
    assert all(abs(value) < 1e-5 for row in rows for value in row.values())


@pytest.fixture
def other_reward(make_data, make_trainer, reward_checkpoint, tmp_path):
    """A reward model that differs, with another zero and unit."""
    content = torch.load(reward_checkpoint, weights_only=True)
    generator = torch.Generator().manual_seed(1)
    head = content["state_dict"]["reward_model.head.weight"]
    content["state_dict"]["reward_model.head.weight"] = 3 * head + torch.randn(head.shape, generator=generator)
    path = tmp_path / "other.ckpt"
    torch.save(content, path)
    return path


def test_several_reward_models_are_put_on_one_scale_that_the_checkpoint_keeps(
    optimise, reward_checkpoint, other_reward, tmp_path
):
    both = [str(reward_checkpoint), str(other_reward)]
    schedule = CheckpointSchedule(str(tmp_path / "checkpoints"))
    module, _ = optimise(schedule, reward=both, reward_combination="worst", trainer={"max_steps": 1})
    training = read_model_checkpoint(tmp_path / "checkpoints" / "last.ckpt").training
    assert training["reward_scales"][1] != pytest.approx(training["reward_scales"][0], rel=0.01)
    reopened = ProxyReward.from_description(training)
    tokens = module._passes(module._draw(module.policy, [[5, 6, 7]], [1, 2, 3]))[0][1]
    found = reopened(tokens)
    assert torch.allclose(found, module._frozen.proxy(tokens))
    centres, scales = (np.array(training[f"reward_{name}"])[:, None] for name in ("centres", "scales"))
    with torch.inference_mode():
        each = np.stack([load_reward_model(path)(tokens).numpy() for path in both])
    assert found.numpy() == pytest.approx(((each - centres) / scales).min(axis=0) * scales.mean(), rel=1e-4)
    # On the responses that settled the scales the worst of two is below their mean, which is zero.
    prompts = sorted({tuple(row.prompt_ids.tolist()) for row in module.data.train_set.tokenized})
    chosen = np.random.default_rng([0, 0]).permutation(len(prompts))
    drawn = module._draw(module._frozen.reference, [prompts[i] for i in chosen], _seeds("scales", [0], 1))
    assert torch.cat([module._frozen.proxy(tokens) for _, tokens in module._passes(drawn)]).mean() < -1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "grpo"}, "unknown objective 'grpo'; one of rloo, reinforce, ppo"),
        ({"beta": -0.1}, "beta >= 0"),
        ({"beta": math.nan, "kl": "penalty"}, "beta >= 0"),
        ({"samples_per_prompt": 1}, "at least 2 responses a prompt, got 1"),
        ({"samples_per_prompt": 0, "objective": "reinforce"}, "samples_per_prompt >= 1"),
        ({"kl": "k1"}, "got kl='k1'"),
        ({"clip_range": 1.5}, "clip_range < 1"),
        ({"inner_epochs": 0}, "inner_epochs >= 1"),
        ({"unfinished_penalty": -1.0}, "unfinished_penalty >= 0"),
        ({"unfinished_penalty": math.inf}, "unfinished_penalty >= 0"),
    ],
)
def test_bad_settings_are_refused_when_the_module_is_made(changes, message):
    with pytest.raises(ValueError, match=message):
        PolicyGradientObjective(**changes)


def test_every_objective_has_advantages_and_reinforce_may_draw_one_response():
    assert PolicyGradientObjective("reinforce", samples_per_prompt=1).passes == 1
    assert {name: PolicyGradientObjective(name).passes for name in ADVANTAGES} == {"rloo": 1, "reinforce": 1, "ppo": 4}


def test_what_cannot_be_used_is_refused_in_one_line(optimise, sft_checkpoint):
    with pytest.raises(ValueError, match="no reward model at gone"):
        optimise(reward="gone.ckpt")
    for refused, message in (
        ({"reward": []}, "needs at least one reward model"),
        ({"reward": ["a.ckpt", "./a.ckpt"]}, "named twice"),
        ({"reward": "a.ckpt", "disagreement_price": math.nan}, "price of disagreement >= 0"),
        ({"reward": "a.ckpt", "gold_temperature": 0.0}, "gold_temperature > 0"),
    ):
        with pytest.raises(ValueError, match=message):
            PolicyGradientModule("sft.ckpt", **refused)
    with pytest.raises(ValueError, match="holds policy; expected reward_model"):
        optimise(reward=str(sft_checkpoint))


def test_a_reward_model_of_another_tokenizer_is_refused(make_data, make_trainer, reward_checkpoint, tmp_path):
    policy = seeded_policy(0, train_bpe(["other words altogether", "and more of other words"], vocab_size=270))
    policy.causal_lm.save_pretrained(tmp_path / "other")
    policy.tokenizer.save_pretrained(tmp_path / "other")
    module = PolicyGradientModule(str(tmp_path / "other"), str(reward_checkpoint))
    data = make_data(examples="preferences", tokenizer=str(tmp_path / "other"), max_prompt_tokens=99)
    with pytest.raises(ValueError, match="another tokenizer than the policy"):
        make_trainer().fit(module, datamodule=data)


def test_sharding_is_refused_before_a_model_is_opened(make_trainer, make_data):
    module = PolicyGradientModule("gone", "gone")
    module._trainer = make_trainer()
    module._trainer.strategy.__class__ = FullyShardedStrategy
    with pytest.raises(ValueError, match=r"use --trainer\.strategy auto, or ddp"):
        module.configure_model()


def test_processes_step_together_whatever_share_of_the_prompts_each_has(
    preference_folder, sft_checkpoint, reward_checkpoint, tmp_path
):
    shutil.copytree(preference_folder, tmp_path / "pairs")
    for checkpoint, name in ((sft_checkpoint, "reference"), (reward_checkpoint, "reward")):
        shutil.copyfile(checkpoint, tmp_path / f"{name}.ckpt")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = str(Path(__file__).parents[1] / "policy_gradient_processes.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [*torchrun, script, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    start = load_policy(sft_checkpoint)
    for objective in ("rloo", "ppo"):
        first, second = (json.loads((tmp_path / f"{objective}-{rank}.json").read_text()) for rank in (0, 1))
        assert first["weights"] == second["weights"]
        assert first["weights"] != weights(start).tolist()
        assert first["examples_seen"] == second["examples_seen"] == 15
        assert first["metrics"] == second["metrics"]  # of the one held-out prompt, which one of them has
        assert first["metrics"]["val/gold_reward"] == pytest.approx(first["metrics"]["val/proxy_reward"])
