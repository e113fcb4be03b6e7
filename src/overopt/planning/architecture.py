"""The configuration of a policy that is to be trained, which may not be there yet."""

from pathlib import Path

from transformers import AutoConfig, GPTNeoXConfig, PretrainedConfig

from overopt.checkpoints.format import read_checkpoint, read_description

#: Hidden size, layers, heads and vocabulary of Pythia, so that a plan for one needs no hub.
PYTHIA = {
    "pythia-70m": (512, 6, 8, 50_304),
    "pythia-160m": (768, 12, 12, 50_304),
    "pythia-410m": (1024, 24, 16, 50_304),
    "pythia-1b": (2048, 16, 8, 50_304),
    "pythia-1.4b": (2048, 24, 16, 50_304),
    "pythia-2.8b": (2560, 32, 32, 50_304),
    "pythia-6.9b": (4096, 32, 32, 50_432),
    "pythia-12b": (5120, 36, 40, 50_688),
}


def architecture_of(location: str) -> PretrainedConfig:
    """The Hugging Face configuration of a policy, without its weights.

    Args:
        location: a checkpoint of this project, a Hugging Face folder, a Pythia's name, or a name on the hub.

    Raises:
        ValueError: nothing there.
    """
    path = Path(location)
    if path.is_file():
        return read_description(read_checkpoint(path)).config()
    pythia = PYTHIA.get(location.rpartition("/")[2].removesuffix("-deduped"))
    if pythia is not None and not path.exists():
        return neox_config(*pythia)
    is_path = path.suffix == ".ckpt" or path.is_absolute() or location.startswith(".") or path.is_dir()
    missing = (
        f"no policy at {location} to take the architecture from: say what it is or will be with --architecture, "
        "a Hugging Face folder or a name such as EleutherAI/pythia-1b"
    )
    if is_path and not (path / "config.json").is_file():
        raise ValueError(missing)
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(location)
    except OSError as error:
        raise ValueError(missing) from error
    return config


def neox_config(hidden_size: int, num_layers: int, num_heads: int, vocab_size: int) -> GPTNeoXConfig:
    """Of a Pythia of these sizes."""
    return GPTNeoXConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        intermediate_size=4 * hidden_size,
        tie_word_embeddings=False,
    )
