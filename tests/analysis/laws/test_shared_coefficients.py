from dataclasses import replace

import numpy as np
import pytest
import statsmodels.api as sm

from overopt.analysis.laws.curves import Curve
from overopt.analysis.laws.laws import COMPARED
from overopt.analysis.laws.shared_coefficients import shared_fits, size_trends
from overopt.analysis.laws.simulation import REFERENCE, simulated_curve, true_means

LOG_LAW = COMPARED["log_law"]


def curve_of(alpha: float, model: str, objective: str = "dpo", seed: int = 0) -> Curve:
    d = simulated_curve(true_means("log_law")).d
    means = REFERENCE + LOG_LAW.gain(d, np.array([alpha, 0.05]))
    return replace(simulated_curve(d=d, means=means, num_prompts=4000, seed=seed), model=model, objective=objective)


def test_curves_of_one_truth_share_both_coefficients_and_others_only_what_is_equal() -> None:
    alike = [curve_of(0.10, "pythia-1b", objective, seed) for seed, objective in enumerate(("dpo", "ipo", "slic"))]
    table = shared_fits(alike).query("law == 'log_law'").set_index(["scope", "shared"])
    assert set(table.index.get_level_values("scope")) == {"objectives of pythia-1b", "all curves"}
    assert table.loc[("all curves", "both"), "preferred"]
    assert table.loc[("all curves", "both"), "num_coefficients"] == 2
    assert table.loc[("all curves", "none"), "num_coefficients"] == 6
    apart = [curve_of(alpha, f"pythia-{alpha}") for alpha in (0.08, 0.10, 0.12)]
    table = shared_fits(apart).query("law == 'log_law' and scope == 'sizes of DPO'").set_index("shared")
    assert list(table.index[table["preferred"]]) == ["beta_fit"]


def test_a_joint_fit_is_statsmodels_least_squares_with_the_same_columns() -> None:
    curves = [curve_of(alpha, f"pythia-{alpha}") for alpha in (0.08, 0.12)]
    basis = [LOG_LAW.basis(curve.d) for curve in curves]
    zeros = np.zeros(35)
    design = np.column_stack(
        [
            np.concatenate([basis[0][:, 0], zeros]),
            np.concatenate([zeros, basis[1][:, 0]]),
            np.concatenate([basis[0][:, 1], basis[1][:, 1]]),
        ]
    )
    gain = np.concatenate([curve.win_rate - curve.reference_win_rate for curve in curves])
    weights = np.concatenate([curve.weights for curve in curves])
    expected = sm.WLS(gain, design, weights=weights).fit()
    table = shared_fits(curves).query("law == 'log_law' and scope == 'all curves'").set_index("shared")
    assert table.loc["beta_fit", "rmse"] == pytest.approx((weights @ expected.resid**2 / 70) ** 0.5)


def test_a_coefficient_that_grows_with_size_is_found_to_and_the_other_is_not() -> None:
    sizes = {"small": 10**6, "middle": 10**7, "large": 10**8}
    curves = [curve_of(0.08 + 0.02 * step, model, seed=step) for step, model in enumerate(sizes)]
    table = size_trends(curves, sizes, resamples=300).query("law == 'log_law'").set_index("coefficient")
    assert table.loc["alpha", "slope"] == pytest.approx(0.02, abs=0.006)
    assert 0 < table.loc["alpha", "low"] < table.loc["alpha", "slope"] < table.loc["alpha", "high"]
    assert table.loc["beta_fit", "low"] < 0 < table.loc["beta_fit", "high"]


def test_one_size_has_no_trend_and_one_curve_shares_nothing() -> None:
    curve = curve_of(0.1, "pythia-1b")
    assert size_trends([curve], {"pythia-1b": 10**9}, resamples=20).empty
    assert shared_fits([curve]).empty
