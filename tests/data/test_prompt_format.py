"""Prompts: their text, and what may be cut of it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from overopt.data import prompt_format
from overopt.data.prompt_format import (
    cut_prompt,
    cut_prompts,
    docstring_prompt,
    encode_prompts,
    is_news_prompt,
    normalise_response,
    recognise_tldr_prompt,
    tldr_prompt,
)
from overopt.data.schema import Prompt

# Bytes that merge, characters of several bytes, white space, and a mark spelled out.
pieces = st.sampled_from(["tomatoes", " ", "\n", "brown", "é", "日本", "<|endoftext|>", ".", " the", "\t", "🍅", "x"])
texts = st.lists(pieces, max_size=40).map("".join)


@pytest.mark.parametrize("subreddit", ["rust", "r/rust", "/r/rust", " r/rust"])
def test_a_subreddit_is_written_alike_with_and_without_its_prefix(subreddit):
    prompt = tldr_prompt(subreddit, " A title ", "A post.\n")
    assert prompt.text == "SUBREDDIT: r/rust\n\nTITLE: A title\n\nPOST: A post.\n\nTL;DR:"
    assert prompt.post == "A post."


names = st.from_regex(r"[A-Za-z0-9_]+", fullmatch=True)
titles = st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=30)
posts = st.lists(st.sampled_from(["word ", "\n", "TL;DR:", "POST: ", "TITLE: ", "é", "r/"]), max_size=12).map("".join)


@settings(deadline=None, max_examples=300)
@given(subreddit=names, title=titles, post=posts)
def test_recognising_inverts_the_tldr_template(subreddit, title, post):
    prompt = tldr_prompt(subreddit, title, post)
    assert recognise_tldr_prompt(prompt.text) == prompt
    assert recognise_tldr_prompt(prompt.text + " ") == prompt
    assert not is_news_prompt(prompt.text)


@settings(deadline=None, max_examples=300)
@given(subreddit=names, title=titles, post=posts)
def test_copies_with_single_line_breaks_are_recognised_alike(subreddit, title, post):
    prompt = tldr_prompt(subreddit, title, post)
    copy = f"SUBREDDIT: r/{subreddit}\nTITLE: {title.strip()}\nPOST: {prompt.post}\nTL;DR: "
    assert recognise_tldr_prompt(copy) == prompt


@pytest.mark.parametrize(
    "text",
    [
        "SUBREDDIT: r/a\n\nTITLE: t\n\nPOST: p",
        "SUBREDDIT: r/a\n\nTITLE: t\n\nPOST: p\n\nTL;DR: said",
        "SUBREDDIT: r/a\n\nPOST: p\n\nTL;DR:",
        "Read. SUBREDDIT: r/a\n\nTITLE: t\n\nPOST: p\n\nTL;DR:",
        "",
    ],
)
def test_other_texts_are_no_tldr_prompts(text):
    assert recognise_tldr_prompt(text) is None


@pytest.mark.parametrize("text", ["words", " words", "\n words \n"])
def test_a_response_has_exactly_one_space_before_it(text):
    assert normalise_response(text, "row") == " words"


@pytest.mark.parametrize("text", ["", " \n\t"])
def test_an_empty_response_is_an_error_that_names_its_example(text):
    with pytest.raises(ValueError, match=r"'t3_abc'.*empty"):
        normalise_response(text, "t3_abc")


@pytest.mark.parametrize(
    ("post", "max_tokens", "kept"),
    [
        ("one two\nthree four", 4 + 18, "one two\nthree four"),  # all 18 fit
        ("one two\nthree four", 4 + 14, "one two"),  # the newline is in the latter half of 14
        ("one two\nthree four", 4 + 17, "one two\nthree"),  # not of 17, but the space is
        ("one two\nthree four", 4 + 7, "one two"),  # what fits ends exactly at the newline
        ("a\nthree four five", 4 + 14, "a\nthree four"),  # this newline comes too early; the space does not
        ("a\nthree-four-five", 4 + 12, "a\nthree-four"),  # no space either: between any two characters
        ("one \n two", 4 + 8, "one"),  # white space before the cut goes
        ("one two", 4 + 0, ""),
    ],
)
def test_a_post_is_cut_at_a_newline_else_at_a_space_else_anywhere(byte_tokenizer, post, max_tokens, kept):
    assert cut_prompt(Prompt("P:", post, "|?"), byte_tokenizer, max_tokens) == f"P:{kept}|?"


@settings(deadline=None, max_examples=300)
@given(prefix=texts, post=st.none() | texts, suffix=texts, max_tokens=st.integers(1, 60))
def test_a_prompt_is_cut_only_in_its_post_and_only_as_needed(small_bpe, prefix, post, suffix, max_tokens):
    prompt = Prompt(prefix, post, suffix)

    def tokens(text):
        return encode_prompts([text], small_bpe)[0]

    may_be_cut = bool(post) and len(tokens(prefix + suffix)) <= max_tokens
    try:
        cut = cut_prompts([prompt], small_bpe, max_tokens, example_ids=["row"])[0]
    except ValueError:
        # A prompt that is all post can be cut to nothing, and nothing is no prompt.
        assert not prefix + suffix or (len(tokens(prompt.text)) > max_tokens and not may_be_cut)
        return
    assert cut.token_ids == tokens(cut.text)
    assert 0 < len(cut.token_ids) <= max_tokens
    assert cut.was_cut == (cut.text != prompt.text)
    assert cut.was_cut == (len(tokens(prompt.text)) > max_tokens)
    kept = cut.text[len(prefix) : len(cut.text) - len(suffix)]
    assert cut.text == prefix + kept + suffix
    assert (post or "").startswith(kept)


@settings(deadline=None, max_examples=300)
@given(subreddit=names, title=titles, post=texts, max_tokens=st.integers(20, 90))
def test_a_tldr_prompt_keeps_all_but_its_post(small_bpe, subreddit, title, post, max_tokens):
    prompt = tldr_prompt(subreddit, title, post)
    try:
        cut = cut_prompt(prompt, small_bpe, max_tokens)
    except ValueError:
        assert len(encode_prompts([prompt.prefix + prompt.suffix], small_bpe)[0]) > max_tokens
        return
    assert cut.startswith(f"SUBREDDIT: r/{subreddit}\n\nTITLE: {title.strip()}\n\nPOST: ")
    assert cut.endswith("\n\nTL;DR:")
    assert recognise_tldr_prompt(cut) is not None


@settings(deadline=None, max_examples=300)
@given(post=st.text("ab \n", min_size=1, max_size=60), room=st.integers(1, 50))
def test_a_post_is_cut_at_a_newline_wherever_the_latter_half_has_one(byte_tokenizer, post, room):
    cut = cut_prompt(Prompt("P:", post, "|"), byte_tokenizer, 3 + room)
    kept = cut.removeprefix("P:").removesuffix("|")
    if kept == post:
        assert len(post) <= room
        return
    lost = post[len(kept) :]
    between = lost[: len(lost) - len(lost.lstrip())]  # what the cut took with it
    if "\n" in post[room // 2 : room + 1]:
        assert "\n" in between
    elif " " in post[room // 2 : room + 1]:
        assert between
    else:
        assert len(kept) == len(post[:room].rstrip())


def test_a_cut_of_plain_words_wastes_less_than_a_word(small_bpe):
    post = " tomatoes" * 200
    cut = cut_prompts([Prompt("P:", post, "\nTL;DR:")], small_bpe, 100, example_ids=["row"])[0]
    longer = cut.text.replace("\nTL;DR:", " tomatoes\nTL;DR:")
    assert len(cut.token_ids) <= 100 < len(encode_prompts([longer], small_bpe)[0])


@settings(deadline=None, max_examples=50)
@given(posts=st.lists(texts, min_size=1, max_size=8), max_tokens=st.integers(8, 20))
def test_looking_at_heads_and_in_chunks_changes_no_prompt(small_bpe, posts, max_tokens):
    prompts = [Prompt("P:", post * 5, "?") for post in posts]
    names = [str(row) for row in range(len(prompts))]
    together = cut_prompts(prompts, small_bpe, max_tokens, example_ids=names)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prompt_format, "HEAD_CHARACTERS_PER_TOKEN", 10**6)
        patch.setattr(prompt_format, "ENCODING_CHUNK", 2)
        assert cut_prompts(prompts, small_bpe, max_tokens, example_ids=names) == together


def test_a_long_post_of_long_tokens_is_not_cut(small_bpe):
    post = " tomatoes" * 40
    prompt = Prompt("", post, "?")
    needed = len(encode_prompts([prompt.text], small_bpe)[0])
    assert len(post) > prompt_format.HEAD_CHARACTERS_PER_TOKEN * needed  # else nothing is tested
    assert cut_prompt(prompt, small_bpe, needed) == prompt.text


def test_a_tokenizer_that_opens_texts_with_a_mark_does_so_within_the_limit(byte_tokenizer):
    backend = type(byte_tokenizer.backend_tokenizer).from_str(byte_tokenizer.backend_tokenizer.to_str())
    backend.add_special_tokens(["<s>"])
    begin = backend.token_to_id("<s>")
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="<|endoftext|>")
    cut = cut_prompts([Prompt("P:", "one two", "?")], tokenizer, 8, example_ids=["row"])[0]
    assert cut.text == "P:one?"
    assert cut.token_ids == [begin, *encode_prompts(["P:one?"], byte_tokenizer)[0]]


def test_a_prompt_without_a_post_that_is_too_long_names_its_example_and_the_way_out(byte_tokenizer):
    fits = Prompt("four")
    with pytest.raises(ValueError, match=r"'row 2'.* 6 tokens, 5 are allowed.*'post'"):
        cut_prompts([fits, Prompt("sixsix")], byte_tokenizer, 5, example_ids=["row 1", "row 2"])
    assert cut_prompt(fits, byte_tokenizer, 4) == "four"


def test_a_prompt_too_long_without_its_post_is_an_error(byte_tokenizer):
    with pytest.raises(ValueError, match=r"'row'.* 5 tokens even without its post, 4 are allowed"):
        cut_prompt(Prompt("abc", "post", "de"), byte_tokenizer, 4, example_id="row")


def test_an_empty_prompt_is_an_error(byte_tokenizer):
    with pytest.raises(ValueError, match="'row': the prompt is empty"):
        cut_prompt(Prompt(""), byte_tokenizer, 4, example_id="row")


def test_no_room_at_all_is_an_error(byte_tokenizer):
    with pytest.raises(ValueError, match="max_tokens=0"):
        cut_prompt(Prompt("a"), byte_tokenizer, 0)


def test_each_prompt_needs_a_name(byte_tokenizer):
    with pytest.raises(ValueError, match="1 prompts but 0 example ids"):
        cut_prompts([Prompt("a")], byte_tokenizer, 4, example_ids=[])


def test_a_docstring_prompt_can_be_cut_in_its_body(byte_tokenizer):
    prompt = docstring_prompt("math.sqrt", "The root.\nNever negative.\n")
    assert prompt.text == "math.sqrt\nThe root.\nNever negative.\nSummary:"
    assert cut_prompt(prompt, byte_tokenizer, 30) == "math.sqrt\nThe root.\nSummary:"
