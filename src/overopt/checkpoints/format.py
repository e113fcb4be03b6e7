"""What a checkpoint holds besides weights, so that it opens alone: architecture, tokenizer, provenance."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerFast

from overopt.checkpoints.locations import opening, pretrained
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
    def of(cls, config: PretrainedConfig, tokenizer: PreTrainedTokenizerFast) -> "ModelDescription":
        """Describe a live model."""
        return cls(config.to_json_string(use_diff=False), tokenizer_to_json(tokenizer))

    def config(self) -> PretrainedConfig:
        """The configuration as transformers knows it."""
        values = json.loads(self.config_json)
        config: PretrainedConfig = AutoConfig.for_model(values.pop("model_type"), **values)
        # A stranger's file may name an implementation that would be fetched from the hub.
        config._attn_implementation = None
        return config

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer."""
        return tokenizer_from_json(self.tokenizer_json)

    @property
    def shape(self) -> str:
        """What must agree for weights to mean the same, in a form that people can read."""
        config = self.config()
        return (
            f"{config.model_type} of hidden size {config.hidden_size}, {config.num_hidden_layers} layers, "
            f"{config.num_attention_heads} heads, vocabulary {config.vocab_size}"
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
    """The description in a Lightning checkpoint that :func:`write_description` has seen."""
    return ModelDescription(**checkpoint[_ENTRY]["model"])


def read_training(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What trained the model in a Lightning checkpoint that :func:`write_description` has seen."""
    training: dict[str, Any] = checkpoint[_ENTRY]["training"]
    return training


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A Lightning checkpoint of this project, on the CPU; nothing in the file is executed.

    Raises:
        ValueError: there is no such file, or it is not a readable checkpoint of ours.
    """
    if not path.is_file():
        raise ValueError(f"no checkpoint at {path}: expected a .ckpt file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from error
    except Exception as error:  # torch passes on whatever the bytes make its parsers throw.
        raise ValueError(f"{path} is no readable checkpoint (half-written, or another format)") from error
    if not isinstance(content, dict) or _ENTRY not in content:
        raise ValueError(f"{path} holds no model description: not a checkpoint of overopt")
    return content


def read_model_checkpoint(path: Path, prefix: str = "") -> ModelCheckpoint:
    """Open one model of a checkpoint file; nothing in the file is executed.

    Args:
        path: a checkpoint file of this project.
        prefix: which part; the names of its weights begin so.

    Raises:
        ValueError: not a readable checkpoint, not one of ours, or without that part.
    """
    content = read_checkpoint(path)
    weights = {
        name.removeprefix(prefix): weight for name, weight in content["state_dict"].items() if name.startswith(prefix)
    }
    if not weights:
        parts = sorted({name.split(".")[0] for name in content["state_dict"]})
        raise ValueError(f"{path} holds {', '.join(parts)}; expected {prefix.split('.')[0]}")
    return ModelCheckpoint(
        description=read_description(content),
        weights=weights,
        training=read_training(content),
        data=content.get("datamodule_hyper_parameters", {}),
    )


def load_tokenizer(location: str | Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a policy, without building its model.

    Args:
        location: as :func:`overopt.models.policy.load_policy` takes it.

    Raises:
        ValueError: nothing there, or out of reach.
    """
    path = Path(location)
    if path.is_file() and path.suffix != ".gguf":
        return read_model_checkpoint(path).description.tokenizer()
    name, gguf_file = pretrained("tokenizer", location)
    with opening("tokenizer", location):
        tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(
            name, gguf_file=gguf_file, trust_remote_code=False
        )
    # Where the files of one are missing, transformers makes an empty one of the model's kind.
    if not tokenizer("text", add_special_tokens=False).input_ids:
        raise ValueError(f"no tokenizer at {location}: the folder lacks tokenizer.json")
    return tokenizer
