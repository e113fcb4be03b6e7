"""A tiny tokenizer, policy and checkpoint, and a folder of preferences that all stages can run on.

Everything heavy is imported when a fixture is asked for: the analysis needs no torch, nor do its tests.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def nothing_left_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training, in a fixture of the session too, leaves its store there and, if sharded, its port: MLflow's way, and
    Lightning's."""
    for name in ("MLFLOW_TRACKING_URI", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    from overopt.data.tokenization import train_bpe
    from tiny import sampled_pairs

    return train_bpe([text for p in sampled_pairs() for text in (p.prompt, p.first, p.second, p.human)], vocab_size=300)


@pytest.fixture
def tiny_policy(tiny_tokenizer: Any) -> Any:
    from tiny import seeded_policy

    return seeded_policy(0, tiny_tokenizer, scale=5.0)


@pytest.fixture(scope="session")
def preference_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from overopt.evaluation.preference_pairs import LabelledPairs, write_preferences
    from tiny import sampled_pairs

    folder = tmp_path_factory.mktemp("preferences")
    pairs = sampled_pairs()
    rows: list[dict[str, object]] = [
        {"id": p.id, "post_id": p.post_id, "prompt": p.prompt, "chosen": p.first, "rejected": p.second} for p in pairs
    ]
    write_preferences(folder, LabelledPairs(rows, Counter()), pairs)
    return folder


@pytest.fixture
def make_data(preference_folder: Path, tmp_path: Path) -> Callable[..., Any]:
    """PreferenceDataModule on the tiny preferences, not set up; arguments change its settings."""
    from tiny import tiny_data

    settings = {
        "batch_size": 6,  # 32 training examples: the last step of an epoch has 2
        "micro_batch_tokens": 200,  # several forward passes a step
        "gold_fraction": 0.1,
    }
    return lambda **changes: tiny_data(preference_folder, tmp_path / "cache", **settings | changes)


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., Any]:
    from tiny import quiet_trainer

    def make(**changes: Any) -> Any:
        return quiet_trainer(tmp_path, **changes)

    return make


@pytest.fixture(scope="session")
def sft_checkpoint(preference_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real checkpoint of a policy after one epoch of SFT."""
    import torch

    from overopt.modules.checkpoint_schedule import CheckpointSchedule
    from overopt.modules.sft import SFTModule
    from tiny import TINY, quiet_trainer, tiny_data

    folder = tmp_path_factory.mktemp("sft")
    data = tiny_data(preference_folder, folder / "cache")
    schedule = CheckpointSchedule(str(folder / "checkpoints"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        trainer = quiet_trainer(folder, callbacks=[schedule], enable_checkpointing=True)
        trainer.fit(SFTModule(architecture=TINY), datamodule=data)
    return folder / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="session")
def reward_checkpoint(preference_folder: Path, sft_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real checkpoint of a reward model on that policy's backbone, with a head that tells responses apart."""
    import torch

    from overopt.modules.checkpoint_schedule import CheckpointSchedule
    from overopt.modules.reward_modeling import RewardModule
    from tiny import FAST, quiet_trainer, tiny_data

    folder = tmp_path_factory.mktemp("reward")
    pairs: dict[str, Any] = {"examples": "preferences", "tokenizer": str(sft_checkpoint), "batch_size": 8}
    data = tiny_data(preference_folder, folder / "cache", **pairs)
    schedule = CheckpointSchedule(str(folder / "checkpoints"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        trainer = quiet_trainer(folder, callbacks=[schedule], enable_checkpointing=True)
        trainer.fit(RewardModule(str(sft_checkpoint), FAST), datamodule=data)
        content = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
        # The labels are made up: what it has learned from them is next to nothing.
        torch.nn.init.normal_(content["state_dict"]["reward_model.head.weight"])
    torch.save(content, folder / "reward.ckpt")
    return folder / "reward.ckpt"
