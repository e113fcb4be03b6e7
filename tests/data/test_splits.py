"""Splits by post."""

import hashlib
import math
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overopt.data.schema import Demonstration, PreferenceExample, Prompt
from overopt.data.splits import HashSplits, SplitFractions, fingerprint, post_position, published_splits

POSTS = [f"t3_{number}" for number in range(20_000)]


@given(post_id=st.text(st.characters(codec="utf-8")))
def test_a_post_stands_where_its_sha_256_says(post_id):
    digest = hashlib.sha256(post_id.encode()).hexdigest()
    assert post_position(post_id) == pytest.approx(int(digest[:12], 16) / 16**12, abs=16**-12)
    assert 0 <= post_position(post_id) < 1


def test_parts_have_the_sizes_asked_for():
    fractions = SplitFractions(evaluation=0.1, gold=0.25)
    sizes = Counter(fractions.part_of(post) for post in POSTS)
    for part, share in {"evaluation": 0.1, "gold": 0.25, "train": 0.65}.items():
        standard_error = math.sqrt(share * (1 - share) / len(POSTS))
        assert sizes[part] / len(POSTS) == pytest.approx(share, abs=4 * standard_error)


def test_no_part_is_empty_of_meaning_when_its_share_is_zero():
    fractions = SplitFractions(evaluation=0.0, gold=0.0)
    assert {fractions.part_of(post) for post in POSTS} == {"train"}


def test_held_out_posts_do_not_depend_on_the_gold_share():
    with_gold, without = SplitFractions(0.1, 0.3), SplitFractions(0.1, 0.0)
    held_out = [{p for p in POSTS if split.part_of(p) == "evaluation"} for split in (with_gold, without)]
    assert held_out[0] == held_out[1]
    assert held_out[0]


@pytest.mark.parametrize(
    ("evaluation", "gold"), [(-0.1, 0.0), (0.0, -0.1), (1.0, 0.0), (0.6, 0.4), (math.nan, 0.0), (0.0, math.inf)]
)
def test_fractions_that_leave_nothing_to_train_on_are_an_error(evaluation, gold):
    with pytest.raises(ValueError, match="split fractions"):
        SplitFractions(evaluation, gold)


def pair(post, split, number=0):
    return PreferenceExample(f"{post} {split} {number}", post, Prompt("P:"), " chosen", " rejected", split)


def test_hash_splits_go_by_the_post_alone():
    splits = HashSplits(SplitFractions(evaluation=0.3, gold=0.3))
    for post in POSTS[:100]:
        parts = {splits.part_of(pair(post, split)) for split in ("train", "valid", None)}
        assert parts == {splits.fractions.part_of(post)}


def test_published_splits_hold_out_what_is_not_also_trained_on():
    examples = [pair("a", "train"), pair("a", "valid1"), pair("b", "valid1"), pair("b", "valid2"), pair("c", "test")]
    splits = published_splits(examples, gold=0.0, source="hub")
    assert [splits.part_of(example) for example in examples] == ["train", None, *["evaluation"] * 3]
    assert "train is split train" in splits.statement
    assert "evaluation is test, valid1, valid2 without the posts that are also in train (1 examples" in splits.statement


def test_both_kinds_of_examples_decide_whether_a_post_is_trained_on():
    demonstration = Demonstration("d", "a", Prompt("P:"), " response", "train")
    held_out = [pair("a", "valid"), pair("b", "valid")]
    splits = published_splits([demonstration, *held_out], gold=0.0, source="hub")
    assert [splits.part_of(example) for example in held_out] == [None, "evaluation"]


def test_gold_posts_are_carved_out_of_the_published_training_split_by_hash():
    examples = [pair(post, "train") for post in POSTS[:2000]] + [pair(f"other {i}", "test") for i in range(50)]
    splits = published_splits(examples, gold=0.25, source="hub")
    parts = Counter(splits.part_of(example) for example in examples)
    assert parts["evaluation"] == 50
    assert parts["gold"] + parts["train"] == 2000
    assert parts["gold"] / 2000 == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / 2000))
    assert "gold 0.25 of its posts" in splits.statement


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([pair("a", None), pair("b", None)], "2 of 2 examples of source hub name none: give data with a field 'split'"),
        ([pair("a", "train"), pair("b", None)], "1 of 2 examples of source hub name none; the others are in train"),
        ([pair("a", "valid"), pair("b", "test")], "has test, valid, and no split is called train: leave --data.splits"),
        ([pair("a", "train")], "has train, and no post is outside train: leave --data.splits"),
        ([pair("a", "train"), pair("a", "test")], "has test, train, and no post is outside train"),
    ],
)
def test_data_without_usable_published_splits_is_an_error_with_its_cure(examples, message):
    with pytest.raises(ValueError, match=message):
        published_splits(examples, gold=0.0, source="hub")


def examples():
    return [
        Demonstration("a", "1", Prompt("P:", "post", "?"), " response"),
        PreferenceExample("b", "1", Prompt("P:"), " chosen", " rejected"),
    ]


def test_the_fingerprint_does_not_depend_on_the_order():
    assert fingerprint(examples()) == fingerprint(reversed(examples()))
    assert len(fingerprint(examples())) == 64


@pytest.mark.parametrize(
    "changed",
    [
        replace(examples()[0], example_id="c"),
        replace(examples()[0], post_id="2"),
        replace(examples()[0], response=" other"),
        replace(examples()[0], split="train"),
        replace(examples()[0], prompt=Prompt("P:", "pos", "t?")),
        replace(examples()[0], prompt=Prompt("P:post?")),
    ],
)
def test_the_fingerprint_depends_on_every_field(changed):
    assert fingerprint([changed, examples()[1]]) != fingerprint(examples())


def test_the_fingerprint_tells_chosen_from_rejected_and_counts():
    pair = examples()[1]
    swapped = replace(pair, chosen=pair.rejected, rejected=pair.chosen)
    assert len({fingerprint([pair]), fingerprint([swapped]), fingerprint([pair, pair]), fingerprint([])}) == 4
