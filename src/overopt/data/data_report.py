"""What a data set holds and what became of it: rows read and left out, parts, labels, lengths."""

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from overopt.checkpoints.whole_file import whole_file
from overopt.data.datamodule import PreferenceDataModule
from overopt.data.example_sets import DemonstrationSet, PreferenceSet
from overopt.data.schema import Demonstration, PreferenceExample
from overopt.data.sources.base import SourceRead
from overopt.data.splits import PARTS

# Stands for the published split of examples that name none.
NO_SPLIT = "(none)"
QUANTILES = {"min": 0.0, "p05": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95, "max": 1.0}


@dataclass(frozen=True)
class PartSize:
    """How much of the data a part or a published split holds; a post has any number of examples."""

    posts: int
    demonstrations: int
    preferences: int


@dataclass(frozen=True)
class LabelReport:
    """How people, or a gold model, labelled the pairs of the whole source.

    Attributes:
        labels: labelled pairs as they come, repetitions included.
        pairs: different pairs of responses to one post, whichever was chosen.
        pairs_labelled_again: pairs with more than one label.
        unanimous_share: of those, the share whose labels all agree; ``None`` without any.
        longer_chosen_share: of the labels whose responses differ in length, the share that chose the longer one
            [characters, so that no tokenizer and no cut matters]; ``None`` without any.
        longer_chosen_se: its binomial standard error.
        equal_lengths: labels whose responses have one length.
    """

    labels: int
    pairs: int
    pairs_labelled_again: int
    unanimous_share: float | None
    longer_chosen_share: float | None
    longer_chosen_se: float | None
    equal_lengths: int


@dataclass(frozen=True)
class TokenReport:
    """Lengths of a set of examples as the model sees them, after cutting [tokens].

    Attributes:
        examples: demonstrations or pairs.
        cut_prompt_share: share of the prompts whose post was cut.
        truncated_response_share: share of the responses that were cut and so have no end of text.
        lengths: quantiles of each text's length, the end of text included, by ``prompt`` and ``response``, or
            ``prompt``, ``chosen`` and ``rejected``.
    """

    examples: int
    cut_prompt_share: float
    truncated_response_share: float
    lengths: dict[str, dict[str, float]]


@dataclass(frozen=True)
class DataReport:
    """Everything that can be told about a data set before anything is trained on it.

    Attributes:
        source: its name in configuration.
        origin: what was read: a path, or a dataset and its commit.
        rows: rows read, those left out included.
        left_out: what was not taken, by reason.
        irregular: rows taken although something about them is unusual.
        published_splits: what each split holds that the data was published in.
        split: how posts were split here.
        parts: what each part holds, whatever is trained on.
        labels: of the source's pairs; ``None`` where it has none.
        max_prompt_tokens: limit that prompts are cut to [tokens].
        max_response_tokens: limit that responses are cut to, the end of text included [tokens].
        tokens: lengths by set of examples.
    """

    source: str
    origin: str
    rows: int
    left_out: dict[str, int]
    irregular: dict[str, int]
    published_splits: dict[str, PartSize]
    split: str
    parts: dict[str, PartSize]
    labels: LabelReport | None
    max_prompt_tokens: int
    max_response_tokens: int
    tokens: dict[str, TokenReport]


def data_report(data: PreferenceDataModule, sets: Mapping[str, DemonstrationSet | PreferenceSet]) -> DataReport:
    """The report on a data module's source, and on the given sets of tokenised examples.

    Args:
        data: set up, or it sets itself up.
        sets: tokenised examples by the name that the report gives them; empty ones are left out.
    """
    read = data.read
    return DataReport(
        source=data.source.name,
        origin=read.origin or data.source.name,
        rows=read.rows,
        left_out=dict(read.left_out.most_common()),
        irregular=dict(read.irregular.most_common()),
        published_splits=_published(read),
        split=data.split_statement,
        parts=_parts(data),
        labels=label_report(read.preferences) if read.preferences else None,
        max_prompt_tokens=data.max_prompt_tokens,
        max_response_tokens=data.max_response_tokens,
        tokens={name: token_report(examples) for name, examples in sets.items() if len(examples)},
    )


def report_of_all_parts(data: PreferenceDataModule) -> DataReport:
    """The report with the lengths of every part, demonstrations and pairs."""
    sets: dict[str, DemonstrationSet | PreferenceSet] = {}
    for part in PARTS:
        sets[f"{part} demonstrations"] = data.tokenize_demonstrations(data.part_of(data.read.demonstrations, part))
        sets[f"{part} preferences"] = data.tokenize_preferences(data.part_of(data.read.preferences, part))
    return data_report(data, sets)


def label_report(preferences: Sequence[PreferenceExample]) -> LabelReport:
    """How the pairs were labelled; at least one."""
    labels: defaultdict[tuple[str, frozenset[str]], list[str]] = defaultdict(list)
    for pair in preferences:
        labels[pair.post_id, frozenset((pair.chosen, pair.rejected))].append(pair.chosen)
    again = [chosen for chosen in labels.values() if len(chosen) > 1]
    differences = [len(pair.chosen) - len(pair.rejected) for pair in preferences]
    differing = sum(difference != 0 for difference in differences)
    longer = sum(difference > 0 for difference in differences) / differing if differing else None
    return LabelReport(
        labels=len(preferences),
        pairs=len(labels),
        pairs_labelled_again=len(again),
        unanimous_share=sum(len(set(chosen)) == 1 for chosen in again) / len(again) if again else None,
        longer_chosen_share=longer,
        longer_chosen_se=None if longer is None else math.sqrt(longer * (1 - longer) / differing),
        equal_lengths=len(preferences) - differing,
    )


def token_report(examples: DemonstrationSet | PreferenceSet) -> TokenReport:
    """Lengths of tokenised examples; at least one."""
    counts = examples.counts
    texts = ("prompt", "chosen", "rejected") if isinstance(examples, PreferenceSet) else ("prompt", "response")
    return TokenReport(
        examples=len(examples),
        cut_prompt_share=counts.cut_prompts / counts.prompts,
        truncated_response_share=counts.truncated_responses / counts.responses,
        lengths={
            text: _quantiles([len(getattr(example, f"{text}_ids")) for example in examples.tokenized]) for text in texts
        },
    )


def as_text(report: DataReport) -> str:
    """The report as a table for people."""
    return "\n".join(_lines(report))


def as_json(report: DataReport) -> str:
    """The report as JSON, its fields by name."""
    return json.dumps(asdict(report), indent=2, ensure_ascii=False) + "\n"


def print_data_report(data: PreferenceDataModule, out: Path | None) -> None:
    """Stage ``data-report``; see :func:`overopt.stages.data_report`."""
    report = report_of_all_parts(data)
    print(as_text(report))
    if out is not None:
        with whole_file(out) as file:
            file.write(as_json(report).encode())
        print(f"\nreport in {out}")


def _parts(data: PreferenceDataModule) -> dict[str, PartSize]:
    read = data.read
    return {
        part: _size(data.part_of(read.demonstrations, part), data.part_of(read.preferences, part)) for part in PARTS
    }


def _published(read: SourceRead) -> dict[str, PartSize]:
    demonstrations: defaultdict[str, list[Demonstration]] = defaultdict(list)
    preferences: defaultdict[str, list[PreferenceExample]] = defaultdict(list)
    for demonstration in read.demonstrations:
        demonstrations[demonstration.split or NO_SPLIT].append(demonstration)
    for pair in read.preferences:
        preferences[pair.split or NO_SPLIT].append(pair)
    return {
        split: _size(demonstrations[split], preferences[split])
        for split in sorted(demonstrations.keys() | preferences.keys())
    }


def _size(demonstrations: Sequence[Demonstration], preferences: Sequence[PreferenceExample]) -> PartSize:
    posts = {example.post_id for example in demonstrations} | {example.post_id for example in preferences}
    return PartSize(len(posts), len(demonstrations), len(preferences))


def _quantiles(lengths: Sequence[int]) -> dict[str, float]:
    return dict(zip(QUANTILES, np.quantile(lengths, list(QUANTILES.values())).tolist(), strict=True))


def _lines(report: DataReport) -> Iterator[str]:
    yield f"{'source':<14}{report.source}: {report.origin}"
    yield f"{'rows':<14}{report.rows:,}"
    for title, counts in (("left out", report.left_out), ("irregular", report.irregular)):
        yield f"{title:<14}{'nothing' if not counts else ''}".rstrip()
        yield from (f"  {count:>10,}  {reason}" for reason, count in counts.items())
    yield f"{'split':<14}{report.split}"
    for title, sizes in (("published in", report.published_splits), ("part", report.parts)):
        yield ""
        yield f"{title:<14}{'posts':>10}{'demonstrations':>16}{'preferences':>13}"
        for name, size in sizes.items():
            yield f"{name:<14}{size.posts:>10,}{size.demonstrations:>16,}{size.preferences:>13,}"
    yield ""
    if report.labels is not None:
        yield from _label_lines(report.labels)
        yield ""
    limits = f"prompts cut to {report.max_prompt_tokens}, responses to {report.max_response_tokens}"
    yield f"{'tokens':<38}{''.join(f'{name:>7}' for name in QUANTILES)}   ({limits})"
    for name, tokens in report.tokens.items():
        for text, quantiles in tokens.lengths.items():
            yield f"{name + ', ' + text:<38}{''.join(f'{value:>7.0f}' for value in quantiles.values())}"
        shares = f"{tokens.cut_prompt_share:.1%} of prompts cut, {tokens.truncated_response_share:.1%} of responses"
        yield f"  {tokens.examples:,} examples; {shares}"


def _label_lines(labels: LabelReport) -> Iterator[str]:
    unanimous = "" if labels.unanimous_share is None else f", {labels.unanimous_share:.1%} of those unanimously"
    yield (
        f"{'labels':<14}{labels.labels:,} of {labels.pairs:,} pairs;"
        f" {labels.pairs_labelled_again:,} pairs labelled more than once{unanimous}"
    )
    if labels.longer_chosen_share is not None:
        yield (
            f"{'longer chosen':<14}{labels.longer_chosen_share:.1%} +- {labels.longer_chosen_se:.1%} (standard error),"
            f" by characters; {labels.equal_lengths:,} labels of equal lengths left out"
        )
