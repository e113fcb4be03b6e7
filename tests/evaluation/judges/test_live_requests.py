"""Questions sent one by one: retries, rate limits and stops. What takes minutes runs on a simulated clock."""

import asyncio
import math
import time
from collections import Counter
from itertools import pairwise
from random import Random
from types import SimpleNamespace

import pytest

from judge_endpoint import MODEL, Behaviour, judge_served
from judged_texts import made_up
from overopt.evaluation.judges import live_requests
from overopt.evaluation.judges.budget import Budget, CostLimitError
from overopt.evaluation.judges.endpoint import Endpoint, PassingError, Reply
from overopt.evaluation.judges.live_requests import Limits, LiveRequests, Request, UnansweredError
from overopt.evaluation.judges.prices import Usage
from simulated_clock import SimulatedClock, run_at_once


def question(number: int, highest_cost: float = 1.0, input_tokens: int = 100) -> Request:
    row = made_up(number)
    text = f"{row['prompt']}\nA: {row['response']}\nB: {row['opponent']}"
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}]}
    return Request(number, f"key {number}", body, input_tokens, highest_cost)


class Asked:
    """All questions asked of an endpoint, and what came of it.

    Attributes:
        answered: places, in the order of their answers.
        spent: in all.
        error: that ended it.
        seconds: that it took, simulated ones where a loop is given.
    """

    def __init__(self, endpoint, requests, limits=None, max_cost=None, loop=None, max_output_tokens=100):
        self.answered: list[int] = []
        self.error = None
        self.budget = Budget(max_cost)

        def keep(request: Request, reply: Reply) -> None:
            self.answered.append(request.place)
            self.budget.spend(0.5)

        async def ask_all() -> None:
            live = LiveRequests(
                endpoint,
                limits or Limits(),
                max_output_tokens,
                keep,
                self.budget,
                lambda usage: usage.output_tokens * 1.0,
            )
            await live.ask_all(requests)

        begun = time.monotonic()
        try:
            if loop is None:
                asyncio.run(ask_all())
            else:
                run_at_once(ask_all(), loop)
        except ValueError as error:
            self.error = error
        self.spent = self.budget.spent
        self.seconds = time.monotonic() - begun if loop is None else loop.time()


class Scripted(Endpoint):
    """An endpoint without a network.

    Args:
        answer: a request's place and how often it has been asked before -> a reply, or an error to be raised.
        loop: whose time counts.
        latency: of an answer [s].
    """

    def __init__(self, answer, loop, latency=0.1):
        super().__init__("http://scripted/v1")
        self._answer, self._loop, self._latency = answer, loop, latency
        self.asked: list[tuple[float, int]] = []
        self.under_way = self.most_under_way = 0

    async def ask(self, client, body):
        place = int(body["messages"][0]["content"].split("case ")[1][:6])
        before = sum(asked == place for _, asked in self.asked)
        self.asked.append((self._loop.time(), place))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await asyncio.sleep(self._latency)
        finally:
            self.under_way -= 1
        found = self._answer(place, before)
        if isinstance(found, Exception):
            raise found
        return found

    def most_within(self, seconds: float, weight=lambda place: 1) -> float:
        """The largest weight of requests in any window of time."""
        return max(
            sum(weight(place) for at, place in self.asked if start <= at < start + seconds) for start, _ in self.asked
        )


FINE = Reply(text="Preferred: A", usage=Usage(100, 20))


@pytest.fixture
def loop(monkeypatch):
    simulated = SimulatedClock()
    monkeypatch.setattr(live_requests, "time", SimpleNamespace(monotonic=simulated.time))
    return simulated


def test_a_failing_question_is_asked_max_attempts_times_and_the_others_are_answered(loop):
    endpoint = Scripted(lambda place, _: PassingError("500 broken") if place % 10 == 3 else FINE, loop)
    # Answers keep coming, so that the endpoint is well.
    asked = Asked(endpoint, map(question, range(3000)), Limits(max_concurrent=1, max_attempts=4), loop=loop)
    counts = Counter(place for _, place in endpoint.asked)
    assert counts == {place: 4 if place % 10 == 3 else 1 for place in range(3000)}
    assert sorted(asked.answered) == [place for place in range(3000) if place % 10 != 3]
    assert isinstance(asked.error, UnansweredError)
    assert str(asked.error) == (
        "300 of 3000 questions got no answer in 4 attempts each (the last one: 500 broken); all others are answered"
    )


def test_a_question_that_fails_fewer_times_is_answered_once(loop):
    endpoint = Scripted(lambda place, before: PassingError("500") if before < place % 4 else FINE, loop)
    asked = Asked(endpoint, map(question, range(40)), Limits(max_attempts=4), loop=loop)
    assert asked.error is None
    assert sorted(asked.answered) == list(range(40))
    assert Counter(place for _, place in endpoint.asked) == {place: place % 4 + 1 for place in range(40)}


def test_waits_grow_and_no_two_questions_wait_alike(loop):
    endpoint = Scripted(lambda place, before: PassingError("500") if before < 5 and place else FINE, loop, latency=0.0)
    # Question 0 shows that somebody is answered.
    Asked(endpoint, map(question, [0, *range(1, 100)]), Limits(max_concurrent=100), loop=loop)
    waits = {number: [] for number in range(5)}
    for place in range(1, 100):
        times = [at for at, asked in endpoint.asked if asked == place]
        for number, (first, second) in enumerate(pairwise(times)):
            waits[number].append(second - first)
    for number, found in waits.items():
        # Uniform from nothing to twice as much each time: the mean is half of that, to five standard errors.
        highest = 2.0**number
        assert len(set(found)) == len(found) == 99
        assert max(found) <= highest + 1e-6
        assert abs(sum(found) / 99 - highest / 2) < 5 * highest / math.sqrt(12 * 99)


def test_a_final_error_stops_at_once_and_answers_under_way_are_kept(loop):
    endpoint = Scripted(lambda place, _: ValueError("no such model") if place == 20 else FINE, loop, latency=1.0)
    asked = Asked(endpoint, map(question, range(1000)), Limits(max_concurrent=8), loop=loop)
    assert str(asked.error) == "no such model"
    # Question 20 is in the third round of eight; those of it that end before it let others in.
    assert sorted(asked.answered) == sorted({place for _, place in endpoint.asked} - {20})
    assert set(range(24)) - {20} <= set(asked.answered) <= set(range(31))
    assert asked.seconds < 5


def test_a_stop_wakes_those_that_sleep_until_their_next_attempt(loop):
    def answer(place, before):
        if place == 0:
            return PassingError("429 later", retry_after=600.0)
        return ValueError("no such model")

    endpoint = Scripted(answer, loop, latency=1.0)
    asked = Asked(endpoint, map(question, range(2)), Limits(max_concurrent=2), loop=loop)
    assert str(asked.error) == "no such model"
    assert asked.seconds < 2
    assert [place for _, place in endpoint.asked] == [0, 1]


def test_a_stop_wakes_those_that_wait_for_a_rate_limit(loop):
    endpoint = Scripted(lambda place, _: ValueError("no such model") if place == 1 else FINE, loop)
    asked = Asked(endpoint, map(question, range(100)), Limits(requests_per_minute=2.0), loop=loop)
    assert str(asked.error) == "no such model"
    assert asked.seconds == pytest.approx(60.1, abs=0.5)  # question 1 had to wait a minute itself


def test_an_endpoint_that_is_down_stops_with_one_line():
    asked = Asked(Endpoint("http://127.0.0.1:9/v1"), map(question, range(10_000)), Limits(max_attempts=3))
    assert not asked.answered
    assert str(asked.error).startswith("the endpoint at http://127.0.0.1:9/v1 has answered nothing for ")
    assert "check --judge.base_url, or wait until it is well" in str(asked.error)
    assert "\n" not in str(asked.error)


def test_an_endpoint_that_is_down_stops_soon(loop):
    endpoint = Scripted(lambda place, _: PassingError("connection refused"), loop)
    asked = Asked(endpoint, map(question, range(10_000)), Limits(max_attempts=3), loop=loop)
    assert "has answered nothing for" in str(asked.error)
    assert asked.seconds < 5
    # The first of 128 questions that is out of attempts ends it, and what was under way beside it.
    assert len(endpoint.asked) <= 128 * 2 + 1 + 31


@pytest.mark.parametrize("wait", [None, 0.0, 1.0], ids=["drawn", "none", "alike"])
def test_an_endpoint_that_goes_down_leaves_most_questions_unasked(wait, loop, monkeypatch):
    if wait is not None:
        monkeypatch.setattr(live_requests, "_wait", lambda state: wait)
    endpoint = Scripted(lambda place, _: FINE if place < 500 else PassingError("connection refused"), loop)
    asked = Asked(endpoint, map(question, range(80_000)), loop=loop)
    assert sorted(asked.answered) == list(range(500))
    assert "has answered nothing for" in str(asked.error)
    # 500, as many failures as 128 questions of 6 attempts each can have, and what was under way beside the last one.
    assert len(endpoint.asked) <= 500 + 128 * 6 + 31
    assert asked.seconds < 120


@pytest.mark.parametrize("max_concurrent", [1, 5])
def test_requests_under_way_are_no_more_than_allowed_and_as_many(max_concurrent):
    with judge_served(Behaviour(latency=0.02)) as served:
        asked = Asked(Endpoint(served.url), map(question, range(40)), Limits(max_concurrent=max_concurrent))
    assert asked.error is None
    assert served.most_under_way == max_concurrent


def test_a_question_in_backoff_holds_no_slot(loop):
    endpoint = Scripted(lambda place, before: PassingError("500") if before < 3 and place % 2 else FINE, loop, 0.05)
    asked = Asked(endpoint, map(question, range(400)), Limits(max_concurrent=4), loop=loop)
    assert sorted(asked.answered) == list(range(400))
    assert endpoint.most_under_way == 4
    # 1,000 requests of 0.05 s, four at a time, take 12.5 s. With slots held, 200 waits of 0.5 + 1 + 2 s add 175 s.
    assert asked.seconds < 80


BUDGETS = [2.0, 10.0, 60.0, 61.5, 200.0]


@pytest.mark.parametrize("per_minute", BUDGETS)
def test_no_minute_sees_more_requests_than_its_budget_and_ten_minutes_use_it(per_minute, loop):
    endpoint = Scripted(lambda place, _: FINE, loop)
    count = int(10 * per_minute)
    asked = Asked(endpoint, map(question, range(count)), Limits(requests_per_minute=per_minute), loop=loop)
    assert len(asked.answered) == count
    # In a window that holds its first moment only, what both ends let in can't come together.
    assert endpoint.most_within(60 - 1e-3) <= per_minute
    refill = per_minute - max(1, per_minute / 6)  # the rest of a minute's budget may come at once
    assert asked.seconds < 60 * count / refill + 1


@pytest.mark.parametrize("seed", range(3))
def test_no_minute_sees_more_requests_than_its_budget_whatever_pauses_and_failures_come_between(seed, loop):
    random = Random(seed)

    def answer(place, before):
        if random.random() < 0.02:
            return PassingError("429", retry_after=random.uniform(0, 90))
        return PassingError("500") if random.random() < 0.1 else FINE

    endpoint = Scripted(answer, loop)
    limits = Limits(max_attempts=50, requests_per_minute=60.0)
    asked = Asked(endpoint, map(question, range(400)), limits, loop=loop)
    assert sorted(asked.answered) == list(range(400))
    assert endpoint.most_within(60 - 1e-3) <= 60


@pytest.mark.parametrize("seed", range(3))
def test_no_minute_sees_more_tokens_than_its_budget(seed, loop):
    random = Random(seed)
    sizes = [random.randint(50, 900) for _ in range(300)]  # up to a sixth of the budget, with the answer's 100
    endpoint = Scripted(lambda place, _: FINE, loop)
    requests = (question(place, input_tokens=size) for place, size in enumerate(sizes))
    asked = Asked(endpoint, requests, Limits(tokens_per_minute=6000.0), loop=loop)
    assert len(asked.answered) == 300
    most = endpoint.most_within(60 - 1e-3, weight=lambda place: sizes[place] + 100)
    assert 0.7 * 6000 < most <= 6000


def test_a_question_larger_than_a_sixth_of_the_tokens_is_asked_all_the_same(loop):
    endpoint = Scripted(lambda place, _: FINE, loop)
    requests = (question(place, input_tokens=5000) for place in range(7))
    asked = Asked(endpoint, requests, Limits(tokens_per_minute=600.0), loop=loop)
    assert len(asked.answered) == 7
    # A sixth may come at once, the others within a minute: one each 12 s.
    assert endpoint.most_within(60 - 1e-3) == 5


def test_a_word_to_wait_makes_everybody_wait():
    with judge_served(Behaviour(faults=0.1, kinds=["429 in milliseconds"], latency=0.01, seed=1)) as served:
        asked = Asked(Endpoint(served.url), map(question, range(60)), Limits(max_concurrent=16, max_attempts=20))
    assert sorted(asked.answered) == list(range(60))
    assert any(entry["answer"] == "429 in milliseconds" for entry in served.entries)
    assert [entry for entry in served.entries if entry["early"] is not None] == []


def test_nobody_asks_within_a_pause_and_all_go_on_after_it(loop):
    endpoint = Scripted(
        lambda place, before: PassingError("429", retry_after=30.0) if (place, before) == (50, 0) else FINE, loop
    )
    asked = Asked(endpoint, map(question, range(200)), Limits(max_concurrent=10), loop=loop)
    assert sorted(asked.answered) == list(range(200))
    [first, second] = [at for at, place in endpoint.asked if place == 50]
    announced = first + 0.1
    assert second - announced >= 30
    assert [at for at, _ in endpoint.asked if announced + 1e-6 < at < announced + 30] == []
    assert asked.seconds < 35


def test_a_pause_of_hours_ends_the_run_and_says_when_to_start_again(loop):
    endpoint = Scripted(lambda place, _: PassingError("429 Daily limit.", retry_after=7200.0), loop)
    asked = Asked(endpoint, map(question, range(10)), loop=loop)
    assert str(asked.error) == (
        "the endpoint at http://scripted/v1 wants to be asked again in 7200 s only (429 Daily limit.): start again then"
    )
    assert asked.seconds < 1


def test_the_cost_limit_stops_when_what_is_left_is_less_than_a_question_can_cost(loop):
    endpoint = Scripted(lambda place, _: FINE, loop)
    asked = Asked(endpoint, map(question, range(100)), max_cost=10.0, loop=loop)
    # Answers cost 0.5, questions may cost 1: after 19 answers 0.5 is left.
    assert isinstance(asked.error, CostLimitError)
    assert (len(asked.answered), asked.spent) == (19, 9.5)


@pytest.mark.parametrize("seed", range(5))
def test_near_the_cost_limit_questions_are_asked_in_their_order(seed, loop):
    random = Random(seed)
    highest = [random.uniform(1, 3) for _ in range(200)]
    # Answers that come whenever they like, and a limit at which all but a few slots wait.
    endpoint = Scripted(lambda place, _: FINE, loop)
    ask = endpoint.ask

    async def late(client, body):
        await asyncio.sleep(random.uniform(0, 0.5))
        return await ask(client, body)

    endpoint.ask = late
    asked = Asked(endpoint, (question(place, cost) for place, cost in enumerate(highest)), max_cost=10.0, loop=loop)
    # Each answer costs 0.5: the first question that does not fit, once all before it are answered, ends it.
    count = next(place for place, cost in enumerate(highest) if 0.5 * place + cost > 10)
    assert sorted(asked.answered) == list(range(count))
    assert f"{0.5 * count:.4g} of --max-cost 10 are spent" in str(asked.error)
    assert f"the next question could cost {highest[count]:.2g}" in str(asked.error)


def test_tokens_that_were_charged_without_an_answer_are_spent(loop):
    def answer(place, before):
        return FINE if before else PassingError("an answer with 0 choices", usage=Usage(0, 2))

    asked = Asked(Scripted(answer, loop), map(question, range(4)), loop=loop)
    assert asked.spent == 4 * (2.0 + 0.5)


def test_a_question_that_cannot_be_made_stops_as_one_error_and_loses_no_answer(loop):
    def requests():
        yield from map(question, range(50))
        raise ValueError("the template fails")

    endpoint = Scripted(lambda place, _: FINE, loop)
    asked = Asked(endpoint, requests(), Limits(max_concurrent=4), loop=loop)
    assert str(asked.error) == "the template fails"
    assert sorted(asked.answered) == sorted(place for _, place in endpoint.asked)
    assert len(asked.answered) > 30


@pytest.mark.parametrize(
    ("limits", "complaint"),
    [
        ({"max_concurrent": 0}, "at least one of everything, got max_concurrent 0"),
        ({"max_attempts": 0}, "at least one of everything, got max_attempts 0"),
        ({"tokens_per_minute": 0.5}, "at least one of everything, got tokens_per_minute 0.5"),
        ({"tokens_per_minute": math.nan}, "at least one of everything, got tokens_per_minute nan"),
        ({"requests_per_minute": 1}, "at least 2 requests_per_minute, got 1"),
        ({"requests_per_minute": math.inf}, "leave it out"),
    ],
)
def test_limits_that_leave_nothing_to_ask_are_refused(limits, complaint):
    with pytest.raises(ValueError, match=complaint):
        Limits(**{name: value if name.startswith("max") else float(value) for name, value in limits.items()})
