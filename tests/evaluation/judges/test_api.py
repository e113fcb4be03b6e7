"""A model behind an API as a judge, from comparisons to verdicts."""

from dataclasses import replace

import pytest

from judge_endpoint import MODEL, Behaviour, judge_served
from judged_texts import made_up, truth, unanswered
from overopt.evaluation.judges.api import ApiJudge
from overopt.evaluation.judges.budget import Budget, CostLimitError
from overopt.evaluation.judges.prices import ModelPrice, Usage
from overopt.evaluation.judges.question import DEFAULT_TEMPLATE
from overopt.evaluation.records import Comparison, Verdict

ROWS = [made_up(number) for number in range(30)]
TEMPLATE = DEFAULT_TEMPLATE.absolute()


def comparison(row) -> Comparison:
    return Comparison(row["prompt_id"], row["prompt"], row["response"], row["opponent"])


COMPARISONS = [comparison(row) for row in ROWS]
NOWHERE = "http://127.0.0.1:9/v1"


def judge(url: str = NOWHERE, **changes) -> ApiJudge:
    return ApiJudge(**{"model": MODEL, "base_url": url, "template": TEMPLATE, "prices": None} | changes)


@pytest.fixture
def prices(tmp_path):
    path = tmp_path / "prices.yaml"
    path.write_text(f"currency: EUR\nbatch_factor: 0.5\nmodels: {{{MODEL}: {{input: 1000.0, output: 3000.0}}}}\n")
    return path


@pytest.mark.parametrize("answers", ["structured", "text"])
def test_every_verdict_is_true_and_keeps_what_was_written_by_whom(answers):
    told = {}
    with judge_served() as served:
        verdicts = judge(served.url, answers=answers).judge(COMPARISONS, told.__setitem__)
    assert [verdict.kind for verdict in verdicts] == [truth(row) for row in ROWS]
    assert {verdict.kind for verdict in verdicts} == {"win", "loss"}
    assert [verdict.win_probability for verdict in verdicts] == [float(truth(row) == "win") for row in ROWS]
    assert [told[place] for place in range(30)] == verdicts
    by_case = {entry["case"]: entry["text"] for entry in served.entries}
    assert [verdict.answer for verdict in verdicts] == [by_case[f"{number:06d}"] for number in range(30)]
    assert {verdict.answered_by for verdict in verdicts} == {MODEL}
    assert {verdict.cost for verdict in verdicts} == {None}


def test_an_answer_in_another_form_than_was_asked_for_is_unreadable():
    with judge_served() as served:  # it writes a comparison, where a letter was asked for
        verdicts = judge(served.url, answers="letter").judge(COMPARISONS[:3])
    assert {(verdict.kind, verdict.win_probability) for verdict in verdicts} == {("unreadable", None)}
    assert all("Preferred: " in verdict.answer for verdict in verdicts)


def tied(row) -> Comparison:
    return replace(comparison(row), opponent=row["response"])


@pytest.mark.parametrize("answers", ["structured", "text"])
def test_a_tie_is_one_where_the_question_offers_it(answers):
    with judge_served() as served:
        verdict, other = judge(served.url, answers=answers, ties=True).judge([tied(ROWS[0]), COMPARISONS[1]])
    assert (verdict.kind, verdict.win_probability) == ("tie", 0.5)
    assert other.kind == truth(ROWS[1])


def test_refused_and_unreadable_answers_are_kinds_of_their_own_and_keep_their_words():
    rows = [made_up(number) for number in range(40)]
    with judge_served(Behaviour(unreadable=0.3, refused=0.3)) as served:
        verdicts = judge(served.url).judge(list(map(comparison, rows)))
    assert [verdict.kind for verdict in verdicts] == [truth(row, unreadable=0.3, refused=0.3) for row in rows]
    fates = [unanswered(f"{number:06d}", unreadable=0.3, refused=0.3) for number in range(40)]
    assert {"unreadable", "refused", None} == set(fates)
    for verdict, fate in zip(verdicts, fates, strict=True):
        if fate:
            assert verdict.win_probability is None
            assert ("can't help" if fate == "refused" else "who am I to say") in verdict.answer
    assert len(served.entries) == 40  # an answer that can't be read is an answer


def test_a_cost_is_the_counted_tokens_at_the_tables_prices_and_is_spent(prices):
    budget = Budget()
    with judge_served() as served:
        verdicts = judge(served.url, prices=prices).judge(COMPARISONS, budget=budget)
    price = ModelPrice(input=1000.0, output=3000.0)
    for verdict in verdicts:
        assert verdict.input_tokens > 100 < 1000
        assert verdict.output_tokens == len(verdict.answer) // 4  # as the server counts
        assert verdict.cost == pytest.approx(price.cost(Usage(verdict.input_tokens, verdict.output_tokens)))
        assert verdict.cost == pytest.approx((verdict.input_tokens * 1000 + verdict.output_tokens * 3000) / 1e6)
    assert budget.spent == pytest.approx(sum(verdict.cost for verdict in verdicts))


def test_an_estimate_is_near_what_is_counted_then(prices):
    with judge_served() as served:
        asked = judge(served.url, prices=prices)
        estimate = asked.estimate(COMPARISONS)
        assert served.entries == []
        verdicts = asked.judge(COMPARISONS)
    assert (estimate.calls, estimate.currency) == (30, "EUR")
    # The server counts no marks of roles, for which the estimate has 100 tokens, and its answers are short.
    assert estimate.input_tokens == pytest.approx(sum(v.input_tokens for v in verdicts) + 30 * 100, rel=0.02)
    assert sum(v.cost for v in verdicts) < estimate.cost < 3 * sum(v.cost for v in verdicts)


def test_an_endpoint_that_counts_nothing_is_taken_to_have_cost_the_most(prices, monkeypatch):
    with judge_served() as served:
        asked = judge(served.url, prices=prices)
        read = asked._endpoint.read
        monkeypatch.setattr(asked._endpoint, "read", lambda content: read(content).model_copy(update={"usage": None}))
        highest = [request.highest_cost for request in asked._requests(COMPARISONS)]
        limit = sum(highest[:10]) + min(highest) / 2
        kept: list[Verdict] = []
        budget = Budget(limit)
        with pytest.raises(CostLimitError):
            asked.judge(COMPARISONS, lambda place, verdict: kept.append(verdict), budget)
    assert len(kept) == 10
    assert all(verdict.cost in highest and verdict.input_tokens == 0 for verdict in kept)
    assert budget.spent == pytest.approx(sum(verdict.cost for verdict in kept))
    assert budget.spent <= limit


def test_a_limit_is_never_overrun_and_stops_when_less_than_a_question_is_left(prices):
    budget, kept = Budget(5.0), []
    with judge_served(Behaviour(latency=0.01)) as served:
        asked = judge(served.url, prices=prices)
        highest = max(request.highest_cost for request in asked._requests(COMPARISONS))
        with pytest.raises(CostLimitError, match="of --max-cost 5 are spent and the next question could cost"):
            asked.judge(COMPARISONS, lambda place, verdict: kept.append(verdict), budget)
    assert budget.spent == pytest.approx(sum(verdict.cost for verdict in kept))
    assert 5 - highest < budget.spent <= 5
    assert 0 < len(kept) == len(served.entries) < 30


CHANGES = {
    "model": "judge-2",
    "base_url": "http://127.0.0.1:10/v1",
    "template": TEMPLATE.parent / "concise_with_length.txt",
    "answers": "text",
    "ties": True,
    "temperature": 0.5,
    "max_output_tokens": 200,
    "extra": {"seed": 1},
}


@pytest.mark.parametrize("name", CHANGES)
def test_settings_change_with_all_that_can_change_an_answer(name):
    assert judge(**{name: CHANGES[name]}).settings != judge().settings


def test_settings_tell_templates_apart_that_ask_alike_about_some_texts(tmp_path):
    path = tmp_path / "concise.txt"
    path.write_text(TEMPLATE.read_text() + "{% if words_a > 500 %}Be quick.{% endif %}")
    assert judge(template=path).settings != judge().settings


def test_settings_are_left_alone_by_all_that_changes_no_answer(prices):
    pressed = {"max_concurrent": 1, "requests_per_minute": 5.0, "tokens_per_minute": 500.0, "max_attempts": 2}
    others = {"timeout": 5.0, "poll_seconds": 1.0, "mode": "batch", "prices": prices, "key_variable": "MINE"}
    assert judge(**pressed, **others).settings == judge().settings


def test_without_a_price_a_limit_is_refused_before_anything_is_asked(prices):
    with judge_served() as served:
        for table, named in ((None, "without a table of prices"), (prices, f"in {prices}")):
            other = judge(served.url, model="judge-2", prices=table)
            with pytest.raises(ValueError, match="so --max-cost can't be kept") as error:
                other.judge(COMPARISONS, budget=Budget(1.0))
            assert named in str(error.value)
    assert served.entries == []


def test_a_model_that_is_not_there_is_asked_for_no_more_than_once_for_each_request_under_way():
    with (
        judge_served() as served,
        pytest.raises(ValueError, match=r"404 \(The model `judge-9` does not exist") as error,
    ):
        judge(served.url, model="judge-9", max_concurrent=4).judge(COMPARISONS)
    assert "check --judge.model" in str(error.value)
    assert "\n" not in str(error.value)
    assert len(served.entries) <= 4


def test_a_wrong_key_is_one_line_that_names_its_variable(monkeypatch):
    monkeypatch.setenv("OVEROPT_JUDGE_API_KEY", "sk-wrong-0123")
    with (
        judge_served(Behaviour(key="sk-right", echo_key=True)) as served,
        pytest.raises(ValueError, match=r"401 \(Incorrect API key provided: \[key\]\.\)") as error,
    ):
        judge(served.url).judge(COMPARISONS)
    assert "check the key in OVEROPT_JUDGE_API_KEY" in str(error.value)


def test_a_missing_key_is_one_line_that_names_its_variable(monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    with judge_served() as served, pytest.raises(ValueError, match="set the environment variable MY_KEY to it"):
        judge(served.url, key_variable="MY_KEY").judge(COMPARISONS)
    assert served.entries == []


def test_a_key_that_is_a_word_of_the_answer_spoils_no_verdict(monkeypatch):
    monkeypatch.setenv("OVEROPT_JUDGE_API_KEY", "A")
    with judge_served() as served:
        verdicts = judge(served.url, answers="text").judge(COMPARISONS)
    assert [verdict.kind for verdict in verdicts] == [truth(row) for row in ROWS]


def test_an_endpoint_without_structured_answers_is_told_how_it_can_be_asked():
    with judge_served(Behaviour(structured=False)) as served:
        with pytest.raises(ValueError, match=r"400 .*try --judge\.answers text"):
            judge(served.url).judge(COMPARISONS)
        assert judge(served.url, answers="text").judge(COMPARISONS[:1])[0].kind == truth(ROWS[0])


@pytest.mark.parametrize("changes", [{"max_output_tokens": 0}, {"poll_seconds": 0.0}, {"max_concurrent": 0}])
def test_settings_out_of_range_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        judge(**changes)


@pytest.mark.parametrize("name", ["n", "max_tokens", "model"])
def test_further_fields_cannot_lift_what_cost_and_reading_rest_on(name):
    with pytest.raises(ValueError, match=f"extra can't set {name}: cost and reading"):
        judge(extra={"seed": 1, name: 2})
