import math

import numpy as np
import pytest
import statsmodels.api as sm
from scipy.optimize import curve_fit, minimize_scalar
from scipy.stats import chi2

from overopt.analysis.laws.fitting import fieller_interval, fit_law, fit_many, fit_saturating, leave_one_beta_out_rmse
from overopt.analysis.laws.intervals import Estimate
from overopt.analysis.laws.laws import COMPARED, LAWS, Law, saturating

COEFFICIENTS = {
    "log_law": np.array([0.165, 0.085]),
    "quadratic_in_d": np.array([0.17, -0.03]),
    "quadratic_in_kl": np.array([0.05, -0.002]),
    "best_of_n": np.array([0.17, 0.03]),
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


@EACH_LAW
@pytest.mark.parametrize("r0", [0.42, None], ids=["r0 measured", "r0 fitted"])
def test_many_fits_at_once_equal_each_alone(law: Law, r0: float | None) -> None:
    drawn = [simulated(law, noise=0.02, seed=seed) for seed in range(4)]
    d, value, weights = (np.stack(column) for column in zip(*drawn, strict=True))
    many = fit_many(law, d, value, weights, None if r0 is None else np.full(4, r0))
    for row in range(4):
        alone = fit_law(law, d[row], value[row], r0=r0, weights=weights[row])
        np.testing.assert_allclose(many.coefficients[row], alone.coefficients, rtol=1e-6)
        assert many.r0[row] == pytest.approx(alone.r0)
        residuals = value[row] - alone.predict(d[row])
        assert many.rss[row] == pytest.approx(weights[row] @ residuals**2, rel=1e-6)


def test_points_that_leave_a_coefficient_open_spoil_no_other_fit() -> None:
    law = COMPARED["log_law"]
    d, value, weights = (np.stack([column, column]) for column in simulated(law, noise=0.02))
    d[0] = 2.0
    many = fit_many(law, d, value, weights, np.full(2, 0.42))
    assert np.isnan(many.coefficients[0]).all()
    assert np.isfinite(many.coefficients[1]).all()


@pytest.mark.parametrize("r0", [0.42, None], ids=["r0 measured", "r0 fitted"])
def test_the_law_that_never_falls_is_found_as_scipy_finds_it(r0: float | None) -> None:
    generator = np.random.default_rng(1)
    d = generator.uniform(0.3, 5.0, 60)
    value = 0.42 + 0.15 * (1 - np.exp(-d / 1.5)) + 0.005 * generator.normal(size=60)

    def curve(x: np.ndarray, a: float, s: float, start: float = 0.42) -> np.ndarray:
        return start + a * (1 - np.exp(-x / s))

    expected, _ = curve_fit(curve, d, value, p0=[0.1, 1.0] if r0 is not None else [0.1, 1.0, 0.4])
    least = np.sum((value - curve(d, *expected)) ** 2)
    found = fit_saturating(d[None], value[None], np.ones((1, 60)), None if r0 is None else np.array([r0]))
    assert found.rss[0] >= least * (1 - 1e-9)
    assert found.rss[0] == pytest.approx(least, rel=0.02)  # s is one of a grid's values
    np.testing.assert_allclose(found.coefficients[0], expected[:2], rtol=0.15)
    predicted = found.r0[0] + saturating.gain(d, found.coefficients[0])
    np.testing.assert_allclose(predicted, curve(d, *expected), atol=0.003)


def test_where_points_fall_the_best_curve_that_never_does_is_flat() -> None:
    d = np.linspace(0.5, 4.0, 20)
    value = 0.5 - 0.05 * d
    found = fit_saturating(d[None], value[None], np.ones((1, 20)), None)
    assert found.coefficients[0, 0] == 0
    assert found.r0[0] == pytest.approx(value.mean())


@EACH_LAW
def test_profile_intervals_end_where_the_likelihood_has_fallen_by_half_a_chi_squared_quantile(law: Law) -> None:
    """Brute force: the best curve with one quantity held fixed, found by scipy."""
    d, value, weights = simulated(law, noise=0.01)
    fit = fit_law(law, d, value, r0=0.42, weights=weights)
    relative = weights / weights.mean()

    def rss(coefficients: np.ndarray) -> float:
        return float(relative @ (value - 0.42 - law.gain(d, np.asarray(coefficients))) ** 2)

    limit = rss(fit.coefficients) * math.exp(chi2.ppf(0.95, 1) / len(d))
    intervals = fit.profile()
    for column, name in enumerate(law.coefficients):
        for end in (intervals[name].low, intervals[name].high):
            scale = fit.coefficients[1 - column]

            def held(other: float, end: float = end, column: int = column, scale: float = scale) -> float:
                return rss(np.insert([other * scale], column, end))

            assert minimize_scalar(held, bracket=(0.9, 1.1), tol=1e-12).fun == pytest.approx(limit, rel=1e-6)
    # Every curve that the likelihood admits peaks inside the intervals, and some at their ends.
    generator = np.random.default_rng(2)
    root = np.linalg.cholesky(fit.covariance[1:, 1:])
    around = generator.standard_normal((200_000, 2))
    radius = math.sqrt((limit / rss(fit.coefficients) - 1) * fit.degrees_of_freedom)
    admitted = fit.coefficients + radius * around / np.linalg.norm(around, axis=1)[:, None] @ root.T
    places = np.array([law.d_star(coefficients) for coefficients in admitted[:20_000]])
    heights = np.array([0.42 + law.peak_gain(coefficients) for coefficients in admitted[:20_000]])
    for drawn, interval in ((places, intervals["d_star"]), (heights, intervals["peak"])):
        assert np.nanmin(drawn) == pytest.approx(interval.low, rel=1e-3)
        assert np.nanmax(drawn) == pytest.approx(interval.high, rel=1e-3)
