"""Questions by the Batch API, against a server whose batches fail, expire and are cut off."""

import asyncio
import json
import time
from collections import Counter
from contextlib import suppress

import openai
import pytest
from tenacity import wait_none

from judge_endpoint import MODEL, Behaviour, judge_served
from judged_texts import made_up, truth
from overopt.evaluation.judges import batch_requests
from overopt.evaluation.judges.api import ApiJudge
from overopt.evaluation.judges.batch_requests import MARK
from overopt.evaluation.judges.budget import Budget, CostLimitError
from overopt.evaluation.judges.live_requests import UnansweredError
from overopt.evaluation.judges.prices import ModelPrice, Usage
from overopt.evaluation.judges.question import DEFAULT_TEMPLATE
from overopt.evaluation.records import Comparison

ROWS = [made_up(number) for number in range(40)]
COMPARISONS = [Comparison(row["prompt_id"], row["prompt"], row["response"], row["opponent"]) for row in ROWS]
PRICE = ModelPrice(input=1000.0, output=3000.0)


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(batch_requests, "wait_random_exponential", lambda **_: wait_none())


@pytest.fixture
def prices(tmp_path):
    path = tmp_path / "prices.yaml"
    path.write_text(f"currency: USD\nbatch_factor: 0.5\nmodels: {{{MODEL}: {{input: 1000.0, output: 3000.0}}}}\n")
    return path


def judge(served, **changes) -> ApiJudge:
    settings = {"mode": "batch", "prices": None, "poll_seconds": 0.02, "template": DEFAULT_TEMPLATE.absolute()}
    return ApiJudge(MODEL, served.url, **settings | changes)


def times_asked(served) -> Counter:
    return Counter(entry["case"] for entry in served.entries)


def batches_of(served):
    with openai.OpenAI(base_url=served.url, api_key="any") as api:
        return list(api.batches.list(limit=100))


def assert_true(verdicts, rows=ROWS):
    assert [verdict.kind for verdict in verdicts] == [truth(row) for row in rows]
    assert {verdict.kind for verdict in verdicts} == {"win", "loss"}


def test_every_verdict_of_a_batch_is_true_and_told_once(capsys):
    told = Counter()
    with judge_served(Behaviour(batch_delay=0.1)) as served:
        verdicts = judge(served).judge(COMPARISONS, lambda place, _: told.update([place]))
        assert len(batches_of(served)) == 1
    assert_true(verdicts)
    assert told == Counter(range(40)) == Counter(int(case) for case in times_asked(served))
    assert "batch batch_1 submitted: 40 questions" in capsys.readouterr().out


def test_lines_that_fail_are_asked_again_and_only_they():
    with judge_served(Behaviour(batch_delay=0.05, batch_line_faults=0.4)) as served:
        assert_true(judge(served, max_attempts=30).judge(COMPARISONS))
        batches = batches_of(served)
    assert set(times_asked(served).values()) == {1}  # a line that fails is not answered by anybody
    totals = [batch.request_counts.total for batch in reversed(batches)]
    failed = [batch.request_counts.failed for batch in reversed(batches)]
    assert totals == [40, *failed[:-1]]
    assert len(batches) > 2


def test_lines_that_fail_in_all_attempts_are_counted_and_the_others_kept():
    told = []
    with judge_served(Behaviour(batch_delay=0.05, batch_line_faults=0.5)) as served:
        with pytest.raises(UnansweredError) as error:
            judge(served, max_attempts=2).judge(COMPARISONS, lambda place, _: told.append(place))
        assert len(batches_of(served)) == 2
    missing = 40 - len(told)
    assert 0 < missing < 40
    assert str(error.value).startswith(f"{missing} of 40 questions got no answer in 2 attempts each")
    assert "The server had an error." in str(error.value)


@pytest.mark.parametrize("seed", range(4))
def test_calls_that_fail_or_are_cut_off_make_no_second_batch_of_the_same_questions(seed, monkeypatch):
    monkeypatch.setattr(batch_requests, "_TRIES", 30)
    with judge_served(Behaviour(batch_delay=0.1, batch_call_faults=0.4, seed=seed)) as served:
        assert_true(judge(served).judge(COMPARISONS))
        found = []
        while not found:
            with suppress(openai.OpenAIError):
                found = batches_of(served)
    assert len(found) == 1
    assert set(times_asked(served).values()) == {1}


def test_calls_that_fail_for_good_end_with_one_line():
    with (
        judge_served(Behaviour(batch_call_faults=1.0, echo_key=True)) as served,
        pytest.raises(ValueError, match=r"fails \(.*\): start again later, what was submitted is found again$"),
    ):
        judge(served).judge(COMPARISONS)


def test_the_undone_half_of_an_expired_batch_is_asked_again():
    with judge_served(Behaviour(batch_delay=0.05, batch_fates=["expired"])) as served:
        assert_true(judge(served).judge(COMPARISONS))
        assert [batch.request_counts.total for batch in batches_of(served)] == [20, 40]
    assert set(times_asked(served).values()) == {1}


def test_a_batch_that_failed_is_said_with_its_reason_and_a_later_start_submits_again():
    with judge_served(Behaviour(batch_delay=0.05, batch_fates=["failed"])) as served:
        with pytest.raises(ValueError, match=r"batch batch_1 is failed: Enqueued token limit reached\.: see the"):
            judge(served).judge(COMPARISONS)
        assert served.entries == []
        assert_true(judge(served).judge(COMPARISONS))


def test_a_batch_that_somebody_cancels_is_not_submitted_again_behind_their_back():
    with judge_served(Behaviour(batch_delay=0.4)) as served:

        async def cancel_meanwhile() -> None:
            judging = asyncio.create_task(asyncio.to_thread(judge(served).judge, COMPARISONS))
            async with openai.AsyncOpenAI(base_url=served.url, api_key="any") as api:
                while not (page := await api.batches.list()).data or page.data[0].status != "in_progress":
                    await asyncio.sleep(0.02)
                await api.batches.cancel(page.data[0].id)
            with pytest.raises(ValueError, match="batch batch_1 is cancelled: see the endpoint's page of batches"):
                await judging

        asyncio.run(cancel_meanwhile())
        assert len(batches_of(served)) == 1


def stopped_after_submission(served) -> None:
    """Judging that is cancelled while its batch is under way."""

    async def stopped() -> None:
        requests = list(judge(served)._requests(COMPARISONS))
        mark = "of this test"
        asking = asyncio.create_task(batches(served, mark).ask_all(requests))
        while not await asyncio.to_thread(batches_of, served):
            await asyncio.sleep(0.01)
        asking.cancel()
        with suppress(asyncio.CancelledError):
            await asking

    asyncio.run(stopped())


def batches(served, mark, keep=lambda request, reply: None, **changes):
    asked = judge(served)
    return batch_requests.BatchRequests(asked._endpoint, mark, 6, 0.02, keep, Budget(), lambda usage: None)


def test_a_run_stopped_between_submission_and_collection_is_taken_over():
    answered = []
    with judge_served(Behaviour(batch_delay=0.5)) as served:
        stopped_after_submission(served)
        assert served.entries == []  # stopped before any answer was there
        requests = list(judge(served)._requests(COMPARISONS))
        again = batches(served, "of this test", lambda request, reply: answered.append(request.place))
        asyncio.run(again.ask_all(requests))
        assert len(batches_of(served)) == 1
    assert sorted(answered) == list(range(40))
    assert set(times_asked(served).values()) == {1}


def test_a_run_that_comes_when_all_is_done_collects_and_asks_nothing():
    answered = []
    with judge_served(Behaviour(batch_delay=0.1)) as served:
        stopped_after_submission(served)
        time.sleep(0.2)
        requests = list(judge(served)._requests(COMPARISONS))
        again = batches(served, "of this test", lambda request, reply: answered.append(request.place))
        asyncio.run(again.ask_all(requests))
        assert len(batches_of(served)) == 1
    assert sorted(answered) == list(range(40))


def test_batches_of_another_judge_are_left_alone():
    with judge_served(Behaviour(batch_delay=0.1)) as served:
        stopped_after_submission(served)
        assert_true(judge(served).judge(COMPARISONS))
        marks = [batch.metadata[MARK] for batch in batches_of(served)]
    assert len(set(marks)) == 2
    assert set(times_asked(served).values()) == {2}


def submit(served, mark, rows=COMPARISONS, body=None):
    """A batch as an earlier run made it."""
    requests = list(judge(served)._requests(rows))
    lines = [
        {"custom_id": r.key, "method": "POST", "url": "/v1/chat/completions", "body": body or r.body} for r in requests
    ]
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    with openai.OpenAI(base_url=served.url, api_key="any") as api:
        file = api.files.create(file=("questions.jsonl", content), purpose="batch")
        api.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={MARK: mark}
        )


def test_questions_that_two_runs_have_submitted_are_collected_once():
    answered = []
    with judge_served(Behaviour(batch_delay=0.3)) as served:
        submit(served, "both", COMPARISONS[:30])
        time.sleep(0.1)
        submit(served, "both", COMPARISONS[20:])
        requests = list(judge(served)._requests(COMPARISONS))
        asyncio.run(batches(served, "both", lambda request, reply: answered.append(request.place)).ask_all(requests))
        assert len(batches_of(served)) == 2
    assert sorted(answered) == list(range(40))


def test_what_was_refused_in_an_earlier_batch_does_not_stop_a_later_start():
    answered = []
    with judge_served(Behaviour(batch_delay=0.05)) as served:
        submit(served, "again", body={"model": "gone", "messages": [{"role": "user", "content": "x"}]})
        time.sleep(0.1)
        requests = list(judge(served)._requests(COMPARISONS))
        asyncio.run(batches(served, "again", lambda request, reply: answered.append(request.place)).ask_all(requests))
    assert sorted(answered) == list(range(40))


def test_an_earlier_batch_whose_files_are_gone_has_nothing_to_give_and_stops_nobody():
    with judge_served(Behaviour(batch_delay=0.05)) as served:
        first = judge(served)
        first.judge(COMPARISONS)
        files = served._batches._files
        for name in [name for name, file in files.items() if file.purpose == "batch_output"]:
            del files[name]
        assert_true(first.judge(COMPARISONS))
        assert len(batches_of(served)) == 2


def test_an_endpoint_without_batches_is_told_from_a_wrong_model(monkeypatch):
    with judge_served() as served:
        served.url += "/nowhere"
        with pytest.raises(ValueError, match=r"it has no Batch API.*--judge\.mode live"):
            judge(served).judge(COMPARISONS)


def test_a_wrong_model_ends_the_batch_with_one_line():
    with (
        judge_served(Behaviour(batch_delay=0.05)) as served,
        pytest.raises(ValueError, match=r"404.*check --judge\.mo"),
    ):
        ApiJudge(
            "judge-9", served.url, mode="batch", prices=None, poll_seconds=0.02, template=DEFAULT_TEMPLATE.absolute()
        ).judge(COMPARISONS)


def test_an_answer_by_batch_costs_half(prices):
    with judge_served(Behaviour(batch_delay=0.05)) as served:
        by_batch = judge(served, prices=prices).judge(COMPARISONS)
        live = judge(served, prices=prices, mode="live").judge(COMPARISONS)
    for half, full in zip(by_batch, live, strict=True):
        expected = PRICE.cost(Usage(full.input_tokens, full.output_tokens))
        assert full.cost == pytest.approx(expected)
        assert half.cost == pytest.approx(expected / 2)


def test_the_cost_limit_is_kept_by_batches_and_used_up(prices):
    with judge_served(Behaviour(batch_delay=0.05)) as served:
        asked = judge(served, prices=prices)
        highest = max(request.highest_cost for request in asked._requests(COMPARISONS))
        full = sum(verdict.cost for verdict in asked.judge(COMPARISONS))
    told = []
    budget = Budget(full / 2)
    with judge_served(Behaviour(batch_delay=0.05)) as served:
        with pytest.raises(CostLimitError, match="of --max-cost"):
            judge(served, prices=prices).judge(COMPARISONS, lambda place, verdict: told.append(verdict), budget)
        assert len(batches_of(served)) > 1  # what a batch leaves is used by the next
    assert budget.spent == pytest.approx(sum(verdict.cost for verdict in told))
    assert budget.spent <= full / 2
    assert full / 2 - budget.spent < highest
    assert 0 < len(told) < 40
