"""Attention among the tokens of a group, for any model that takes its attention from transformers' registry."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from overopt.packed_tokens import GroupGrid, PackedTokens

#: The implementations' names in transformers' registry.
GROUPED_SDPA = "overopt_grouped_sdpa"
GROUPED_FLEX = "overopt_grouped_flex"

# Of transformers' kinds of layers, those whose queries read all keys that a mask lets them, as far as their window.
_MASKED_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}


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
    if tokens.grid is not None or tokens.branches is not None:
        _check(backbone, (tokens.position_ids if tokens.grid is None else tokens.grid.places).shape[1])
    mask: Tensor | BlockMask | None = None
    if tokens.grid is not None and backbone.config._attn_implementation == GROUPED_FLEX:
        mask = group_block_mask(tokens.grid, tokens.branches)
    elif tokens.branches is not None:
        mask = group_mask(tokens.branches)
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


def use_grouped_attention(model: PreTrainedModel, *, flex: bool = False) -> None:
    """Let a model read :class:`PackedTokens`; whatever else it reads, it reads as before, by SDPA.

    A model that can't is left as it is, and refuses shared prompts and packing when it meets them.

    Args:
        model: causal LM or backbone.
        flex: packed rows by FlexAttention, which skips the blocks that nothing may read; for GPUs.
    """
    if _obstacle(model) is None:
        model.set_attn_implementation(GROUPED_FLEX if flex else GROUPED_SDPA)


def _obstacle(model: PreTrainedModel) -> str | None:
    """Why this architecture cannot keep the groups of a row apart."""
    config = model.config.get_text_config()
    if not model._supports_attention_backend:
        return "does not take its attention from transformers' registry"
    if others := sorted(set(getattr(config, "layer_types", None) or ()) - _MASKED_LAYERS):
        return f"has layers of {', '.join(others)}"
    if getattr(config, "attn_logit_softcapping", None):
        return "caps its attention logits, which SDPA does not"
    if any(name.endswith("sinks") for name, _ in model.named_parameters()):
        return "has attention sinks, which SDPA has not"
    return None


def _check(backbone: PreTrainedModel, longest: int) -> None:
    """That groups of so many tokens are computed as the architecture would compute them one by one.

    Raises:
        ValueError: they are not.
    """
    config = backbone.config.get_text_config()
    obstacle = None if config._attn_implementation in (GROUPED_SDPA, GROUPED_FLEX) else _obstacle(backbone)
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    window = min((size for size in windows if size), default=longest)
    sees_all = set(getattr(config, "layer_types", None) or ("sliding_attention",)) == {"full_attention"}
    if obstacle is None and longest > window and not sees_all:
        obstacle = f"sees {window} tokens back, fewer than the {longest} of a prompt with its responses"
    if obstacle is not None:
        raise ValueError(
            f"{type(backbone).__name__} {obstacle}: train it with --data.shared_prompts false --data.packed false, "
            "judge with shared_prompts and packed off"
        )


def group_block_mask(grid: GroupGrid, branches: Int[Tensor, "group slot"] | None) -> BlockMask:
    """:func:`group_mask` for a packed row as a whole, in blocks that FlexAttention skips where they are empty."""
    group = grid.slots // grid.places.shape[1]
    branch = torch.zeros_like(group) if branches is None else branches.flatten()[grid.slots]

    tokens = len(group)
    return create_block_mask(
        lambda _row, _head, query, key: (
            (key <= query) & (group[key] == group[query]) & ((branch[key] == 0) | (branch[key] == branch[query]))
        ),
        None,
        None,
        tokens,
        tokens,
        device=group.device,
    )


def _grouped_attention(
    module: nn.Module,
    query: Float[Tensor, "row head token size"],
    key: Float[Tensor, "row key_head key size"],
    value: Float[Tensor, "row key_head key size"],
    attention_mask: Tensor | None,
    group_grid: GroupGrid | None = None,
    group_mask: Bool[Tensor, "group 1 slot slot"] | BlockMask | None = None,
    **arguments: Any,
) -> tuple[Float[Tensor, "row token head size"], None]:
    """On a packed row, transformers' attention among the tokens of each group; its SDPA on everything else."""
    if isinstance(group_mask, BlockMask):
        attended, _ = flex_attention_forward(module, query, key, value, group_mask, **arguments)
        return attended, None
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


for _name in (GROUPED_SDPA, GROUPED_FLEX):
    AttentionInterface.register(_name, _grouped_attention)
    AttentionMaskInterface.register(_name, sdpa_mask)
