"""The SFT likelihood against sums done by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from overopt.objectives.likelihood import response_negative_log_likelihood


def test_only_response_tokens_count():
    token_log_probs = torch.tensor([[-5.0, -1.0, -2.0, -4.0], [-5.0, -0.25, -3.0, -3.0]])
    response_mask = torch.tensor([[False, True, True, True], [False, True, False, False]])
    nll, tokens = response_negative_log_likelihood(token_log_probs, response_mask)
    assert nll.tolist() == [7.0, 0.25]
    assert tokens.tolist() == [3, 1]


def test_uniform_guessing_costs_log_of_the_vocabulary_per_token():
    token_log_probs = torch.full((3, 5), -math.log(50), dtype=torch.float64)
    response_mask = torch.arange(5) < torch.tensor([[1], [3], [5]])
    nll, tokens = response_negative_log_likelihood(token_log_probs, response_mask)
    assert (nll / tokens).tolist() == pytest.approx([math.log(50)] * 3)


@pytest.mark.parametrize("padding", [math.nan, -math.inf, math.inf, 1e30])
def test_what_stands_at_masked_positions_reaches_neither_loss_nor_gradient(padding):
    token_log_probs = torch.tensor([[padding, -1.5, padding]], requires_grad=True)
    nll, tokens = response_negative_log_likelihood(token_log_probs, torch.tensor([[False, True, False]]))
    nll.sum().backward()
    assert (nll.item(), tokens.item()) == (1.5, 1)
    assert token_log_probs.grad.tolist() == [[0.0, -1.0, 0.0]]


def test_a_sequence_without_response_adds_nothing():
    nll, tokens = response_negative_log_likelihood(torch.full((1, 3), -2.0), torch.zeros(1, 3, dtype=torch.bool))
    assert (nll.item(), tokens.item()) == (0.0, 0)


@settings(deadline=None, max_examples=50)
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=6), split=st.integers(0, 6))
def test_sums_and_counts_add_up_over_batches(lengths, split):
    generator = torch.Generator().manual_seed(sum(lengths))
    token_log_probs = -torch.rand(len(lengths), 6, generator=generator, dtype=torch.float64)
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    whole = response_negative_log_likelihood(token_log_probs, mask)
    parts = [
        response_negative_log_likelihood(token_log_probs[rows], mask[rows])
        for rows in (slice(None, split), slice(split, None))
    ]
    by_hand = -sum(row[:length].sum() for row, length in zip(token_log_probs, lengths, strict=True))
    torch.testing.assert_close(whole.negative_log_likelihood.sum(), by_hand)
    torch.testing.assert_close(sum(part.negative_log_likelihood.sum() for part in parts), by_hand)
    assert sum(part.response_tokens.sum().item() for part in parts) == sum(lengths)
