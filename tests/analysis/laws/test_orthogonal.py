from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize

from overopt.analysis.laws.fit_tables import fit_one
from overopt.analysis.laws.laws import COMPARED, LAWS, Law
from overopt.analysis.laws.orthogonal import distance_se, fit_orthogonal
from overopt.analysis.laws.simulation import REFERENCE, TRUTHS, simulated_curve, true_means

EACH_LAW = pytest.mark.parametrize("law", COMPARED.values(), ids=COMPARED)


def with_errors(law: str, relative: float, seed: int = 0):
    """A curve of which divergences are measured with an error."""
    curve = simulated_curve(true_means(law), num_prompts=20_000, seed=seed)
    errors = relative * curve.divergence
    moved = curve.divergence + errors * np.random.default_rng(seed).standard_normal(len(errors))
    return replace(curve, divergence=moved, divergence_se=errors)


@EACH_LAW
def test_without_errors_in_d_it_is_least_squares(law: Law) -> None:
    curve = with_errors(law.name, 1e-6)
    found = fit_orthogonal(law, curve)
    alone = fit_one(curve, law)
    np.testing.assert_allclose([found[name].value for name in law.coefficients], alone.coefficients, rtol=1e-4)
    assert found["d_star"].value == pytest.approx(alone.d_star().value, rel=1e-4)


def test_it_is_the_minimum_over_coefficients_and_true_distances() -> None:
    law, curve = LAWS["log_law"], with_errors("log_law", 0.1)
    found = fit_orthogonal(law, curve)
    errors = distance_se(curve)

    def squares(free: np.ndarray) -> float:
        d = np.maximum(free[2:], 0)
        residuals = (curve.win_rate - curve.reference_win_rate - law.gain(d, free[:2])) / curve.win_rate_se
        return float(residuals @ residuals + np.sum(((free[2:] - curve.d) / errors) ** 2))

    start = np.append([found[name].value for name in law.coefficients], curve.d)
    best = minimize(squares, start, method="BFGS", options={"maxiter": 2000}).x
    np.testing.assert_allclose([found[name].value for name in law.coefficients], best[:2], rtol=1e-3)


def test_where_distances_err_it_comes_closer_to_the_truth_than_least_squares() -> None:
    law, truth = LAWS["quadratic_in_kl"], TRUTHS["quadratic_in_kl"]
    orthogonal, plain = [], []
    for seed in range(40):
        curve = replace(with_errors(law.name, 0.15, seed), reference_win_rate=REFERENCE)
        orthogonal.append(fit_orthogonal(law, curve)["c2"].value)
        plain.append(fit_one(curve, law).coefficients[1])
    assert abs(np.mean(orthogonal) - truth[1]) < abs(np.mean(plain) - truth[1])


def test_points_without_errors_are_refused() -> None:
    with pytest.raises(ValueError, match="need a standard error"):
        fit_orthogonal(LAWS["log_law"], simulated_curve(true_means("log_law")))
