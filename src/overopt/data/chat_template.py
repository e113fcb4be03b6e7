"""Messages -> token ids by a tokenizer's own chat template, in which no message can write the template's marks."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerFast

from overopt.data.prompt_format import encode_texts


class Message(NamedTuple):
    """One turn of a conversation.

    Attributes:
        role: who speaks, such as ``user`` or ``assistant``.
        content: what is said.
    """

    role: str
    content: str


def encode_chat(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerFast, *, add_generation_prompt: bool = False
) -> list[int]:
    """Token ids of a conversation, as ``apply_chat_template`` gives them, but for marks spelled out in a message.

    Those are text like any other: else a summary could end its turn and speak for the user.

    Args:
        messages: the turns; roles are ours, contents anybody's.
        tokenizer: one with a chat template.
        add_generation_prompt: end with what opens the assistant's turn.
    """
    marks = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    # No character of Unicode's private areas has a meaning, so none of these stands in a text that people wrote.
    shields = {mark: f"\ue000{number}\ue001" for number, mark in enumerate(marks)}
    spelled_out = any(mark in message.content for mark in marks for message in messages)
    text: str = tokenizer.apply_chat_template(
        [{"role": role, "content": _replaced(content, shields)} for role, content in messages],
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
    )
    if not spelled_out:
        ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return ids
    # What is left of marks is the template's: between them the tokenizer sees no others.
    parts = re.split("(" + "|".join(re.escape(mark) for mark in _longest_first(marks)) + ")", text)
    texts = {shield: mark for mark, shield in shields.items()}
    plain = iter(encode_texts([_replaced(part, texts) for part in parts[::2]], tokenizer))
    return [
        token
        for place, part in enumerate(parts)
        for token in ([tokenizer.convert_tokens_to_ids(part)] if place % 2 else next(plain).ids)
    ]


def _replaced(text: str, by: dict[str, str]) -> str:
    for old in _longest_first(by):
        text = text.replace(old, by[old])
    return text


def _longest_first(texts: Sequence[str] | dict[str, str]) -> list[str]:
    """Before what they begin with, as the tokenizer finds them."""
    return sorted(texts, key=len, reverse=True)
