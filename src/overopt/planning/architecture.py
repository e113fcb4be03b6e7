"""The configuration of a policy that is to be trained, which may not be there yet."""

from pathlib import Path

from transformers import AutoConfig, PretrainedConfig

from overopt.checkpoints.format import read_checkpoint, read_description
from overopt.checkpoints.locations import pretrained
from overopt.models.pythia import pythia_config


def architecture_of(location: str) -> PretrainedConfig:
    """The Hugging Face configuration of a policy, without its weights.

    Args:
        location: as :func:`overopt.models.policy.load_policy` takes it; the published Pythias need no hub.

    Raises:
        ValueError: nothing there.
    """
    path = Path(location)
    if path.is_file() and path.suffix != ".gguf":
        return read_description(read_checkpoint(path)).config()
    pythia = None if path.exists() else pythia_config(location)
    if pythia is not None:
        return pythia
    try:
        name, gguf_file = pretrained("policy", location)
        config: PretrainedConfig = AutoConfig.from_pretrained(name, gguf_file=gguf_file, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(
            f"no policy at {location} to take the architecture from: say what it is or will be with --architecture, "
            "a Hugging Face folder or a name such as EleutherAI/pythia-1b"
        ) from error
    return config
