"""The published Pythia models' shapes, so that what depends on shapes alone needs no hub."""

from typing import NamedTuple

from transformers import GPTNeoXConfig

HUB_PREFIX = "EleutherAI/pythia-"


class PythiaShape(NamedTuple):
    """Of one published model.

    Attributes:
        hidden: width of the residual stream; the MLP is four times as wide.
        layers: transformer blocks.
        heads: attention heads.
        vocabulary: rows of the embedding: the tokenizer's 50,277 tokens, padded.
    """

    hidden: int
    layers: int
    heads: int
    vocabulary: int = 50_304

    def config(self, *, max_tokens: int = 2048, end_of_text: int = 0) -> GPTNeoXConfig:
        """The Hugging Face configuration.

        Args:
            max_tokens: longest sequence.
            end_of_text: id of the token that ends a response, and by Pythia's custom begins a text.
        """
        return GPTNeoXConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            intermediate_size=4 * self.hidden,
            max_position_embeddings=max_tokens,
            bos_token_id=end_of_text,
            eos_token_id=end_of_text,
            tie_word_embeddings=False,
        )


#: Biderman et al. 2023 (arXiv:2304.01373), by the names on the hub.
PYTHIA_SUITE = {
    "70m": PythiaShape(512, 6, 8),
    "160m": PythiaShape(768, 12, 12),
    "410m": PythiaShape(1024, 24, 16),
    "1b": PythiaShape(2048, 16, 8),
    "1.4b": PythiaShape(2048, 24, 16),
    "2.8b": PythiaShape(2560, 32, 32),
    "6.9b": PythiaShape(4096, 32, 32, 50_432),
    "12b": PythiaShape(5120, 36, 40, 50_688),
}


def pythia_config(name: str) -> GPTNeoXConfig | None:
    """The configuration of a published Pythia model, or None where the name is no such model's.

    Args:
        name: on the hub, such as ``EleutherAI/pythia-1b``; its deduplicated sister has the same shape.
    """
    shape = PYTHIA_SUITE.get(name.removeprefix(HUB_PREFIX).removesuffix("-deduped"))
    return None if shape is None or not name.startswith(HUB_PREFIX) else shape.config()
