"""Best-of-n against every subset of a pool, every draw from a policy that can be listed, and simulation."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from overopt.evaluation.best_of_n import (
    _jensen_gap,
    best_of_n_distribution,
    estimated_kl,
    exact_kl,
    expected_under_selection,
    kl_bound,
    mean_over_prompts,
    rank_weights,
    selection_weights,
)

# Few values, so that ties occur.
pools = st.lists(st.integers(-2, 2).map(float), min_size=1, max_size=7)
# A policy whose responses can be listed: probabilities and scores, two of which tie.
PROBABILITIES = np.array([0.3, 0.05, 0.2, 0.15, 0.1, 0.2])
SCORES = np.array([0.0, 3.0, -1.0, 1.0, 2.0, 1.0])
GOLD = np.array([0.5, -4.0, 0.0, 2.0, 1.0, 3.0])


def by_subsets(proxy, n):
    """Weights by every subset of size n; the highest of one share its win."""
    wins = np.zeros(len(proxy))
    subsets = list(itertools.combinations(range(len(proxy)), n))
    for subset in subsets:
        best = [place for place in subset if proxy[place] == max(proxy[list(subset)])]
        wins[best] += 1 / len(best)
    return wins / len(subsets)


def by_draws(n):
    """Best-of-n of the listed policy, by every sequence of n draws."""
    chosen = np.zeros(len(PROBABILITIES))
    for draws in itertools.product(range(len(PROBABILITIES)), repeat=n):
        best = [place for place in draws if SCORES[place] == max(SCORES[list(draws)])]
        for place in best:
            chosen[place] += PROBABILITIES[list(draws)].prod() / len(best)
    return chosen


@settings(deadline=None, max_examples=100)
@given(pools, st.integers(1, 7))
def test_weights_are_those_of_all_subsets(pool, n):
    n = min(n, len(pool))
    proxy = np.array(pool)
    assert selection_weights(proxy, n) == pytest.approx(by_subsets(proxy, n), abs=1e-12)


@pytest.mark.parametrize(("pool", "n"), [(10, 1), (10, 10), (5000, 1), (5000, 64), (5000, 2500), (5000, 5000)])
def test_weights_of_large_pools_are_exact_integers_ratios(pool, n):
    weights = rank_weights(pool, n)
    assert weights.sum() == pytest.approx(1)
    for rank in {n, (n + pool) // 2, pool}:
        exact = math.comb(rank - 1, n - 1) / math.comb(pool, n)
        assert weights[rank - 1] == pytest.approx(exact, rel=1e-9)
    assert not weights[: n - 1].any()


def test_of_one_all_weigh_the_same_and_of_all_the_best_takes_all():
    proxy = np.array([0.5, 2.0, -1.0, 2.0])
    assert selection_weights(proxy, 1).tolist() == pytest.approx([0.25] * 4)
    assert selection_weights(proxy, 4).tolist() == [0, 0.5, 0, 0.5]


def test_the_expected_maximum_of_a_pool_by_hand():
    # Of {1, 2, 4} the pairs have the maxima 2, 4, 4.
    proxy = np.array([[4.0, 1.0, 2.0]])
    estimate = expected_under_selection(selection_weights(proxy[0], 2)[None], proxy)
    assert estimate.mean == pytest.approx(10 / 3)
    assert math.isnan(estimate.standard_error)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_the_listed_policy_s_best_of_n_is_that_of_all_draws(n):
    assert best_of_n_distribution(PROBABILITIES, SCORES, n) == pytest.approx(by_draws(n), abs=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_the_exact_kl_is_that_of_all_draws(n):
    chosen = by_draws(n)
    expected = sum(q * math.log(q / p) for q, p in zip(chosen, PROBABILITIES, strict=True))
    assert exact_kl(PROBABILITIES, SCORES, n) == pytest.approx(expected, abs=1e-12)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(-3, 3)), min_size=1, max_size=12).filter(
        lambda responses: any(mass for mass, _ in responses)
    ),
    st.integers(1, 1000),
)
def test_the_kl_is_never_above_the_bound(responses, n):
    masses, scores = np.array(responses, dtype=float).T
    kl = exact_kl(masses / masses.sum(), scores, n)
    assert -1e-12 <= kl <= kl_bound(n) + 1e-12


def test_the_bound_is_reached_where_no_response_has_much_probability():
    many = np.full(20000, 1 / 20000)
    assert exact_kl(many, np.arange(20000.0), 16) == pytest.approx(kl_bound(16), abs=1e-6)


@pytest.mark.parametrize("n", [2, 4, 8])
def test_one_pool_agrees_with_direct_simulation_and_with_the_listed_policy(n):
    """Expected maximum and gold value under the selection: pool estimates, redrawn best-of-n, exact."""
    generator = np.random.default_rng(0)
    draws = generator.choice(len(SCORES), (4000, 16), p=PROBABILITIES)
    weights = np.array([selection_weights(row, n) for row in SCORES[draws]])
    direct = generator.choice(len(SCORES), (40000, n), p=PROBABILITIES)
    # argmax takes the first of those that tie, which is in random order.
    best = direct[np.arange(len(direct)), SCORES[direct].argmax(axis=1)]
    chosen = best_of_n_distribution(PROBABILITIES, SCORES, n)
    for values in (SCORES, GOLD):
        estimate, simulated = expected_under_selection(weights, values[draws]), mean_over_prompts(values[best])
        assert abs(estimate.mean - chosen @ values) < 4 * estimate.standard_error
        assert abs(estimate.mean - simulated.mean) < 4 * math.hypot(*(e.standard_error for e in (estimate, simulated)))
        assert estimate.standard_error < 0.05


@pytest.mark.parametrize("below", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("n", [2, 64])
def test_the_correction_is_the_integral_that_it_stands_for(below, n):
    mass = 0.1
    inside = quad(lambda u: n * u ** (n - 1) * math.log(n * u ** (n - 1)), below, below + mass)[0]
    selected = (below + mass) ** n - below**n
    expected = inside / selected - math.log(selected / mass)
    assert _jensen_gap(np.array([below]), np.array([mass]), n)[0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("n", [2, 8, 32])
def test_the_kl_estimate_is_near_the_exact_one_on_a_listed_policy_and_below_the_bound(n):
    generator = np.random.default_rng(0)
    exact = exact_kl(PROBABILITIES, SCORES, n)
    gap = kl_bound(n) - exact
    assert gap > 0.01
    estimates = []
    for _ in range(300):
        draws = generator.choice(len(SCORES), 128, p=PROBABILITIES)
        estimates.append(estimated_kl(SCORES[draws], np.log(PROBABILITIES[draws]), draws.tolist(), n))
    assert max(estimates) <= kl_bound(n)
    assert np.mean(estimates) == pytest.approx(exact, abs=0.15 * gap)  # the bound would be off by the whole gap


def test_the_kl_of_responses_of_no_probability_is_the_bound():
    proxy = np.arange(64.0)
    assert estimated_kl(proxy, np.full(64, -60.0), range(64), 16) == pytest.approx(kl_bound(16), abs=1e-9)


def test_what_can_t_be_read_is_left_out_by_weight():
    weights, values = np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([[1.0, np.nan], [0.0, 1.0]])
    assert expected_under_selection(weights, values).mean == pytest.approx(0.5 / 1.5)
    assert math.isnan(expected_under_selection(weights, np.full((2, 2), np.nan)).mean)


@pytest.mark.parametrize("n", [0, 5])
def test_more_than_the_pool_and_less_than_one_are_refused(n):
    with pytest.raises(ValueError, match="best"):
        selection_weights(np.arange(4.0), n)


def test_a_reward_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="no finite number"):
        selection_weights(np.array([1.0, np.nan]), 1)
