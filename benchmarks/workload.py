"""The model and the pairs that every contender is given: TL;DR-shaped, drawn from seeded generators."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"


class Shape(NamedTuple):
    """Of a Pythia model."""

    hidden: int
    layers: int
    heads: int


SHAPES = {
    "70m": Shape(512, 6, 8),
    "160m": Shape(768, 12, 12),
    "410m": Shape(1024, 24, 16),
    "1b": Shape(2048, 16, 8),
    "2.8b": Shape(2560, 32, 32),
}


class Lengths(NamedTuple):
    """Of prompts, normally distributed, cut at both ends, and of responses, uniform [tokens]."""

    mean: float = 320
    spread: float = 90
    shortest: int = 60
    longest: int = 500
    shortest_response: int = 20
    longest_response: int = 50

    def scaled(self, by: float) -> "Lengths":
        """Shorter or longer prompts, the same responses."""
        shortest, longest = max(1, int(self.shortest * by)), int(self.longest * by)
        return self._replace(mean=self.mean * by, spread=self.spread * by, shortest=shortest, longest=longest)


TLDR = Lengths()


class Pair(NamedTuple):
    """Token ids; responses end with the end of text, id 0."""

    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray


def draw_pairs(count: int, lengths: Lengths, vocabulary: int, seed: int = 0) -> list[Pair]:
    """Pairs of uniformly drawn words."""
    draw = np.random.default_rng(seed)
    prompts = draw.normal(lengths.mean, lengths.spread, count).clip(lengths.shortest, lengths.longest).astype(int)
    responses = draw.integers(lengths.shortest_response, lengths.longest_response, (count, 2), endpoint=True)

    def words(length: int) -> np.ndarray:
        return draw.integers(1, vocabulary, length)

    return [
        Pair(words(prompt), np.append(words(chosen - 1), 0), np.append(words(rejected - 1), 0))
        for prompt, (chosen, rejected) in zip(prompts, responses, strict=True)
    ]


def word_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """One word a token, so that every contender gets the same ids out of the same text."""
    words = {END_OF_TEXT: 0} | {f"w{i}": i for i in range(1, vocabulary)}
    backend = Tokenizer(models.WordLevel(words, unk_token=END_OF_TEXT))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    # As in Pythia, nothing is declared as padding.
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END_OF_TEXT, bos_token=END_OF_TEXT)


def text(ids: np.ndarray) -> str:
    """Token ids as words, without the end of text."""
    return " ".join(f"w{i}" for i in ids if i)


def write_pairs(path: Path, pairs: list[Pair]) -> None:
    """As rows of prompt, chosen and rejected."""
    rows = [
        {
            "id": str(i),
            "post_id": str(i),
            "prompt": text(p.prompt),
            "chosen": text(p.chosen),
            "rejected": text(p.rejected),
        }
        for i, p in enumerate(pairs)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def random_model(shape: Shape, vocabulary: int, seed: int = 0, *, meta: bool = False) -> GPTNeoXForCausalLM:
    """A Pythia model with random float32 weights, or with shapes alone."""
    torch.manual_seed(seed)
    config = GPTNeoXConfig(
        vocab_size=vocabulary,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.hidden,
        max_position_embeddings=4096,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=False,
    )
    with torch.device("meta" if meta else "cpu"):
        return GPTNeoXForCausalLM(config)


def write_model(folder: Path, shape: Shape, vocabulary: int) -> None:
    """A Hugging Face folder of a random model."""
    random_model(shape, vocabulary).save_pretrained(folder)
    word_tokenizer(vocabulary).save_pretrained(folder)


def needed_flops(pairs: list[Pair], shape: Shape, vocabulary: int) -> float:
    """Floating-point operations that the mathematics of a DPO step needs, forward and backward (three times forward).

    Each prompt once, causal attention, the output head on response tokens only, nothing computed anew, no reference.
    """
    total = 0.0
    for prompt, chosen, rejected in pairs:
        tokens = len(prompt) + len(chosen) + len(rejected)
        keys = _triangle(len(prompt)) + sum(len(r) * len(prompt) + _triangle(len(r)) for r in (chosen, rejected))
        layer = 24 * shape.hidden**2 * tokens + 4 * shape.hidden * keys
        total += shape.layers * layer + 2 * shape.hidden * vocabulary * (len(chosen) + len(rejected))
    return 3 * total


def _triangle(length: int) -> float:
    return length * (length + 1) / 2
