import itertools
import math

import networkx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from overopt.objectives.preference import PREFERENCE_LOSSES
from overopt.theory.chi_po import chi_po_margins, chi_po_policy_with_ood_mass
from overopt.theory.preference_draws import connected_share, draw_table, draw_until_determined, preferences_needed
from overopt.theory.rank_deficiency import (
    chain_rule_log_probs,
    freedom,
    least_norm_policy,
    log_ratio_margins,
    move_in_null_space,
    null_space_basis,
    policy_loss,
    policy_with_ood_mass,
    query_matrix,
    rank,
)
from overopt.theory.rlhf_optimum import reward_loss, ridge_reward, rlhf_policy
from overopt.theory.tree_mdp import TreeMDP

MASSES = [1e-6, 0.001, 0.1, 0.5, 0.9, 0.999, 1 - 1e-6]


def token_log_probs(tree, probabilities):
    """Sums of log conditionals, by enumeration of prefixes in plain Python."""
    weights = dict(zip(itertools.product(range(tree.branching), repeat=tree.depth), probabilities, strict=True))

    def visits(prefix):
        return math.fsum(weight for actions, weight in weights.items() if actions[: len(prefix)] == prefix)

    return [
        sum(math.log(visits(actions[: t + 1]) / visits(actions[:t])) for t in range(tree.depth)) for actions in weights
    ]


def test_the_paper_s_one_preference_leaves_25_dimensions(paper_set):
    queries = query_matrix(paper_set)
    assert queries.shape == (1, 27)
    assert sorted(queries[0]) == [-1.0, *[0.0] * 25, 1.0]
    assert rank(paper_set) == 1
    assert null_space_basis(paper_set).shape == (27, 26)
    assert freedom(paper_set) == 25


@given(seed=st.integers(0, 2**32 - 1), num_preferences=st.integers(1, 12), num_prompts=st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_freedom_is_components_of_the_preference_graph_less_prompts(
    seed, num_preferences, num_prompts, random_response_set
):
    responses = random_response_set(seed, num_prompts=num_prompts, num_preferences=num_preferences)
    graph = networkx.Graph(zip(responses.chosen.tolist(), responses.rejected.tolist(), strict=True))
    graph.add_nodes_from(range(responses.num_responses))
    components = networkx.number_connected_components(graph)
    assert rank(responses) == responses.num_responses - components
    assert freedom(responses) == components - num_prompts
    assert responses.components.number == components


@pytest.mark.parametrize("beta", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("objective", PREFERENCE_LOSSES)
def test_policies_of_any_ood_mass_have_the_same_loss_token_by_token(objective, beta, paper_set):
    tree = TreeMDP()
    reference = np.array(token_log_probs(tree, paper_set.reference))
    losses, masses = [], []
    for mass in MASSES:
        policy = np.exp(policy_with_ood_mass(paper_set, least_norm_policy(paper_set, beta=beta), mass))
        log_ratio = np.array(token_log_probs(tree, policy)) - reference
        margin = torch.tensor(log_ratio[paper_set.chosen] - log_ratio[paper_set.rejected])
        losses.append(PREFERENCE_LOSSES[objective](beta * margin, beta=beta).item())
        masses.append(policy[paper_set.unseen].sum())
    np.testing.assert_allclose(masses, MASSES, rtol=1e-9)
    assert np.ptp(losses) < 1e-9


def test_the_chain_rule_agrees_with_enumeration_of_prefixes():
    tree = TreeMDP(3, 2)
    probabilities = np.random.default_rng(0).dirichlet(np.ones(9))
    log_probs = chain_rule_log_probs(tree, probabilities)
    np.testing.assert_allclose(log_probs, token_log_probs(tree, probabilities), atol=1e-13)
    np.testing.assert_allclose(log_probs, np.log(probabilities), atol=1e-13)


@given(seed=st.integers(0, 2**32 - 1), beta=st.floats(0.01, 2.0))
@settings(max_examples=40, deadline=None)
def test_any_move_in_the_null_space_leaves_every_loss_and_changes_the_policy(seed, beta, random_response_set):
    responses = random_response_set(seed, num_preferences=2)
    generator = np.random.default_rng(seed)
    policy = least_norm_policy(responses, beta=beta)
    directions = null_space_basis(responses).shape[1]
    moved = move_in_null_space(responses, policy, generator.normal(0, 3, directions))
    np.testing.assert_allclose(np.bincount(responses.prompt_of, np.exp(moved)), 1)
    assert np.abs(moved - policy).max() > 1e-3
    margins = [log_ratio_margins(responses, each) for each in (policy, moved)]
    for objective in PREFERENCE_LOSSES:
        before, after = (policy_loss(each, objective=objective, beta=beta) for each in margins)
        assert after == pytest.approx(before, rel=1e-9, abs=1e-9)


def test_a_move_outside_the_null_space_changes_the_loss(paper_set):
    policy = least_norm_policy(paper_set, beta=0.1)
    moved = policy + 0.1 * query_matrix(paper_set)[0]
    losses = [policy_loss(log_ratio_margins(paper_set, each), objective="ipo", beta=0.1) for each in (policy, moved)]
    assert losses[0] == pytest.approx(0, abs=1e-20)
    assert losses[1] == pytest.approx(0.02**2)


@pytest.mark.parametrize("mass", [0.0, 1.0, -1.0, float("nan")])
def test_an_ood_mass_that_no_policy_has_is_refused(mass, paper_set):
    with pytest.raises(ValueError, match="OOD mass"):
        policy_with_ood_mass(paper_set, paper_set.log_reference, mass)
    with pytest.raises(ValueError, match="OOD mass"):
        chi_po_policy_with_ood_mass(paper_set, paper_set.log_reference, mass)


@pytest.mark.parametrize("mass", [0.001, 0.5, 0.999])
def test_the_chi_po_link_leaves_the_same_freedom(mass, paper_set):
    origin = least_norm_policy(paper_set, beta=1.0)
    moved = chi_po_policy_with_ood_mass(paper_set, origin, mass)
    assert np.exp(moved).sum() == pytest.approx(1, abs=1e-12)
    assert paper_set.ood_mass(moved) == pytest.approx(mass, abs=1e-12)
    ratio = np.exp(moved) / paper_set.reference
    link = ratio + np.log(ratio)  # Huang et al., Eq. 8
    np.testing.assert_allclose(
        link[paper_set.chosen] - link[paper_set.rejected], chi_po_margins(paper_set, origin), atol=1e-9
    )
    # The log-ratio margin, on the other hand, is another.
    assert abs(log_ratio_margins(paper_set, moved)[0] - 1.0) > 0.01


def test_freedom_falls_by_one_for_a_joining_pair_and_by_none_for_another(random_response_set):
    responses = random_response_set(3, num_prompts=2, sizes=(4, 7))
    order = draw_until_determined(responses, seed=1)
    falls = -np.diff(order["freedom"])
    assert set(falls) <= {0, 1}
    assert order["freedom"].iloc[0] == preferences_needed(responses) == falls.sum()
    assert order["freedom"].iloc[-1] == 0
    # Determined: the reference's margins leave the reference alone.
    assert order["mass_low"].iloc[-1] == pytest.approx(responses.ood_mass(responses.log_reference))
    assert order["mass_high"].iloc[-1] == pytest.approx(order["mass_low"].iloc[-1])
    assert (np.diff(order["mass_low"]) >= -1e-12).all()
    assert (np.diff(order["mass_high"]) <= 1e-12).all()


def test_random_preferences_determine_as_often_as_random_graphs_are_connected(paper_set):
    table, needed = draw_table(paper_set, draws=300)
    generator = np.random.default_rng(5)
    for drawn in (35, 50):
        graphs = [networkx.gnm_random_graph(27, drawn, seed=int(generator.integers(2**31))) for _ in range(300)]
        connected = np.mean([networkx.is_connected(graph) for graph in graphs])
        assert table["determined"][drawn] == pytest.approx(connected, abs=0.12)  # 3 standard errors
        assert 0.05 < connected < 0.95
    assert needed.min() >= 26
    assert connected_share(10_000, 1) == 0.0
    assert connected_share(10, 1000) == pytest.approx(1)


def test_eq_3_s_optimum_beats_every_other_policy(random_response_set):
    responses = random_response_set(7, num_prompts=1, sizes=(5, 6), num_preferences=3)
    generator = np.random.default_rng(0)
    reward, beta = generator.normal(size=5), 0.3

    def objective(log_policy):
        policy = np.exp(log_policy)
        return policy @ reward - beta * policy @ (log_policy - responses.log_reference)

    best = objective(rlhf_policy(responses, reward, beta=beta))
    assert best == pytest.approx(beta * np.log(responses.reference @ np.exp(reward / beta)))
    others = [objective(np.log(generator.dirichlet(np.ones(5)))) for _ in range(200)]
    assert max(others) < best


def test_the_ridge_reward_solves_its_stationarity_and_knows_nothing_of_uncompared_responses(paper_set):
    ridge = 0.01
    reward = ridge_reward(paper_set, ridge=ridge)
    assert not reward[~paper_set.compared].any()
    high, low = reward[paper_set.chosen[0]], reward[paper_set.rejected[0]]
    assert high == pytest.approx(-low)
    assert ridge * high == pytest.approx(1 / (1 + math.exp(high - low)))


def test_a_reward_moved_in_the_null_space_has_the_same_loss_and_another_optimum(paper_set):
    reward = ridge_reward(paper_set, ridge=0.01)
    moved = reward + 5.0 * paper_set.unseen
    assert reward_loss(paper_set, moved) == reward_loss(paper_set, reward)
    masses = [paper_set.ood_mass(rlhf_policy(paper_set, each, beta=0.5)) for each in (reward, moved)]
    assert masses[0] < 0.01
    assert masses[1] > 0.9


@pytest.mark.parametrize("ridge", [0.0, -1.0, float("inf")])
def test_a_reward_without_a_ridge_is_refused(ridge, paper_set):
    with pytest.raises(ValueError, match="ridge > 0"):
        ridge_reward(paper_set, ridge=ridge)
