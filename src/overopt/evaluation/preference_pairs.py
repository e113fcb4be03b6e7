"""Preferences as Sec. 2.1 has them: responses sampled from a policy, labelled by a gold reward model or a judge."""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from overopt.data.datamodule import PreferenceDataModule
from overopt.data.splits import Part, post_position
from overopt.data.tokenization import end_of_text_id
from overopt.evaluation.judges.protocol import Judge
from overopt.evaluation.records import Comparison, read_json_lines, write_json_lines
from overopt.models.generation import sample_several
from overopt.models.policy import Policy

_LONGEST_PHRASE, _LONGEST_REPETITION = 4, 20  # words


@dataclass(frozen=True)
class SampledPair:
    """Two responses of one policy to one prompt, and the response a person wrote, not yet labelled.

    Attributes:
        id: unique within its file.
        post_id: the prompt's post, which splits go by.
        prompt: prompt text as the policy saw it.
        first: one sampled response.
        second: another.
        human: the dataset's response.
        split: the published split of the post, if the data names one.
    """

    id: str
    post_id: str
    prompt: str
    first: str
    second: str
    human: str
    split: str | None = None


def sample_pairs(
    policy: Policy,
    data: PreferenceDataModule,
    parts: Sequence[Part],
    *,
    max_pairs: int | None = None,
    max_evaluation_pairs: int | None = None,
    seed: int = 0,
    batch_size: int = 256,
    on_batch: Callable[[int, int], None] | None = None,
) -> list[SampledPair]:
    """Two samples for each prompt of the given parts of the posts.

    Args:
        policy: usually the SFT policy.
        data: set up; its demonstrations give prompts.
        parts: which posts: train, gold, evaluation.
        max_pairs: so many prompts at most of each part that is trained on, chosen by a hash of their posts.
        max_evaluation_pairs: the same of the evaluation part.
        seed: fixes the draws.
        batch_size: samples at a time.
        on_batch: told after each batch how many samples it had, and how many there will be.
    """
    chosen = [
        example
        for part in parts
        for example in sorted(
            data.part_of(data.read.demonstrations, part),
            key=lambda d: (post_position("pairs " + d.post_id), d.example_id),
        )[: max_evaluation_pairs if part == "evaluation" else max_pairs]
    ]
    tokenized = data.tokenize_demonstrations(chosen)
    prompts = [row.prompt_ids.tolist() for row in tokenized.tokenized]
    sampled = sample_several(
        policy.causal_lm,
        prompts,
        eos_token_id=end_of_text_id(policy.tokenizer),
        max_response_tokens=data.max_response_tokens,
        seeds=[2 * seed, 2 * seed + 1],
        batch_size=batch_size,
        on_batch=None if on_batch is None else lambda n: on_batch(n, 2 * len(prompts)),
    )

    def text(token_ids: list[int]) -> str:
        decoded: str = policy.tokenizer.decode(token_ids, skip_special_tokens=True)
        return decoded

    return [
        SampledPair(
            id=example.example_id,
            post_id=example.post_id,
            prompt=text(prompt),
            first=text(first.token_ids),
            second=text(second.token_ids),
            human=example.response,
            split=example.split,
        )
        for example, prompt, (first, second) in zip(chosen, prompts, sampled, strict=True)
    ]


class LabelledPairs(NamedTuple):
    """Rows for a preference file, and what could not be labelled.

    Attributes:
        rows: prompt, chosen, rejected with ids; by a judge also the ``probability`` that it preferred the chosen one,
            and ``flipped`` where the draw went against it.
        left_out: pairs without two different, non-empty responses or without a verdict, by reason.
    """

    rows: list[dict[str, object]]
    left_out: Counter[str]


def label_by_judge(pairs: Sequence[SampledPair], judge: Judge, *, seed: int = 0) -> LabelledPairs:
    """First against second sample, the label drawn with the judge's probability: Eq. 1 under a gold reward model.

    Args:
        pairs: what :func:`sample_pairs` gave.
        judge: compares the samples; its ties are drawn, what can't be read is left out.
        seed: fixes the draws.
    """
    usable, left_out = _usable((pair, pair.id, pair.first, pair.second) for pair in pairs)
    verdicts = judge.judge([Comparison(row_id, p.prompt, a, b, reference=p.human) for p, row_id, a, b in usable])
    draws = np.random.default_rng(seed).random(len(usable))
    rows = []
    for (pair, row_id, a, b), verdict, draw in zip(usable, verdicts, draws.tolist(), strict=True):
        if verdict.win_probability is None:
            left_out[f"a verdict that is {verdict.kind}"] += 1
            continue
        first_wins = draw < verdict.win_probability
        chosen, rejected = (a, b) if first_wins else (b, a)
        probability = verdict.win_probability if first_wins else 1 - verdict.win_probability
        rows.append(_row(pair, row_id, chosen, rejected) | {"probability": probability, "flipped": probability < 0.5})
    return LabelledPairs(rows, left_out)


def label_by_human(pairs: Sequence[SampledPair], *, repetitions: bool = False, seed: int = 0) -> LabelledPairs:
    """The person's response over each of four others: what trains a gold reward model (Eq. 2).

    The others are both samples, the response to another post, and the person's own with its words shuffled
    or repeated. On samples alone a reward model never meets what an over-optimized policy writes, and may
    value it above people's responses. A policy gradient finds what is still missing: degenerate repetition.

    Args:
        pairs: what :func:`sample_pairs` gave.
        repetitions: add a fifth: a phrase of its own or of another response, repeated (degenerate repetition).
        seed: fixes which other post, and how words are shuffled.
    """
    generator = random.Random(seed)

    def comparisons() -> Iterator[tuple[SampledPair, str, str, str]]:
        for pair in pairs:
            yield pair, f"{pair.id} first", pair.human, pair.first
            yield pair, f"{pair.id} second", pair.human, pair.second
            yield pair, f"{pair.id} off topic", pair.human, generator.choice(pairs).human
            yield pair, f"{pair.id} disfluent", pair.human, _disfluent(pair.human, generator)
            if repetitions:
                source = generator.choice([pair, generator.choice(pairs)])
                yield pair, f"{pair.id} repetition", pair.human, _repetition(source.human, generator)

    usable, left_out = _usable(comparisons())
    return LabelledPairs([_row(*comparison) for comparison in usable], left_out)


def _disfluent(response: str, generator: random.Random) -> str:
    words = response.split()
    if generator.random() < 0.5:
        generator.shuffle(words)
    else:
        words = generator.choices(words[: max(1, len(words) // 2)], k=len(words))
    return " " + " ".join(words)


def _repetition(response: str, generator: random.Random) -> str:
    words = response.split()
    length = generator.randint(1, _LONGEST_PHRASE)
    start = generator.randrange(max(1, len(words) - length + 1))
    phrase = words[start : start + length]
    return " " + " ".join(phrase * generator.randint(2, _LONGEST_REPETITION // length))


def _usable(
    comparisons: Iterable[tuple[SampledPair, str, str, str]],
) -> tuple[list[tuple[SampledPair, str, str, str]], Counter[str]]:
    left_out: Counter[str] = Counter()
    usable = []
    for pair, row_id, a, b in comparisons:
        if not a.strip() or not b.strip():
            left_out["an empty response"] += 1
        elif a.strip() == b.strip():
            left_out["equal responses"] += 1
        else:
            usable.append((pair, row_id, a, b))
    return usable, left_out


def _row(pair: SampledPair, row_id: str, chosen: str, rejected: str) -> dict[str, object]:
    return {"id": row_id, **_post(pair), "chosen": chosen, "rejected": rejected}


def _post(pair: SampledPair) -> dict[str, object]:
    """What keeps a row in its part of the split, and its prompt."""
    split = {} if pair.split is None else {"split": pair.split}
    return {"post_id": pair.post_id, **split, "prompt": pair.prompt}


def write_sampled_pairs(path: Path, pairs: Sequence[SampledPair]) -> None:
    """Keep sampled pairs as JSON Lines."""
    write_json_lines(path, (asdict(pair) for pair in pairs))


def read_sampled_pairs(path: Path) -> list[SampledPair]:
    """Pairs that :func:`write_sampled_pairs` kept.

    Raises:
        ValueError: no such file, or a line that is no sampled pair.
    """
    return read_json_lines(path, "sampled pair", lambda row: SampledPair(**row))


def write_preferences(folder: Path, labelled: LabelledPairs, pairs: Sequence[SampledPair]) -> None:
    """Write a folder for source ``jsonl``: the labelled pairs, and the human responses to the same prompts."""
    write_json_lines(folder / "pairs.jsonl", labelled.rows)
    write_json_lines(
        folder / "demonstrations.jsonl",
        ({"id": f"{pair.id} human", **_post(pair), "response": pair.human} for pair in pairs),
    )
