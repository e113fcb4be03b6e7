"""Policies, trainers and texts small enough for every stage to run in a second."""

import random
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from transformers import PreTrainedTokenizerFast

from overopt.checkpoints.atomic_io import AtomicCheckpointIO
from overopt.data.datamodule import PreferenceDataModule
from overopt.evaluation.preference_pairs import SampledPair
from overopt.models.policy import Policy, PythiaArchitecture, new_policy
from overopt.modules.optimizers import OptimizerSettings

NUM_POSTS = 60
WORDS = ("cat", "dog", "fish", "eats", "sees", "likes", "the", "a", "big", "old", "red", "house", "tree", "sleeps")
TINY = PythiaArchitecture(hidden_size=16, num_layers=2, num_heads=2, max_tokens=72)
FAST = OptimizerSettings("rmsprop", learning_rate=1e-3, warmup_steps=2)


def sampled_pairs() -> list[SampledPair]:
    """One pair a post, its responses of 1 to 9 words, no two of a pair alike."""
    draw = random.Random(0)

    def sentence(longest: int = 9) -> str:
        return " " + " ".join(draw.choices(WORDS, k=draw.randint(1, longest))) + "."

    return [
        SampledPair(
            f"row {i}", f"post {i}", f"Post {i}: the cat{sentence(3)}\nTL;DR:", sentence(), sentence(), sentence()
        )
        for i in range(NUM_POSTS)
    ]


def seeded_policy(seed: int, tokenizer: PreTrainedTokenizerFast, scale: float = 1.0) -> Policy:
    """A tiny policy with random weights; with a larger scale, far from uniform."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        policy = new_policy(TINY, tokenizer)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.ndim > 1:
                parameter.mul_(scale)
    return policy


class Losses(Callback):
    """The loss of each optimiser step, by examples seen when it was done."""

    def __init__(self) -> None:
        self.by_examples: dict[int, float] = {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        self.by_examples[pl_module.examples_seen] = float(trainer.callback_metrics["train/loss"])


class KilledError(Exception):
    """What a killed run raises here."""


class StopAfter(Callback):
    """Kills a run once so many examples have been seen."""

    def __init__(self, examples: int) -> None:
        self._examples = examples

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if pl_module.examples_seen >= self._examples:
            raise KilledError


def tiny_data(folder: Path, cache: Path, **changes: Any) -> PreferenceDataModule:
    """The texts of :func:`sampled_pairs` as labelled pairs in ``folder``, not set up; arguments change its settings."""
    settings = {
        "source": "jsonl",
        "path": str(folder),
        "vocab_size": 300,
        "max_prompt_tokens": 48,
        "max_response_tokens": 24,
        "evaluation_fraction": 0.3,
        "cache_dir": str(cache),
    }
    return PreferenceDataModule(**settings | changes)


def quiet_trainer(root: Path, **changes: Any) -> Trainer:
    """A Trainer as the stages have it, silent and without a tracker."""
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "gradient_clip_val": 10.0,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "limit_val_batches": 0,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "default_root_dir": root,
        "plugins": [AtomicCheckpointIO()],
    }
    return Trainer(**settings | changes)
