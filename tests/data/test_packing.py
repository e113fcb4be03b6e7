import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overopt.data.packing import Packing, deal, merge_equal_prompts
from overopt.data.tokenization import TokenizedPreference
from overopt.packed_tokens import PromptGroup


def ids(*tokens: int) -> np.ndarray:
    return np.array(tokens, np.int32)


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30),
    max_tokens=st.integers(40, 200),
    one_row=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_shares_hold_each_example_once_and_no_more_tokens_than_there_is_room(lengths, max_tokens, one_row):
    shares = Packing(one_row=one_row, max_tokens=max_tokens).shares(range(len(lengths)), lengths)
    assert sorted(i for share in shares for i in share) == list(range(len(lengths)))
    for share in shares:
        of_share = [lengths[i] for i in share]
        assert (sum(of_share) if one_row else max(of_share) * len(of_share)) <= max_tokens
    in_order = [lengths[i] for share in shares for i in share]
    assert in_order == sorted(lengths, reverse=True)  # neighbours in length stand together


def test_passes_are_about_equal():
    shares = Packing(max_tokens=100).shares(range(11), [10] * 11)
    assert sorted(map(len, shares)) == [5, 6]  # not 10 and 1


def test_ranks_are_dealt_equal_loads():
    lengths = [9, 1, 8, 2, 7, 3, 6, 4]
    ranks = deal(range(8), lengths, 2)
    assert sorted(i for rank in ranks for i in rank) == list(range(8))
    assert [sum(lengths[i] for i in rank) for rank in ranks] == [20, 20]


def test_an_example_without_room_is_named():
    pair = TokenizedPreference("row 17", ids(1, 2, 3), ids(4, 5), ids(6))
    assert Packing(max_tokens=6).lengths([pair]) == [6]
    with pytest.raises(ValueError, match=r"'row 17' needs 6 tokens, .* room for 5: raise data.micro_batch_tokens"):
        Packing(max_tokens=5).lengths([pair])
    with pytest.raises(ValueError, match="needs 10 tokens"):  # two rows, each as long as the longer one
        Packing(shared_prompts=False, one_row=False, max_tokens=9).lengths([pair])


def test_equal_prompts_and_equal_responses_are_scored_once():
    a, b = ids(1, 2), ids(3)
    groups = [
        PromptGroup(a, (ids(10), ids(11))),
        PromptGroup(b, (ids(10), ids(12))),
        PromptGroup(a, (ids(13, 13), ids(10))),
    ]
    merged, numbers = merge_equal_prompts(groups, max_tokens=100)
    assert [group.num_tokens for group in merged] == [2 + 1 + 1 + 2, 3]
    responses = [response for group in merged for response in group.responses]
    prompts = [group.prompt_ids for group in merged for _ in group.responses]
    for group, row in zip(groups, numbers, strict=True):
        for response, number in zip(group.responses, row, strict=True):
            assert responses[number].tolist() == response.tolist()
            assert prompts[number].tolist() == group.prompt_ids.tolist()
    parted, numbers = merge_equal_prompts(groups, max_tokens=5)
    assert [group.num_tokens for group in parted] == [4, 3, 5]
    assert numbers == [[0, 1], [2, 3], [4, 5]]


def test_batches_say_which_groups_they_hold():
    groups = [PromptGroup(ids(*range(n)), (ids(100 + n),)) for n in (3, 9, 5, 7)]
    seen = {}
    for places, tokens in Packing(max_tokens=16).batches(groups):
        seen |= dict(zip(places, tokens.targets.tolist(), strict=True))
    assert seen == {0: 103, 1: 109, 2: 105, 3: 107}


@pytest.mark.parametrize("max_tokens", [3, 100])
@pytest.mark.parametrize("shared_prompts", [True, False])
def test_each_response_gets_its_score_whatever_was_merged(max_tokens, shared_prompts):
    groups = [
        PromptGroup(ids(1, 2), (ids(10), ids(11))),
        PromptGroup(ids(3), (ids(12), ids(10))),
        PromptGroup(ids(1, 2), (ids(13, 13), ids(10))),
    ]
    passed_through = []

    def score(tokens):
        passed_through.extend(tokens.targets.tolist())
        return tokens.sums(tokens.targets.double())

    scores = Packing(shared_prompts, max_tokens=max_tokens).scores(groups, score)
    assert [of_group.tolist() for of_group in scores] == [[10, 11], [12, 10], [26, 10]]
    # The second 10 after the prompt (1, 2) goes along with the first, where there is room for the group.
    assert passed_through.count(10) == (2 if max_tokens == 100 else 3)


def test_nothing_to_score_is_no_error():
    assert Packing().scores([], lambda tokens: pytest.fail("no pass was needed")) == []
