"""Tokenizers, responses and batches, against counts done by hand."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from overopt.data.packing import Packing
from overopt.data.prompt_format import encode_prompts
from overopt.data.schema import Demonstration, PreferenceExample, Prompt
from overopt.data.tokenization import (
    TokenizationCounts,
    encode_response,
    encode_responses,
    end_of_text_id,
    padding_id,
    tokenize_demonstrations,
    tokenize_preferences,
    tokenizer_hash,
    train_bpe,
)

TEXTS = ["the cat sat on the mat", "a cat and a dog sat there", "dogs sit, cats sit", "mats are sat on"] * 3

ids = st.lists(st.integers(2, 200), min_size=1, max_size=6).map(lambda row: np.asarray(row, dtype=np.int32))


def without_marks(tokenizer, **marks):
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, **marks)


def test_the_same_texts_in_any_order_give_the_same_tokenizer():
    shuffled = TEXTS.copy()
    random.Random(0).shuffle(shuffled)
    first, second = train_bpe(TEXTS, 290), train_bpe(iter(shuffled), 290)
    assert shuffled != TEXTS
    assert len(first) > 258  # it has learned merges
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()
    assert tokenizer_hash(first) == tokenizer_hash(second)


def test_the_marks_are_the_first_tokens_and_padding_is_not_the_end_of_text(small_bpe):
    assert small_bpe.convert_tokens_to_ids(["<|endoftext|>", "<|padding|>"]) == [0, 1]
    assert (end_of_text_id(small_bpe), padding_id(small_bpe)) == (0, 1)


@settings(deadline=None)
@given(text=st.text())
def test_any_text_comes_back_from_its_tokens(small_bpe, text):
    token_ids, truncated = encode_response(text, small_bpe, max_response_tokens=10_000)
    assert not truncated
    assert small_bpe.decode(token_ids[:-1]) == text


def test_a_vocabulary_without_room_for_all_bytes_is_an_error():
    with pytest.raises(ValueError, match=r"at least 258.*vocab_size=257"):
        train_bpe(TEXTS, 257)


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_a_vocabulary_from_no_text_is_an_error(texts):
    with pytest.raises(ValueError, match="no text"):
        train_bpe(texts, 300)


def test_a_response_that_fits_with_its_end_of_text_has_one(byte_tokenizer):
    token_ids, truncated = encode_response(" abc", byte_tokenizer, max_response_tokens=5)
    assert (len(token_ids), token_ids[-1], truncated) == (5, 0, False)


def test_a_response_one_token_longer_is_cut_and_has_no_end_of_text(byte_tokenizer):
    token_ids, truncated = encode_response(" abcd", byte_tokenizer, max_response_tokens=5)
    assert (byte_tokenizer.decode(token_ids), truncated) == (" abcd", True)
    token_ids, truncated = encode_response(" abcdef", byte_tokenizer, max_response_tokens=5)
    assert (byte_tokenizer.decode(token_ids), truncated) == (" abcd", True)


@settings(deadline=None)
@given(text=st.text(), max_response_tokens=st.integers(2, 12))
def test_a_response_ends_with_the_end_of_text_exactly_when_it_was_not_cut(small_bpe, text, max_response_tokens):
    (whole, _), (fitted, truncated) = (
        encode_response(text, small_bpe, max_tokens) for max_tokens in (10_000, max_response_tokens)
    )
    assert truncated == (len(whole) > max_response_tokens)
    assert fitted == whole[:max_response_tokens]
    assert (fitted[-1] == 0) == (not truncated)


def test_a_mark_spelled_out_in_a_text_is_text(small_bpe):
    text = " stops at <|endoftext|> or <|padding|> or not"
    token_ids, _ = encode_response(text, small_bpe, 200)
    assert 0 not in token_ids[:-1]
    assert 1 not in token_ids
    assert small_bpe.decode(token_ids[:-1]) == text
    assert 0 not in encode_prompts([text], small_bpe)[0]


def test_a_response_needs_room_for_a_token_and_its_end(small_bpe):
    with pytest.raises(ValueError, match="max_response_tokens=1"):
        encode_responses([" a"], small_bpe, 1)


def test_a_tokenizer_without_an_end_of_text_is_an_error_with_its_cure(byte_tokenizer):
    with pytest.raises(ValueError, match=r"no end-of-text token.*eos_token"):
        encode_response(" a", without_marks(byte_tokenizer), 5)


def test_padding_needs_no_pad_token_and_none_is_added(byte_tokenizer):
    pythia_like = without_marks(byte_tokenizer, eos_token="<|endoftext|>")
    before = len(pythia_like)
    assert padding_id(pythia_like) == 0
    assert pythia_like.pad_token is None
    assert len(pythia_like) == before


def test_a_tokenizer_keeps_its_hash_when_it_is_used_with_padding_and_truncation():
    tokenizer = train_bpe(TEXTS, 290)
    before = tokenizer_hash(tokenizer)
    tokenizer(TEXTS[:2], padding=True, truncation=True, max_length=4)
    assert tokenizer.backend_tokenizer.padding is not None  # the call does leave something behind
    assert tokenizer_hash(tokenizer) == before


def test_the_hash_tells_vocabularies_and_marks_apart(byte_tokenizer, small_bpe):
    variants = [
        byte_tokenizer,
        small_bpe,
        without_marks(byte_tokenizer, eos_token="<|endoftext|>"),
        without_marks(byte_tokenizer, eos_token="<|padding|>"),
        without_marks(byte_tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>"),
    ]
    assert len({tokenizer_hash(variant) for variant in variants}) == len(variants)


def test_demonstrations_are_tokenised_with_prompt_and_response_apart_and_cuts_counted(byte_tokenizer):
    examples = [
        Demonstration("fits", "1", Prompt("P:", "abc", "?"), " xy"),
        Demonstration("prompt too long", "2", Prompt("P:", "abc def", "?"), " xy"),
        Demonstration("response too long", "3", Prompt("P:", "abc", "?"), " wxyz"),
    ]
    tokenized, counts = tokenize_demonstrations(examples, byte_tokenizer, max_prompt_tokens=8, max_response_tokens=4)
    assert counts == TokenizationCounts(prompts=3, cut_prompts=1, responses=3, truncated_responses=1)
    assert [example.example_id for example in tokenized] == ["fits", "prompt too long", "response too long"]
    assert [byte_tokenizer.decode(example.prompt_ids) for example in tokenized] == ["P:abc?"] * 3
    assert [byte_tokenizer.decode(example.response_ids) for example in tokenized] == [
        " xy<|endoftext|>",
        " xy<|endoftext|>",
        " wxy",
    ]


def test_pairs_count_both_responses_and_share_the_array_of_their_prompt(byte_tokenizer):
    examples = [
        PreferenceExample("first", "1", Prompt("P:", "abc", "?"), " a", " toolong"),
        PreferenceExample("second", "1", Prompt("P:", "abc", "?"), " toolong", " alsolong"),
    ]
    (first, second), counts = tokenize_preferences(examples, byte_tokenizer, max_prompt_tokens=6, max_response_tokens=4)
    assert counts == TokenizationCounts(prompts=2, cut_prompts=0, responses=4, truncated_responses=3)
    assert first.prompt_ids is second.prompt_ids
    assert byte_tokenizer.decode(first.chosen_ids) == " a<|endoftext|>"
    assert byte_tokenizer.decode(first.rejected_ids) == " too"
    assert byte_tokenizer.decode(second.rejected_ids) == " als"


words = st.lists(st.sampled_from(["cat", "sat", " ", "\n", "é", "<|endoftext|>"]), min_size=1, max_size=12).map("".join)


@settings(deadline=None, max_examples=200)
@given(
    rows=st.lists(st.tuples(words, words, words), min_size=1, max_size=4),
    max_prompt_tokens=st.integers(4, 12),
    max_response_tokens=st.integers(2, 10),
    shared=st.booleans(),
    packed=st.booleans(),
)
def test_every_token_of_every_response_counts_once_and_no_padding_does(
    small_bpe, rows, max_prompt_tokens, max_response_tokens, shared, packed
):
    pythia_like = without_marks(small_bpe, eos_token="<|endoftext|>")  # its padding has the id of the end of text
    assert padding_id(pythia_like) == end_of_text_id(pythia_like) == 0
    examples = [
        PreferenceExample(str(i), str(i), Prompt("P:", post, "?"), f" {chosen}", f" {rejected}")
        for i, (post, chosen, rejected) in enumerate(rows)
    ]
    limits = {"max_prompt_tokens": max_prompt_tokens, "max_response_tokens": max_response_tokens}
    tokenized, counts = tokenize_preferences(examples, pythia_like, **limits)
    packing = Packing(shared_prompts=shared, one_row=packed)
    batch = packing.pack([row.group for row in tokenized], padding_id(pythia_like))
    responses = [ids for row in tokenized for ids in (row.chosen_ids, row.rejected_ids)]
    assert batch.targets.tolist() == [token for ids in responses for token in ids]
    assert batch.lengths().tolist() == [len(ids) for ids in responses]
    ends = (batch.targets == end_of_text_id(pythia_like)).sum()
    assert ends == counts.responses - counts.truncated_responses
    assert all(len(row.prompt_ids) <= max_prompt_tokens for row in tokenized)
    assert max(map(len, responses)) <= max_response_tokens
    assert int(batch.input_ids.max()) < len(pythia_like)


def test_a_prompt_that_cannot_be_cut_is_an_error_that_names_the_example(byte_tokenizer):
    examples = [Demonstration("row 7", "1", Prompt("much too long"), " x")]
    with pytest.raises(ValueError, match="'row 7'"):
        tokenize_demonstrations(examples, byte_tokenizer, max_prompt_tokens=5, max_response_tokens=4)


def test_no_examples_are_no_tokens(byte_tokenizer):
    limits = {"max_prompt_tokens": 5, "max_response_tokens": 4}
    assert tokenize_demonstrations([], byte_tokenizer, **limits) == ([], TokenizationCounts(0, 0, 0, 0))
    assert tokenize_preferences([], byte_tokenizer, **limits) == ([], TokenizationCounts(0, 0, 0, 0))
