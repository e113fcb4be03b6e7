"""A fast tokenizer as one JSON text, so that a checkpoint carries its own."""

import json

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast


def tokenizer_to_json(tokenizer: PreTrainedTokenizerFast) -> str:
    """A fast tokenizer as one JSON text: what decides the ids of a text, and the text of ids."""
    return json.dumps(
        {
            "tokenizer": json.loads(tokenizer.backend_tokenizer.to_str()),
            "bos_token": tokenizer.bos_token,
            "eos_token": tokenizer.eos_token,
            "pad_token": tokenizer.pad_token,
            "clean_up_tokenization_spaces": tokenizer.clean_up_tokenization_spaces,
        }
    )


def tokenizer_from_json(text: str) -> PreTrainedTokenizerFast:
    """Undo :func:`tokenizer_to_json`."""
    settings = json.loads(text)
    backend = Tokenizer.from_str(json.dumps(settings.pop("tokenizer")))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **settings)
