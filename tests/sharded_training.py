"""Trainings that one process and several sharded ones must agree on; as a program, the sharded side.

python -m torch.distributed.run --standalone --nproc-per-node 2 tests/sharded_training.py FOLDER
"""

import json
import sys
from pathlib import Path
from typing import Any

from lightning import seed_everything
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only

from overopt.checkpoints.atomic_io import AtomicCheckpointIO
from overopt.data.datamodule import PreferenceDataModule
from overopt.models.compute import ComputeSettings
from overopt.modules.checkpoint_schedule import CheckpointSchedule
from overopt.modules.direct_alignment import DirectAlignmentModule
from overopt.modules.optimizers import OptimizerSettings
from overopt.modules.reward_modeling import RewardModule
from overopt.modules.sft import SFTModule
from overopt.modules.step import StepModule
from overopt.trainers import FullyShardedStrategy
from tiny import TINY, KilledError, Losses, StopAfter, quiet_trainer

STEPS = 20
HALF_WAY = 62  # examples: after eleven steps of 6, the last of an epoch of 2; inside the second epoch
OBJECTIVES = ("dpo", "ipo", "slic")
KINDS = ("sft", "reward", *OBJECTIVES)
# Gentle: RMSprop divides by a gradient's size, so that large steps make rounding grow from step to step.
RMSPROP = OptimizerSettings("rmsprop", learning_rate=1e-4, warmup_steps=2)


def new_module(kind: str, reference: Path, compute: ComputeSettings) -> StepModule:
    """A module of each kind, as new."""
    seed_everything(5, verbose=False)  # which a strategy goes back to once its processes have met
    if kind == "sft":
        return SFTModule(architecture=TINY, optimizer=RMSPROP, compute=compute)
    if kind == "reward":
        return RewardModule(str(reference), RMSPROP, compute)
    # A beta at which no pair passes SLiC's kink: there, rounding decides whether a pair has a gradient.
    return DirectAlignmentModule(str(reference), kind, 0.05, optimizer=RMSPROP, compute=compute)


def run(
    kind: str,
    folder: Path,
    *,
    name: str | None = None,
    processes: int = 1,
    resume_from: Path | None = None,
    kill_after: int | None = None,
    compute: ComputeSettings = ComputeSettings(),
    cpu_offload: bool = False,
    **trainer: Any,
) -> dict[str, Any]:
    """Losses by examples seen, and the metrics of the held-out examples at the end.

    Args:
        kind: of :data:`KINDS`.
        folder: holds the pairs and the reference; checkpoints go below it.
        name: of the folder that checkpoints go to.
        processes: more than one are sharded.
        resume_from: a checkpoint.
        kill_after: die once so many examples have been seen.
        compute: how the model computes.
        cpu_offload: keep shards on the host.
        trainer: changes of the Trainer's settings.
    """
    reference = folder / "reference.ckpt"
    data = PreferenceDataModule(
        "jsonl",
        str(folder / "pairs"),
        examples="demonstrations" if kind == "sft" else "preferences",
        tokenizer=str(reference),
        max_prompt_tokens=48,
        max_response_tokens=24,
        batch_size=6,
        micro_batch_tokens=200,
        evaluation_fraction=0.3,
        gold_fraction=0.1,
        cache_dir=str(folder / f"cache-{processes}"),
    )
    losses = Losses()
    callbacks: list[Callback] = [losses]
    if name is not None:
        callbacks.append(CheckpointSchedule(str(folder / name), examples=[HALF_WAY]))
    if kill_after is not None:
        callbacks.append(StopAfter(kill_after))
    sharded = {"strategy": FullyShardedStrategy(cpu_offload), "devices": processes} if processes > 1 else {}
    module = new_module(kind, reference, compute)
    made = quiet_trainer(
        folder,
        callbacks=callbacks,
        max_epochs=10,
        max_steps=STEPS,
        enable_checkpointing=name is not None,
        limit_val_batches=1.0,
        check_val_every_n_epoch=None,
        val_check_interval=STEPS,
        plugins=[AtomicCheckpointIO()],
        **sharded,
        **trainer,
    )
    try:
        made.fit(module, datamodule=data, ckpt_path=resume_from, weights_only=True)
    except KilledError:
        return {"losses": losses.by_examples}
    metrics = {k: float(v) for k, v in made.callback_metrics.items() if k.startswith("val/")}
    return {"losses": losses.by_examples, "metrics": metrics}


def main(folder: Path) -> None:
    """The sharded side: every kind, then each way of going on and of saving memory."""
    two = {"processes": 2}
    done = {kind: run(kind, folder, name=f"two-{kind}", **two) for kind in KINDS}
    half_way = f"examples-{HALF_WAY:08d}.ckpt"
    done["resumed from one process"] = run("dpo", folder, resume_from=folder / "one-dpo" / half_way, **two)
    done["killed"] = run("dpo", folder, name="killed", kill_after=HALF_WAY + 12, **two)
    done["killed and resumed"] = run("dpo", folder, resume_from=folder / "killed" / half_way, **two)
    done["activation checkpointing"] = run("dpo", folder, compute=ComputeSettings(activation_checkpointing=True), **two)
    done["one token's logits at a time"] = run("dpo", folder, compute=ComputeSettings(logits_mib=0.001), **two)
    done["CPU offload"] = run("dpo", folder, cpu_offload=True, **two)
    done["bfloat16"] = run("dpo", folder, name="two-bfloat16", precision="bf16-mixed", **two)
    try:
        run("dpo", folder, resume_from=folder / "half.ckpt", **two)
    except ValueError as error:
        done["half-written checkpoint"] = {"losses": {}, "refused": str(error)}
    if rank_zero_only.rank == 0:
        (folder / "sharded.json").write_text(json.dumps(done))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
