"""What a checkpoint holds besides weights, so that it opens alone: architecture, tokenizer, provenance."""

import json
import pickle
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerFast

from overopt.checkpoints.tokenizer import tokenizer_from_json, tokenizer_to_json

#: Where the modules keep their parts in a Lightning checkpoint's state_dict.
POLICY_PREFIX = "policy.causal_lm."
REWARD_PREFIX = "reward_model."

_ENTRY = "overopt"


@dataclass(frozen=True)
class ModelDescription:
    """Architecture and tokenizer as JSON text: opening it runs nobody's code.

    Attributes:
        config_json: the Hugging Face configuration.
        tokenizer_json: the fast tokenizer with the names of its special tokens.
    """

    config_json: str
    tokenizer_json: str

    @classmethod
    def of(cls, config: PretrainedConfig, tokenizer: PreTrainedTokenizerFast) -> Self:
        """Describe a live model."""
        return cls(config.to_json_string(use_diff=False), tokenizer_to_json(tokenizer))

    def config(self) -> PretrainedConfig:
        """The configuration as transformers knows it."""
        values = json.loads(self.config_json)
        return AutoConfig.for_model(values.pop("model_type"), **values)

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer."""
        return tokenizer_from_json(self.tokenizer_json)

    @property
    def shape(self) -> str:
        """What must agree for weights to fit, in a form that people can read."""
        config = self.config()
        return (
            f"{config.model_type} of hidden size {config.hidden_size}, {config.num_hidden_layers} layers, "
            f"vocabulary {config.vocab_size}"
        )


@dataclass(frozen=True)
class ModelCheckpoint:
    """One model out of a Lightning checkpoint.

    Attributes:
        description: architecture and tokenizer.
        weights: the part's state, names without prefix.
        training: what trained it (objective, beta, reference, run id, examples seen, ...).
        data: the DataModule's settings.
    """

    description: ModelDescription
    weights: dict[str, Tensor]
    training: dict[str, Any]
    data: dict[str, Any] = field(default_factory=dict)


def write_description(checkpoint: dict[str, Any], description: ModelDescription, training: dict[str, Any]) -> None:
    """Add a model's description to a Lightning checkpoint that is about to be written."""
    checkpoint[_ENTRY] = {"model": asdict(description), "training": training}


def read_description(checkpoint: dict[str, Any]) -> ModelDescription:
    """The description in a Lightning checkpoint.

    Raises:
        ValueError: this project did not write it.
    """
    if _ENTRY not in checkpoint:
        raise ValueError("it holds no model description: not a checkpoint of overopt")
    return ModelDescription(**checkpoint[_ENTRY]["model"])


def read_training(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What trained the model in a Lightning checkpoint that :func:`write_description` has seen."""
    training: dict[str, Any] = checkpoint[_ENTRY]["training"]
    return training


def read_model_checkpoint(path: Path, prefix: str = "") -> ModelCheckpoint:
    """Open one model of a checkpoint file; nothing in the file is executed.

    Args:
        path: a checkpoint file of this project.
        prefix: which part; the names of its weights begin so.

    Raises:
        ValueError: not a readable checkpoint, not one of ours, or without that part.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise ValueError(f"{path} is no readable checkpoint (half-written, or another format)") from error
    try:
        description = read_description(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    weights = {
        name.removeprefix(prefix): weight for name, weight in content["state_dict"].items() if name.startswith(prefix)
    }
    if not weights:
        parts = sorted({name.split(".")[0] for name in content["state_dict"]})
        raise ValueError(f"{path} holds {', '.join(parts)}; expected {prefix.split('.')[0]}")
    return ModelCheckpoint(description, weights, read_training(content), content.get("datamodule_hyper_parameters", {}))


def load_tokenizer(location: str | Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a policy, without building its model.

    Args:
        location: a checkpoint of this project, a Hugging Face folder, or a hub name.

    Raises:
        ValueError: nothing there.
    """
    path = Path(location)
    if path.is_file():
        return read_model_checkpoint(path).description.tokenizer()
    try:
        return AutoTokenizer.from_pretrained(location)
    except (OSError, ValueError) as error:
        raise ValueError(f"no tokenizer at {location}: expected a .ckpt file or a folder with a tokenizer") from error
