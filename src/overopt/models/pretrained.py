"""A model that others have made: nothing that comes with it is run, nothing missing is made up."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from overopt.checkpoints.locations import FRESH, opening, pretrained


def open_pretrained(location: str | Path) -> PreTrainedModel:
    """A causal LM in float32, dropout off.

    Python files beside the weights are never run and pickled weights are read as data (``weights_only``), whatever
    the files ask for; transformers left to itself would ask on the terminal whether to run them.

    Args:
        location: as :func:`overopt.models.policy.load_policy` takes it, but for checkpoints.

    Raises:
        ValueError: nothing there, a model that needs code of its own, or files that can't be read or lack weights.
    """
    name, gguf_file = pretrained("policy", location)
    with opening("policy", location):
        config = _config(name, gguf_file)
        if str(location).startswith(FRESH):
            return _new(config)
        causal_lm, loading = AutoModelForCausalLM.from_pretrained(
            name,
            config=config,
            gguf_file=gguf_file,
            dtype="float32",
            trust_remote_code=False,
            output_loading_info=True,
        )
    _require_all_weights(location, loading["missing_keys"])
    if gguf_file is None:
        return causal_lm
    # Loaded from GGUF a model is marked as quantised, though its weights no longer are, and can't be saved.
    plain = _new(config)
    plain.load_state_dict(causal_lm.state_dict())
    return plain


def open_reward_classifier(location: str | Path) -> PreTrainedModel:
    """A sequence classifier with one label, whose logit is a reward, in float32, dropout off.

    Nothing that comes with it is run, as in :func:`open_pretrained`.

    Args:
        location: a Hugging Face folder or a hub name.

    Raises:
        ValueError: as :func:`open_pretrained`, or it has not one label.
    """
    if Path(location).suffix in (".ckpt", ".gguf") or str(location).startswith(FRESH):
        raise ValueError(
            f"{location} is no sequence classifier: give a folder or a hub name; of a reward model's .ckpt, what "
            "`overopt export` makes of it"
        )
    name, gguf_file = pretrained("reward model", location)
    with opening("reward model", location):
        config = _config(name, gguf_file)
    if config.num_labels != 1:
        raise ValueError(
            f"{location} has {config.num_labels} labels, a reward model has one: give a sequence classifier that was "
            "trained to give rewards (num_labels 1 in config.json)"
        )
    with opening("reward model", location):
        classifier, loading = AutoModelForSequenceClassification.from_pretrained(
            name, config=config, dtype="float32", trust_remote_code=False, output_loading_info=True
        )
    _require_all_weights(location, loading["missing_keys"])
    model: PreTrainedModel = classifier.eval()
    return model


def _config(name: str, gguf_file: str | None) -> PretrainedConfig:
    config = without_dropout(AutoConfig.from_pretrained(name, gguf_file=gguf_file, trust_remote_code=False))
    # A file may name an implementation that would be fetched from the hub; the default is as good.
    config._attn_implementation = None
    return config


def _require_all_weights(location: str | Path, missing_keys: Iterable[str]) -> None:
    if missing := sorted(missing_keys):
        # transformers would start them at random.
        raise ValueError(
            f"{location} lacks {len(missing)} of its model's weights, such as {missing[0]}: half-written, or "
            "config.json is another model's"
        )


def _new(config: PretrainedConfig) -> PreTrainedModel:
    return AutoModelForCausalLM.from_config(config, dtype="float32", trust_remote_code=False)


def model_hash(model: PreTrainedModel) -> str:
    """Hash of all weights and the configuration: equal for equal functions of token ids."""
    digest = hashlib.sha256(model.config.to_json_string().encode())
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def without_dropout(config: PretrainedConfig) -> PretrainedConfig:
    """The configuration with every dropout set to 0, in place."""
    for name, value in config.to_dict().items():
        if ("dropout" in name or name.endswith("pdrop")) and isinstance(value, float):
            setattr(config, name, 0.0)
    return config
