import math

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy.optimize import curve_fit

from overopt.analysis.fitting import (
    Estimate,
    fieller_interval,
    fit_law,
    fit_points,
    fit_table,
    leave_one_beta_out_rmse,
)
from overopt.analysis.laws import LAWS, Law

COEFFICIENTS = {
    "log_law": np.array([0.165, 0.085]),
    "quadratic_in_d": np.array([0.17, -0.03]),
    "quadratic_in_kl": np.array([0.05, -0.002]),
}
EACH_LAW = pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)


def simulated(law: Law, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    d = generator.uniform(0.3, 5.0, 35)
    value = 0.42 + law.gain(d, COEFFICIENTS[law.name]) + noise * generator.normal(size=35)
    return d, value, generator.uniform(0.5, 2.0, 35)


@EACH_LAW
@pytest.mark.parametrize("r0", [0.42, None], ids=["r0 measured", "r0 fitted"])
def test_points_without_noise_give_back_the_coefficients(law: Law, r0: float | None) -> None:
    d, value, _ = simulated(law, noise=0.0)
    fit = fit_law(law, d, value, r0=r0)
    np.testing.assert_allclose(fit.coefficients, COEFFICIENTS[law.name], rtol=1e-8)
    assert fit.r0 == pytest.approx(0.42, abs=1e-8)
    assert fit.rmse == pytest.approx(0, abs=1e-8)


@EACH_LAW
@pytest.mark.parametrize("weighted", [False, True])
def test_fits_equal_scipys_curve_fit(law: Law, weighted: bool) -> None:
    d, value, weights = simulated(law, noise=0.02)
    reference, covariance = curve_fit(
        lambda x, first, second: 0.42 + law.gain(x, np.array([first, second])),
        d,
        value,
        p0=COEFFICIENTS[law.name],
        sigma=weights**-0.5 if weighted else None,
        xtol=1e-14,
        ftol=1e-14,
    )
    fit = fit_law(law, d, value, r0=0.42, weights=weights if weighted else None)
    np.testing.assert_allclose(fit.coefficients, reference, rtol=1e-6)
    np.testing.assert_allclose(fit.covariance[1:, 1:], covariance, rtol=1e-5)


@EACH_LAW
@pytest.mark.parametrize("weighted", [False, True])
def test_intervals_and_likelihood_equal_statsmodels_least_squares(law: Law, weighted: bool) -> None:
    d, value, weights = simulated(law, noise=0.02)
    relative = weights / weights.mean() if weighted else np.ones_like(d)
    reference = sm.WLS(value, sm.add_constant(law.basis(d)), weights=relative).fit()
    fit = fit_law(law, d, value, r0=None, weights=weights if weighted else None)
    intervals = [(estimate.low, estimate.high) for estimate in fit.estimates().values()]
    np.testing.assert_allclose(intervals, reference.conf_int()[1:], rtol=1e-8)
    np.testing.assert_allclose(fit.covariance, reference.cov_params(), rtol=1e-8)
    assert fit.log_likelihood == pytest.approx(reference.llf)
    # Three coefficients and the scatter; the correction is 2k(k+1)/(n-k-1).
    assert fit.aicc == pytest.approx(-2 * reference.llf + 2 * 4 + 2 * 4 * 5 / (35 - 4 - 1))


@EACH_LAW
def test_a_common_scale_of_the_weights_changes_nothing(law: Law) -> None:
    d, value, weights = simulated(law, noise=0.02)
    one, other = (fit_law(law, d, value, r0=0.42, weights=scale * weights) for scale in (1.0, 1e4))
    np.testing.assert_allclose(one.covariance, other.covariance, rtol=1e-9)
    assert one.aicc == pytest.approx(other.aicc)


@EACH_LAW
def test_the_intervals_of_the_peak_cover_it_in_95_of_100_repeats(law: Law) -> None:
    """500 repeats: the count of misses is within 4 standard deviations of 25."""
    truth = COEFFICIENTS[law.name]
    place_missed = height_missed = 0
    generator = np.random.default_rng(3)
    d = generator.uniform(0.3, 5.0, 35)
    mean = 0.42 + law.gain(d, truth)
    for _ in range(500):
        fit = fit_law(law, d, mean + 0.01 * generator.normal(size=35), r0=0.42)
        place, height = fit.d_star(), fit.peak()
        place_missed += not place.low <= law.d_star(truth) <= place.high
        height_missed += not height.low <= 0.42 + law.peak_gain(truth) <= height.high
    assert 6 <= place_missed <= 44
    assert 6 <= height_missed <= 44


def test_points_that_only_rise_leave_the_peak_open_above() -> None:
    d = np.linspace(0.2, 1.5, 14)
    value = 0.42 + 0.1 * d + 0.01 * np.cos(9 * d)
    fit = fit_law(LAWS["quadratic_in_d"], d, value, r0=0.42)
    place = fit.d_star()
    if math.isnan(place.value):  # a parabola that bends up has no peak at all
        place = Estimate(0.0, 0.0, math.inf)
    assert place.high == math.inf
    assert math.isnan(fit.peak().low)


def test_fiellers_interval_holds_just_the_ratios_that_a_t_test_does_not_reject() -> None:
    pair, covariance, quantile = np.array([2.0, 1.0]), np.array([[0.04, 0.01], [0.01, 0.02]]), 2.1
    low, high = fieller_interval(pair, covariance, quantile)
    for ratio, kept in [(low + 1e-6, True), (high - 1e-6, True), (low - 1e-6, False), (high + 1e-6, False)]:
        contrast = np.array([1.0, -ratio])
        t = abs(contrast @ pair) / math.sqrt(contrast @ covariance @ contrast)
        assert (t < quantile) == kept


@EACH_LAW
def test_leaving_a_beta_out_equals_fitting_the_others_by_hand(law: Law) -> None:
    d, value, _ = simulated(law, noise=0.02)
    beta = np.repeat([0.01, 0.05, 0.1, 0.5, 1.0], 7)
    errors = []
    for left_out in np.unique(beta):
        seen = beta != left_out
        coefficients, _ = curve_fit(
            lambda x, first, second: 0.42 + law.gain(x, np.array([first, second])),
            d[seen],
            value[seen],
            p0=COEFFICIENTS[law.name],
        )
        errors.append(value[~seen] - 0.42 - law.gain(d[~seen], coefficients))
    expected = np.sqrt(np.mean(np.concatenate(errors) ** 2))
    assert leave_one_beta_out_rmse(law, d, value, beta, r0=0.42) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("d", "value", "message"),
    [
        ([1.0, 2.0], [0.5, 0.6], "at least 3 needed"),
        ([2.0, 2.0, 2.0, 2.0], [0.5, 0.6, 0.5, 0.6], "too few distances"),
        ([0.0, 0.0, 0.0, 0.0], [0.5, 0.6, 0.5, 0.6], "at distance 0"),
        ([1.0, 2.0, 3.0, np.nan], [0.5, 0.6, 0.5, 0.6], "finite"),
    ],
)
def test_points_that_cannot_carry_a_curve_are_refused(d: list[float], value: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_law(LAWS["quadratic_in_d"], np.array(d), np.array(value), r0=0.42)


def test_the_table_has_a_row_per_curve_axis_points_and_law_and_recovers_the_hump(make_points) -> None:
    points = make_points(("dpo", "ipo"), num_seeds=3, noise=0.0)
    fits = fit_points(points)
    assert fits.notes == ()
    keys = ["objective", "model", "axis", "points", "law"]
    assert list(fits.table.columns[:6]) == [*keys, "r0"]
    assert len(fits.table) == len(fits.table.drop_duplicates(keys)) == 2 * 2 * 2 * 3
    np.testing.assert_allclose(fits.table["r0"], 0.42)
    assert set(fits.table["num_points"]) == {21, 105}  # reference rows are no points of the fit
    log_law = fits.table.query("law == 'log_law' and axis == 'kl' and points == 'all'")
    for name, truth in (("alpha", 0.165), ("beta_fit", 0.085), ("d_star", np.exp(0.165 / 0.085 - 1))):
        np.testing.assert_allclose(log_law[[name, f"{name}_low", f"{name}_high"]], truth, rtol=1e-6)
    assert fits.table.query("law == 'log_law'")["b1"].isna().all()
    others = fits.table.query("law != 'log_law'")
    assert (others["rmse"] < others["rmse_leave_one_beta_out"]).all()


def test_r0_can_be_measured_fitted_or_zero(make_points) -> None:
    points = make_points()
    r0 = {setting: fit_table(points, r0=setting)["r0"].iloc[0] for setting in ("measured", "fitted", "zero")}
    assert r0["measured"] == pytest.approx(0.42)
    assert r0["zero"] == 0
    assert r0["fitted"] not in (r0["measured"], r0["zero"])
    without = points[points["examples_seen"] > 0]
    table, notes = fit_points(without)
    assert table.empty
    assert "evaluate the reference" in notes[0]
    assert len(fit_table(without, r0="fitted")) == 12


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
    pd.testing.assert_frame_equal(fits.table, fit_table(points.drop([3, 10])))


def test_a_run_whose_last_checkpoint_is_missing_is_not_represented_by_an_earlier_one(make_points) -> None:
    points = make_points()
    points.loc[5, "kl_nats"] = np.nan  # the last checkpoint of the first run
    table = fit_table(points)
    assert set(table.query("axis == 'kl' and points == 'final'")["num_points"]) == {6}


def test_a_negative_mean_kl_is_cut_and_said(make_points) -> None:
    points = make_points()
    points.loc[31, "kl_nats"] = -0.01
    notes = "\n".join(fit_points(points).notes)
    assert "1 of 35 points have a negative mean kl_nats, taken as distance 0" in notes


def test_weights_follow_the_standard_errors(make_points) -> None:
    points = make_points()
    same = fit_table(points, weighted=True)
    pd.testing.assert_frame_equal(same, fit_table(points), rtol=1e-9)
    points.loc[points["beta"] == 0.01, "win_rate_se"] = 1e3
    assert fit_table(points, weighted=True)["alpha"].iloc[0] != pytest.approx(same["alpha"].iloc[0], rel=1e-3)


def test_a_table_without_the_needed_columns_is_refused_by_name(make_points) -> None:
    with pytest.raises(ValueError, match="lacks win_rate"):
        fit_points(make_points().drop(columns="win_rate"))
