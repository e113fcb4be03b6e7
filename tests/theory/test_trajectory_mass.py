import numpy as np

from overopt.theory.trajectory_mass import mass_table
from overopt.theory.tree_mdp import TreeData, TreeMDP, paper_data


def test_masses_by_hand():
    data = TreeData.parse(TreeMDP(2, 2), ["a0 a0"], ["a0 a1 > a0 a0"])
    start, end = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.1, 0.5, 0.1, 0.3])
    [before, after] = mass_table(np.log([[start], [end]]), data).to_dict("records")
    assert (before["step"], after["step"], after["seed"]) == (0, 1, 0)
    np.testing.assert_allclose([after[k] for k in ("chosen", "rejected", "demonstrated", "unseen")], [0.5, 0.1, 0, 0.4])
    np.testing.assert_allclose(after["unseen_top"], 0.75)
    np.testing.assert_allclose(after["unseen_effective"], np.exp(-0.25 * np.log(0.25) - 0.75 * np.log(0.75)))
    np.testing.assert_allclose(after["margin_nats"], np.log(0.5 / 0.3) - np.log(0.1 / 0.4))
    np.testing.assert_allclose(after["kl_nats"], (end * np.log(end / start)).sum())
    assert before["kl_nats"] == before["margin_nats"] == 0


def test_classes_sum_to_one_and_concentration_needs_no_mass():
    data = paper_data()
    log_probs = np.log(np.random.default_rng(0).dirichlet(np.ones(27), size=(3, 4)))
    table = mass_table(log_probs, data)
    np.testing.assert_allclose(table[["chosen", "rejected", "demonstrated", "unseen"]].sum(axis=1), 1)
    unseen = np.array(data.classes()) == "unseen"
    vanishing = log_probs - 2000 * unseen
    np.testing.assert_allclose(mass_table(vanishing, data)["unseen_effective"], table["unseen_effective"])
    assert (mass_table(vanishing, data)["unseen"] == 0).all()
    assert table["unseen_few"].between(3 / 24, 1).all()


def test_where_nothing_is_unseen_there_is_no_concentration():
    data = TreeData.parse(TreeMDP(2, 1), ["a0"], ["a0 > a1"])
    table = mass_table(np.log([[[0.5, 0.5]]]), data)
    assert (table["unseen"] == 0).all()
    assert table[["unseen_effective", "unseen_top", "unseen_few"]].isna().all(axis=None)
