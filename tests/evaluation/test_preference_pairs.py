import math
from collections import Counter

import numpy as np
import pytest

from overopt.data.prompt_format import encode_prompts
from overopt.evaluation.judges.protocol import Judge, ignore
from overopt.evaluation.judges.reward_difference import RewardDifference
from overopt.evaluation.preference_pairs import (
    SampledPair,
    label_by_human,
    label_by_judge,
    read_sampled_pairs,
    sample_pairs,
    write_preferences,
    write_sampled_pairs,
)
from overopt.evaluation.records import Verdict
from overopt.models.policy import load_policy
from tiny import sampled_pairs


class KnownRewards(Judge):
    """Rewards responses by their first word."""

    settings = {"judge": "known rewards"}  # noqa: RUF012

    def __init__(self, **rewards: float) -> None:
        self._rewards = rewards

    def judge(self, comparisons, on_verdict=ignore, budget=None):
        def rewards(prompts, responses):
            return np.array([self._rewards[response.split()[0]] for response in responses], dtype=np.float64)

        return RewardDifference().verdicts(comparisons, rewards, on_verdict)


def pair(number: int, first: str, second: str, human: str = " a person's words") -> SampledPair:
    return SampledPair(f"row {number}", f"post {number}", f"Post {number}:", first, second, human)


@pytest.mark.parametrize("difference", [-2.0, 0.0, 1.0])
def test_gold_labels_come_as_often_as_eq_1_says(difference):
    count = 4000
    judge = KnownRewards(good=difference + 3.0, plain=3.0)
    rows, left_out = label_by_judge([pair(i, " good", " plain") for i in range(count)], judge, seed=1)
    share = sum(row["chosen"] == " good" for row in rows) / count
    expected = 1 / (1 + math.exp(-difference))
    assert share == pytest.approx(expected, abs=3 * math.sqrt(expected * (1 - expected) / count))
    assert not left_out


def test_a_row_keeps_how_likely_its_label_was():
    judge = KnownRewards(good=1.0, plain=0.0)
    rows, _ = label_by_judge([pair(i, " good", " plain") for i in range(200)], judge)
    for row in rows:
        good_wins = 1 / (1 + math.exp(-1))
        assert row["probability"] == pytest.approx(good_wins if row["chosen"] == " good" else 1 - good_wins)
        assert row["flipped"] == (row["chosen"] == " plain")
    assert {row["flipped"] for row in rows} == {True, False}


def test_what_a_judge_could_not_say_is_left_out_and_counted():
    class Silent(KnownRewards):
        def judge(self, comparisons, on_verdict=ignore, budget=None):
            return [Verdict("refused", None), Verdict("unreadable", None), Verdict("win", 1.0)]

    rows, left_out = label_by_judge([pair(i, " good", " plain") for i in range(3)], Silent())
    assert [(row["id"], row["chosen"]) for row in rows] == [("row 2", " good")]
    assert left_out == Counter({"a verdict that is refused": 1, "a verdict that is unreadable": 1})


def test_the_seed_fixes_the_labels():
    pairs, judge = [pair(i, " good", " plain") for i in range(50)], KnownRewards(good=0.5, plain=0.0)
    assert label_by_judge(pairs, judge, seed=1) == label_by_judge(pairs, judge, seed=1)
    assert label_by_judge(pairs, judge, seed=1) != label_by_judge(pairs, judge, seed=2)


def test_pairs_that_cannot_be_compared_are_left_out_and_counted():
    pairs = [pair(0, " good", ""), pair(1, "\n", " good"), pair(2, " good", " good "), pair(3, " good", " plain")]
    rows, left_out = label_by_judge(pairs, KnownRewards(good=1.0, plain=0.0))
    assert [row["id"] for row in rows] == ["row 3"]
    assert left_out == Counter({"an empty response": 2, "equal responses": 1})


def test_pairs_none_of_which_can_be_compared_give_no_rows():
    rows, left_out = label_by_judge([pair(0, "", "")], KnownRewards())
    assert rows == []
    assert left_out == Counter({"an empty response": 1})


def test_a_persons_response_is_chosen_over_all_others():
    pairs = sampled_pairs()
    rows, left_out = label_by_human(pairs)
    human = {p.post_id: p.human for p in pairs}
    assert len(rows) + sum(left_out.values()) == 4 * len(pairs)
    assert len(rows) > 3 * len(pairs)
    assert all(row["chosen"] == human[row["post_id"]] != row["rejected"] for row in rows)
    assert len({row["id"] for row in rows}) == len(rows)
    by_id = {row["id"]: row for row in rows}
    for p in pairs:
        for name, response in (("first", p.first), ("second", p.second)):
            if f"{p.id} {name}" in by_id:
                assert by_id[f"{p.id} {name}"]["rejected"] == response


def test_degenerate_repetition_is_one_more_rejected_response():
    pairs = sampled_pairs()
    rows, _ = label_by_human(pairs, repetitions=True)
    repeated = [row for row in rows if row["id"].endswith("repetition")]
    assert len(repeated) > 0.9 * len(pairs)
    spoken = " ".join(p.human for p in pairs).split()
    for row in repeated:
        words = row["rejected"].split()
        assert set(words) <= set(spoken)
        assert any(words == words[:length] * (len(words) // length) for length in range(1, 5) if len(words) > length)


@pytest.mark.parametrize("examples", ["demonstrations", "preferences"])
def test_a_written_folder_is_read_as_data(make_data, tmp_path, examples):
    pairs = sampled_pairs()
    labelled = label_by_human(pairs)
    write_preferences(tmp_path / "folder", labelled, pairs)
    data = make_data(path=str(tmp_path / "folder"), examples=examples)
    data.setup("fit")
    assert len(data.read.preferences) == len(labelled.rows)
    assert {d.response for d in data.read.demonstrations} == {p.human for p in pairs}
    assert {d.post_id for d in data.read.demonstrations} == {p.post_id for p in pairs}


def test_sampled_pairs_read_back_are_those_written(tmp_path):
    pairs = [*sampled_pairs(), pair(99, " line\u2028separator", " next\x85line", " \U0001f600")]
    write_sampled_pairs(tmp_path / "pairs.jsonl", pairs)
    assert read_sampled_pairs(tmp_path / "pairs.jsonl") == pairs


@pytest.mark.parametrize("line", ["nonsense", '{"id": "1"}', '{"id": "1", "surplus": 2}'])
def test_a_line_that_is_no_sampled_pair_is_named(line, tmp_path):
    (tmp_path / "pairs.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=r"pairs.jsonl, line 1: no sampled pair"):
        read_sampled_pairs(tmp_path / "pairs.jsonl")
    with pytest.raises(ValueError, match="no sampled pairs at"):
        read_sampled_pairs(tmp_path / "none.jsonl")


@pytest.fixture
def policy_and_data(make_data, sft_checkpoint):
    data = make_data(tokenizer=str(sft_checkpoint))
    data.setup("fit")
    return load_policy(sft_checkpoint), data


def test_pairs_are_two_draws_for_each_prompt_of_the_parts(policy_and_data):
    policy, data = policy_and_data
    batches = []
    pairs = sample_pairs(
        policy, data, ["train", "evaluation"], batch_size=10, on_batch=lambda done, total: batches.append((done, total))
    )
    texts = {p.post_id: p for p in sampled_pairs()}
    parts = Counter(data.fractions.part_of(p.post_id) for p in pairs)
    assert parts == {"train": len(data.train_set), "evaluation": len(data.evaluation_set)}
    assert all(p.prompt == texts[p.post_id].prompt and p.human == texts[p.post_id].human for p in pairs)
    assert sum(p.first != p.second for p in pairs) > 0.9 * len(pairs)
    assert sum(done for done, _ in batches) == 2 * len(pairs)
    assert {total for _, total in batches} == {2 * len(pairs)}
    # What a later stage tokenises is what was sampled from.
    ids = encode_prompts([p.prompt for p in pairs], data.tokenizer)
    of_data = {row.example_id: row.prompt_ids.tolist() for row in data.train_set.tokenized}
    assert all(of_data.get(p.id, row) == row for p, row in zip(pairs, ids, strict=True))


def test_the_seed_fixes_the_draws_and_no_two_seeds_share_one(policy_and_data):
    policy, data = policy_and_data
    first, again, other = (sample_pairs(policy, data, ["train"], seed=seed) for seed in (0, 0, 1))
    assert first == again
    draws = [[getattr(p, side) for p in pairs] for pairs in (first, other) for side in ("first", "second")]
    assert len({tuple(draw) for draw in draws}) == 4


def test_limits_keep_prompts_by_the_hash_of_their_posts(policy_and_data):
    policy, data = policy_and_data
    few = sample_pairs(policy, data, ["train", "evaluation"], max_pairs=3, max_evaluation_pairs=2)
    more = sample_pairs(policy, data, ["train", "evaluation"], max_pairs=7)
    parts = [data.fractions.part_of(p.post_id) for p in few]
    assert parts == ["train"] * 3 + ["evaluation"] * 2
    assert {p.id for p in few} < {p.id for p in more}
    assert [data.fractions.part_of(p.post_id) for p in more].count("train") == 7
