"""Implicit-reward accuracy against counts done by hand."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from overopt.metrics.implicit_reward import ImplicitRewardAccuracy, pair_is_ranked_right, pair_is_tied

# Few values, so that ties occur.
pairs = st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2)), min_size=1, max_size=20)


def measured(chosen, rejected):
    metric = ImplicitRewardAccuracy()
    metric.update(torch.as_tensor(chosen, dtype=torch.float64), torch.as_tensor(rejected, dtype=torch.float64))
    return metric


def test_a_tie_is_neither_right_nor_wrong():
    estimate = measured([1.0, 0.0, -3.0, -1.0], [0.5, 0.0, -2.0, -9.0]).compute()
    assert (estimate.accuracy, estimate.tie_share) == (0.5, 0.25)
    assert (estimate.chosen_log_ratio, estimate.rejected_log_ratio) == (-0.75, -2.625)
    assert estimate.num_pairs == 4


def test_at_step_0_every_pair_is_a_tie():
    estimate = measured([0.0] * 5, [0.0] * 5).compute()
    assert (estimate.accuracy, estimate.tie_share) == (0, 1)


@settings(deadline=None, max_examples=50)
@given(pairs)
def test_shares_are_counts_over_pairs(pairs):
    chosen, rejected = zip(*pairs, strict=True)
    estimate = measured(chosen, rejected).compute()
    assert estimate.accuracy.item() == pytest.approx(sum(c > r for c, r in pairs) / len(pairs))
    assert estimate.tie_share.item() == pytest.approx(sum(c == r for c, r in pairs) / len(pairs))


@settings(deadline=None, max_examples=50)
@given(pairs)
def test_swapping_labels_turns_right_into_wrong_and_leaves_ties(pairs):
    chosen, rejected = zip(*pairs, strict=True)
    estimate, swapped = measured(chosen, rejected).compute(), measured(rejected, chosen).compute()
    assert (estimate.accuracy + swapped.accuracy + estimate.tie_share).item() == pytest.approx(1)
    assert swapped.tie_share == estimate.tie_share


@pytest.mark.parametrize("beta", [1e-3, 0.1, 7.0])
def test_beta_scales_rewards_and_changes_no_order(beta):
    chosen, rejected = torch.tensor([1.0, -3.0, 0.0]), torch.tensor([-1.0, -2.0, 0.0])
    for per_pair in (pair_is_ranked_right, pair_is_tied):
        assert per_pair(chosen, rejected).tolist() == per_pair(beta * chosen, beta * rejected).tolist()


def test_a_margin_of_one_float32_step_is_no_tie():
    chosen = torch.tensor([-100.0])
    rejected = torch.nextafter(chosen, torch.tensor([-math.inf]))
    assert pair_is_ranked_right(chosen, rejected).item() == 1
    assert pair_is_tied(chosen, rejected).item() == 0


@settings(deadline=None, max_examples=50)
@given(pairs=pairs, cuts=st.lists(st.integers(0, 20), max_size=3))
def test_uneven_batches_measure_what_one_batch_measures(pairs, cuts):
    chosen, rejected = torch.tensor(pairs, dtype=torch.float64).T
    metric = ImplicitRewardAccuracy()
    bounds = [0, *sorted(min(cut, len(pairs)) for cut in cuts), len(pairs)]
    for start, stop in itertools.pairwise(bounds):
        metric.update(chosen[start:stop], rejected[start:stop])
    torch.testing.assert_close(metric.compute(), measured(chosen, rejected).compute())


def test_states_of_two_processes_merge_into_those_of_one():
    chosen, rejected = torch.randn(2, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one, other = measured(chosen[:2], rejected[:2]), measured(chosen[2:], rejected[2:])
    one.merge_state(other)
    torch.testing.assert_close(one.compute(), measured(chosen, rejected).compute())


def test_an_unknown_log_ratio_makes_the_shares_unknown():
    estimate = measured([1.0, math.nan], [0.0, 0.0]).compute()
    assert estimate.accuracy.isnan()
    assert estimate.tie_share.isnan()
    assert estimate.chosen_log_ratio.isnan()
    assert estimate.rejected_log_ratio == 0


def test_without_pairs_nothing_is_known():
    with pytest.warns(UserWarning, match="called before"):
        estimate = ImplicitRewardAccuracy().compute()
    assert all(value.isnan() for value in estimate[:4])
    assert estimate.num_pairs == 0
