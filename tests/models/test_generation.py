import itertools
import math
from collections import Counter

import pytest
import torch
from scipy.stats import chisquare
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM

from overopt.models.generation import draw_tokens, sample_responses, sample_several

END = 0


def tiny_lm(vocabulary: int, seed: int = 0) -> GPTNeoXForCausalLM:
    torch.manual_seed(seed)
    causal_lm = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=vocabulary,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=64,
        )
    )
    with torch.no_grad():
        for parameter in causal_lm.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return causal_lm


def lm_that_always_says(token: int, vocabulary: int = 5) -> GPTNeoXForCausalLM:
    causal_lm = tiny_lm(vocabulary)
    with torch.no_grad():
        causal_lm.gpt_neox.final_layer_norm.weight.zero_()
        causal_lm.gpt_neox.final_layer_norm.bias.fill_(1.0)
        head = causal_lm.get_output_embeddings()
        head.weight.fill_(-10.0)
        head.weight[token] = 10.0
    return causal_lm


def sample(causal_lm, prompts, **changes):
    return sample_responses(causal_lm, prompts, **{"eos_token_id": END, "max_response_tokens": 6, "seed": 0} | changes)


def random_prompts(count: int, vocabulary: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    lengths = torch.randint(1, 9, (count,), generator=generator).tolist()
    return [torch.randint(1, vocabulary, (n,), generator=generator).tolist() for n in lengths]


@torch.inference_mode()
def enumerated(causal_lm: GPTNeoXForCausalLM, prompt: list[int], limit: int) -> dict[tuple[int, ...], float]:
    """Probability of every response of at most ``limit`` tokens, by the stock forward."""
    probabilities = {}
    for tokens in itertools.product(range(causal_lm.config.vocab_size), repeat=limit):
        response = tokens[: tokens.index(END) + 1] if END in tokens else tokens
        if response not in probabilities:
            log_probs = causal_lm(input_ids=torch.tensor([[*prompt, *response]])).logits[0].double().log_softmax(-1)
            places = range(len(prompt), len(prompt) + len(response))
            probabilities[response] = math.exp(sum(log_probs[t - 1, response[t - len(prompt)]] for t in places))
    return probabilities


def test_responses_come_as_often_as_the_model_says():
    causal_lm, copies, limit = tiny_lm(vocabulary=4), 4000, 3
    # Side by side: the short prompt is padded on the left.
    prompts = [[1], [2, 3, 1, 3]]
    sampled = sample(causal_lm, prompts * copies, max_response_tokens=limit, batch_size=512)
    for place, prompt in enumerate(prompts):
        expected = enumerated(causal_lm, prompt, limit)
        assert math.isclose(sum(expected.values()), 1, rel_tol=1e-6)
        assert max(expected.values()) > 2 * min(expected.values())
        counts = Counter(tuple(response.token_ids) for response in sampled[place :: len(prompts)])
        frequencies = [counts[response] for response in expected]
        assert sum(frequencies) == copies
        scaled = [copies * p / sum(expected.values()) for p in expected.values()]
        assert chisquare(frequencies, scaled).pvalue > 0.001


@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_a_sample_does_not_depend_on_the_batch_it_was_drawn_in(batch_size):
    causal_lm, prompts = tiny_lm(vocabulary=30), random_prompts(23, vocabulary=30)
    together = sample(causal_lm, prompts, batch_size=100)
    assert len({len(response.token_ids) for response in together}) > 1
    assert sample(causal_lm, prompts, batch_size=batch_size) == together


def test_padding_on_the_left_moves_no_position():
    """Rotary positions are relative and would not show it; GPT-2's are absolute."""
    torch.manual_seed(0)
    causal_lm = GPT2LMHeadModel(GPT2Config(vocab_size=30, n_embd=16, n_layer=1, n_head=2, n_positions=32))
    with torch.no_grad():
        causal_lm.transformer.wpe.weight.mul_(100)  # else positions would hardly count
    prompts = random_prompts(23, vocabulary=30)
    assert sample(causal_lm, prompts, batch_size=1) == sample(causal_lm, prompts, batch_size=23)


def test_the_seed_fixes_the_samples():
    causal_lm, prompts = tiny_lm(vocabulary=30), random_prompts(8, vocabulary=30)
    assert sample(causal_lm, prompts, seed=3) == sample(causal_lm, prompts, seed=3)
    assert sample(causal_lm, prompts, seed=3) != sample(causal_lm, prompts, seed=4)


def test_a_prompt_keeps_its_noise_when_prompts_are_added_after_it():
    causal_lm, prompts = tiny_lm(vocabulary=30), random_prompts(8, vocabulary=30)
    assert sample(causal_lm, prompts)[:5] == sample(causal_lm, prompts[:5])


def test_a_response_that_ends_is_finished_and_keeps_its_end():
    responses = sample(lm_that_always_says(END), [[1], [2, 3]], max_response_tokens=1)
    assert [(r.token_ids, r.finished) for r in responses] == [([END], True)] * 2


def test_a_response_that_never_ends_stops_at_the_limit_unfinished():
    responses = sample(lm_that_always_says(3), [[1], [2, 3]], max_response_tokens=4)
    assert [(r.token_ids, r.finished) for r in responses] == [([3, 3, 3, 3], False)] * 2


def test_rows_that_have_ended_leave_the_batch():
    causal_lm, rows = tiny_lm(vocabulary=4), []
    causal_lm.register_forward_pre_hook(lambda _, __, inputs: rows.append(len(inputs["input_ids"])), with_kwargs=True)
    prompts = random_prompts(100, vocabulary=4)
    together = sample(causal_lm, prompts)
    assert rows[0] == 100
    lengths = [len(response.token_ids) for response in together]
    for step, in_batch in enumerate(rows):
        going_on = sum(length > step for length in lengths)
        assert going_on <= in_batch <= max(going_on / 0.8 + 1, 1)
    assert sum(rows[:6]) < 0.8 * 600


def test_the_end_of_text_comes_last_or_not_at_all():
    responses = sample(tiny_lm(vocabulary=4), random_prompts(200, vocabulary=4))
    assert {response.finished for response in responses} == {True, False}
    for response in responses:
        assert END not in response.token_ids[:-1]
        assert response.finished == (response.token_ids[-1] == END)
        assert response.finished or len(response.token_ids) == 6


@pytest.mark.parametrize("batch_size", [2, 9, 100])
def test_several_responses_to_a_prompt_are_those_of_their_seeds_and_the_prompt_is_read_once(batch_size):
    causal_lm, prompts, read = tiny_lm(vocabulary=30), random_prompts(23, vocabulary=30), []
    alone = [sample(causal_lm, prompts, seed=seed) for seed in (3, 4, 5)]
    assert len({tuple(map(str, of_seed)) for of_seed in alone}) == 3
    causal_lm.register_forward_pre_hook(
        lambda _, __, inputs: read.append(inputs["attention_mask"].shape), with_kwargs=True
    )
    several = sample_several(
        causal_lm, prompts, eos_token_id=END, max_response_tokens=6, seeds=[3, 4, 5], batch_size=batch_size
    )
    assert [list(of_seed) for of_seed in zip(*several, strict=True)] == alone
    if batch_size == 100:
        assert read[0] == (len(prompts), max(map(len, prompts)))


def test_the_models_generation_config_is_ignored():
    causal_lm, prompts = tiny_lm(vocabulary=30), random_prompts(8, vocabulary=30)
    before = sample(causal_lm, prompts)
    causal_lm.generation_config.update(top_k=1, temperature=0.01, do_sample=False, max_new_tokens=1)
    assert sample(causal_lm, prompts) == before


def test_sampling_leaves_the_training_mode_as_it_was_and_counts_its_batches():
    causal_lm, batches = tiny_lm(vocabulary=5), []
    for training in (True, False):
        causal_lm.train(training)
        sample(causal_lm, random_prompts(5, vocabulary=5), batch_size=2, on_batch=batches.append)
        assert causal_lm.training is training
    assert batches == [2, 2, 1] * 2


JUST_BELOW_ONE = math.nextafter(1.0, 0.0)


@pytest.mark.parametrize(
    ("probabilities", "uniform", "token"),
    [
        ([0.25, 0.5, 0.25], 0.0, 0),
        ([0.25, 0.5, 0.25], 0.2499, 0),
        ([0.25, 0.5, 0.25], 0.2501, 1),
        ([0.25, 0.5, 0.25], JUST_BELOW_ONE, 2),
        ([0.0, 0.5, 0.5], 0.0, 1),  # an impossible token is not drawn, not even by 0
        ([0.5, 0.5, 0.0], JUST_BELOW_ONE, 1),
        ([0.0, 1.0, 0.0], 0.5, 1),
        ([1 / 3, 1 / 3, 1 / 3], JUST_BELOW_ONE, 2),
    ],
)
def test_a_uniform_number_draws_the_token_whose_share_it_falls_in(probabilities, uniform, token):
    logits = torch.tensor([probabilities], dtype=torch.float64).log()
    assert draw_tokens(logits, torch.tensor([uniform], dtype=torch.float64)).tolist() == [token]


def test_no_draw_leaves_a_large_vocabulary():
    logits = torch.randn(64, 50_000, generator=torch.Generator().manual_seed(0))
    drawn = draw_tokens(logits, torch.full((64,), JUST_BELOW_ONE, dtype=torch.float64))
    assert drawn.max() < 50_000
    assert drawn.min() > 49_000
