"""A causal LM out of a Hugging Face folder or the hub: nothing in it is run, nothing missing is made up."""

from pathlib import Path

from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel


def open_pretrained(location: str | Path) -> PreTrainedModel:
    """A causal LM in float32, dropout off.

    Python files beside the weights are never run and pickled weights are read as data (``weights_only``), whatever
    the files ask for; transformers left to itself would ask on the terminal whether to run them.

    Args:
        location: a folder with config.json and weights, or a hub name.

    Raises:
        ValueError: nothing there, a model that needs code of its own, or files that can't be read or lack weights.
    """
    try:
        config = without_dropout(AutoConfig.from_pretrained(location, trust_remote_code=False))
        # A file may name an implementation that would be fetched from the hub; the default is as good.
        config._attn_implementation = None
        causal_lm, loading = AutoModelForCausalLM.from_pretrained(
            location, config=config, dtype="float32", trust_remote_code=False, output_loading_info=True
        )
    except Exception as error:  # transformers passes on whatever the bytes make its parsers throw.
        raise ValueError(_what_is_wrong(location, error)) from error
    if missing := sorted(loading["missing_keys"]):
        # transformers would start them at random.
        raise ValueError(
            f"{location} lacks {len(missing)} of its model's weights, such as {missing[0]}: half-written, or "
            "config.json is another model's"
        )
    return causal_lm


def without_dropout(config: PretrainedConfig) -> PretrainedConfig:
    """The configuration with every dropout set to 0, in place."""
    for name, value in config.to_dict().items():
        if ("dropout" in name or name.endswith("pdrop")) and isinstance(value, float):
            setattr(config, name, 0.0)
    return config


def _what_is_wrong(location: str | Path, error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return (
            f"{location} needs Python code of its own (auto_map in its config.json), which is never run: give a model "
            "of an architecture that transformers has"
        )
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    if isinstance(error, OSError) and not Path(location).is_dir():
        return (
            f"no policy {str(location)!r} as a file, a folder or in reach of the hub; "
            "give a .ckpt file or a folder with config.json, weights and tokenizer"
        )
    return f"{location} can't be opened as a causal LM, half-written perhaps ({reason})"
