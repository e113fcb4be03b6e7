import random
import time

import pytest

from overopt.evaluation.judges.rouge import RougeJudge, rouge_l
from overopt.evaluation.records import Comparison, Verdict

REFERENCE = "the cat sat on the mat"  # 6 words


# (text, longest common subsequence with the reference, words), by hand.
@pytest.mark.parametrize(
    ("text", "common", "words"),
    [
        ("the cat sat on the mat", 6, 6),
        (" The CAT -- sat!", 3, 3),
        ("mat the on sat cat the", 3, 6),  # "the on the"
        ("the dog sat on a red mat today", 4, 8),
        ("dogs bark", 0, 2),
        ("cats", 0, 1),  # words are not stemmed
    ],
)
def test_rouge_l_is_twice_the_common_words_over_all_words(text, common, words):
    assert rouge_l(text, REFERENCE) == pytest.approx(2 * common / (words + 6))


def test_a_text_without_words_has_no_rouge_l():
    assert rouge_l("", REFERENCE) == rouge_l("...", REFERENCE) == rouge_l("the", "") == 0


def test_the_higher_rouge_l_wins_and_is_nobodys_reward():
    texts = [("the cat sat", "a dog sat"), ("a dog sat", "the cat sat"), ("cat cat", "mat sat")]
    comparisons = [Comparison(str(i), "a dog", s, o, REFERENCE) for i, (s, o) in enumerate(texts)]
    told: dict[int, Verdict] = {}
    verdicts = RougeJudge().judge(comparisons, told.__setitem__)
    assert [(v.kind, v.win_probability) for v in verdicts] == [("win", 1.0), ("loss", 0.0), ("tie", 0.5)]
    # What is logged as a reward is a reward model's.
    assert {v.sample_reward for v in verdicts} == {None}
    assert [told[place] for place in range(3)] == verdicts
    # "a dog sat" shares both words of the prompt.
    against_prompt = RougeJudge("prompt").judge(comparisons)
    assert [v.kind for v in against_prompt] == ["loss", "win", "tie"]


def test_equal_shares_of_other_counts_are_a_tie():
    # 2 * 3 / (6 + 6) and 2 * 4 / (10 + 6).
    six, ten = "the cat sat a b c", "the cat sat on a b c d e f"
    (verdict,) = RougeJudge().judge([Comparison("1", "Post:", six, ten, REFERENCE)])
    assert verdict.kind == "tie"


def test_a_comparison_without_a_reference_is_named_with_the_way_out():
    comparisons = [Comparison("a", "Post:", "x", "y", "z"), Comparison("post 7", "Post:", "x", "y")]
    with pytest.raises(ValueError, match=r"'post 7' has no reference.*against: prompt") as error:
        RougeJudge().judge(comparisons)
    assert "\n" not in str(error.value)


def test_an_opponent_that_is_the_reference_is_refused():
    comparison = Comparison("post 7", "a b", "a", " b c", "b c")
    with pytest.raises(ValueError, match="'post 7' has its reference for opponent"):
        RougeJudge().judge([comparison])
    assert RougeJudge("prompt").judge([comparison])[0].kind == "win"


def test_ten_thousand_comparisons_take_less_than_a_minute():
    draw = random.Random(0)
    words = [f"word{i}" for i in range(800)]
    reference, opponent = " ".join(draw.choices(words, k=40)), " ".join(draw.choices(words, k=40))
    comparisons = [
        Comparison(str(i), "Post:", " ".join(draw.choices(words, k=40)), opponent, reference) for i in range(500)
    ]
    start = time.perf_counter()
    RougeJudge().judge(comparisons)
    assert time.perf_counter() - start < 500 * 60 / 10_000
