"""What evaluation keeps on disk: one JSON line per completion, enough to re-analyse without a model."""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from overopt.checkpoints.whole_file import whole_file

RecordT = TypeVar("RecordT")


@dataclass(frozen=True)
class Completion:
    """A response sampled from a policy, with all that was measured on it.

    Attributes:
        prompt_id: example id of the prompt.
        prompt: prompt text as the policy saw it.
        response: sampled text.
        token_ids: sampled tokens, the end of text included when it came.
        finished: false where the length limit came first.
        policy_log_prob: log pi(y|x), summed over tokens [nats].
        reference_log_prob: log pi_ref(y|x) of the same tokens [nats].
        k3: the k3 estimator of KL, summed over tokens [nats].
        opponent: the dataset's response it was judged against.
        win_probability: probability that the judge prefers the sample, ties counted as half; ``None``
            where there was no judge or its verdict could not be read.
        verdict: ``graded``, ``win``, ``loss``, ``tie``, ``unreadable`` or ``unjudged``.
        gold_reward: the gold reward model's reward of the sample; ``None`` without one.
        judge_answer: what the judge wrote, word for word, where it writes.
        first_preferred: probability that it preferred the text that it read first, where order matters.
        proxy_reward: of the reward models that the policy was optimised against; ``None`` where there were none.
    """

    prompt_id: str
    prompt: str
    response: str
    token_ids: list[int]
    finished: bool
    policy_log_prob: float
    reference_log_prob: float
    k3: float
    opponent: str
    win_probability: float | None = None
    verdict: str = "unjudged"
    gold_reward: float | None = None
    judge_answer: str | None = None
    first_preferred: float | None = None
    proxy_reward: float | None = None

    @property
    def response_tokens(self) -> int:
        """Length of the response [tokens]."""
        return len(self.token_ids)

    def with_verdict(self, verdict: "Verdict") -> "Completion":
        """The same, judged."""
        return replace(
            self,
            win_probability=verdict.win_probability,
            verdict=verdict.kind,
            gold_reward=verdict.sample_reward,
            judge_answer=verdict.answer,
            first_preferred=verdict.first_preferred,
        )


@dataclass(frozen=True)
class Comparison:
    """Two responses to one prompt, to be judged.

    Attributes:
        prompt_id: example id of the prompt.
        prompt: prompt text.
        sample: the policy's response.
        opponent: the dataset's response.
        reference: what a person wrote, where some judge wants to hold both against it.
    """

    prompt_id: str
    prompt: str
    sample: str
    opponent: str
    reference: str | None = None


@dataclass(frozen=True)
class Verdict:
    """A judge's answer to a comparison.

    Attributes:
        kind: ``graded``, ``win``, ``loss``, ``tie``; ``unreadable``, or ``refused`` by a judge that would not answer.
        win_probability: probability that the sample is preferred; a tie is one half; ``None`` where the judge can't be
            read or refused.
        sample_reward: the judge's reward of the sample, where it has such a thing.
        answer: what the judge wrote, word for word, where it writes.
        answered_by: the model that says it wrote it: of an alias, its snapshot.
        first_preferred: probability that it prefers the text that it read first, over the orders it was asked in;
            ``None`` where order does not matter or nothing could be read.
        cost: of the answer, in the currency of the price table; ``None`` without a price.
        input_tokens: that the endpoint counted; 0 without one.
        output_tokens: that it counted.
    """

    kind: str
    win_probability: float | None
    sample_reward: float | None = None
    answer: str | None = None
    answered_by: str | None = None
    first_preferred: float | None = None
    cost: float | None = None
    input_tokens: int = 0
    output_tokens: int = 0


def write_json_lines(path: Path, rows: Iterable[dict[str, object]]) -> None:
    """Write rows as JSON Lines; the file is whole or absent."""
    with whole_file(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


def read_json_lines(path: Path, kind: str, make: Callable[[dict[str, Any]], RecordT]) -> list[RecordT]:
    """Records of a file that :func:`write_json_lines` wrote.

    Args:
        path: the file.
        kind: what a record is called, for messages.
        make: a record out of a row; a KeyError or TypeError means that it is none.

    Raises:
        ValueError: no such file, or a line that is no record.
    """
    if not path.is_file():
        raise ValueError(f"no {kind}s at {path}")
    records = []
    # In bytes, whose lines end at a newline only: text may hold the line separators of Unicode.
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                records.append(make(json.loads(line)))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}, line {number}: no {kind} ({error})") from error
    return records


def write_completions(path: Path, completions: Iterable[Completion]) -> None:
    """Keep completions as JSON Lines."""
    write_json_lines(path, ({**asdict(c), "response_tokens": c.response_tokens} for c in completions))


def read_completions(path: Path) -> list[Completion]:
    """Completions that :func:`write_completions` kept.

    Raises:
        ValueError: no such file, or a line that is no completion.
    """
    names = [field.name for field in fields(Completion)]
    return read_json_lines(path, "completion", lambda row: Completion(**{name: row[name] for name in names}))
