"""A fast tokenizer as one JSON text, so that a checkpoint carries its own."""

import json

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast


def tokenizer_to_json(tokenizer: PreTrainedTokenizerFast) -> str:
    """A fast tokenizer as one JSON text."""
    return json.dumps(
        {
            "tokenizer": json.loads(tokenizer.backend_tokenizer.to_str()),
            "eos_token": tokenizer.eos_token,
            "pad_token": tokenizer.pad_token,
        }
    )


def tokenizer_from_json(text: str) -> PreTrainedTokenizerFast:
    """Undo :func:`tokenizer_to_json`."""
    values = json.loads(text)
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(values["tokenizer"])),
        eos_token=values["eos_token"],
        pad_token=values["pad_token"],
    )
