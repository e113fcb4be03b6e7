"""A local causal LM as judge: asked which response is better, read by the log-probabilities of both answers."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64
from lightning.fabric.utilities import move_data_to_device
from scipy.special import expit

from overopt.data.chat_template import Message, encode_chat
from overopt.data.packing import Packing
from overopt.data.prompt_format import encode_prompts, encode_texts
from overopt.data.tokenization import padding_id
from overopt.evaluation.judges.budget import Budget
from overopt.evaluation.judges.protocol import Judge, OnVerdict, ignore
from overopt.evaluation.judges.question import DEFAULT_TEMPLATE, Question
from overopt.evaluation.records import Comparison, Verdict
from overopt.models.compute import stage_device
from overopt.models.policy import Policy, load_policy, weights_hash
from overopt.packed_tokens import PromptGroup

# What makes a model that was never taught to converse answer rather than go on asking.
_LEAD = "\n\nAnswer:"


class CausalLMJudge(Judge):
    """Win probability sigmoid(log p(first answer) - log p(second answer)) after the question.

    Nothing is sampled and nothing parsed: however little of its probability the model leaves for the two answers, it is
    graded by how that little is shared out. The question goes through the model once, with both answers.

    Args:
        judge_lm: the judging model with its tokenizer, on the device to use.
        question: its text: the whole of what a user would say, the sample first. It is the user's turn of the
            tokenizer's chat template, where it has one, and can't write the template's marks.
        answers: that name the first and the second text.
        lead: what stands between the question and the answer, such as ``Preferred:``. By default nothing after a chat
            template, which opens the judge's turn itself, and ``Answer:`` on a line of its own without one.
        temperature: log-probabilities are divided by it.
        packing: how questions go through the model.
        name: of the model, for the record.

    Raises:
        ValueError: the temperature is not positive, or the answers are one and the same to the tokenizer.
    """

    def __init__(
        self,
        judge_lm: Policy,
        question: Callable[[Comparison], str],
        *,
        answers: tuple[str, str] = ("A", "B"),
        lead: str | None = None,
        temperature: float = 1.0,
        packing: Packing | None = None,
        name: str = "causal LM",
    ) -> None:
        if temperature <= 0:
            raise ValueError(f"need a judge temperature > 0, got {temperature}")
        self._judge_lm = judge_lm.eval()
        self._question = question
        self._has_template = bool(judge_lm.tokenizer.chat_template)
        self._lead = lead if lead is not None else "" if self._has_template else _LEAD
        self._temperature = temperature
        self._packing = packing or Packing()
        self._name = name
        space = " " if self._lead and not self._lead[-1].isspace() else ""
        self._answers = tuple(space + answer for answer in answers)
        first, second = (np.asarray(e.ids, np.int32) for e in encode_texts(self._answers, judge_lm.tokenizer))
        if not len(first) or not len(second) or np.array_equal(first, second):
            raise ValueError(
                f"the answers {answers[0]!r} and {answers[1]!r} can't be told apart by the tokenizer of {name}: give "
                "others, such as A and B"
            )
        self._answer_ids = (first, second)

    @property
    def reads_both(self) -> bool:
        """It does, the sample first."""
        return True

    @cached_property
    def settings(self) -> dict[str, str]:
        """The model by its weights, and all that shapes the question."""
        blank = Comparison("id", "<prompt>", "<sample>", "<opponent>", "<reference>")
        asked = f"{self._question(blank)}\0{self._judge_lm.tokenizer.chat_template if self._has_template else None}"
        return {
            "judge": self._name,
            "judge_weights": weights_hash(self._judge_lm)[:16],
            "judge_question": hashlib.sha256(asked.encode()).hexdigest()[:16],
            "judge_lead": self._lead,
            "judge_answers": " | ".join(self._answers),
            "judge_temperature": f"{self._temperature:g}",
        }

    def judge(
        self, comparisons: Sequence[Comparison], on_verdict: OnVerdict = ignore, budget: Budget | None = None
    ) -> list[Verdict]:
        """Graded verdicts.

        Raises:
            ValueError: a question is longer than the model can read; it is named.
        """
        verdicts: dict[int, Verdict] = {}
        for places, log_probs in self.answer_log_probs(comparisons):
            wins = expit((log_probs[:, 0] - log_probs[:, 1]) / self._temperature).tolist()
            for place, win in zip(places, wins, strict=True):
                verdicts[place] = Verdict("graded", win)
                on_verdict(place, verdicts[place])
        return [verdicts[place] for place in range(len(comparisons))]

    def answer_log_probs(
        self, comparisons: Sequence[Comparison]
    ) -> Iterator[tuple[list[int], Float64[np.ndarray, "place 2"]]]:
        """Log-probabilities of the first and the second answer after each question [nats], a forward pass at a time.

        Yields:
            Places of comparisons, and a row for each.
        """
        groups = [PromptGroup(np.asarray(ids, np.int32), self._answer_ids) for ids in self._question_ids(comparisons)]
        device = self._judge_lm.causal_lm.device
        for places, tokens in self._packing.batches(groups, padding_id(self._judge_lm.tokenizer)):
            on_device = move_data_to_device(tokens, device)
            with torch.inference_mode():
                totals = on_device.sums(self._judge_lm(on_device).double())
            yield places, totals.view(-1, 2).cpu().numpy()

    def _question_ids(self, comparisons: Sequence[Comparison]) -> list[list[int]]:
        tokenizer = self._judge_lm.tokenizer
        texts = [self._question(comparison) for comparison in comparisons]
        if self._has_template:
            [lead] = encode_texts([self._lead], tokenizer)
            asked = [
                encode_chat([Message("user", text)], tokenizer, add_generation_prompt=True) + lead.ids for text in texts
            ]
        else:
            asked = encode_prompts([text + self._lead for text in texts], tokenizer)
        room = getattr(self._judge_lm.causal_lm.config.get_text_config(), "max_position_embeddings", None)
        for comparison, ids in zip(comparisons, asked, strict=True):
            needed = len(ids) + max(map(len, self._answer_ids))
            if room is not None and needed > room:
                raise ValueError(
                    f"the question about {comparison.prompt_id!r} needs {needed} tokens, {self._name} reads {room}: "
                    "give a judge that reads more, or leave the prompt out"
                )
        return asked


def causal_lm_judge(
    model: str,
    template: Path = DEFAULT_TEMPLATE,
    lead: str | None = None,
    temperature: float = 1.0,
    micro_batch_tokens: int = 2048,
    shared_prompts: bool = True,
    packed: bool = True,
) -> CausalLMJudge:
    """A causal LM that is at hand, on the GPU where there is one, in float32.

    Args:
        model: a Hugging Face folder, a hub name, a .gguf file, a policy's .ckpt file, or ``smollm2-135m``.
        template: file of the question, which is answered by a letter.
        lead: what stands between the question and the answer, such as "Preferred:"; by default nothing after a chat
            template, which opens the judge's turn itself, and "Answer:" on a line of its own without one.
        temperature: log-probabilities are divided by it.
        micro_batch_tokens: of a forward pass.
        shared_prompts: the question once for both answers; off for architectures that can't.
        packed: questions of any length in one row; off for architectures that can't.
    """
    return CausalLMJudge(
        load_policy(model).to(stage_device()),
        Question(template, answers="letter").text,
        lead=lead,
        temperature=temperature,
        packing=Packing(shared_prompts, packed, micro_batch_tokens),
        name=f"causal LM {model}",
    )
