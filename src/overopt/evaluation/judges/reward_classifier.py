"""Any Hugging Face reward model as a judge: a sequence classifier whose one logit is the reward."""

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from inspect import signature
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast

from overopt.checkpoints.format import load_tokenizer
from overopt.data.chat_template import Message, encode_chat
from overopt.data.packing import Packing
from overopt.data.prompt_format import encode_prompts, encode_texts
from overopt.data.tokenization import end_of_text_id, tokenizer_hash
from overopt.evaluation.judges.budget import Budget
from overopt.evaluation.judges.protocol import Judge, OnVerdict, ignore
from overopt.evaluation.judges.reward_difference import RewardDifference
from overopt.evaluation.records import Comparison, Verdict
from overopt.models.compute import stage_device
from overopt.models.pretrained import model_hash, open_reward_classifier


class _Read(NamedTuple):
    """A prompt with its response as the classifier reads it."""

    input_ids: list[int]
    token_type_ids: list[int] | None = None


def _chat(prompt: str, response: str, tokenizer: PreTrainedTokenizerFast) -> _Read:
    return _Read(encode_chat([Message("user", prompt.strip()), Message("assistant", response.strip())], tokenizer))


def _pair(prompt: str, response: str, tokenizer: PreTrainedTokenizerFast) -> _Read:
    both = tokenizer(prompt.strip(), response.strip(), split_special_tokens=True, verbose=False)
    return _Read(both.input_ids, both.get("token_type_ids"))


def _joined(prompt: str, response: str, tokenizer: PreTrainedTokenizerFast) -> _Read:
    [prompt_ids], [encoding] = encode_prompts([prompt], tokenizer), encode_texts([response], tokenizer)
    return _Read([*prompt_ids, *encoding.ids, end_of_text_id(tokenizer)])


InputFormat = Literal["chat", "pair", "joined"]
_FORMATS: dict[str, Callable[[str, str, PreTrainedTokenizerFast], _Read]] = {
    "chat": _chat,
    "pair": _pair,
    "joined": _joined,
}


class RewardClassifierJudge(Judge):
    """Grades a comparison by the difference of two rewards (Eq. 1), as the model's own authors would compute them.

    A prompt that is too long loses its beginning, never its end or any of the response, since a response is what is
    judged; a warning says how many did (:attr:`cut_prompts`). A response that does not fit by itself is an error.

    Args:
        model: a Hugging Face folder or a hub name: a sequence classifier with one label.
        input_format: how it reads a prompt with its response: ``chat``, as a user's and an assistant's turn of its chat
            template; ``pair``, as its tokenizer's pair of texts; ``joined``, one after the other and an end of text, as
            the reward models of this project do. By default what the tokenizer has: a chat template, else a separator
            (pair), else joined.
        max_tokens: of a prompt with its response; by default what the model says that it can read.
        micro_batch_tokens: of a forward pass, padding included.
        temperature: rewards are divided by it: below 1 the judge is more decisive than the model.

    Raises:
        ValueError: the model can't be opened, has not one label, or has no chat template to read a chat by.
    """

    def __init__(
        self,
        model: str,
        input_format: InputFormat | None = None,
        max_tokens: int | None = None,
        micro_batch_tokens: int = 2048,
        temperature: float = 1.0,
    ) -> None:
        if temperature <= 0:
            raise ValueError(f"need a reward temperature > 0, got {temperature}")
        self._classifier = open_reward_classifier(model).to(stage_device())
        self._tokenizer = load_tokenizer(model)
        if input_format == "chat" and not self._tokenizer.chat_template:
            raise ValueError(f"the tokenizer of {model} has no chat template: input_format is one of pair, joined")
        self._name = model
        self._format = input_format or _natural_format(self._tokenizer)
        self._encode = _FORMATS[self._format]
        self._room = self._readable_tokens(max_tokens)
        # One row a text: a stranger's classifier need not be able to keep texts of one row apart.
        self._packing = Packing(shared_prompts=False, one_row=False, max_tokens=micro_batch_tokens)
        self._temperature = temperature
        self._difference = RewardDifference()
        #: Inputs so far whose prompt lost its beginning.
        self.cut_prompts = 0

    def _readable_tokens(self, max_tokens: int | None) -> int:
        if max_tokens is not None:
            return max_tokens
        positions = getattr(self._classifier.config.get_text_config(), "max_position_embeddings", None)
        # Some models give -1 for no limit.
        room: int = min(n for n in (positions, self._tokenizer.model_max_length) if n is not None and n > 0)
        return room

    @cached_property
    def settings(self) -> dict[str, str]:
        """The model by its weights and tokenizer, and how it is read."""
        return {
            "judge": f"reward classifier {self._name}",
            "judge_weights": model_hash(self._classifier)[:16],
            "judge_tokenizer": tokenizer_hash(self._tokenizer)[:16],
            "judge_input_format": self._format,
            "judge_max_tokens": str(self._room),
            "judge_temperature": f"{self._temperature:g}",
        }

    def judge(
        self, comparisons: Sequence[Comparison], on_verdict: OnVerdict = ignore, budget: Budget | None = None
    ) -> list[Verdict]:
        """Graded verdicts, each with the sample's reward.

        Raises:
            ValueError: a response is too long, or a reward is no number.
        """
        before = self.cut_prompts
        verdicts = self._difference.verdicts(comparisons, self.rewards, on_verdict)
        if cut := self.cut_prompts - before:
            warnings.warn(
                f"the beginning of {cut} prompts was cut off: {self._name} reads {self._room} tokens of a prompt with "
                "its response",
                stacklevel=2,
            )
        return verdicts

    @torch.inference_mode()
    def rewards(self, prompts: Sequence[str], responses: Sequence[str]) -> Float64[np.ndarray, " response"]:
        """Reward of each response to its prompt."""
        read = [self._fitted(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
        rewards = np.zeros(len(read), dtype=np.float64)
        for share in self._packing.shares(range(len(read)), [len(row.input_ids) for row in read]):
            logits = self._logits([read[place] for place in share])
            rewards[share] = logits.squeeze(-1).double().cpu().numpy() / self._temperature
        return rewards

    def _fitted(self, prompt: str, response: str) -> _Read:
        read, left = self._encode(prompt, response, self._tokenizer), prompt
        while (excess := len(read.input_ids) - self._room) > 0:
            [encoding] = encode_texts([left], self._tokenizer)
            if excess >= len(encoding):
                raise ValueError(
                    f"a response that begins {response.strip()[:30]!r} leaves no room for its prompt: {self._name} "
                    f"reads {self._room} tokens; give shorter responses, or a judge that reads more"
                )
            # By characters: what is left must be text, for a template to read.
            left = left[max(1, encoding.offsets[excess][0]) :]
            read = self._encode(left, response, self._tokenizer)
        self.cut_prompts += left != prompt
        return read

    def _logits(self, read: Sequence[_Read]) -> Tensor:
        """One row a text, padded on the right."""
        config = self._classifier.config.get_text_config()
        own = config.pad_token_id
        padding = own
        if own is None or self._format == "joined":
            # Decoders read the last token whose id is not the padding's, and without one take no batch: an id that no
            # text has keeps them from overlooking an end of text that is their padding, too.
            used = Counter(token for row in read for token in row.input_ids)
            padding = next(token for token in range(config.vocab_size) if token not in used)
        arguments = {
            "input_ids": _padded([row.input_ids for row in read], padding),
            "attention_mask": _padded([[1] * len(row.input_ids) for row in read], 0),
        }
        types = [row.token_type_ids for row in read if row.token_type_ids is not None]
        if types and "token_type_ids" in signature(self._classifier.forward).parameters:
            arguments["token_type_ids"] = _padded(types, 0)
        config.pad_token_id = padding
        try:
            on_device = {name: values.to(self._classifier.device) for name, values in arguments.items()}
            logits: Tensor = self._classifier(**on_device).logits
        finally:
            config.pad_token_id = own
        return logits


def _natural_format(tokenizer: PreTrainedTokenizerFast) -> str:
    if tokenizer.chat_template:
        return "chat"
    return "joined" if tokenizer.sep_token is None else "pair"


def _padded(rows: list[list[int]], padding: int) -> Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=padding)
