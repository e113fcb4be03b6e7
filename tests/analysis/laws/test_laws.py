import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from overopt.analysis.laws.laws import LAWS, Law, distance

HUMPS = {
    "log_law": np.array([0.17, 0.085]),
    "quadratic_in_d": np.array([0.16, -0.03]),
    "quadratic_in_kl": np.array([0.05, -0.002]),
    "best_of_n": np.array([0.16, 0.03]),
}


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_every_law_gains_nothing_at_the_reference_itself(law: Law) -> None:
    gain = law.gain(np.array([0.0, 1.0]), HUMPS[law.name])
    assert gain[0] == 0.0
    assert gain[1] != 0.0


def test_the_laws_are_the_printed_formulas() -> None:
    d = np.array([0.5, 1.0, 3.0])
    by_hand = {
        "log_law": [x * (0.17 - 0.085 * np.log(x)) for x in d],
        "quadratic_in_d": [0.16 * x - 0.03 * x**2 for x in d],
        "quadratic_in_kl": [0.05 * x**2 - 0.002 * x**4 for x in d],
        "best_of_n": [x * (0.16 - 0.03 * x) for x in d],
    }
    assert by_hand.keys() == LAWS.keys()
    for name, expected in by_hand.items():
        np.testing.assert_allclose(LAWS[name].gain(d, HUMPS[name]), expected, rtol=1e-12)


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_the_peak_in_closed_form_is_where_numeric_maximisation_finds_it(law: Law) -> None:
    coefficients = HUMPS[law.name]
    found = minimize_scalar(
        lambda d: -law.gain(np.array([d]), coefficients)[0],
        bounds=(1e-3, 10),
        method="bounded",
        options={"xatol": 1e-9},
    )
    assert law.d_star(coefficients) == pytest.approx(found.x, abs=1e-6)
    assert law.peak_gain(coefficients) == pytest.approx(-found.fun, abs=1e-12)


def test_the_log_law_gains_beta_fit_times_the_distance_of_its_peak() -> None:
    coefficients = HUMPS["log_law"]
    assert LAWS["log_law"].d_star(coefficients) == pytest.approx(np.exp(0.17 / 0.085 - 1))
    assert LAWS["log_law"].peak_gain(coefficients) == pytest.approx(0.085 * np.e)


@pytest.mark.parametrize(
    ("name", "coefficients"),
    [
        ("log_law", (0.1, -0.02)),
        ("log_law", (0.1, 0.0)),
        ("quadratic_in_d", (0.1, 0.01)),
        ("quadratic_in_d", (-0.1, -0.01)),
        ("quadratic_in_kl", (0.1, 0.0)),
        ("quadratic_in_kl", (-0.1, -0.01)),
    ],
)
def test_a_curve_that_bends_up_or_only_falls_has_no_hump(name: str, coefficients: tuple[float, float]) -> None:
    assert np.isnan(LAWS[name].d_star(np.array(coefficients)))
    assert np.isnan(LAWS[name].peak_gain(np.array(coefficients)))


def test_a_negative_mean_kl_is_distance_zero_and_a_missing_one_stays_missing() -> None:
    np.testing.assert_array_equal(distance(np.array([9.0, -0.2, np.nan])), [3.0, 0.0, np.nan])
