"""Attention among the tokens of a group, for any model that takes its attention from transformers' registry."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from overopt.packed_tokens import GroupGrid, PackedTokens

#: The implementation's name in transformers' registry.
GROUPED_ATTENTION = "overopt_grouped"


def group_mask(branches: Int[Tensor, "group slot"]) -> Bool[Tensor, "group 1 slot slot"]:
    """Which key (last axis) each query may read: what is before it, of its prompt or its own response.

    Padding may be read by what comes after it only, which is padding; it reads the prompt, so no row is empty.

    >>> group_mask(torch.tensor([[0, 1, 2]])).int().tolist()
    [[[[1, 0, 0], [1, 1, 0], [1, 0, 1]]]]
    """
    slots = torch.arange(branches.shape[1], device=branches.device)
    keys, queries = branches[:, None, :], branches[:, :, None]
    return ((slots[:, None] >= slots) & ((keys == 0) | (keys == queries)))[:, None]


def hidden_states(backbone: PreTrainedModel, tokens: PackedTokens) -> Float[Tensor, "place hidden"]:
    """The last hidden state of each token, rows flattened.

    Everything but attention runs on the packed row, without a token of padding; attention runs group by group in a
    padded grid, so that its cost does not grow with the square of the row.

    Args:
        backbone: the base model of a causal LM that :func:`use_grouped_attention` has been called for.
        tokens: the groups.
    """
    mask = None if tokens.branches is None else group_mask(tokens.branches)
    arguments: dict[str, Any] = {"attention_mask": mask}
    if tokens.grid is not None:
        # A mask of four axes keeps transformers from making its own, of the whole row squared; ours goes beside it.
        anything = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=tokens.input_ids.device)
        arguments = {"attention_mask": anything, "group_grid": tokens.grid, "group_mask": mask}
    output = backbone(
        input_ids=tokens.input_ids, position_ids=tokens.position_ids, use_cache=False, **arguments
    ).last_hidden_state
    states: Tensor = output.flatten(0, 1)
    return states


def use_grouped_attention(model: PreTrainedModel) -> None:
    """Let a model read :class:`PackedTokens`; whatever else it reads, it reads as before, by SDPA."""
    model.set_attn_implementation(GROUPED_ATTENTION)


def _grouped_attention(
    module: nn.Module,
    query: Float[Tensor, "row head token size"],
    key: Float[Tensor, "row key_head key size"],
    value: Float[Tensor, "row key_head key size"],
    attention_mask: Tensor | None,
    group_grid: GroupGrid | None = None,
    group_mask: Bool[Tensor, "group 1 slot slot"] | None = None,
    **arguments: Any,
) -> tuple[Float[Tensor, "row token head size"], None]:
    """Transformers' SDPA attention, on the groups of a packed row where there is one."""
    if group_grid is None:
        attended, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **arguments)
        return attended, None
    places, slots = group_grid
    in_grid = [
        states[0].transpose(0, 1).index_select(0, places.flatten()).unflatten(0, places.shape).transpose(1, 2)
        for states in (query, key, value)
    ]
    attended, _ = sdpa_attention_forward(module, *in_grid, group_mask, **arguments)
    return attended.flatten(0, 1).index_select(0, slots)[None], None


AttentionInterface.register(GROUPED_ATTENTION, _grouped_attention)
AttentionMaskInterface.register(GROUPED_ATTENTION, sdpa_mask)
