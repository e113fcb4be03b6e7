import numpy as np
import pytest
import torch

from overopt.packed_tokens import PromptGroup, pack


def group(prompt: list[int], *responses: list[int]) -> PromptGroup:
    return PromptGroup(np.array(prompt, np.int32), tuple(np.array(r, np.int32) for r in responses))


GROUPS = [group([10, 11], [20, 21, 22], [30]), group([12], [40])]


def test_groups_share_one_row_and_each_response_begins_where_its_prompt_ends():
    tokens = pack(GROUPS)
    assert tokens.input_ids.tolist() == [[10, 11, 20, 21, 22, 30, 12, 40]]
    assert tokens.position_ids.tolist() == [[0, 1, 2, 3, 4, 2, 0, 1]]
    assert tokens.branches.tolist() == [[0, 0, 1, 1, 1, 2], [0, 1, -1, -1, -1, -1]]
    assert tokens.targets.tolist() == [20, 21, 22, 30, 40]
    assert tokens.input_ids[0, tokens.predictors].tolist() == [11, 20, 21, 11, 12]
    assert tokens.responses.tolist() == [0, 0, 0, 1, 2]
    assert tokens.input_ids[0, tokens.ends].tolist() == [22, 30, 40]


def test_the_grid_holds_each_token_once():
    tokens = pack(GROUPS)
    row = tokens.input_ids[0]
    assert row[tokens.grid.places][0].tolist() == [10, 11, 20, 21, 22, 30]
    assert row[tokens.grid.places][1, :2].tolist() == [12, 40]
    assert torch.equal(row[tokens.grid.places].flatten()[tokens.grid.slots], row)


def test_a_row_a_group_is_padded_and_means_the_same():
    tokens = pack(GROUPS, one_row=False, padding_id=7)
    assert tokens.input_ids.tolist() == [[10, 11, 20, 21, 22, 30], [12, 40, 7, 7, 7, 7]]
    assert tokens.grid is None
    rows = tokens.input_ids.flatten()
    assert rows[tokens.predictors].tolist() == [11, 20, 21, 11, 12]
    assert rows[tokens.ends].tolist() == [22, 30, 40]


@pytest.mark.parametrize("one_row", [True, False])
def test_each_response_knows_its_prompt(one_row):
    assert pack(GROUPS, one_row=one_row).prompts() == [[10, 11], [10, 11], [12]]


def test_single_responses_need_no_branches():
    assert pack([group([1], [2, 3]), group([4, 5], [6])]).branches is None


def test_nothing_predicts_the_first_token_after_an_empty_prompt():
    tokens = pack([group([], [20, 21, 22], [30])])
    assert tokens.targets.tolist() == [21, 22]
    assert tokens.input_ids[0, tokens.predictors].tolist() == [20, 21]
    assert tokens.lengths().tolist() == [2, 0]


def test_sums_lengths_and_rows_are_by_response():
    tokens, values = pack(GROUPS), torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
    assert tokens.sums(values).tolist() == [7, 8, 16]
    assert tokens.lengths().tolist() == [3, 1, 1]
    assert torch.equal(tokens.mask(), ~tokens.padded(values).isnan())
    assert tokens.padded(values).nan_to_num(-1).tolist() == [[1, 2, 4], [8, -1, -1], [16, -1, -1]]


@pytest.mark.parametrize(("groups", "message"), [([], "at least one example"), ([group([1], [])], "without a token")])
def test_what_has_no_meaning_is_refused(groups, message):
    with pytest.raises(ValueError, match=message):
        pack(groups)
