"""Seeded, batched sampling from a causal LM at temperature 1, nothing cut from the distribution."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

# Finished rows leave the batch together, once the rest is this share of it: leaving copies the others' cache.
LEAVE_BELOW = 0.8


@dataclass(frozen=True)
class SampledResponse:
    """A response as the policy drew it.

    Attributes:
        token_ids: the sampled tokens, the end of text included when it came.
        finished: false where the length limit came first.
        log_probs: of each token, by the server that drew it [nats]; ``None`` where it did not say, or none drew it.
    """

    token_ids: list[int]
    finished: bool
    log_probs: list[float] | None = None


def draw_tokens(
    logits: Float[Tensor, "sequence vocabulary"], uniforms: Float[Tensor, " sequence"]
) -> Int[Tensor, " sequence"]:
    """Inverse-CDF draws from softmax(logits): one uniform number in [0, 1) decides one token.

    In float64: a float32 cumulative sum over 50,000 tokens loses the rare ones.

    >>> draw_tokens(torch.tensor([[0.0, 0.0]] * 2), torch.tensor([0.4, 0.6])).tolist()
    [0, 1]
    """
    cumulative = logits.double().softmax(dim=-1).cumsum(dim=-1)
    # Scaled to the sum that rounding gave, so that no draw falls past the last token.
    thresholds = uniforms.double() * cumulative[:, -1]
    return torch.searchsorted(cumulative, thresholds[:, None], right=True).squeeze(1).clamp(max=logits.shape[1] - 1)


class _RoomyLayer(DynamicLayer):  # type: ignore[misc]  # transformers is untyped
    """A layer of the cache with room for the whole response; DynamicLayer copies all it has at every token.

    Args:
        room: tokens that will come at most.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self._room = room

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write new keys and values behind those that are there; all of them, as views."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            rows, heads, _tokens, size = key_states.shape
            self._all_keys = key_states.new_empty(rows, heads, self._room, size)
            self._all_values = value_states.new_empty(rows, heads, self._room, value_states.shape[3])
        first = self.get_seq_length()
        last = first + key_states.shape[2]
        self._all_keys[:, :, first:last] = key_states
        self._all_values[:, :, first:last] = value_states
        return self._view(last)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows."""
        length = self.get_seq_length()
        self._all_keys, self._all_values = self._all_keys[indices], self._all_values[indices]
        self._view(length)

    def _view(self, length: int) -> tuple[Tensor, Tensor]:
        self.keys, self.values = self._all_keys[:, :, :length], self._all_values[:, :, :length]
        return self.keys, self.values


def _cache(causal_lm: PreTrainedModel, room: int) -> DynamicCache:
    """The architecture's own cache, its growing layers replaced by ones with room."""
    cache = DynamicCache(config=causal_lm.config)
    cache.layers = [_RoomyLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def sample_responses(
    causal_lm: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    eos_token_id: int,
    max_response_tokens: int,
    seed: int,
    batch_size: int = 256,
    on_batch: Callable[[int], None] | None = None,
) -> list[SampledResponse]:
    """One response per prompt; arguments as in :func:`sample_several`."""
    sampled = sample_several(
        causal_lm,
        prompts,
        eos_token_id=eos_token_id,
        max_response_tokens=max_response_tokens,
        seeds=[seed],
        batch_size=batch_size,
        on_batch=on_batch,
    )
    return [response for (response,) in sampled]


@torch.inference_mode()
def sample_several(
    causal_lm: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    eos_token_id: int,
    max_response_tokens: int,
    seeds: Sequence[int],
    batch_size: int = 256,
    on_batch: Callable[[int], None] | None = None,
) -> list[tuple[SampledResponse, ...]]:
    """Responses from the model's own distribution (temperature 1, no top-k, no top-p), one per prompt and seed.

    A prompt goes through the model once, however many responses it gets. Each prompt owns a row of uniform numbers
    fixed by the seed and its place in the list, so that a sample does not depend on the batch it was drawn in, and
    checkpoints of one run share their noise.

    Args:
        causal_lm: the model, on the device to sample on.
        prompts: token ids of each prompt, none empty.
        eos_token_id: ends a response.
        max_response_tokens: length limit, the end of text included [tokens].
        seeds: each fixes the draws of one response per prompt.
        batch_size: responses sampled side by side, or all those of a prompt where they are more.
        on_batch: told after each batch how many responses it had.

    Returns:
        For each prompt its responses, in the order of the seeds.
    """
    noise = [torch.Generator().manual_seed(seed) for seed in seeds]
    uniforms = torch.stack(
        [torch.rand(len(prompts), max_response_tokens, generator=g, dtype=torch.float64) for g in noise], dim=1
    )
    responses: list[tuple[SampledResponse, ...]] = [()] * len(prompts)
    # Sorted by length, so that a batch has little padding.
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    prompts_a_batch = max(1, batch_size // len(seeds))
    was_training = causal_lm.training
    causal_lm.eval()
    for start in range(0, len(order), prompts_a_batch):
        rows = order[start : start + prompts_a_batch]
        drawn = _sample_batch(causal_lm, [prompts[i] for i in rows], uniforms[rows], eos_token_id)
        for i, of_prompt in zip(rows, drawn.tolist(), strict=True):
            responses[i] = tuple(_response(tokens, eos_token_id) for tokens in of_prompt)
        if on_batch is not None:
            on_batch(len(rows) * len(seeds))
    causal_lm.train(was_training)
    return responses


def _response(tokens: list[int], eos_token_id: int) -> SampledResponse:
    finished = eos_token_id in tokens
    return SampledResponse(tokens[: tokens.index(eos_token_id) + 1] if finished else tokens, finished)


def _sample_batch(
    causal_lm: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    uniforms: Float[Tensor, "prompt sample token"],
    eos_token_id: int,
) -> Int[Tensor, "prompt sample drawn_token"]:
    device = causal_lm.device
    longest = max(map(len, prompts))
    _, num_samples, limit = uniforms.shape
    # Padded on the left, so that every row's next token is predicted at the last position. Any id pads: it is masked.
    tokens = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    cache = _cache(causal_lm, longest + limit)

    def next_logits() -> Float[Tensor, "sequence vocabulary"]:
        output = causal_lm(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = output.logits[:, -1]
        return logits

    logits = next_logits()
    if num_samples > 1:
        copies = torch.arange(len(prompts), device=device).repeat_interleave(num_samples)
        cache.batch_select_indices(copies)
        logits, mask, positions = logits[copies], mask[copies], positions[copies]
    uniforms = uniforms.flatten(0, 1).to(device)
    drawn = torch.full(uniforms.shape, eos_token_id, device=device)
    # The rows still in the batch, and which of them go on.
    rows = torch.arange(len(drawn), device=device)
    going_on = torch.ones_like(rows, dtype=torch.bool)
    for step in range(limit):
        token = draw_tokens(logits, uniforms[rows, step])
        token = torch.where(going_on, token, eos_token_id)
        drawn[rows, step] = token
        going_on &= token != eos_token_id
        left = int(going_on.sum())
        if left == 0 or step == limit - 1:
            break
        tokens, positions = token[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        if left <= LEAVE_BELOW * len(rows):
            places = going_on.nonzero().squeeze(1)
            cache.batch_select_indices(places)
            rows, tokens, positions, mask, going_on = (x[places] for x in (rows, tokens, positions, mask, going_on))
        logits = next_logits()
    return drawn.view(len(prompts), num_samples, limit)
