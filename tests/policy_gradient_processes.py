"""Policy gradients on two processes, as a program: what each process ends with.

python -m torch.distributed.run --standalone --nproc-per-node 2 tests/policy_gradient_processes.py FOLDER
"""

import json
import sys
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_only

from overopt.data.datamodule import PreferenceDataModule
from overopt.modules.optimizers import OptimizerSettings
from overopt.modules.policy_gradient import PolicyGradientModule
from tiny import quiet_trainer

STEPS, BATCH = 3, 5


def main(folder: Path) -> None:
    """RLOO, and PPO with its inner steps, each on an odd number of prompts and one held-out pair."""
    for objective in ("rloo", "ppo"):
        data = PreferenceDataModule(
            "jsonl",
            str(folder / "pairs"),
            examples="preferences",
            tokenizer=str(folder / "reference.ckpt"),
            max_prompt_tokens=48,
            max_response_tokens=24,
            batch_size=BATCH,
            micro_batch_tokens=200,
            max_evaluation_examples=1,
            cache_dir=str(folder / "cache"),
        )
        module = PolicyGradientModule(
            str(folder / "reference.ckpt"),
            str(folder / "reward.ckpt"),
            objective,
            samples_per_prompt=2,
            gold=str(folder / "reward.ckpt"),
            inner_epochs=2,
            optimizer=OptimizerSettings("adamw", learning_rate=1e-3, warmup_steps=1),
        )
        trainer = quiet_trainer(
            folder,
            strategy="ddp",
            devices=2,
            max_steps=STEPS,
            limit_val_batches=1.0,
            check_val_every_n_epoch=None,
            val_check_interval=STEPS,
        )
        trainer.fit(module, datamodule=data)
        found = {
            "weights": torch.cat([parameter.detach().flatten() for parameter in module.parameters()]).tolist(),
            "examples_seen": module.examples_seen,
            "metrics": {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")},
        }
        (folder / f"{objective}-{rank_zero_only.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
