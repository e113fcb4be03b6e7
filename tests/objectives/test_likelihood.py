"""The SFT likelihood against sums done by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from overopt.objectives.likelihood import response_negative_log_likelihood


def test_each_token_counts_for_its_own_response():
    token_log_probs = torch.tensor([-1.0, -2.0, -4.0, -0.25], requires_grad=True)
    nll, tokens = response_negative_log_likelihood(token_log_probs, torch.tensor([0, 0, 0, 1]), 2)
    assert nll.tolist() == [7.0, 0.25]
    assert tokens.tolist() == [3, 1]
    nll[1].backward()
    assert token_log_probs.grad.tolist() == [0, 0, 0, -1]


def test_uniform_guessing_costs_log_of_the_vocabulary_per_token():
    responses = torch.tensor([0] + [1] * 3 + [2] * 5)
    token_log_probs = torch.full((9,), -math.log(50), dtype=torch.float64)
    nll, tokens = response_negative_log_likelihood(token_log_probs, responses, 3)
    assert (nll / tokens).tolist() == pytest.approx([math.log(50)] * 3)


def test_a_response_without_tokens_adds_nothing():
    nll, tokens = response_negative_log_likelihood(torch.tensor([-2.0]), torch.tensor([1]), 2)
    assert (nll.tolist(), tokens.tolist()) == ([0.0, 2.0], [0, 1])


@settings(deadline=None, max_examples=50)
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=6), split=st.integers(0, 6))
def test_sums_and_counts_add_up_over_batches(lengths, split):
    generator = torch.Generator().manual_seed(sum(lengths))
    token_log_probs = -torch.rand(sum(lengths), generator=generator, dtype=torch.float64)
    responses = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    whole = response_negative_log_likelihood(token_log_probs, responses, len(lengths))
    parts = [
        response_negative_log_likelihood(token_log_probs[part], responses[part], len(lengths))
        for part in (responses < split, responses >= split)
    ]
    torch.testing.assert_close(whole.negative_log_likelihood.sum(), -token_log_probs.sum())
    torch.testing.assert_close(sum(part.negative_log_likelihood.sum() for part in parts), -token_log_probs.sum())
    assert sum(part.response_tokens.sum().item() for part in parts) == sum(lengths)
