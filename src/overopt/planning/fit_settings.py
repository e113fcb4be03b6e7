"""What ``fit`` would run with some options: read by its own parser, nothing of it made but the module."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from overopt.models.activation_memory import Device
from overopt.models.compute import ComputeSettings
from overopt.modules.direct_alignment import DirectAlignmentModule
from overopt.modules.policy_gradient import PolicyGradientModule
from overopt.modules.reward_modeling import RewardModule
from overopt.modules.sft import SFTModule
from overopt.modules.step import StepModule
from overopt.trainer_cli import SHARDED, OveroptCLI, run


class _ReadOnly(OveroptCLI):
    """Parses, and makes the module, which opens no weights before it is configured; no trainer, no tracker."""

    def instantiate_classes(self) -> None:
        """The module alone."""
        config = self.config.clone()
        trainer = config[self.subcommand].trainer
        trainer.logger, trainer.callbacks, trainer.plugins, trainer.strategy = False, None, None, "auto"
        config[self.subcommand].stop_at_kl = None  # its judge would be opened
        self.config_init = self.parser.instantiate(config, instantiate_groups=False)
        self.model = self.config_init[self.subcommand].model

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing is run."""


@dataclass(frozen=True)
class FitSettings:
    """Of one training.

    Attributes:
        module: what would train.
        start: where its weights come from: a checkpoint, a folder or a hub name; ``None`` for fresh ones.
        data: the DataModule's arguments.
        precision: Lightning's name.
        device: kind of device.
        sharded: whether FSDP2 divides the model among devices.
        offloaded: whether its shards lie in the host's memory.
        max_epochs: passes over the data at most; -1 for no limit.
        max_steps: optimiser steps at most; -1 for no limit.
        checkpoints: that a run writes.
    """

    module: StepModule
    start: str | None
    data: dict[str, Any]
    precision: str
    device: Device
    sharded: bool
    offloaded: bool
    max_epochs: int
    max_steps: int
    checkpoints: int

    @property
    def compute(self) -> ComputeSettings:
        """How the model computes."""
        assert isinstance(self.module, SFTModule | RewardModule | DirectAlignmentModule)
        return self.module.compute


def read_fit_settings(options: Sequence[str]) -> FitSettings:
    """Parse options of ``overopt fit``, its configuration files among them.

    Raises:
        ValueError: what ``fit`` itself would refuse.
    """
    cli = run(["fit", *options], _ReadOnly)
    config = cli.config[cli.subcommand]
    module: StepModule = cli.model
    if isinstance(module, PolicyGradientModule):
        raise ValueError(
            "plan knows steps on given responses, and a policy gradient draws its own: plan an alignment on the same "
            "data, and add the reference, the reward models and the sampling"
        )
    strategy = config.trainer.strategy
    named = strategy if isinstance(strategy, str) else strategy.class_path.rpartition(".")[2]
    offloaded = named == "fsdp_cpu_offload" or (
        not isinstance(strategy, str) and bool((strategy.get("init_args") or {}).get("cpu_offload"))
    )
    schedule = config.checkpoints
    wanted = schedule.fractions if schedule.examples is None else schedule.examples
    return FitSettings(
        module=module,
        start=module.reference if isinstance(module, DirectAlignmentModule) else getattr(module, "start", None),
        data=config.data.as_dict(),
        precision=str(config.trainer.precision or "32-true"),
        device="cpu" if config.trainer.accelerator == "cpu" else "cuda",
        sharded=named in (*SHARDED, "FullyShardedStrategy", "ModelParallelStrategy"),
        offloaded=offloaded,
        max_epochs=-1 if config.trainer.max_epochs is None else config.trainer.max_epochs,
        max_steps=config.trainer.max_steps,
        checkpoints=len([share for share in wanted if share != 1]) + 1,
    )
