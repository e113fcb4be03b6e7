"""The budget, with many questions at once and answers that cost anything up to what was set aside."""

import asyncio
import math
from random import Random

import pytest

from overopt.evaluation.judges.budget import Budget, CostLimitError


def spend_at_once(random: Random) -> tuple[Budget, list[float]]:
    """A hundred questions at once under a random limit; the budget, and the highest costs of those that it refused."""
    budget = Budget(random.uniform(0, 120))
    highest = [random.uniform(0, 3) for _ in range(100)]
    under_way: dict[int, float] = {}
    paid: list[float] = []
    refused: list[float] = []

    async def ask(number: int) -> None:
        await asyncio.sleep(0)
        try:
            async with budget.setting_aside(highest[number]):
                under_way[number] = highest[number]
                # Even if everything under way costs all it may.
                assert sum(paid) + sum(under_way.values()) <= budget.max_cost + 1e-9
                for _ in range(random.randrange(5)):
                    await asyncio.sleep(0)
                cost = highest[number] * random.choice([0.0, 1.0, random.random()])
                budget.spend(cost)
                paid.append(cost)
                del under_way[number]
        except CostLimitError:
            assert not under_way
            refused.append(highest[number])

    async def ask_all() -> None:
        await asyncio.gather(*map(ask, range(len(highest))))

    asyncio.run(ask_all())
    assert len(paid) + len(refused) == len(highest)
    assert budget.spent == pytest.approx(sum(paid))
    return budget, refused


def test_whatever_answers_cost_the_limit_is_never_overrun_and_no_question_that_fits_is_left_out():
    ends = []
    for seed in range(30):
        budget, refused = spend_at_once(Random(seed))
        assert budget.spent <= budget.max_cost + 1e-9
        # All were there at once, so what was refused did not even fit into what is left in the end.
        assert all(cost > budget.max_cost - budget.spent - 1e-9 for cost in refused)
        ends.append(bool(refused))
    assert set(ends) == {False, True}


@pytest.mark.parametrize(("limit", "asked"), [(10.0, 10), (9.99, 9), (1.0, 1), (0.99, 0), (0.0, 0)])
def test_questions_of_one_price_are_asked_as_often_as_the_limit_allows(limit, asked):
    budget = Budget(limit)
    count = 0

    async def ask_all() -> None:
        nonlocal count
        while True:
            async with budget.setting_aside(1.0):
                budget.spend(1.0)
                count += 1

    with pytest.raises(CostLimitError, match=rf"of --max-cost {limit:g} are spent and the next question could cost 1"):
        asyncio.run(ask_all())
    assert count == asked


def test_a_question_waits_for_an_answer_that_may_leave_it_enough():
    budget = Budget(10.0)
    order = []

    async def dear() -> None:
        async with budget.setting_aside(9.0):
            for _ in range(5):
                await asyncio.sleep(0)
            budget.spend(2.0)
            order.append("dear")

    async def next_one() -> None:
        async with budget.setting_aside(8.0):
            order.append("next")

    async def both() -> None:
        await asyncio.gather(dear(), next_one())

    asyncio.run(both())
    assert order == ["dear", "next"]


def test_nobody_overtakes_even_in_another_event_loop():
    budget = Budget(10.0)
    order = []

    async def ask(number: int, highest: float) -> None:
        async with budget.setting_aside(highest):
            order.append(number)
            await asyncio.sleep(0)

    async def ask_all() -> None:
        # The cheap ones would fit beside the first one, the second one would not.
        await asyncio.gather(*(ask(number, highest) for number, highest in enumerate([9.0, 8.0, 1.0, 1.0, 9.0])))

    for _ in range(2):
        order.clear()
        asyncio.run(ask_all())
        assert order == [0, 1, 2, 3, 4]


def test_a_question_that_is_called_off_while_it_waits_holds_nobody_up():
    budget = Budget(10.0)
    order = []

    async def ask(name: str, highest: float, turns: int) -> None:
        async with budget.setting_aside(highest):
            order.append(name)
            for _ in range(turns):
                await asyncio.sleep(0)

    async def ask_all() -> None:
        first = asyncio.create_task(ask("first", 9.0, 20))
        await asyncio.sleep(0)
        called_off = asyncio.create_task(ask("called off", 8.0, 0))
        await asyncio.sleep(0)
        last = asyncio.create_task(ask("last", 1.0, 0))
        await asyncio.sleep(0)
        called_off.cancel()
        await last
        assert not first.done()
        await first

    asyncio.run(ask_all())
    assert order == ["first", "last"]


def test_a_question_that_fails_gives_back_what_was_set_aside():
    budget = Budget(1.0)

    async def ask() -> None:
        for _ in range(3):
            with pytest.raises(RuntimeError):
                async with budget.setting_aside(1.0):
                    raise RuntimeError
        async with budget.setting_aside(1.0):
            pass

    asyncio.run(ask())
    assert budget.spent == 0.0


def test_without_a_limit_all_is_asked_and_counted():
    budget = Budget()

    async def ask() -> None:
        async with budget.setting_aside(1e9):
            budget.spend(5.0)

    asyncio.run(ask())
    assert budget.spent == 5.0


@pytest.mark.parametrize("limit", [-0.01, math.nan, math.inf, -math.inf])
def test_a_limit_that_is_no_cost_is_refused(limit):
    with pytest.raises(ValueError, match=rf"need a cost limit of at least 0, got {limit}"):
        Budget(limit)
