"""Which examples go through the model together: by tokens, and by length."""

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from overopt.data.tokenization import TokenizedDemonstration, TokenizedPreference
from overopt.packed_tokens import PackedTokens, PromptGroup, pack


def _alone(values: Tensor) -> Tensor:
    return values


class Ranks(NamedTuple):
    """Processes that share work; a process alone by default.

    Attributes:
        rank: this process.
        world_size: all processes.
        total: the sum over processes of a CPU tensor that each has, on the CPU; called by all.
    """

    rank: int = 0
    world_size: int = 1
    total: Callable[[Tensor], Tensor] = _alone


@dataclass(frozen=True)
class Packing:
    """How examples become tensors. Turned off, each part costs time and memory and changes no result.

    Attributes:
        shared_prompts: both responses of a pair in one group with their prompt; else a prompt for each.
        one_row: examples packed into one row, without padding; else one row each, padded.
        max_tokens: of a forward pass, padding included (``data.micro_batch_tokens``).

    Raises:
        ValueError: ``max_tokens`` is not positive.
    """

    shared_prompts: bool = True
    one_row: bool = True
    max_tokens: int = 2048

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"a forward pass needs room for a token, got data.micro_batch_tokens={self.max_tokens}")

    def lengths(self, tokenized: Sequence[TokenizedDemonstration] | Sequence[TokenizedPreference]) -> list[int]:
        """Tokens of each example as it goes through the model.

        Raises:
            ValueError: a forward pass has no room for one; it is named.
        """
        lengths: list[int] = []
        for row in tokenized:
            needed = self.num_tokens(row.group)
            if needed > self.max_tokens:
                raise ValueError(
                    f"example {row.example_id!r} needs {needed} tokens, a forward pass has room for {self.max_tokens}: "
                    "raise data.micro_batch_tokens, or lower max_prompt_tokens or max_response_tokens"
                )
            lengths.append(needed)
        return lengths

    def groups(self, group: PromptGroup) -> list[PromptGroup]:
        """A prompt with its responses as the groups that stand for it."""
        if self.shared_prompts:
            return [group]
        return [PromptGroup(group.prompt_ids, (response,)) for response in group.responses]

    def num_tokens(self, group: PromptGroup) -> int:
        """Tokens of a prompt with its responses; of the rows that they need, without one row for all."""
        groups = self.groups(group)
        longest = max(g.num_tokens for g in groups)
        return sum(g.num_tokens for g in groups) if self.one_row else longest * len(groups)

    def pack(self, groups: Sequence[PromptGroup], padding_id: int = 0) -> PackedTokens:
        """Prompts with their responses as tensors; responses are numbered in the order given."""
        return pack([g for group in groups for g in self.groups(group)], one_row=self.one_row, padding_id=padding_id)

    def batches(self, groups: Sequence[PromptGroup], padding_id: int = 0) -> Iterator[tuple[list[int], PackedTokens]]:
        """All groups in as few passes as ``max_tokens`` allows, with their places in the sequence given.

        A group longer than ``max_tokens`` has a pass of its own.
        """
        lengths = [self.num_tokens(group) for group in groups]
        for places in self.shares(range(len(groups)), lengths):
            yield places, self.pack([groups[i] for i in places], padding_id)

    def scores(
        self,
        groups: Sequence[PromptGroup],
        score: Callable[[PackedTokens], Float[Tensor, " response"]],
        padding_id: int = 0,
        ranks: Ranks = Ranks(),
    ) -> list[Float[np.ndarray, " response"]]:
        """A number for each response of each group; an equal prompt, or response to it, goes through once.

        Args:
            groups: prompts with responses.
            score: what the model says of packed groups, one number a response.
            padding_id: written into padding.
            ranks: processes that share the work, each with all groups; every one gets all numbers.
        """
        if not groups:
            return []
        merged, numbers = merge_equal_prompts(groups, self.max_tokens)
        lengths = [self.num_tokens(group) for group in merged]
        mine, fillers = self.rank_shares(range(len(merged)), lengths, ranks.rank, ranks.world_size)
        # Zeros, but where this process has scored: the sum over processes is everybody's.
        of_merged = [torch.zeros(len(group.responses)) for group in merged]
        for share in mine:
            scores = score(self.pack([merged[place] for place in share], padding_id)).cpu()
            for place, of_group in zip(share, scores.split([len(of_merged[place]) for place in share]), strict=True):
                of_merged[place] = of_group
        for share in fillers:
            score(self.pack([merged[place] for place in share], padding_id))
        of_responses = ranks.total(torch.cat(of_merged)).numpy()
        return [of_responses[of_group] for of_group in numbers]

    def rank_shares(
        self, examples: Sequence[int], lengths: Sequence[int], rank: int, world_size: int
    ) -> tuple[list[list[int]], list[list[int]]]:
        """One rank's share of the examples, parted into forward passes, and fillers that count nothing.

        With its fillers every rank makes as many passes: a sharded model's forward needs all ranks, and one that had
        no pass left would keep the others waiting for ever.

        Args:
            examples: places of the examples that all ranks share.
            lengths: of all examples, by place [tokens].
            rank: this process.
            world_size: all processes.
        """
        of_ranks = self.shares_of_ranks(examples, lengths, world_size)
        missing = max(map(len, of_ranks)) - len(of_ranks[rank])
        shortest = [min(examples, key=lambda example: lengths[example])] if missing else []
        return of_ranks[rank], [shortest] * missing

    def shares_of_ranks(
        self, examples: Sequence[int], lengths: Sequence[int], world_size: int
    ) -> list[list[list[int]]]:
        """Each rank's forward passes, fillers not among them; arguments as in :meth:`rank_shares`."""
        return [self.shares(dealt, lengths) for dealt in deal(examples, lengths, world_size)]

    def shares(self, examples: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
        """Examples, long ones first, parted into forward passes.

        Neighbours in length go together, so that attention has little padding, and passes are about equal.

        Args:
            examples: places of the examples to part.
            lengths: of all examples, by place [tokens].
        """
        order = sorted(examples, key=lambda i: (-lengths[i], i))
        fewest = len(_filled(order, lengths, self.max_tokens, self.one_row))
        # The smallest room that needs no more passes: the last one would be almost empty otherwise.
        low, high = 0, self.max_tokens
        while high - low > max(1, self.max_tokens // 64):
            middle = (low + high) // 2
            if len(_filled(order, lengths, middle, self.one_row)) > fewest:
                low = middle
            else:
                high = middle
        return _filled(order, lengths, high, self.one_row)


def _filled(order: Sequence[int], lengths: Sequence[int], room: int, one_row: bool) -> list[list[int]]:
    shares: list[list[int]] = []
    used = 0
    for place in order:
        # Longest first: a padded row is as long as the first of its share.
        needed = lengths[place] if one_row or not shares else max(lengths[place], lengths[shares[-1][0]])
        if not shares or used + needed > room:
            shares.append([])
            used, needed = 0, lengths[place]
        shares[-1].append(place)
        used += needed
    return shares


def merge_equal_prompts(groups: Sequence[PromptGroup], max_tokens: int) -> tuple[list[PromptGroup], list[list[int]]]:
    """Groups with equal prompts as one, in which equal responses stand once.

    A post of TL;DR has many labelled pairs, and a response is in many of them: to score them all, most of the work
    would be done again and again.

    Args:
        groups: prompts with responses.
        max_tokens: of a merged group; where more would come together, there are several.

    Returns:
        The merged groups, and for each group given the numbers of its responses, counted through all merged ones.
    """
    merged: list[PromptGroup] = []
    branches: list[list[tuple[int, int]]] = []  # merged group, and response in it, of each response given
    open_groups: dict[bytes, int] = {}
    known: list[dict[bytes, int]] = []
    for group in groups:
        prompt = group.prompt_ids.tobytes()
        at = open_groups.get(prompt)
        new = {} if at is None else {r.tobytes(): r for r in group.responses if r.tobytes() not in known[at]}
        if at is None or merged[at].num_tokens + sum(map(len, new.values())) > max_tokens:
            at = open_groups[prompt] = len(merged)
            merged.append(PromptGroup(group.prompt_ids, ()))
            known.append({})
            new = {r.tobytes(): r for r in group.responses}
        for content in new:
            known[at][content] = len(known[at])
        merged[at] = PromptGroup(group.prompt_ids, (*merged[at].responses, *new.values()))
        branches.append([(at, known[at][r.tobytes()]) for r in group.responses])
    firsts = [0, *accumulate(len(group.responses) for group in merged)]
    return merged, [[firsts[at] + branch for at, branch in row] for row in branches]


def deal(examples: Sequence[int], lengths: Sequence[int], num_ranks: int) -> list[list[int]]:
    """Examples dealt to ranks so that each has about as many tokens; arguments as in :meth:`Packing.shares`."""
    ranks: list[list[int]] = [[] for _ in range(num_ranks)]
    loads = [(0, rank) for rank in range(num_ranks)]
    for place in sorted(examples, key=lambda i: (-lengths[i], i)):
        load, rank = heapq.heappop(loads)
        ranks[rank].append(place)
        heapq.heappush(loads, (load + lengths[place], rank))
    return ranks
