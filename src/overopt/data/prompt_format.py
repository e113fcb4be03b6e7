"""Post -> prompt text, and how a prompt that is too long is cut."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from tokenizers import Encoding
from transformers import PreTrainedTokenizerFast

from overopt.data.schema import Prompt

# Encodings hold offsets besides ids: a whole data set of them at once would take gigabytes.
ENCODING_CHUNK = 2_048

# English has two to four and a half a token; a post with more than this is tokenised whole.
HEAD_CHARACTERS_PER_TOKEN = 5
# Tokens by which a text's beginning could count more than in the whole: its last word, cut in two.
HEAD_MARGIN = 32

# The TL;DR template as published copies have it: parts set off by an empty line (OpenAI, TRL) or by none (CarperAI).
_TLDR_TEXT = re.compile(
    r"SUBREDDIT: r/(?P<subreddit>[^\n]*)(?P<gap>\n\n?)"
    r"TITLE: ?(?P<title>.*?)(?P=gap)"
    r"POST: ?(?P<post>.*)(?P=gap)"
    r"TL;DR: ?",
    re.DOTALL,
)
# The same for the news articles that were compared along with the posts, as TRL writes them.
_NEWS_TEXT = re.compile(r"(TITLE: [^\n]*\n\n|Article:\n).*\n\nTL;DR: ?", re.DOTALL)


def tldr_prompt(subreddit: str, title: str, post: str) -> Prompt:
    r"""The Reddit summarisation prompt of Stiennon et al. 2020 (arXiv:2009.01325).

    Args:
        subreddit: with or without its leading ``r/``.
        title: the post's title.
        post: the post's text, the only part that may be cut.

    >>> tldr_prompt("r/AskReddit", "Why?", "Because.").text
    'SUBREDDIT: r/AskReddit\n\nTITLE: Why?\n\nPOST: Because.\n\nTL;DR:'
    """
    name = subreddit.strip().removeprefix("/").removeprefix("r/")
    return Prompt(
        prefix=f"SUBREDDIT: r/{name}\n\nTITLE: {title.strip()}\n\nPOST: ",
        post=post.strip(),
        suffix="\n\nTL;DR:",
    )


def recognise_tldr_prompt(text: str) -> Prompt | None:
    r"""The :func:`tldr_prompt` whose text this is, or one like it; ``None`` for any other text.

    Its text is the canonical one, whatever line breaks the copy at hand has between its parts, so that models and
    caches see one prompt; and its post may be cut, which a text alone does not say.

    >>> carper = "SUBREDDIT: r/dogs\nTITLE: A sock\nPOST: It ate one.\nTL;DR: "
    >>> recognise_tldr_prompt(carper) == tldr_prompt("dogs", "A sock", "It ate one.")
    True
    """
    match = _TLDR_TEXT.fullmatch(text)
    return tldr_prompt(match["subreddit"], match["title"], match["post"]) if match else None


def is_news_prompt(text: str) -> bool:
    r"""Whether a text is a CNN/DM article in the template that stands beside TL;DR posts in published copies.

    >>> is_news_prompt("TITLE: Storm\n\n(CNN) -- Rain.\n\nTL;DR:"), is_news_prompt("Storm. TL;DR:")
    (True, False)
    """
    return _NEWS_TEXT.fullmatch(text) is not None


def docstring_prompt(name: str, body: str) -> Prompt:
    r"""The prompt of the embedded default, kept short: its models see some fifty tokens of prompt.

    >>> docstring_prompt("math.sqrt", "The root is never negative.").text
    'math.sqrt\nThe root is never negative.\nSummary:'
    """
    return Prompt(prefix=f"{name}\n", post=body.strip(), suffix="\nSummary:")


def normalise_response(text: str, example_id: str) -> str:
    r"""The response with exactly one space before it and nothing after it.

    Raises:
        ValueError: nothing is left of it.

    >>> normalise_response("A summary. \n", "row 1")
    ' A summary.'
    """
    stripped = text.strip()
    if not stripped:
        raise ValueError(f"example {example_id!r}: the response is empty; leave the row out or give it text")
    return f" {stripped}"


def encode_texts(texts: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> list[Encoding]:
    """Token ids and offsets of each text, with no special token in it.

    Nothing is added, and a mark that is spelled out in the text (documentation of language models is full
    of ``<|endoftext|>``) is text like any other: else a response could end in its middle.
    """
    if not texts:
        return []
    encodings: list[Encoding] = tokenizer(
        list(texts),
        add_special_tokens=False,
        split_special_tokens=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,  # no warning about the model's length: length is our caller's subject
    ).encodings
    return encodings


def encode_prompts(texts: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    """Token ids of each prompt text, as every stage must encode it.

    The begin-of-text token comes first where the tokenizer itself opens each text with it (Llama's does,
    Pythia's does not).
    """
    opening = _opening_ids(tokenizer)
    return [opening + encoding.ids for encoding in encode_texts(texts, tokenizer)]


class CutPrompt(NamedTuple):
    """A prompt that fits.

    Attributes:
        text: the prompt as the policy sees it.
        token_ids: always what :func:`encode_prompts` makes of ``text``.
        was_cut: whether part of the post is missing.
    """

    text: str
    token_ids: list[int]
    was_cut: bool


def cut_prompts(
    prompts: Sequence[Prompt],
    tokenizer: PreTrainedTokenizerFast,
    max_tokens: int,
    *,
    example_ids: Sequence[str],
) -> list[CutPrompt]:
    """Each prompt as text of at most ``max_tokens`` tokens; only posts are cut, from their end.

    A document is cut at the last newline in the latter half of what would fit, else at the last white
    space there, else between any two characters. What is cut is the text, then tokenised again: token ids
    alone could not be got back from the text that a person or a judge sees.

    Args:
        prompts: the prompts.
        tokenizer: of the policy.
        max_tokens: length allowed [tokens].
        example_ids: a name for each prompt, used in errors only.

    Raises:
        ValueError: a prompt is empty, or is too long and has no post, or is too long without its post.
    """
    if max_tokens < 1:
        raise ValueError(f"a prompt needs room for at least 1 token, got {max_tokens=}")
    if len(prompts) != len(example_ids):
        raise ValueError(f"{len(prompts)} prompts but {len(example_ids)} example ids")
    fitted: list[CutPrompt] = []
    for start in range(0, len(prompts), ENCODING_CHUNK):
        chunk = slice(start, start + ENCODING_CHUNK)
        fitted += _cut_chunk(prompts[chunk], tokenizer, max_tokens, example_ids[chunk])
    return fitted


def cut_prompt(
    prompt: Prompt, tokenizer: PreTrainedTokenizerFast, max_tokens: int, *, example_id: str = "(unnamed)"
) -> str:
    """The text of one prompt, cut as :func:`cut_prompts` does."""
    return cut_prompts([prompt], tokenizer, max_tokens, example_ids=[example_id])[0].text


def _opening_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    begin = tokenizer.bos_token_id
    if begin is None:
        return []
    opening: list[int] = tokenizer("").input_ids
    return [begin] if opening[:1] == [begin] else []


def _cut_chunk(
    prompts: Sequence[Prompt],
    tokenizer: PreTrainedTokenizerFast,
    max_tokens: int,
    example_ids: Sequence[str],
) -> list[CutPrompt]:
    opening = _opening_ids(tokenizer)
    allowed = max_tokens - len(opening)
    fitted: dict[int, CutPrompt] = {}
    posts = {row: prompt.post for row, prompt in enumerate(prompts)}
    # Most posts are many times too long for a small model: nearly all of the time would go into tokenising
    # what is then thrown away. So look at their beginnings first; most of them are proof enough.
    heads = {
        row: prompt.post[: HEAD_CHARACTERS_PER_TOKEN * allowed]
        for row, prompt in enumerate(prompts)
        if prompt.post is not None and len(prompt.post) > HEAD_CHARACTERS_PER_TOKEN * allowed
    }
    posts |= heads
    while posts:
        texts = [prompts[row].prefix + (post or "") + prompts[row].suffix for row, post in posts.items()]
        encodings = encode_texts(texts, tokenizer)
        next_posts: dict[int, str | None] = {}
        for (row, post), text, encoding in zip(posts.items(), texts, encodings, strict=True):
            prompt = prompts[row]
            if not text:
                raise ValueError(f"example {example_ids[row]!r}: the prompt is empty")
            if heads.pop(row, None) is not None and len(encoding) <= allowed + HEAD_MARGIN:
                next_posts[row] = prompt.post
                continue
            if len(encoding) <= allowed:
                fitted[row] = CutPrompt(text, opening + encoding.ids, was_cut=post != prompt.post)
                continue
            found = f"example {example_ids[row]!r}: the prompt has {len(encoding) + len(opening)} tokens"
            if post is None:
                raise ValueError(
                    f"{found}, {max_tokens} are allowed, and this row does not say which part of it may be"
                    " cut: allow more prompt tokens, leave the row out, or give the document as 'post'"
                )
            if not post:
                raise ValueError(
                    f"{found} even without its post, {max_tokens} are allowed:"
                    " allow more prompt tokens or leave the row out"
                )
            next_posts[row] = _shorter_post(prompt, post, encoding, allowed)
        posts = next_posts
    return [fitted[row] for row in range(len(prompts))]


def _shorter_post(prompt: Prompt, post: str, encoding: Encoding, allowed: int) -> str:
    """A strictly shorter post that fits, or nearly: tokens may merge otherwise at the new end."""
    post_start = len(prompt.prefix)
    suffix_start = post_start + len(post)
    first_suffix_token = next(
        (
            token
            for character in range(suffix_start, suffix_start + len(prompt.suffix))
            # None for a character that a tokenizer drops.
            if (token := encoding.char_to_token(character)) is not None
        ),
        len(encoding),
    )
    last_kept = allowed - (len(encoding) - first_suffix_token) - 1
    span = encoding.token_to_chars(last_kept) if last_kept >= 0 else None
    end = max(0, min((span[1] if span else 0) - post_start, len(post) - 1))
    newline = post.rfind("\n", end // 2, end + 1)
    if newline >= 0:
        return post[:newline].rstrip()
    spaces = [match.start() for match in re.finditer(r"\s", post[end // 2 : end + 1])]
    return post[: end // 2 + spaces[-1] if spaces else end].rstrip()
