"""Text -> token ids."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from overopt.data.prompt_format import ENCODING_CHUNK, CutPrompt, cut_prompts, encode_texts
from overopt.data.schema import Demonstration, PreferenceExample, Prompt
from overopt.packed_tokens import PromptGroup, TokenIds

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|padding|>"
# Every byte, and the two marks.
SMALLEST_VOCABULARY = 256 + 2


def train_bpe(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of its own for a model trained from scratch.

    As in Pythia's, token 0 is ``<|endoftext|>`` and token 1 ``<|padding|>``; unlike Pythia's it is declared
    as the pad token. The same texts give the same tokenizer, in whatever order they come.

    Args:
        texts: what the merges are learned from.
        vocab_size: tokens at most, both marks included; texts with few words give fewer.

    Raises:
        ValueError: the vocabulary has no room for the 256 bytes and both marks, or there is no text.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise ValueError(f"a byte-level vocabulary needs at least {SMALLEST_VOCABULARY} tokens, got {vocab_size=}")
    characters = 0

    def counted() -> Iterator[str]:
        nonlocal characters
        for text in texts:
            characters += len(text)
            yield text

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, PADDING],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(counted(), trainer)
    if not characters:
        raise ValueError("no text to learn a vocabulary from: the source or its training part is empty")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END_OF_TEXT,
        pad_token=PADDING,
        clean_up_tokenization_spaces=False,
    )


def end_of_text_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """The id that ends a response.

    Raises:
        ValueError: the tokenizer has none.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"the tokenizer {tokenizer.name_or_path or '(unnamed)'} has no end-of-text token, so no response"
            " could end: set eos_token in its tokenizer_config.json to a token of its vocabulary"
        )
    return int(tokenizer.eos_token_id)


def padding_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """The id written into padding: the pad token's, or 0 where there is none.

    Pythia has none, and none is added: an id outside its embedding would be needed, or the end of text
    would be masked with the padding. The masks say what padding is, so any valid id serves.
    """
    return 0 if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)


def tokenizer_hash(tokenizer: PreTrainedTokenizerFast) -> str:
    """SHA-256 (hexadecimal) of all that decides which ids a text gets: a part of cache keys."""
    definition = json.loads(tokenizer.backend_tokenizer.to_str())
    # Left there by the latest call with padding=True or truncation=True; we use neither.
    for call_state in ("padding", "truncation"):
        definition.pop(call_state, None)
    marks = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    return hashlib.sha256(json.dumps([definition, marks], sort_keys=True).encode()).hexdigest()


class EncodedResponse(NamedTuple):
    """A response's token ids; the last is the end of text unless ``truncated``."""

    token_ids: list[int]
    truncated: bool


def encode_responses(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, max_response_tokens: int
) -> list[EncodedResponse]:
    """Each response's ids, end of text included; one that does not fit is cut and has no end of text.

    A cut response without an end is the truth about it: with one, the policy would learn to stop there.

    Args:
        texts: responses, each with its leading space.
        tokenizer: of the policy.
        max_response_tokens: length allowed, the end of text included [tokens].

    Raises:
        ValueError: there is no room for a token and an end of text, or the tokenizer has no end of text.
    """
    if max_response_tokens < 2:
        raise ValueError(f"a response needs room for a token and its end of text, got {max_response_tokens=}")
    end = end_of_text_id(tokenizer)
    encoded = []
    for start in range(0, len(texts), ENCODING_CHUNK):
        for encoding in encode_texts(texts[start : start + ENCODING_CHUNK], tokenizer):
            truncated = len(encoding) + 1 > max_response_tokens
            ids = encoding.ids
            encoded.append(EncodedResponse(ids[:max_response_tokens] if truncated else [*ids, end], truncated))
    return encoded


def encode_response(text: str, tokenizer: PreTrainedTokenizerFast, max_response_tokens: int) -> EncodedResponse:
    """One response, encoded as :func:`encode_responses` does."""
    return encode_responses([text], tokenizer, max_response_tokens)[0]


class TokenizedDemonstration(NamedTuple):
    """A :class:`Demonstration` as token ids."""

    example_id: str
    prompt_ids: TokenIds
    response_ids: TokenIds

    @property
    def group(self) -> PromptGroup:
        """The prompt with its response."""
        return PromptGroup(self.prompt_ids, (self.response_ids,))


class TokenizedPreference(NamedTuple):
    """A :class:`PreferenceExample` as token ids."""

    example_id: str
    prompt_ids: TokenIds
    chosen_ids: TokenIds
    rejected_ids: TokenIds

    @property
    def group(self) -> PromptGroup:
        """The prompt with both responses, the chosen one first."""
        return PromptGroup(self.prompt_ids, (self.chosen_ids, self.rejected_ids))


@dataclass(frozen=True)
class TokenizationCounts:
    """What tokenising did to the examples.

    Attributes:
        prompts: examples tokenised.
        cut_prompts: examples whose post was cut.
        responses: responses tokenised; a pair has two.
        truncated_responses: responses that were cut and so have no end of text.
    """

    prompts: int
    cut_prompts: int
    responses: int
    truncated_responses: int


def tokenize_demonstrations(
    examples: Sequence[Demonstration],
    tokenizer: PreTrainedTokenizerFast,
    *,
    max_prompt_tokens: int,
    max_response_tokens: int,
) -> tuple[list[TokenizedDemonstration], TokenizationCounts]:
    """Demonstrations as token ids, in their order.

    Args:
        examples: the demonstrations.
        tokenizer: of the policy.
        max_prompt_tokens: longer prompts have their post cut [tokens].
        max_response_tokens: longer responses are cut; the end of text counts [tokens].

    Raises:
        ValueError: a prompt cannot be made to fit; see :func:`overopt.data.prompt_format.cut_prompts`.
    """
    prompts = _fitted_prompts(examples, tokenizer, max_prompt_tokens)
    responses = encode_responses([example.response for example in examples], tokenizer, max_response_tokens)
    tokenized = [
        TokenizedDemonstration(example.example_id, prompts[example.prompt].ids, _array(response.token_ids))
        for example, response in zip(examples, responses, strict=True)
    ]
    return tokenized, _counts(examples, prompts, responses)


def tokenize_preferences(
    examples: Sequence[PreferenceExample],
    tokenizer: PreTrainedTokenizerFast,
    *,
    max_prompt_tokens: int,
    max_response_tokens: int,
) -> tuple[list[TokenizedPreference], TokenizationCounts]:
    """Pairs as token ids, in their order; arguments and errors as :func:`tokenize_demonstrations`."""
    prompts = _fitted_prompts(examples, tokenizer, max_prompt_tokens)
    chosen = encode_responses([example.chosen for example in examples], tokenizer, max_response_tokens)
    rejected = encode_responses([example.rejected for example in examples], tokenizer, max_response_tokens)
    tokenized = [
        TokenizedPreference(
            example.example_id,
            prompts[example.prompt].ids,
            _array(chosen_response.token_ids),
            _array(rejected_response.token_ids),
        )
        for example, chosen_response, rejected_response in zip(examples, chosen, rejected, strict=True)
    ]
    return tokenized, _counts(examples, prompts, chosen + rejected)


class _FittedPrompt(NamedTuple):
    ids: TokenIds
    was_cut: bool


def _fitted_prompts(
    examples: Sequence[Demonstration] | Sequence[PreferenceExample],
    tokenizer: PreTrainedTokenizerFast,
    max_prompt_tokens: int,
) -> dict[Prompt, _FittedPrompt]:
    """Each different prompt once: a post has several pairs, which then share one array."""
    first_example: dict[Prompt, str] = {}
    for example in examples:
        first_example.setdefault(example.prompt, example.example_id)
    cut: list[CutPrompt] = cut_prompts(
        list(first_example), tokenizer, max_prompt_tokens, example_ids=list(first_example.values())
    )
    return {
        prompt: _FittedPrompt(_array(fitted.token_ids), fitted.was_cut)
        for prompt, fitted in zip(first_example, cut, strict=True)
    }


def _counts(
    examples: Sequence[Demonstration] | Sequence[PreferenceExample],
    prompts: dict[Prompt, _FittedPrompt],
    responses: Sequence[EncodedResponse],
) -> TokenizationCounts:
    return TokenizationCounts(
        prompts=len(examples),
        cut_prompts=sum(prompts[example.prompt].was_cut for example in examples),
        responses=len(responses),
        truncated_responses=sum(response.truncated for response in responses),
    )


def _array(token_ids: list[int]) -> TokenIds:
    # A Python list takes nine times the memory, and paper scale has 10^8 tokens.
    return np.asarray(token_ids, dtype=np.int32)
