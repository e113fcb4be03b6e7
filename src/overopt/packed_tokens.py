"""Prompts with their responses as tensors: what goes through a model, without a token to spare.

A group is a prompt with one response or several. Its prompt stands once; all its responses start at the same
position, right after the prompt, and cannot see each other. Groups of any length are packed into one row, or stand
padded in rows of their own.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

TokenIds = Int[np.ndarray, " _"]  # each of its own length


class PromptGroup(NamedTuple):
    """A prompt and its responses as token ids.

    Attributes:
        prompt_ids: the prompt; where it is empty, a response's first token has no prediction and counts nothing.
        responses: the responses, none of them empty.
    """

    prompt_ids: TokenIds
    responses: tuple[TokenIds, ...]

    @classmethod
    def of(cls, prompt_ids: Sequence[int], *responses: Sequence[int]) -> "PromptGroup":
        """From token ids in any sequences."""
        return cls(np.asarray(prompt_ids, np.int32), tuple(np.asarray(ids, np.int32) for ids in responses))

    @property
    def num_tokens(self) -> int:
        """Tokens that go through the model."""
        return len(self.prompt_ids) + sum(map(len, self.responses))


class GroupGrid(NamedTuple):
    """Where the groups of a packed row stand in a padded grid, in which attention is computed.

    Attributes:
        places: the row's token in each slot of the grid; 0 where the slot is padding.
        slots: each token's slot in the flattened grid.
    """

    places: Int[Tensor, "group slot"]
    slots: Int[Tensor, " token"]


class PackedTokens(NamedTuple):
    """Groups as a model reads them. Responses are numbered group by group.

    Attributes:
        input_ids: one row that holds all groups, or one row a group, padded on the right.
        position_ids: each token's position in its prompt and response.
        grid: the groups of a packed row; ``None`` where each row is a group, hence its own grid.
        branches: in the grid, 0 for a prompt's tokens, 1, 2, ... for those of its responses, -1 for padding;
            ``None`` where no prompt has two responses, and causal order alone keeps everything apart.
        targets: the responses' tokens.
        predictors: the place in the flattened rows whose hidden state predicts each target.
        responses: the number of the response that each target belongs to.
        ends: the place in the flattened rows of each response's last token.
    """

    input_ids: Int[Tensor, "row token"]
    position_ids: Int[Tensor, "row token"]
    grid: GroupGrid | None
    branches: Int[Tensor, "group slot"] | None
    targets: Int[Tensor, " target"]
    predictors: Int[Tensor, " target"]
    responses: Int[Tensor, " target"]
    ends: Int[Tensor, " response"]

    @property
    def num_responses(self) -> int:
        """Responses in all groups."""
        return self.ends.shape[0]

    def sums(self, values: Float[Tensor, " target"]) -> Float[Tensor, " response"]:
        """Sum over each response's tokens, in the values' precision."""
        totals = torch.zeros(self.num_responses, dtype=values.dtype, device=values.device)
        return totals.index_add(0, self.responses, values)

    def lengths(self) -> Int[Tensor, " response"]:
        """Tokens of each response, its end of text included."""
        return torch.zeros_like(self.ends).index_add(0, self.responses, torch.ones_like(self.responses))

    def prompts(self) -> list[list[int]]:
        """The token ids of each response's prompt."""
        # A prompt stands right before its first response; the token that predicts a response's first one ends it.
        is_first = torch.ones_like(self.responses, dtype=torch.bool)
        is_first[1:] = self.responses[1:] != self.responses[:-1]
        last = self.predictors[is_first]
        lengths = self.position_ids.flatten()[last] + 1
        ids = self.input_ids.flatten().tolist()
        spans = zip(last.tolist(), lengths.tolist(), strict=True)
        return [ids[end - length + 1 : end + 1] for end, length in spans]

    def mask(self) -> Bool[Tensor, "response response_token"]:
        """One row a response, true on its tokens: where :meth:`padded` has values."""
        lengths = self.lengths()
        return torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]

    def padded(self, values: Float[Tensor, " target"]) -> Float[Tensor, "response response_token"]:
        """One row a response, its tokens' values from the left, then NaN."""
        rows = values.split(self.lengths().tolist())
        return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=torch.nan)


class PassShape(NamedTuple):
    """How large a forward pass is: what its memory and time depend on, without its tensors.

    Attributes:
        tokens: of all rows, padding included.
        targets: response tokens that are predicted.
        groups: prompts with their responses.
        longest: tokens of the longest group.
        attended: pairs of a token and one that it may read, itself among them.
        masked: whether attention needs a mask besides causal order: a prompt has several responses.
        one_row: whether the groups are packed into one row.
    """

    tokens: int
    targets: int
    groups: int
    longest: int
    attended: int
    masked: bool
    one_row: bool


def pass_shape(groups: Sequence[PromptGroup], *, one_row: bool = True) -> PassShape:
    """The sizes of what :func:`pack` would make of the same groups.

    >>> pass_shape([PromptGroup(np.array([7, 8]), (np.array([9]), np.array([9])))]).attended  # 1 + 2, then 3 twice
    9
    """
    lengths = [group.num_tokens for group in groups]
    longest = max(lengths)
    attended = targets = 0
    for group in groups:
        prompt = len(group.prompt_ids)
        attended += prompt * (prompt + 1) // 2
        for response in map(len, group.responses):
            attended += response * prompt + response * (response + 1) // 2
            targets += response if prompt else response - 1
    return PassShape(
        tokens=sum(lengths) if one_row else longest * len(groups),
        targets=targets,
        groups=len(groups),
        longest=longest,
        attended=attended,
        masked=any(len(group.responses) > 1 for group in groups),
        one_row=one_row,
    )


def pack(groups: Sequence[PromptGroup], *, one_row: bool = True, padding_id: int = 0) -> PackedTokens:
    """Groups as tensors.

    Args:
        groups: at least one.
        one_row: pack all into one row, without padding; else one row a group.
        padding_id: written into padding, which nothing reads.

    Raises:
        ValueError: no group, or a response without tokens.
    """
    if not groups:
        raise ValueError("a batch needs at least one example")
    longest = max(group.num_tokens for group in groups)
    ids, positions, branches = [], [], []
    targets, predictors, responses, ends = [], [], [], []
    first_place = num_responses = 0
    for group in groups:
        prompt = len(group.prompt_ids)
        ids.append(np.concatenate([group.prompt_ids, *group.responses]))
        positions.append(np.concatenate([np.arange(prompt), *(prompt + np.arange(len(r)) for r in group.responses)]))
        branches.append(np.repeat(np.arange(1 + len(group.responses)), [prompt, *map(len, group.responses)]))
        start = prompt
        for response in group.responses:
            if not len(response):
                raise ValueError("a response without a token has no log-probability")
            places = np.arange(start - 1, start - 1 + len(response))
            places[0] = prompt - 1
            predicted = slice(0 if prompt else 1, None)  # nothing predicts the first token of all
            targets.append(response[predicted])
            predictors.append(first_place + places[predicted])
            responses.append(np.full(len(targets[-1]), num_responses))
            start += len(response)
            ends.append(first_place + start - 1)
            num_responses += 1
        first_place += group.num_tokens if one_row else longest
    shares = any(len(group.responses) > 1 for group in groups)
    lengths = np.array([group.num_tokens for group in groups])
    if one_row:
        input_ids, position_ids = np.concatenate(ids)[None], np.concatenate(positions)[None]
    else:
        # Positions go on into the padding: where they started anew, a model would take it for a packed sequence.
        input_ids = _rows(ids, longest, padding_id)
        position_ids = np.stack([np.append(p, p[-1] + 1 + np.arange(longest - len(p))) for p in positions])
    return PackedTokens(
        input_ids=_tensor(input_ids),
        position_ids=_tensor(position_ids),
        grid=_grid(lengths, longest) if one_row else None,
        branches=_tensor(_rows(branches, longest, -1)) if shares else None,
        targets=_tensor(np.concatenate(targets)),
        predictors=_tensor(np.concatenate(predictors)),
        responses=_tensor(np.concatenate(responses)),
        ends=_tensor(np.array(ends)),
    )


def _grid(lengths: TokenIds, longest: int) -> GroupGrid:
    in_use = np.arange(longest) < lengths[:, None]
    slots = np.flatnonzero(in_use)
    places = np.zeros(in_use.shape, dtype=np.int64)
    places[in_use] = np.arange(len(slots))
    return GroupGrid(_tensor(places), _tensor(slots))


def _rows(rows: Sequence[TokenIds], longest: int, padding: int) -> Int[np.ndarray, "row token"]:
    return np.stack([np.append(row, np.full(longest - len(row), padding)) for row in rows])


def _tensor(values: Int[np.ndarray, "*shape"]) -> Int[Tensor, "*shape"]:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64))
