import math

import numpy as np
import pandas as pd
import pytest

from analysis.conftest import LOGITS, make_best_of_n, make_methods, method_gain
from overopt.analysis.figures.methods import draw_methods, draw_panels, method_panels, method_styles, missing_methods
from overopt.analysis.figures.style import drawing, rendered
from overopt.analysis.findings.method_curves import method_points

LAW, OTHER = (0.16, 0.09), (0.17, 0.075)
SINGLE, WORST = "rloo, proxy 0.4M on 256 pairs", "rloo, worst of 4 proxies 0.4M on 256 pairs"
BEST = "best of n, proxy 0.4M on 256 pairs"


@pytest.fixture(scope="module")
def points() -> pd.DataFrame:
    methods = {"dpo": LAW, "ipo": OTHER, "dpo, chi_squared link": OTHER, SINGLE: LAW, WORST: OTHER}
    return make_methods(methods, noise=0.0, between=0.0)


def test_families_have_a_column_each_and_plain_dpo_stands_in_the_others(points) -> None:
    panels = method_panels(method_points(points, make_best_of_n()))
    shown = {(panel.family, panel.row): [(one.method, one.measure, one.is_anchor) for one in panel.series]
             for panel in panels}  # fmt: skip
    assert shown["direct alignment", "win_rate"] == [("dpo", "win_rate", False), ("ipo", "win_rate", False)]
    assert shown["mitigations", "win_rate"] == [("dpo", "win_rate", True), ("dpo, chi_squared link", "win_rate", False)]
    assert shown["mitigations", "reward"] == [
        ("dpo", "gold_reward", True), ("dpo", "proxy_reward", True),
        ("dpo, chi_squared link", "gold_reward", False), ("dpo, chi_squared link", "proxy_reward", False),
    ]  # fmt: skip
    assert [method for method, _, _ in shown["RLHF and best-of-n", "win_rate"]] == ["dpo", BEST, SINGLE, WORST]


def test_lines_are_the_laws_and_dots_are_the_measurements(points) -> None:
    panels = method_panels(method_points(points))
    series = {one.measure: one for panel in panels for one in panel.series if one.method == "ipo"}
    gold, rate = series["gold_reward"], series["win_rate"]
    assert gold.line.num_seeds == 3
    np.testing.assert_allclose(gold.line.band.mean, LOGITS * method_gain(OTHER, gold.line.d), atol=0.02)
    np.testing.assert_allclose(rate.line.band.mean, 0.42 + method_gain(OTHER, rate.line.d), atol=0.003)
    trained = points[(points["objective"] == "ipo") & (points["examples_seen"] > 0)]
    assert sorted(rate.dots["value"]) == sorted(trained["win_rate"])
    assert rate.line.d[-1] == pytest.approx(7.0)
    assert rate.line.d[0] >= rate.dots["d"].min()


def test_bands_are_students_over_seeds_and_absent_below_three() -> None:
    for seeds, known in (((0, 1, 2), True), ((0, 1), False), ((0,), False)):
        panels = method_panels(method_points(make_methods({"dpo": LAW, "ipo": OTHER}, seeds=seeds)))
        bands = [one.line.band for panel in panels for one in panel.series]
        assert all(np.isfinite(band.low).all() == known for band in bands)
        assert all(np.isfinite(band.mean).all() for band in bands)


def test_a_method_with_too_few_checkpoints_keeps_its_dots() -> None:
    points = make_methods({"dpo": LAW, "ipo": OTHER})
    few = points[(points["objective"] == "dpo") | ((points["beta"] == 0.1) & points["examples_seen"].isin([0, 5_000]))]
    one = next(one for panel in method_panels(method_points(few)) for one in panel.series if one.method == "ipo")
    assert (len(one.dots), len(one.line.d)) == (3, 0)


@pytest.mark.parametrize(
    ("narrowed", "reason"),
    [
        (lambda points: points, ""),
        (lambda points: points.drop(columns=["gold_reward", "proxy_reward"]), ""),
        (lambda points: points[points["objective"] == "dpo"], "no model was aligned by more than one method"),
        (
            lambda points: points.assign(model=points["objective"]),
            "no model was aligned by more than one method",
        ),
        (lambda points: points[points["examples_seen"] == 0], "no checkpoint after the reference"),
        (lambda points: points[points["examples_seen"] > 0], "no run has a checkpoint beside its own reference"),
        (lambda points: points.drop(columns="kl_nats"), "no checkpoint has a KL(policy ‖ reference)"),
        (lambda points: points.iloc[:0], "no checkpoint after the reference"),
    ],
)
def test_a_study_that_has_nothing_to_compare_says_why(points, narrowed, reason: str) -> None:
    assert missing_methods(narrowed(points), method_points(narrowed(points))) == reason


def test_best_of_n_alone_makes_a_second_method() -> None:
    points = make_methods({"dpo": LAW})
    assert missing_methods(points, method_points(points))
    assert missing_methods(points, method_points(points, make_best_of_n())) == ""
    panels = method_panels(method_points(points, make_best_of_n()))
    best = next(one for panel in panels for one in panel.series if one.method == BEST)
    assert set(best.dots["run_id"]) == {""}  # a dot that leads to no checkpoint
    assert best.dots["d"].max() == pytest.approx(math.sqrt(math.log(256) - 255 / 256))


def test_rows_without_a_reward_are_not_drawn(points) -> None:
    with drawing():
        figure = draw_methods(method_points(points.drop(columns=["gold_reward", "proxy_reward"])))
        assert rendered(figure, "png")
    labels = {ax.get_ylabel() for ax in figure.axes if ax.get_visible()}
    assert labels == {"Win rate against the\ndataset's response [fraction]"}


def test_gold_is_solid_the_proxy_dashed_and_no_two_methods_look_alike(points) -> None:
    panels = method_panels(method_points(points, make_best_of_n()))
    styles = method_styles(panels)
    looks = [style for (_, is_anchor), style in styles.items() if not is_anchor]
    assert len(set(looks)) == len(looks) == 6
    with drawing():
        figure = draw_panels(panels)
    ax = next(ax for ax in figure.axes if "reward" in ax.get_ylabel())
    long = [line for line in ax.lines if len(line.get_xdata()) > 2]
    rising = [line for line in long if line.get_ydata()[-1] > 3]
    assert len(long) == 4
    assert len(rising) == 2
    assert {line.get_linestyle() for line in rising} == {"--"}
    assert {line.get_linestyle() for line in long if line not in rising} == {"-"}


def test_forty_methods_are_told_apart() -> None:
    methods = {f"dpo, length penalty {number}": LAW for number in range(40)}
    panels = method_panels(method_points(make_methods(methods, seeds=(0,), betas=(0.1,))))
    assert len(set(method_styles(panels).values())) == 40
