import math

import pytest

from overopt.evaluation.length_control import length_controlled_win_rate
from overopt.evaluation.position_bias import position_bias
from overopt.evaluation.records import Verdict
from overopt.evaluation.verdict_summary import summarise
from overopt.evaluation.win_rate import win_rate

ANSWERS = [
    Verdict("win", 1.0, first_preferred=1.0, cost=0.25, input_tokens=100, output_tokens=1),
    Verdict("win", 1.0, first_preferred=0.0, cost=0.25, input_tokens=100, output_tokens=1),
    Verdict("loss", 0.0, first_preferred=1.0, cost=0.25, input_tokens=100, output_tokens=1),
    Verdict("tie", 0.5, first_preferred=0.5, cost=0.25, input_tokens=100, output_tokens=1),
    Verdict("unreadable", None, cost=0.25, input_tokens=100, output_tokens=1),
    Verdict("refused", None),
    Verdict("refused", None),
    Verdict("loss", 0.0, first_preferred=1.0, cost=0.25, input_tokens=100, output_tokens=1),
]
SAMPLES, OPPONENTS = [12, 8, 10, 9, 40, 40, 0, 11], [10, 10, 10, 10, 10, 10, 10, 10]
FREE = [Verdict("graded", 0.25), Verdict("graded", 0.75), Verdict("graded", 0.5)]


def test_the_parts_are_those_of_their_own_files():
    summary = summarise(ANSWERS, SAMPLES, OPPONENTS)
    assert summary.rate == win_rate(ANSWERS)
    assert summary.length_controlled == length_controlled_win_rate(ANSWERS, [2, -2, 0, -1, 30, 30, -10, 1])
    assert summary.length_controlled.note == ""
    assert summary.position == position_bias(ANSWERS)
    assert summary.half_width == pytest.approx((summary.rate.high - summary.rate.low) / 2)


def test_shares_costs_and_tokens_are_counted_over_all_verdicts():
    summary = summarise(ANSWERS, SAMPLES, OPPONENTS)
    assert summary.rate.unreadable_share == 3 / 8
    assert summary.refused_share == 2 / 8
    assert summary.rate.tie_share == 1 / 5
    assert summary.first_preferred == pytest.approx(3.5 / 5)
    assert (summary.cost, summary.num_priced) == (1.5, 6)
    assert (summary.input_tokens, summary.output_tokens) == (600, 6)
    assert summary.standard_deviation == pytest.approx(0.5)  # of 1, 1, 0, 0.5, 0, by hand


def test_metrics_carry_the_contracts_names():
    metrics = summarise(ANSWERS, SAMPLES, OPPONENTS).metrics()
    assert metrics["eval/win_rate"] == 0.5
    assert metrics["eval/unreadable_share"] == 3 / 8
    assert metrics["eval/refused_share"] == 2 / 8
    assert metrics["eval/judge_cost"] == 1.5
    counted = [sum(v.input_tokens for v in ANSWERS), sum(v.output_tokens for v in ANSWERS)]
    assert [metrics["eval/judge_input_tokens"], metrics["eval/judge_output_tokens"]] == counted
    assert metrics["eval/win_rate_low"] < 0.5 < metrics["eval/win_rate_high"]
    assert {name.removeprefix("eval/") for name in metrics} == {
        "win_rate",
        "win_rate_se",
        "win_rate_low",
        "win_rate_high",
        "win_rate_length_controlled",
        "win_rate_length_controlled_se",
        "tie_share",
        "unreadable_share",
        "refused_share",
        "judge_input_tokens",
        "judge_output_tokens",
        "position_bias",
        "position_bias_se",
        "judge_cost",
    }


def test_what_could_not_be_had_is_no_metric():
    metrics = summarise(FREE, [5, 5, 9], [4, 4, 4]).metrics()
    assert all(map(math.isfinite, metrics.values()))
    absent = {"position_bias", "position_bias_se", "judge_cost", "win_rate_length_controlled"}
    assert not {f"eval/{name}" for name in absent} & metrics.keys()
    none = summarise([Verdict("unreadable", None)] * 2, [1, 2], [1, 2]).metrics()
    assert none == {"eval/unreadable_share": 1.0, "eval/refused_share": 0.0}


def test_people_read_the_interval_the_resolution_and_the_bias():
    bare = [
        Verdict("win", 1.0, first_preferred=1.0),
        Verdict("loss", 0.0, first_preferred=1.0),
        Verdict("win", 1.0, first_preferred=1.0),
        Verdict("loss", 0.0, first_preferred=0.0),
    ]
    text = "\n".join(summarise(bare * 64, [3, 3, 4, 4] * 64, [3, 4, 5, 3] * 64).lines())
    assert "win rate 0.500, 95% interval 0.439 to 0.561 (+- 6.1 points) from 256 prompts" in text
    assert "8.8 points away" in text
    assert "12.4 points apart" in text
    assert "position bias +0.250, 95% interval +0.19" in text
    assert "win rate at equal length 0." in text
    assert "unreadable" not in text


def test_people_read_what_is_missing_and_why():
    text = "\n".join(summarise(ANSWERS, SAMPLES, OPPONENTS).lines())
    assert "no verdict on 3 of 8 prompts (37.5%): 1 unreadable, 2 refused" in text
    assert "judged for 1.5, with 600 input and 6 output tokens; 2 verdicts have no price" in text
    free = "\n".join(summarise(FREE, [5, 5, 9], [4, 4, 4]).lines())
    assert "no win rate at equal length: every sample is longer" in free
    assert "no position bias" in free
    assert "judged" not in free
    unpriced = [Verdict("graded", 0.25, input_tokens=1200, output_tokens=3)] * 3
    assert (
        "judged with 3,600 input and 9 output tokens, of unknown price" in summarise(unpriced, [1] * 3, [1] * 3).lines()
    )
    (only, missing) = summarise([Verdict("unreadable", None)], [1], [2]).lines()
    assert only == "no win rate: none of 1 verdicts is readable"
    assert "1 unreadable, 0 refused" in missing


def test_few_prompts_are_called_too_few():
    text = "\n".join(summarise([ANSWERS[0], ANSWERS[2], ANSWERS[0]], [1, 2, 3], [3, 2, 1]).lines())
    assert "3 prompts are too few to tell any two policies apart" in text


def test_grades_resolve_more_than_wins_and_losses():
    graded = summarise([Verdict("graded", p) for p in (0.4, 0.6)] * 50, [1] * 100, [1] * 100)
    assert graded.standard_deviation == pytest.approx(0.1, rel=0.01)
    same = summarise([Verdict("tie", 0.5)] * 50, [1] * 50, [1] * 50)
    assert same.standard_deviation == 0.5  # not zero, which would resolve anything


def test_lengths_that_are_missing_are_refused():
    with pytest.raises(ValueError, match="got 2 and 3 for 3 verdicts"):
        summarise(FREE, [1, 2], [1, 2, 3])
