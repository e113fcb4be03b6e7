import json

import numpy as np
import pytest

from overopt.theory.response_set import ResponseSet, group_logsumexp, read_response_set, tree_response_set
from overopt.theory.tree_mdp import TreeData, TreeMDP, paper_data

RESPONSES = [
    {"prompt": "p", "response": "a", "reference_probability": 0.5},
    {"prompt": "p", "response": "b", "reference_probability": 0.25},
    {"prompt": "p", "response": "c", "reference_probability": 0.25, "demonstration": True},
    {"prompt": "q", "response": "a", "reference_probability": 1.0},
]
PAIR = {"prompt": "p", "chosen": "b", "rejected": "a"}


def write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_a_set_is_read_from_files_whatever_the_order_of_their_rows(tmp_path):
    responses = read_response_set([write(tmp_path / "a.jsonl", [PAIR]), write(tmp_path / "b.jsonl", RESPONSES)])
    assert (responses.num_prompts, responses.num_responses, responses.num_preferences) == (2, 4, 1)
    assert responses.responses[responses.chosen[0]] == "b"
    assert responses.responses[responses.rejected[0]] == "a"
    np.testing.assert_array_equal(responses.unseen, [False, False, False, True])
    np.testing.assert_allclose(np.exp(responses.log_reference), [0.5, 0.25, 0.25, 1])
    assert responses.ood_mass(responses.log_reference) == pytest.approx(0.5)  # of q all, of p nothing


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*RESPONSES[1:], PAIR], "line 4: the rejected response 'a' is none"),
        ([*RESPONSES, RESPONSES[1], PAIR], "line 5: response 'b' of prompt 'p' is listed twice"),
        ([RESPONSES[0] | {"reference_probability": 0.4}, *RESPONSES[1:], PAIR], "'p' sum to 0.9; expected 1"),
        ([RESPONSES[0] | {"reference_probability": 0}, *RESPONSES[1:], PAIR], "line 1: 'reference_probability' must"),
        ([RESPONSES[0] | {"reference_probability": "half"}, PAIR], "found 'half'"),
        ([{"prompt": "p", "response": "a"}], "line 1: key 'reference_probability' is missing"),
        ([RESPONSES[0] | {"demonstration": "yes"}], "line 1: 'demonstration' must be true or false"),
        ([{"prompt": "p", "answer": "a"}], "line 1: expected a response"),
        ([*RESPONSES, PAIR | {"rejected": "b"}], "line 5: chosen and rejected are the same"),
        ([*RESPONSES, {"prompt": "p", "chosen": "b"}], "line 5: key 'rejected' is missing"),
        (["{"], "line 1: not JSON"),
        (RESPONSES, "no preference"),
        ([], "no preference"),
    ],
)
def test_files_that_make_no_set_are_refused_with_their_place(rows, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_response_set([write(tmp_path / "set.jsonl", rows)])


def test_a_preference_across_prompts_is_refused():
    with pytest.raises(ValueError, match="same prompt"):
        ResponseSet(
            ("p", "q"),
            ("a", "b"),
            np.array([0, 1]),
            np.ones(2),
            np.array([0]),
            np.array([1]),
            np.zeros(2, dtype=bool),
        )


def test_the_tree_s_reference_is_the_mixture_that_was_asked_for():
    mixed = tree_response_set(paper_data(), demonstration_mass=0.9)
    demonstrated = mixed.reference[mixed.demonstrated]
    np.testing.assert_allclose(demonstrated, 0.3 + 0.1 / 27)
    assert mixed.unseen.sum() == 24
    assert mixed.ood_mass(mixed.log_reference) == pytest.approx(0.1 * 24 / 27)
    np.testing.assert_allclose(tree_response_set(paper_data()).reference, 1 / 27)


@pytest.mark.parametrize("mass", [-0.1, 1.0, float("nan")])
def test_a_reference_without_full_support_is_refused(mass):
    with pytest.raises(ValueError, match="demonstration mass"):
        tree_response_set(paper_data(), demonstration_mass=mass)


def test_a_tree_too_large_for_a_dense_null_space_is_refused_before_it_is_listed():
    data = TreeData.parse(TreeMDP(10, 5), ["a0 a0 a0 a0 a0"], ["a1 a0 a0 a0 a0 > a0 a0 a0 a0 a0"])
    with pytest.raises(ValueError, match="100,000 trajectories"):
        tree_response_set(data)


def test_logsumexp_of_a_group_without_weight_is_minus_infinity():
    sums = group_logsumexp(np.array([-1e4, -1e4 + np.log(2), -np.inf]), np.array([0, 0, 2]), 3)
    np.testing.assert_allclose(sums, [-1e4 + np.log(3), -np.inf, -np.inf])
