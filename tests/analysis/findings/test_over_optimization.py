import math

import numpy as np
import pytest

from overopt.analysis.findings.falls import fall_tests
from overopt.analysis.findings.over_optimization import OverOptimization, checkpoint_cells, over_optimization
from overopt.analysis.laws.curves import curves_of
from overopt.analysis.laws.fit_tables import fit_curves


def facts_of(points) -> list[OverOptimization]:
    curves = curves_of(points)
    return over_optimization(points, fit_curves(curves, resamples=50).table, fall_tests(curves.select(), draws=500))


def with_last(points, **values: float):
    """The same points, the last checkpoint of the smallest beta replaced."""
    points = points.copy()
    points.loc[5, list(values)] = list(values.values())
    return points


def test_the_peak_the_largest_kl_and_the_fall_between_them_are_found(make_points) -> None:
    points = with_last(make_points(noise=0.0), kl_nats=30.0, win_rate=0.40)
    (fact,) = facts_of(points)
    trained = points[points["examples_seen"] > 0]
    assert fact.reference_win_rate == pytest.approx(0.42)
    assert fact.peak.win_rate == trained["win_rate"].max()
    assert (fact.furthest.kl_nats, fact.furthest.win_rate) == (30.0, 0.40)
    assert fact.num_cells == 35
    assert fact.drop.value == pytest.approx(trained["win_rate"].max() - 0.40)
    half = 1.959964 * math.sqrt(2) * 0.022
    assert fact.drop.low == pytest.approx(fact.drop.value - half, abs=1e-6)
    assert fact.drop.high == pytest.approx(fact.drop.value + half, abs=1e-6)
    assert fact.verdict == "over-optimized"


def test_the_statement_says_where_it_peaks_and_where_over_optimization_starts(make_points) -> None:
    (fact,) = facts_of(make_points(noise=0.0))
    assert fact.statement.startswith("DPO, gpt_neox-0.5M: win rate rises from 0.42 to 0.64 near √KL = 2.")
    d_star = np.exp(0.165 / 0.085 - 1)
    assert f"over-optimization starts at KL ≈ {d_star**2:.1f} nats by the log law" in fact.statement


def test_a_fall_smaller_than_its_error_is_undecided(make_points) -> None:
    points = make_points(noise=0.0)
    points["win_rate_se"] = 0.1
    (fact,) = facts_of(points)
    assert fact.verdict == "undecided"
    assert "within the noise" in fact.statement
    assert "over-optimization starts" not in fact.statement


def test_a_rise_smaller_than_its_error_is_said_to_be_within_the_noise(make_points) -> None:
    points = make_points(noise=0.0)
    assert "a rise within the noise" not in facts_of(points)[0].statement
    (fact,) = facts_of(points.assign(win_rate_se=0.2))
    assert "a rise within the noise" in fact.statement
    assert fact.rise.low < 0 < fact.rise.value


def test_a_win_rate_that_is_highest_at_the_largest_kl_has_not_reached_over_optimization(make_points) -> None:
    (fact,) = facts_of(with_last(make_points(), kl_nats=30.0, win_rate=0.9))
    assert fact.verdict == "not reached"
    assert "over-optimization is not reached" in fact.statement


def test_policies_that_are_all_worse_than_the_reference_are_not_said_to_rise(make_points) -> None:
    points = make_points()
    points.loc[points["examples_seen"] > 0, "win_rate"] -= 0.4
    (fact,) = facts_of(points)
    assert "never exceeds the reference's 0.42" in fact.statement


def test_a_dip_that_training_recovers_from_is_no_fall(make_points) -> None:
    """The largest KL comes last; a bad early checkpoint is neither the peak nor the end."""
    points = with_last(make_points(), kl_nats=30.0, win_rate=0.9)
    points.loc[1, "win_rate"] = 0.1
    (fact,) = facts_of(points)
    assert fact.verdict == "not reached"


def test_seeds_are_averaged_and_do_not_shrink_the_error_of_their_common_prompts(make_points) -> None:
    cells = checkpoint_cells(make_points(num_seeds=3, noise=0.0))
    assert len(cells) == 35
    assert all(cell.win_rate_se >= 0.022 for cell in cells)
    assert [cell.training_fraction for cell in cells[:5]] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_missing_errors_leave_the_fall_undecided_and_a_group_without_points_out(make_points) -> None:
    points = make_points(("dpo", "ipo")).drop(columns="win_rate_se")
    points.loc[points["objective"] == "ipo", "win_rate"] = np.nan
    (fact,) = facts_of(points)
    assert fact.objective == "dpo"
    assert fact.verdict == "undecided"


def test_one_beta_gives_the_points_facts_without_a_law(make_points) -> None:
    (fact,) = facts_of(make_points(betas=(0.01,)))
    assert math.isnan(fact.d_star.value)
    assert "law" not in fact.statement
