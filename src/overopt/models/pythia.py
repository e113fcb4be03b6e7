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
    if shape is None or not name.startswith(HUB_PREFIX):
        return None
    return GPTNeoXConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.hidden,
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=False,
    )
