import itertools

import numpy as np
import pytest

from overopt.theory.tree_mdp import PAPER_PREFERENCES, TreeData, TreeMDP, TreePreference, paper_data


def test_the_paper_s_trajectories_lead_through_the_paper_s_states():
    tree = TreeMDP()
    assert tree.num_states == 13
    for text in ("(s1, a0, s2, a0, s5, a0, s∞)", "(s1, a1, s3, a1, s9, a0, s∞)", "(s1, a2, s4, a2, s13, a2, s∞)"):
        number = tree.trajectory(text)
        assert tree.name(number) == text.strip("()").replace(", s∞", "").replace(",", "")
        assert tree.trajectory(tree.name(number)) == number


@pytest.mark.parametrize(("branching", "depth"), [(2, 1), (3, 3), (4, 2), (2, 5)])
def test_each_state_is_reached_by_one_sequence_of_actions_only(branching, depth):
    tree = TreeMDP(branching, depth)
    assert len(set(map(tree.name, range(tree.num_trajectories)))) == branching**depth
    reached = {}
    for trajectory, step in itertools.product(range(tree.num_trajectories), range(depth)):
        state, history = int(tree.states[trajectory, step]), tuple(tree.actions[trajectory, :step])
        assert reached.setdefault(state, history) == history
    assert sorted(reached) == list(range(1, tree.num_states + 1))
    assert len(set(reached.values())) == tree.num_states


def test_trajectories_are_numbered_in_the_order_of_their_actions():
    tree = TreeMDP(2, 3)
    np.testing.assert_array_equal(tree.actions, [[i >> 2 & 1, i >> 1 & 1, i & 1] for i in range(8)])


def test_the_paper_s_data_leave_24_trajectories_unseen():
    classes = paper_data().classes()
    assert [classes.count(c) for c in ("chosen", "rejected", "demonstrated", "unseen")] == [1, 1, 1, 24]


@pytest.mark.parametrize(
    ("branching", "depth", "message"),
    [(1, 3, "at least 2"), (3, 0, "at least 1"), (0, 0, "at least 2"), (3, 40, "3\\^40"), (10**9, 10**9, "listed")],
)
def test_a_tree_that_leaves_nothing_to_choose_or_too_much_is_refused(branching, depth, message):
    with pytest.raises(ValueError, match=message):
        TreeMDP(branching, depth)


@pytest.mark.parametrize(
    ("demonstrations", "preferences", "message"),
    [
        (["a0 a0 a3"], PAPER_PREFERENCES, "outside the tree"),
        (["a0 a0"], PAPER_PREFERENCES, "takes 3 actions"),
        (["s1 a0 s3 a0 s5 a0"], PAPER_PREFERENCES, "lead through 's1 a0 s2"),
        (["left right"], PAPER_PREFERENCES, "no trajectory"),
        ([], PAPER_PREFERENCES, "at least one demonstration"),
        (["a0 a0 a0"], [], "at least one demonstration and one preference"),
        (["a0 a0 a0"], ["a1 a1 a0 > a1 a1 a0"], "to itself"),
        (["a0 a0 a0"], ["a1 a1 a0"], "CHOSEN > REJECTED"),
        (["a0 a0 a0"], ["a1 a1 a0 > a0 a0 a9"], "outside the tree"),
    ],
)
def test_data_outside_the_tree_are_refused(demonstrations, preferences, message):
    with pytest.raises(ValueError, match=message):
        TreeData.parse(TreeMDP(), demonstrations, preferences)


def test_numbers_outside_the_tree_and_a_preference_to_itself_are_refused():
    with pytest.raises(ValueError, match="which has 27"):
        TreeData(TreeMDP(), (27,), (TreePreference(0, 1),))
    with pytest.raises(ValueError, match="to itself"):
        TreePreference(3, 3)
