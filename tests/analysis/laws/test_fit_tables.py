import numpy as np
import pandas as pd
import pytest

from overopt.analysis.laws.fit_tables import fit_points, resampled_estimates
from overopt.analysis.laws.fitting import ManyFits
from overopt.analysis.laws.laws import LAWS


def test_the_table_has_a_row_per_curve_axis_points_and_law_and_recovers_the_hump(make_points) -> None:
    points = make_points(("dpo", "ipo"), num_seeds=3, noise=0.0)
    fits = fit_points(points)
    assert fits.notes == ()
    keys = ["objective", "model", "axis", "points", "law"]
    assert list(fits.table.columns[:6]) == [*keys, "r0"]
    assert len(fits.table) == len(fits.table.drop_duplicates(keys)) == 2 * 2 * 2 * 4
    np.testing.assert_allclose(fits.table["r0"], 0.42)
    assert set(fits.table["num_points"]) == {21, 105}  # reference rows are no points of the fit
    log_law = fits.table.query("law == 'log_law' and axis == 'kl' and points == 'all'")
    for name, truth in (("alpha", 0.165), ("beta_fit", 0.085), ("d_star", np.exp(0.165 / 0.085 - 1))):
        np.testing.assert_allclose(log_law[name], truth, rtol=1e-6)
        assert ((log_law[f"{name}_low"] < truth) & (truth < log_law[f"{name}_high"])).all()
    assert fits.table.query("law == 'log_law'")["b1"].isna().all()
    others = fits.table.query("law in ('quadratic_in_d', 'quadratic_in_kl')")
    assert (others["rmse"] < others["rmse_leave_one_beta_out"]).all()


def test_r0_can_be_measured_fitted_or_zero(make_points) -> None:
    points = make_points()
    r0 = {setting: fit_points(points, r0=setting).table["r0"].iloc[0] for setting in ("measured", "fitted", "zero")}
    assert r0["measured"] == pytest.approx(0.42)
    assert r0["zero"] == 0
    assert r0["fitted"] not in (r0["measured"], r0["zero"])
    without = points[points["examples_seen"] > 0]
    table, _, notes = fit_points(without)
    assert table.empty
    assert "evaluate the reference" in notes[0]
    assert len(fit_points(without, r0="fitted").table) == 16


def test_too_few_betas_are_left_out_with_the_reason_and_others_still_fitted(make_points) -> None:
    few = make_points(("ipo",), betas=(0.1, 0.2))
    fits = fit_points(pd.concat([make_points(("dpo",)), few], ignore_index=True))
    assert set(fits.table["objective"]) == {"dpo"}
    (note,) = fits.notes
    assert note.startswith("IPO, gpt_neox-0.5M: not fitted: 2 distinct betas, 3 needed (final checkpoints against kl, ")


def test_missing_numbers_are_left_out_with_a_note_and_never_fitted(make_points) -> None:
    points = make_points()
    damaged = points.copy()
    damaged.loc[[3, 10], "win_rate"] = np.nan
    fits = fit_points(damaged)
    assert "DPO, gpt_neox-0.5M: 2 of 35 points left out: kl_nats or win_rate is missing (all checkpoints" in "\n".join(
        fits.notes
    )
    pd.testing.assert_frame_equal(fits.table, fit_points(points.drop([3, 10])).table)


def test_a_run_whose_last_checkpoint_is_missing_is_not_represented_by_an_earlier_one(make_points) -> None:
    points = make_points()
    points.loc[5, "kl_nats"] = np.nan  # the last checkpoint of the first run
    table = fit_points(points).table
    assert set(table.query("axis == 'kl' and points == 'final'")["num_points"]) == {6}


def test_a_negative_mean_kl_is_cut_and_said(make_points) -> None:
    points = make_points()
    points.loc[31, "kl_nats"] = -0.01
    notes = "\n".join(fit_points(points).notes)
    assert "1 of 35 points have a negative mean kl_nats, taken as distance 0" in notes


def test_points_are_weighed_by_their_standard_errors(make_points) -> None:
    points = make_points()
    same = fit_points(points).table
    alike = fit_points(points.assign(win_rate_se=np.nan)).table
    np.testing.assert_allclose(alike["rmse"], same["rmse"])
    points.loc[points["beta"] == 0.01, "win_rate_se"] = 1e3
    assert fit_points(points).table["alpha"].iloc[0] != pytest.approx(same["alpha"].iloc[0], rel=1e-3)


def test_the_best_of_n_law_is_the_parabola_in_gaos_coefficients(make_points) -> None:
    table = fit_points(make_points()).table.query("axis == 'kl' and points == 'all'").set_index("law")
    parabola, best_of_n = table.loc["quadratic_in_d"], table.loc["best_of_n"]
    assert best_of_n["alpha"] == pytest.approx(parabola["b1"])
    assert best_of_n["beta_fit"] == pytest.approx(-parabola["b2"])
    shared = ["rmse", "d_star", "d_star_low", "d_star_high", "peak", "peak_low", "peak_high"]
    np.testing.assert_allclose(best_of_n[shared].astype(float), parabola[shared].astype(float))


def test_every_interval_is_there_by_each_source_of_error_and_both_together_are_the_widest(make_points) -> None:
    fits = fit_points(make_points(num_seeds=3))
    kept = fits.intervals.query("axis == 'kl' and points == 'all' and law == 'log_law' and quantity == 'alpha'")
    width = (kept["high"] - kept["low"]).set_axis(kept["source"])
    assert set(width.index) == {"profile", "prompts", "runs", "prompts and runs"}
    assert width["prompts and runs"] > max(width["prompts"], width["runs"])
    row = fits.table.query("axis == 'kl' and points == 'all' and law == 'log_law'").iloc[0]
    both = kept.set_index("source").loc["prompts and runs"]
    assert (row["alpha_low"], row["alpha_high"]) == (both["low"], both["high"])


def test_a_peak_far_beyond_the_points_is_open_above_and_has_no_interval_of_its_height() -> None:
    law = LAWS["log_law"]
    many = ManyFits(np.zeros(200), np.tile([[0.5, 0.1]], (200, 1)), np.zeros(200))
    values = {"alpha": 0.5, "beta_fit": 0.1, "d_star": np.exp(4), "peak": 0.1 * np.exp(4)}
    far = resampled_estimates(law, values, many, reach=10.0)
    assert far["d_star"].high == np.inf
    assert np.isnan(far["peak"].low)
    near = resampled_estimates(law, values, many, reach=100.0)
    assert near["d_star"] == pytest.approx((np.exp(4),) * 3)
    assert near["peak"].low == pytest.approx(0.1 * np.exp(4))


def test_a_table_without_the_needed_columns_is_refused_by_name(make_points) -> None:
    with pytest.raises(ValueError, match="lacks win_rate"):
        fit_points(make_points().drop(columns="win_rate"))
