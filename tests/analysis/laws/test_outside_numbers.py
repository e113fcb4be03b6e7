"""Gao et al.'s laws with coefficients read from their figures; the table is no part of the project."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from overopt.analysis.laws.fitting import fit_law
from overopt.analysis.laws.laws import LAWS

TABLE = Path(__file__).parents[4] / "shared" / "data" / "outside" / "gao2022_best_of_n_coefficients.json"
needs_table = pytest.mark.skipif(not TABLE.is_file(), reason="the outside numbers are not beside the checkout")


@needs_table
@pytest.mark.parametrize(("law", "beta_column"), [("best_of_n", "beta_bon"), ("log_law", "beta_RL")])
def test_curves_with_their_coefficients_peak_where_the_formula_says_and_are_fitted_back(law: str, beta_column: str):
    content = json.loads(TABLE.read_text())
    rows = [dict(zip(content["columns"], row, strict=True)) for row in content["rows"]]
    assert len(rows) == 9
    peaks = []
    for row in rows:
        alpha, beta = row["alpha_bon"], row[beta_column]
        formula = alpha / (2 * beta) if law == "best_of_n" else np.exp(alpha / beta - 1)
        coefficients = np.array([alpha, beta])
        found = minimize_scalar(
            lambda d, c=coefficients: -LAWS[law].gain(np.array([d]), c)[0], bounds=(1e-3, 1e3), method="bounded"
        )
        assert found.x == pytest.approx(formula, rel=1e-3)
        d = np.linspace(0.1, 2 * formula, 30)
        fit = fit_law(LAWS[law], d, LAWS[law].gain(d, coefficients), r0=0.0)
        np.testing.assert_allclose(fit.coefficients, coefficients, rtol=1e-8)
        assert fit.d_star().value == pytest.approx(formula, rel=1e-8)
        peaks.append(formula)
    # Larger reward models bear more optimisation, up to what a reading by eye can tell.
    assert np.corrcoef(np.arange(9), peaks)[0, 1] > 0.9
