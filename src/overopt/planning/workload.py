"""What would go through the model: real lengths where the data can be read, TL;DR's otherwise."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from overopt.checkpoints.format import load_tokenizer
from overopt.data.datamodule import PreferenceDataModule
from overopt.data.packing import Packing
from overopt.data.step_loader import StepLoader
from overopt.packed_tokens import PassShape, PromptGroup, pass_shape

TLDR_PAIRS = 92_858
TLDR_DEMONSTRATIONS = 116_722
#: Share of the posts that the readers of TL;DR hold out.
TLDR_EVALUATION = 0.1
# Of TL;DR's prompts, about normal, cut at both ends, and its responses [tokens of Pythia's tokenizer].
PROMPT_MEAN, PROMPT_SPREAD, SHORTEST_PROMPT, LONGEST_PROMPT = 320, 90, 60, 500
SHORTEST_RESPONSE, LONGEST_RESPONSE = 20, 50

# Readers of files that are here: what is wrong with one is the user's to mend, not to be guessed around.
_LOCAL_SOURCES = ("docstrings", "jsonl", "tldr_openai")


@dataclass(frozen=True)
class Workload:
    """Examples as lengths, and how a step takes them.

    Attributes:
        groups: each training example's prompt and responses; only their lengths matter.
        held_out: examples that are held out.
        vocabulary: of the tokenizer, where the data settle it.
        origin: where the lengths come from, for people.
        packing: how examples go through the model.
        batch_size: examples of an optimiser step, over all devices.
        seed: of their order.
    """

    groups: Sequence[PromptGroup]
    held_out: int
    vocabulary: int
    origin: str
    packing: Packing
    batch_size: int
    seed: int

    @property
    def mean_lengths(self) -> tuple[float, float]:
        """Of prompts and of responses [tokens]."""
        responses = [len(response) for group in self.groups for response in group.responses]
        return float(np.mean([len(group.prompt_ids) for group in self.groups])), float(np.mean(responses))

    def demonstrations(self) -> list[PromptGroup]:
        """Each prompt with its first response alone."""
        return [PromptGroup(group.prompt_ids, group.responses[:1]) for group in self.groups]


@dataclass(frozen=True)
class Epoch:
    """All forward passes of an epoch, by size.

    Attributes:
        steps: optimiser steps.
        most_passes: of a step on a device.
        sizes: that occur.
        tokens: of all passes, over all devices.
        attended: as in :class:`overopt.packed_tokens.PassShape`, summed.
        targets: likewise.
    """

    steps: int
    most_passes: int
    sizes: frozenset[PassShape]
    tokens: int
    attended: int
    targets: int


def epoch_of(workload: Workload, devices: int, *, packing: Packing | None = None) -> Epoch:
    """What the training loader would hand out in the first epoch.

    Args:
        workload: examples.
        devices: that a step is dealt to.
        packing: instead of the workload's own.

    Raises:
        ValueError: an example has no room in a forward pass, or there are fewer examples a step than devices.
    """
    packing = packing or workload.packing
    lengths = [packing.num_tokens(group) for group in workload.groups]
    if max(lengths) > packing.max_tokens:
        raise ValueError(
            f"an example has {max(lengths)} tokens, a forward pass room for {packing.max_tokens}: raise "
            "data.micro_batch_tokens, or lower max_prompt_tokens or max_response_tokens"
        )
    loader = StepLoader(
        lengths,
        lambda places: packing.pack([workload.groups[i] for i in places]),
        batch_size=workload.batch_size,
        packing=packing,
        seed=workload.seed,
        world_size=devices,
    )
    sizes: list[PassShape] = []
    most_passes = 0
    for of_ranks in loader.passes():
        most_passes = max(most_passes, *map(len, of_ranks))
        for share in (share for rank in of_ranks for share in rank):
            groups = [part for i in share for part in packing.groups(workload.groups[i])]
            sizes.append(pass_shape(groups, one_row=packing.one_row))
    return Epoch(
        steps=len(loader),
        most_passes=most_passes,
        sizes=frozenset(sizes),
        tokens=sum(shape.tokens for shape in sizes),
        attended=sum(shape.attended for shape in sizes),
        targets=sum(shape.targets for shape in sizes),
    )


def workload_of(data: dict[str, Any]) -> Workload:
    """The workload of a DataModule with these arguments.

    Raises:
        ValueError: the data are here and can't be read.
    """
    packing = Packing(data["shared_prompts"], data["packed"], data["micro_batch_tokens"])
    groups, held_out, vocabulary, origin = _read(data)
    return Workload(groups, held_out, vocabulary, origin, packing, data["batch_size"], data["seed"])


def _read(data: dict[str, Any]) -> tuple[Sequence[PromptGroup], int, int, str]:
    """Real lengths; assumed ones where no data are named, the hub is out of reach, or the tokenizer is to come."""
    local = data["source"] in _LOCAL_SOURCES
    try:
        module = PreferenceDataModule(**data)
    except ValueError as error:
        if not local or data["path"] is not None:
            raise
        return _assumed(data, str(error))
    tokenizer = data["tokenizer"]
    try:
        if tokenizer is not None and tokenizer.endswith(".ckpt") and not Path(tokenizer).exists():
            return _assumed(data, f"{tokenizer}, whose tokenizer they need, is not there yet")
        if tokenizer is not None:
            load_tokenizer(tokenizer)
    except ValueError as error:
        return _assumed(data, str(error))
    try:
        module.setup("predict")
    except (ValueError, OSError) as error:
        if local:
            raise
        return _assumed(data, str(error))
    groups = [row.group for row in module.train_set.tokenized]
    origin = f"{len(groups):,} {data['examples']} of source {data['source']}"
    return groups, len(module.evaluation_set), len(module.tokenizer), origin


def _assumed(data: dict[str, Any], reason: str) -> tuple[Sequence[PromptGroup], int, int, str]:
    """TL;DR-shaped lengths, drawn from a fixed seed."""
    pairs = data["examples"] == "preferences"
    number = TLDR_PAIRS if pairs else TLDR_DEMONSTRATIONS
    if data["max_examples"] is not None:
        number = min(number, data["max_examples"])
    longest = min(LONGEST_PROMPT, data["max_prompt_tokens"] or LONGEST_PROMPT)
    longest_response = min(LONGEST_RESPONSE, data["max_response_tokens"] or LONGEST_RESPONSE)
    draw = np.random.default_rng(0)
    prompts = draw.normal(PROMPT_MEAN, PROMPT_SPREAD, number).clip(min(SHORTEST_PROMPT, longest), longest).astype(int)
    shortest_response = min(SHORTEST_RESPONSE, longest_response)
    responses = draw.integers(shortest_response, longest_response, (number, 2 if pairs else 1), endpoint=True)
    ids = np.zeros(max(longest, longest_response), np.int32)  # their number alone matters: groups are views
    groups = [
        PromptGroup(ids[:prompt], tuple(ids[:response] for response in row))
        for prompt, row in zip(prompts.tolist(), responses.tolist(), strict=True)
    ]
    fraction = TLDR_EVALUATION if data["evaluation_fraction"] is None else data["evaluation_fraction"]
    held_out = round(number * fraction / (1 - fraction))
    origin = (
        f"{number:,} {data['examples']} of TL;DR's lengths, ASSUMED: prompts of {PROMPT_MEAN} +- {PROMPT_SPREAD} "
        f"tokens, {SHORTEST_PROMPT} to {longest}, responses of {shortest_response} to {longest_response}; "
        f"the data can't be read here ({reason})"
    )
    return groups, held_out, data["vocab_size"], origin
