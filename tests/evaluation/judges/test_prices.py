from pathlib import Path

import pytest

from overopt.evaluation.judges.prices import ModelPrice, Usage, price_of, read_prices

CONF = Path(__file__).parents[3] / "conf" / "judge"


def test_input_output_and_cached_input_are_priced_apart():
    price = ModelPrice(input=2.5, output=10.0, cached_input=1.25)
    # 600 x 2.5 + 400 x 1.25 + 50 x 10 = 2,500 millionths.
    assert price.cost(Usage(input_tokens=1000, output_tokens=50, cached_tokens=400)) == pytest.approx(0.0025)
    assert price.cost(Usage(1000, 50, 400), factor=0.5) == pytest.approx(0.00125)
    assert ModelPrice(input=2.5, output=10.0).cost(Usage(1000, 50, 400)) == pytest.approx(0.003)


def test_the_papers_judge_has_a_price():
    table = read_prices(CONF / "prices.yaml")
    assert table.models["gpt-4-turbo-2024-04-09"].output > table.models["gpt-4-turbo-2024-04-09"].input > 0
    assert table.batch_factor == 0.5


def test_a_model_without_a_price_is_named_with_those_that_have_one():
    assert price_of("gpt-4-turbo-2024-04-09", CONF / "prices.yaml").input == 10.0
    with pytest.raises(ValueError, match=r"no price of 'mine' in .*prices\.yaml; there are gpt-4-turbo-2024-04-09, "):
        price_of("mine", CONF / "prices.yaml")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("models: {m: {input: 1, output: 2}}", "currency"),
        ("{currency: USD, batch_factor: 0.5, models: {m: {input: 1}}}", r"models\.m\.output"),
        ("{currency: USD, batch_factor: 0.5, models: {m: {input: -1, output: 2}}}", r"models\.m\.input"),
        ("{currency: USD, batch_factor: 0.5, models: {m: {input: .inf, output: 2}}}", r"models\.m\.input"),
        ("- 1", "the file"),
        ("a: [", "no YAML"),
    ],
)
def test_a_table_that_is_none_is_refused_with_the_place(tmp_path, content, complaint):
    path = tmp_path / "prices.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=complaint):
        read_prices(path)


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no price table at .*none\.yaml"):
        read_prices(tmp_path / "none.yaml")
