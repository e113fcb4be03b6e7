"""Lightning's own command line on this project's modules: fit, validate, test, predict."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from lightning import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import MLFlowLogger

from overopt.checkpoints.atomic_io import AtomicCheckpointIO
from overopt.data.datamodule import PreferenceDataModule
from overopt.evaluation.prediction_writer import PredictionWriter
from overopt.modules.checkpoint_schedule import CheckpointSchedule
from overopt.modules.sft import SFTModule
from overopt.modules.step import StepModule
from overopt.stop_at_kl import StopAtKL
from overopt.tracking.logger import MLflowTracker, RunRecord
from overopt.trainers import FullyShardedStrategy, quiet_lightning

#: Lightning's own names; there they stand for FSDP1, which refuses CPUs and gradient clipping.
SHARDED: dict[str, Callable[[], FullyShardedStrategy]] = {
    "fsdp": FullyShardedStrategy,
    "fsdp_cpu_offload": partial(FullyShardedStrategy, cpu_offload=True),
}


class OveroptCLI(LightningCLI):
    """LightningCLI with defaults that train the embedded SFT policy, and data options that follow the model."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Defaults, the checkpoint schedule, and one seed for all."""
        parser.add_lightning_class_args(CheckpointSchedule, "checkpoints")
        parser.add_argument(
            "--stop_at_kl",
            type=StopAtKL | None,
            default=None,
            help="ends an alignment at a KL budget or past its peak, or keeps its best checkpoint; off by default",
        )
        parser.add_argument(
            "--overlays",
            type=list[str],
            default=[],
            help="in a configuration file: those it builds on, relative to itself; later ones win, it wins over all",
        )
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
        parser.set_defaults(
            {
                "trainer.logger": {"class_path": f"{MLflowTracker.__module__}.{MLflowTracker.__qualname__}"},
                "trainer.default_root_dir": "outputs",
                "trainer.max_epochs": 4,
                "trainer.gradient_clip_val": 10.0,
                "trainer.log_every_n_steps": 10,
                "trainer.enable_checkpointing": True,
            }
        )

    def before_instantiate_classes(self) -> None:
        """The model decides which examples it needs, and whose tokenizer, where the data options leave it open."""
        config = self.config[self.subcommand]
        model, data = config.model, config.data
        module_class: type[StepModule] = _import(model.class_path)
        data.examples = module_class.examples_kind
        if data.tokenizer is None:
            data.tokenizer = model.init_args.get("policy") or model.init_args.get("reference")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The Trainer, with checkpoints that are whole or absent, and ``fsdp`` as FSDP2."""
        plugins = self.config_init[self.subcommand].trainer.plugins or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        strategy = self.config_init[self.subcommand].trainer.strategy
        if isinstance(strategy, str) and strategy in SHARDED:
            strategy = SHARDED[strategy]()
        callbacks = list(self.config_init[self.subcommand].trainer.callbacks or [])
        if (stop_at_kl := self.config_init[self.subcommand].stop_at_kl) is not None:
            callbacks.append(stop_at_kl)
        return super().instantiate_trainer(
            plugins=[*plugins, AtomicCheckpointIO()],
            strategy=strategy,
            callbacks=callbacks,
            use_distributed_sampler=False,
            **kwargs,
        )


class TrackedConfig(SaveConfigCallback):
    """Keeps the complete configuration as an artifact of the run."""

    def save_config(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Write config.yaml, from which ``--config`` repeats the run."""
        if isinstance(trainer.logger, MLFlowLogger):
            config = self.config.clone()
            config.pop("overlays")  # they are in it, and paths relative to a file would lead nowhere
            text = self.parser.dump(config)
            trainer.logger.experiment.log_text(trainer.logger.run_id, text, "config.yaml")


def run(arguments: Sequence[str], cli: type[OveroptCLI] = OveroptCLI) -> OveroptCLI:
    """Run one of Lightning's commands, or what ``cli`` makes of it."""
    quiet_lightning()
    strict = {"exit_on_error": False, "prog": "overopt"}
    return cli(
        model_class=StepModule,
        datamodule_class=PreferenceDataModule,
        subclass_mode_model=True,
        seed_everything_default=0,
        save_config_callback=TrackedConfig,
        save_config_kwargs={"save_to_log_dir": False},
        trainer_defaults={"callbacks": [RunRecord(), PredictionWriter()]},
        parser_kwargs={**strict, **{name: {"exit_on_error": False} for name in LightningCLI.subcommands()}},
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
        args=_with_model(_with_overlays(arguments)),
    )


def _with_model(arguments: Sequence[str]) -> list[str]:
    """The arguments, naming SFT on the embedded default where they name no model.

    As the parser's default it would do harm: a model named on the command line would inherit those of its settings
    that go by the same name, such as the optimiser.
    """
    arguments = list(arguments)
    configs = [Path(following) for option, following in pairwise(arguments) if option == "--config"]
    named = any(argument.partition("=")[0] == "--model" for argument in arguments)
    if named or not arguments or any(_names_model(_content(config)) for config in configs):
        return arguments
    return [arguments[0], f"--model={SFTModule.__module__}.{SFTModule.__qualname__}", *arguments[1:]]


def _with_overlays(arguments: Sequence[str]) -> list[str]:
    """The arguments, each ``--config FILE`` preceded by the files that it names as its overlays.

    Raises:
        ValueError: an overlay is not there, or builds on itself.
    """
    expanded: list[str] = []
    rest = list(arguments)
    while rest:
        option, equals, value = rest.pop(0).partition("=")
        if option != "--config":
            expanded.append(option + equals + value)
        elif equals or rest:
            layers = _layers(Path(value if equals else rest.pop(0)), ())
            expanded += [part for layer in layers for part in ("--config", str(layer))]
        else:
            expanded.append(option)  # the parser's own message says that a value is missing
    return expanded


def _layers(config: Path, above: tuple[Path, ...]) -> list[Path]:
    """A configuration file after all that it builds on."""
    if config.resolve() in above:
        raise ValueError(f"{config} builds on itself through its overlays: {' > '.join(map(str, above))}")
    layers: list[Path] = []
    overlays = _content(config).get("overlays") or []
    for overlay in overlays if isinstance(overlays, list) else [overlays]:
        path = config.parent / str(overlay)
        if not path.is_file():
            raise ValueError(f"{config} builds on {overlay}, but there is no file {path}")
        layers += _layers(path, (*above, config.resolve()))
    return [*layers, config]


def _content(config: Path) -> dict[str, Any]:
    """What a configuration file says; nothing where it can't be read, which the parser's own message tells."""
    try:
        content = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return {}
    return content if isinstance(content, dict) else {}


def _names_model(content: dict[str, Any]) -> bool:
    model = content.get("model")
    return isinstance(model, str) or (isinstance(model, dict) and "class_path" in model)


def _import(class_path: str) -> Any:
    module, _, name = class_path.rpartition(".")
    return getattr(__import__(module, fromlist=[name]), name)
