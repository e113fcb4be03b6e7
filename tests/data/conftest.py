"""Tokenizers small enough to count by hand."""

import pytest

from overopt.data.tokenization import train_bpe

SENTENCES = [
    "SUBREDDIT: r/gardening\n\nTITLE: Tomatoes\n\nPOST: My tomatoes turn brown.\n\nTL;DR:",
    " Brown tomatoes, what to do with the tomatoes?",
    " The tomatoes are watered each morning and each evening, and still they turn brown.",
]


@pytest.fixture(scope="session")
def byte_tokenizer():
    """One token a byte: no room for merges, so lengths are lengths of ASCII text."""
    return train_bpe(["abc"], vocab_size=258)


@pytest.fixture(scope="session")
def small_bpe():
    return train_bpe(SENTENCES, vocab_size=330)
