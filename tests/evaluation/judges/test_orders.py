import pytest

from overopt.evaluation.judges.orders import BothOrders, SeededOrder, averaged, in_order
from overopt.evaluation.judges.protocol import Estimate, Judge, ignore
from overopt.evaluation.records import Comparison, Verdict

COMPARISONS = [Comparison(str(i), f"post {i}", sample=f"good {i}", opponent=f"plain {i}") for i in range(400)]


class Reader(Judge):
    """Says of each pair of texts what it is told to; counts what it is asked."""

    reads_both = True
    settings = {"judge": "reader"}  # noqa: RUF012

    def __init__(self, prefer):
        self.prefer, self.asked = prefer, []

    def judge(self, comparisons, on_verdict=ignore, budget=None):
        verdicts = [self.prefer(c.sample, c.opponent) for c in comparisons]
        self.asked += comparisons
        # The last one answers first, as it may over a network.
        for place in reversed(range(len(verdicts))):
            on_verdict(place, verdicts[place])
        return verdicts

    def estimate(self, comparisons):
        return Estimate(len(comparisons))


def win(first: bool) -> Verdict:
    return Verdict("win", 1.0) if first else Verdict("loss", 0.0)


def of_good(first, second) -> Verdict:
    return win(first.startswith("good"))


def of_first(first, second) -> Verdict:
    return win(True)


def test_about_half_of_all_comparisons_are_read_with_the_opponent_first():
    reader = Reader(of_good)
    SeededOrder(reader, seed=0).judge(COMPARISONS)
    flipped = sum(c.sample.startswith("plain") for c in reader.asked)
    assert 160 < flipped < 240  # four standard deviations of a fair coin


def test_the_order_is_fixed_by_seed_and_comparison_whatever_else_is_asked():
    orders = [SeededOrder(Reader(of_good), seed).opponent_first(c) for seed in (0, 0, 1) for c in COMPARISONS]
    first, again, other = orders[:400], orders[400:800], orders[800:]
    assert first == again
    assert first != other
    assert [SeededOrder(Reader(of_good), 0).opponent_first(c) for c in reversed(COMPARISONS)] == first[::-1]


@pytest.mark.parametrize("order", ["seeded", "both"])
def test_a_judge_of_quality_gives_the_same_verdicts_in_any_order(order):
    verdicts = in_order(Reader(of_good), order).judge(COMPARISONS)
    assert {(v.kind, v.win_probability) for v in verdicts} == {("win", 1.0)}


def test_seeded_order_shows_a_judges_love_of_the_first_text_and_takes_it_out_of_the_win_rate():
    verdicts = SeededOrder(Reader(of_first), seed=0).judge(COMPARISONS)
    assert {v.first_preferred for v in verdicts} == {1.0}
    assert sum(v.win_probability for v in verdicts) / 400 == pytest.approx(0.5, abs=0.1)
    assert {(v.kind, v.win_probability) for v in verdicts} == {("win", 1.0), ("loss", 0.0)}


def test_both_orders_make_a_tie_of_a_judge_that_loves_the_first_text():
    verdicts = BothOrders(Reader(of_first)).judge(COMPARISONS)
    assert {(v.kind, v.win_probability, v.first_preferred) for v in verdicts} == {("tie", 0.5, 1.0)}


def test_both_orders_ask_each_comparison_twice_and_tell_of_it_once():
    reader, told = Reader(of_good), []
    verdicts = BothOrders(reader).judge(COMPARISONS, lambda place, verdict: told.append((place, verdict)))
    assert len(reader.asked) == 800
    assert sorted(place for place, _ in told) == list(range(400))
    assert all(verdicts[place] == verdict for place, verdict in told)
    assert BothOrders(reader).estimate(COMPARISONS).calls == 800


def test_graded_verdicts_are_mirrored_and_averaged():
    reader = Reader(lambda first, _: Verdict("graded", 0.9 if first.startswith("good") else 0.3))
    (both,) = BothOrders(reader).judge(COMPARISONS[:1])
    assert both.kind == "graded"
    assert both.win_probability == pytest.approx((0.9 + 0.7) / 2)
    # Read first, the sample has 0.9; read first, the opponent has 0.3.
    assert both.first_preferred == pytest.approx((0.9 + 0.3) / 2)


@pytest.mark.parametrize(
    ("there", "back", "kind", "probability"),
    [
        (Verdict("win", 1.0), Verdict("win", 1.0), "win", 1.0),
        (Verdict("win", 1.0), Verdict("loss", 0.0), "tie", 0.5),
        (Verdict("tie", 0.5), Verdict("tie", 0.5), "tie", 0.5),
        (Verdict("win", 1.0), Verdict("tie", 0.5), "graded", 0.75),
        (Verdict("win", 1.0), Verdict("unreadable", None), "unreadable", None),
        (Verdict("refused", None), Verdict("win", 1.0), "refused", None),
        (Verdict("unreadable", None), Verdict("refused", None), "refused", None),
    ],
)
def test_two_answers_make_one_verdict(there, back, kind, probability):
    verdict = averaged(there, back)
    assert (verdict.kind, verdict.win_probability) == (kind, probability)


def test_what_both_answers_said_and_cost_is_kept():
    there = Verdict("win", 1.0, answer="A.", cost=0.25, input_tokens=10, output_tokens=1)
    back = Verdict("unreadable", None, answer="Hm.", cost=0.5, input_tokens=20, output_tokens=2)
    verdict = averaged(there, back)
    assert verdict.answer == "[sample first] A.\n\n[sample second] Hm."
    assert (verdict.cost, verdict.input_tokens, verdict.output_tokens) == (0.75, 30, 3)


def test_a_judge_that_weighs_each_text_by_itself_is_asked_once():
    class Scale(Reader):
        reads_both = False

    scale = Scale(of_good)
    assert in_order(scale, "both") is scale
