import pytest
import torch
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig, PreTrainedModel, Qwen2Config

from overopt.models.log_probs import response_log_probs

VOCABULARY, PADDING = 37, 0
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
    return causal_lm


def sequences(seed: int = 1, count: int = 9) -> list[tuple[list[int], list[int]]]:
    """Prompts of 1 to 6 and responses of 1 to 8 tokens."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    return [
        ([draw(1, VOCABULARY) for _ in range(draw(1, 7))], [draw(1, VOCABULARY) for _ in range(draw(1, 9))])
        for _ in range(count)
    ]


def padded(rows: list[tuple[list[int], list[int]]], padding: int = PADDING) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(len(prompt) + len(response) for prompt, response in rows)
    input_ids = torch.full((len(rows), longest), padding)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for row, (prompt, response) in enumerate(rows):
        input_ids[row, : len(prompt) + len(response)] = torch.tensor(prompt + response)
        mask[row, len(prompt) : len(prompt) + len(response)] = True
    return input_ids, mask


def stock_log_probs(causal_lm: PreTrainedModel, prompt: list[int], response: list[int]) -> torch.Tensor:
    """One sequence, no padding, all logits, Hugging Face's own forward."""
    tokens = torch.tensor([prompt + response])
    log_probs = causal_lm(input_ids=tokens, use_cache=False).logits[0].log_softmax(dim=-1)
    places = torch.arange(len(prompt), len(prompt) + len(response))
    return log_probs[places - 1, tokens[0, places]]


def test_log_probs_equal_those_of_the_stock_model_one_sequence_at_a_time(causal_lm):
    rows = sequences()
    input_ids, mask = padded(rows)
    log_probs = response_log_probs(causal_lm, input_ids, mask)
    for row, (prompt, response) in enumerate(rows):
        expected = stock_log_probs(causal_lm, prompt, response)
        torch.testing.assert_close(log_probs[row, mask[row]], expected, rtol=1e-5, atol=0)
    assert (log_probs[~mask] == 0).all()
    assert log_probs[mask].std() > 0.5  # a uniform model would hide a shifted position


def test_gradients_equal_those_of_the_stock_model(causal_lm):
    rows = sequences(seed=2)
    weights = torch.randn(len(rows), generator=torch.Generator().manual_seed(3))  # chosen up, rejected down
    (response_log_probs(causal_lm, *padded(rows)).sum(dim=1) * weights).sum().backward()
    ours = {name: parameter.grad.clone() for name, parameter in causal_lm.named_parameters()}
    causal_lm.zero_grad()
    sum(w * stock_log_probs(causal_lm, *row).sum() for w, row in zip(weights, rows, strict=True)).backward()
    stock = {name: parameter.grad for name, parameter in causal_lm.named_parameters()}
    assert ours.keys() == stock.keys()
    norm = torch.stack([gradient.norm() for gradient in stock.values()]).norm()
    assert norm > 1
    difference = torch.stack([(ours[name] - stock[name]).norm() for name in stock]).norm()
    assert difference / norm < 1e-5


def test_what_stands_in_the_padding_changes_nothing(causal_lm):
    rows = sequences(seed=4)
    zeros, ones = (response_log_probs(causal_lm, *padded(rows, padding)) for padding in (0, 1))
    assert torch.equal(zeros, ones)


def test_the_output_head_sees_response_positions_only(causal_lm):
    shapes = []
    causal_lm.get_output_embeddings().register_forward_hook(lambda _, inputs, __: shapes.append(inputs[0].shape))
    input_ids, mask = padded(sequences())
    response_log_probs(causal_lm, input_ids, mask)
    assert shapes == [(int(mask.sum()), SHAPE["hidden_size"])]
    assert mask.sum() < mask.numel() / 2
