import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig, PreTrainedModel, Qwen2Config

from overopt.models.grouped_attention import use_grouped_attention
from overopt.models.log_probs import response_log_probs
from overopt.packed_tokens import PromptGroup, pack

VOCABULARY = 37
A_TOKEN_AT_A_TIME = 4 * VOCABULARY / 2**20  # [MiB] of float32 logits
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}
CONFIGS = {
    f"{name}-{'tied' if tied else 'untied'}": make(**SHAPE, **own, tie_word_embeddings=tied)
    for name, make, own in (
        ("gpt_neox", GPTNeoXConfig, {}),
        ("llama", LlamaConfig, {"num_key_value_heads": 1}),
        ("qwen2", Qwen2Config, {"num_key_value_heads": 1}),
    )
    for tied in (True, False)
}


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS)
def causal_lm(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(0)
    causal_lm = AutoModelForCausalLM.from_config(request.param)
    with torch.no_grad():
        for parameter in causal_lm.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))  # far from uniform
    use_grouped_attention(causal_lm)
    return causal_lm


# Each way through the model: how prompts, rows and logits are treated.
WAYS = {
    "plain": (False, False, math.inf),
    "shared prompts": (True, False, math.inf),
    "packed": (False, True, math.inf),
    "chunked": (False, False, 5 * A_TOKEN_AT_A_TIME),
    "shared, packed, chunked": (True, True, 5 * A_TOKEN_AT_A_TIME),
    "a token at a time": (True, True, A_TOKEN_AT_A_TIME),
}


def prompt_groups(seed: int = 1, count: int = 9) -> list[PromptGroup]:
    """Prompts of 0 to 6 tokens, each with 1 to 3 responses of 1 to 8; the edges among them for certain."""
    draw = np.random.default_rng(seed)

    def ids(length: int) -> np.ndarray:
        return draw.integers(1, VOCABULARY, length, dtype=np.int32)

    def group(prompt: int, *responses: int) -> PromptGroup:
        return PromptGroup(ids(prompt), tuple(ids(length) for length in responses))

    return [group(4, 1, 1), group(0, 3, 5), group(1, 8, 1), group(0, 1, 2)] + [
        group(draw.integers(0, 7), *draw.integers(1, 9, draw.integers(1, 4))) for _ in range(count)
    ]


def log_probs_by(way: str, causal_lm: PreTrainedModel, groups: list[PromptGroup]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of all response tokens, and the response that each belongs to."""
    shared, one_row, logits_mib = WAYS[way]
    if not shared:
        groups = [PromptGroup(group.prompt_ids, (response,)) for group in groups for response in group.responses]
    tokens = pack(groups, one_row=one_row)
    return response_log_probs(causal_lm, tokens, logits_mib=logits_mib), tokens.responses


def stock_log_probs(causal_lm: PreTrainedModel, groups: list[PromptGroup]) -> list[torch.Tensor]:
    """Response by response, no padding, all logits, Hugging Face's own forward and attention."""
    causal_lm.set_attn_implementation("sdpa")
    of_responses = []
    for prompt, responses in groups:
        for response in responses:
            ids = torch.tensor(np.concatenate([prompt, response])[None].astype(np.int64))
            log_probs = causal_lm(input_ids=ids, use_cache=False).logits[0, :-1].log_softmax(dim=-1)
            # Where the prompt is empty, nothing predicts the first token.
            of_responses.append(log_probs.gather(1, ids[0, 1:, None]).squeeze(1)[max(len(prompt) - 1, 0) :])
    use_grouped_attention(causal_lm)
    return of_responses


@pytest.mark.parametrize("way", WAYS)
def test_log_probs_equal_those_of_the_stock_model_one_response_at_a_time(causal_lm, way):
    groups = prompt_groups()
    log_probs, responses = log_probs_by(way, causal_lm, groups)
    expected = stock_log_probs(causal_lm, groups)
    assert responses.tolist() == [number for number, of in enumerate(expected) for _ in of]
    torch.testing.assert_close(log_probs, torch.cat(expected), rtol=1e-5, atol=1e-6)
    assert log_probs.std() > 0.5  # a uniform model would hide a shifted position


@pytest.mark.parametrize("way", WAYS)
def test_gradients_equal_those_of_the_stock_model(causal_lm, way):
    groups = prompt_groups(seed=2)
    expected = stock_log_probs(causal_lm, groups)
    weights = torch.randn(len(expected), generator=torch.Generator().manual_seed(3))  # chosen up, rejected down
    sum(w * of.sum() for w, of in zip(weights, expected, strict=True)).backward()
    stock = {name: parameter.grad.clone() for name, parameter in causal_lm.named_parameters()}
    causal_lm.zero_grad()
    log_probs, responses = log_probs_by(way, causal_lm, groups)
    (log_probs * weights[responses]).sum().backward()
    ours = {name: parameter.grad for name, parameter in causal_lm.named_parameters()}
    assert ours.keys() == stock.keys()
    norm = torch.stack([gradient.norm() for gradient in stock.values()]).norm()
    difference = torch.stack([(ours[name] - stock[name]).norm() for name in stock]).norm()
    assert difference / norm < 1e-5


def test_a_response_does_not_see_its_sibling(causal_lm):
    one, other = prompt_groups()[0], prompt_groups(seed=5)[0]
    both, alone = (
        log_probs_by("shared, packed, chunked", causal_lm, [PromptGroup(one.prompt_ids, (r, one.responses[1]))])[0][-1]
        for r in (one.responses[0], other.responses[0])
    )
    torch.testing.assert_close(both, alone, rtol=1e-5, atol=0)


def test_what_stands_in_the_padding_changes_nothing(causal_lm):
    groups = prompt_groups(seed=4)
    zeros, ones = (response_log_probs(causal_lm, pack(groups, one_row=False, padding_id=i)) for i in (0, 1))
    assert torch.equal(zeros, ones)


@pytest.mark.parametrize("in_chunks", [True, False])
def test_the_output_head_sees_what_predicts_a_response_token_only(causal_lm, monkeypatch, in_chunks):
    shapes = []
    stock_linear = torch.nn.functional.linear

    def linear(hidden, weight, bias=None):
        if weight.shape[0] == VOCABULARY:
            shapes.append(hidden.shape[0])
        return stock_linear(hidden, weight, bias)

    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    tokens = pack(prompt_groups())
    response_log_probs(causal_lm, tokens, logits_mib=5 * A_TOKEN_AT_A_TIME if in_chunks else math.inf).sum().backward()
    targets = len(tokens.targets)
    # The backward pass of chunks makes each chunk's logits anew, never more.
    assert (max(shapes), sum(shapes)) == ((5, 2 * targets) if in_chunks else (targets, targets))


def test_bfloat16_logits_in_chunks_are_those_at_once(causal_lm):
    tokens = pack(prompt_groups())
    with torch.autocast("cpu", torch.bfloat16):
        chunked, whole = (
            response_log_probs(causal_lm, tokens, logits_mib=mib) for mib in (5 * A_TOKEN_AT_A_TIME, math.inf)
        )
    torch.testing.assert_close(chunked, whole, rtol=0, atol=1e-2)
    assert chunked.dtype == torch.float32
    gradients = []
    for log_probs in (chunked, whole):
        causal_lm.zero_grad()
        log_probs.sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in causal_lm.parameters() if p.grad is not None]))
    assert (gradients[0] - gradients[1]).norm() < 0.02 * gradients[1].norm()
