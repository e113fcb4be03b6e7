"""Tiny reward models that a tracked training wrote, in the folders that stages use."""

from pathlib import Path

import pytest
import torch

from overopt.modules.checkpoint_schedule import CheckpointSchedule
from overopt.modules.optimizers import OptimizerSettings
from overopt.modules.reward_modeling import RewardModule
from overopt.tracking.logger import MLflowTracker
from tiny import quiet_trainer, tiny_data


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('tracking') / 'mlflow.db'}"


@pytest.fixture(scope="session")
def reward_checkpoints(preference_folder, sft_checkpoint, store, tmp_path_factory) -> list[Path]:
    """Two proxies and a gold model: equal settings, other heads."""
    folder = tmp_path_factory.mktemp("reward")
    paths = []
    for seed, name in enumerate(["proxy-a", "proxy-b", "gold"]):
        pairs = {"examples": "preferences", "tokenizer": str(sft_checkpoint), "batch_size": 8, "seed": seed}
        data = tiny_data(preference_folder, folder / "cache", **pairs)
        schedule = CheckpointSchedule(str(folder / name / "checkpoints"))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            module = RewardModule(str(sft_checkpoint), OptimizerSettings("adamw", 3e-3 * (1 + seed), 0))
            quiet_trainer(
                folder,
                callbacks=[schedule],
                enable_checkpointing=True,
                max_epochs=1 + seed,
                logger=MLflowTracker(store, run_name=name),
            ).fit(module, datamodule=data)
        paths.append(folder / name / "checkpoints" / "last.ckpt")
    return paths
