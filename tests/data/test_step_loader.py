import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overopt.data.packing import Packing
from overopt.data.schema import StepBatch
from overopt.data.step_loader import EvaluationLoader, StepLoader
from overopt.packed_tokens import PackedTokens, PromptGroup, pack


def collate(examples) -> PackedTokens:
    """A batch whose token ids are the examples' places."""
    return pack([PromptGroup(np.array([example]), (np.array([0]),)) for example in examples], one_row=False)


def lengths_of(num_examples: int) -> list[int]:
    """Between 3 and 40 tokens."""
    return np.random.default_rng(0).integers(3, 41, num_examples).tolist()


def loader(num_examples: int, batch_size: int, max_tokens: int = 100, **changes) -> StepLoader:
    packing = Packing(max_tokens=max_tokens)
    return StepLoader(lengths_of(num_examples), collate, batch_size=batch_size, packing=packing, **changes)


def examples_of(batch: PackedTokens) -> list[int]:
    return batch.input_ids[:, 0].tolist()


def trained_on(step: StepBatch) -> list[int]:
    """The examples that count; a filler does not."""
    return [e for b, s in zip(step.micro_batches, step.scales, strict=True) if s for e in examples_of(b)]


@given(
    num_examples=st.integers(1, 40),
    batch_size=st.integers(1, 16),
    max_tokens=st.integers(40, 200),
    world_size=st.integers(1, 4),
    seed=st.integers(0, 3),
)
@settings(max_examples=200, deadline=None)
def test_an_epoch_is_every_example_once_in_equal_steps_over_ranks(
    num_examples, batch_size, max_tokens, world_size, seed
):
    batch_size = max(batch_size, world_size)
    ranks = [
        loader(num_examples, batch_size, max_tokens, seed=seed, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    steps = list(zip(*ranks, strict=True))
    assert len(steps) == len(ranks[0])
    seen = []
    for number, shares in enumerate(steps):
        expected = min(batch_size, num_examples - number * batch_size)
        assert {share.num_examples for share in shares} == {expected}
        # Equal numbers of micro-batches, or ranks would wait for each other for ever.
        assert len({len(share.micro_batches) for share in shares}) == 1
        together = [example for share in shares for example in trained_on(share)]
        assert len(together) == len(set(together)) == expected
        seen += together
        for share in shares:
            assert set(share.scales) <= {0.0, 1.0}
            lengths = lengths_of(num_examples)
            assert all(sum(lengths[e] for e in examples_of(b)) <= max_tokens for b in share.micro_batches)
            assert all(examples_of(b) for b in share.micro_batches)  # a filler goes through the model, too
    assert sorted(seen) == list(range(num_examples))


def test_a_rank_without_examples_of_a_step_gets_a_filler_that_counts_nothing():
    (_, last) = loader(5, 4, world_size=2, rank=1)
    assert (last.scales, last.num_examples, len(last.micro_batches)) == ((0.0,), 1, 1)


def test_micro_batches_part_a_step_and_change_nothing_else():
    whole, parted = loader(11, 4, max_tokens=1000), loader(11, 4, max_tokens=40)
    for step, parts in zip(whole, parted, strict=True):
        assert sorted(trained_on(step)) == sorted(trained_on(parts))
        assert len(step.micro_batches) == 1
        assert len(parts.micro_batches) > 1


def test_ranks_have_about_as_many_tokens():
    lengths, ranks = lengths_of(64), [loader(64, 64, world_size=4, rank=rank) for rank in range(4)]
    tokens = [sum(lengths[e] for e in trained_on(next(iter(rank)))) for rank in ranks]
    assert max(tokens) - min(tokens) <= min(lengths)


def steps_of(steps: StepLoader, epoch: int) -> list[set[int]]:
    steps.set_epoch(epoch)
    return [set(trained_on(step)) for step in steps]


def test_the_steps_depend_on_seed_and_epoch_alone():
    steps = loader(30, 4, seed=1)
    first, second = steps_of(steps, 0), steps_of(steps, 1)
    assert first != second
    assert min(first[0]) < 15 <= max(first[0])  # not in the data's order
    assert steps_of(loader(30, 4, seed=1, max_tokens=50), 0) == first
    assert steps_of(steps, 0) == first
    assert steps_of(loader(30, 4, seed=2), 0) != first


@pytest.mark.parametrize("done", [0, 1, 3, 7])
def test_a_resumed_epoch_goes_on_with_the_very_next_step(done):
    steps, resumed = loader(30, 4, seed=1), loader(30, 4, seed=1)
    iterator = iter(steps)
    for _ in range(done):
        next(iterator)
    resumed.load_state_dict(steps.state_dict())
    assert resumed.state_dict() == steps.state_dict()  # a checkpoint before the next step
    assert [trained_on(s) for s in resumed] == [trained_on(s) for s in iterator]
    assert len(list(resumed)) == len(steps)  # the epoch after is whole again


def test_a_state_at_the_end_of_an_epoch_begins_the_next():
    steps, resumed = loader(30, 4), loader(30, 4)
    list(steps)
    resumed.load_state_dict(steps.state_dict())
    assert len(list(resumed)) == len(steps)


def test_an_epoch_that_was_cut_short_is_not_gone_on_with():
    steps = loader(30, 4)
    next(iter(steps))  # as limit_train_batches=1 does
    assert len(list(steps)) == len(steps)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_examples": 0, "batch_size": 4}, "no training examples"),
        ({"num_examples": 4, "batch_size": 0}, "batch_size=0"),
        ({"num_examples": 4, "batch_size": 2, "world_size": 3}, "batch_size=2, world_size=3"),
        ({"num_examples": 4, "batch_size": 2, "max_tokens": 0}, "micro_batch_tokens=0"),
    ],
)
def test_what_cannot_be_loaded_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        loader(**arguments)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("num_examples", [0, 1, 10])
def test_evaluation_counts_each_example_once_in_as_many_batches_on_every_rank(num_examples, world_size):
    lengths, packing = lengths_of(num_examples), Packing(max_tokens=60)
    ranks = [
        EvaluationLoader(lengths, collate, packing=packing, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    batches = [list(rank) for rank in ranks]
    assert {len(of_rank) for of_rank in batches} == {len(rank) for rank in ranks}
    assert len({len(rank) for rank in ranks}) == 1
    counted = [[examples_of(batch.examples) for batch in of_rank if batch.counts] for of_rank in batches]
    assert counted == [rank.batches for rank in ranks]
    assert sorted(e for of_rank in counted for batch in of_rank for e in batch) == list(range(num_examples))
    assert all(sum(lengths[e] for e in examples_of(b.examples)) <= 60 for of_rank in batches for b in of_rank)
