"""A causal LM that others have made: nothing that comes with it is run, nothing missing is made up."""

from pathlib import Path

from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

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
        config = without_dropout(AutoConfig.from_pretrained(name, gguf_file=gguf_file, trust_remote_code=False))
        # A file may name an implementation that would be fetched from the hub; the default is as good.
        config._attn_implementation = None
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
    if missing := sorted(loading["missing_keys"]):
        # transformers would start them at random.
        raise ValueError(
            f"{location} lacks {len(missing)} of its model's weights, such as {missing[0]}: half-written, or "
            "config.json is another model's"
        )
    if gguf_file is None:
        return causal_lm
    # Loaded from GGUF a model is marked as quantised, though its weights no longer are, and can't be saved.
    plain = _new(config)
    plain.load_state_dict(causal_lm.state_dict())
    return plain


def _new(config: PretrainedConfig) -> PreTrainedModel:
    return AutoModelForCausalLM.from_config(config, dtype="float32", trust_remote_code=False)


def without_dropout(config: PretrainedConfig) -> PretrainedConfig:
    """The configuration with every dropout set to 0, in place."""
    for name, value in config.to_dict().items():
        if ("dropout" in name or name.endswith("pdrop")) and isinstance(value, float):
            setattr(config, name, 0.0)
    return config
