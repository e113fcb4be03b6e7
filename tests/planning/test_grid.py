import pytest

from overopt.planning.grid import Grid, JudgePrices


def test_the_papers_grid_takes_80640_judge_calls():
    assert Grid(objectives=3, betas=7, seeds=3).judge_calls(checkpoints=5) == 63 * 5 * 256 == 80_640
    assert Grid(objectives=3, betas=7, sizes=3).judge_calls(checkpoints=5) == 80_640


def test_both_orders_take_twice_the_calls():
    once, twice = (Grid(judge_calls_per_prompt=n).judge_calls(1) for n in (1, 2))
    assert twice == 2 * once > 0


def test_a_judges_price_by_call_and_by_token():
    assert JudgePrices(per_call=0.01).cost(1000, 300.0, 30.0) == pytest.approx(10)
    # 180 + 300 + 2 x 30 tokens in at 10 a million, 60 out at 30 a million.
    assert JudgePrices(per_million=(10.0, 30.0)).cost(1000, 300.0, 30.0) == pytest.approx(
        540 * 10 / 1e3 + 60 * 30 / 1e3
    )
    assert JudgePrices().cost(1000, 300.0, 30.0) is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Grid(betas=0), "--betas 0"),
        (lambda: Grid(num_prompts=-1), "--num-prompts -1"),
        (lambda: JudgePrices(per_million=(1.0,)), "two prices"),
        (lambda: JudgePrices(per_call=-1.0), "at least 0"),
        (lambda: JudgePrices(per_call=1.0, per_million=(1.0, 1.0)), "not both"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
