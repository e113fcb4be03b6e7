import numpy as np
import pytest

from overopt.analysis.laws.fitting import FITTERS, fit_law
from overopt.analysis.laws.laws import COMPARED
from overopt.analysis.laws.model_comparison import compare_laws, selection_rates
from overopt.analysis.laws.simulation import TRUTHS, simulated_curve, true_means


@pytest.mark.parametrize("truth", TRUTHS)
def test_with_many_prompts_the_law_that_is_true_is_chosen_in_nearly_all_resamples(truth: str) -> None:
    laws = compare_laws([simulated_curve(true_means(truth), num_prompts=20_000)], resamples=200).laws.set_index("law")
    assert list(laws.index[laws["chosen"]]) == [truth]
    assert laws.loc[truth, "best_share"] > 0.9
    assert laws.loc[truth, "chosen_if_true"] > 0.9
    assert laws["best_share"].sum() == pytest.approx(1)


def test_errors_and_criteria_are_those_of_each_law_fitted_alone() -> None:
    curve = simulated_curve(true_means("log_law"))
    laws = compare_laws([curve], resamples=20).laws.set_index("law")
    fits = {
        name: fit_law(law, curve.d, curve.win_rate, r0=curve.reference_win_rate, weights=curve.weights)
        for name, law in COMPARED.items()
    }
    for criterion in ("aicc", "bic"):
        mine = [laws.loc[name, criterion] - laws.loc["log_law", criterion] for name in fits]
        alone = [getattr(fit, criterion) - getattr(fits["log_law"], criterion) for fit in fits.values()]
        np.testing.assert_allclose(mine, alone, atol=1e-6)


def test_pairs_are_complementary_and_pooled_over_curves() -> None:
    curves = [simulated_curve(true_means("log_law"), seed=seed) for seed in range(3)]
    pairs = compare_laws(curves, resamples=100).pairs
    pooled = pairs[pairs["objective"] == "all"].set_index(["law", "other"])
    for law, other in pooled.index:
        assert pooled.loc[(law, other), "rmse_ratio"] * pooled.loc[(other, law), "rmse_ratio"] == pytest.approx(1)
        both = pooled.loc[(law, other), "better_share"] + pooled.loc[(other, law), "better_share"]
        assert both == pytest.approx(1)
    squares = {
        name: sum(
            float(fit(c.d[None], c.win_rate[None], c.weights[None], np.array([c.reference_win_rate])).rss[0])
            for c in curves
        )
        for name, fit in FITTERS.items()
    }
    ratio = (squares["log_law"] / squares["quadratic_in_kl"]) ** 0.5
    assert pooled.loc[("log_law", "quadratic_in_kl"), "rmse_ratio"] == pytest.approx(ratio)


def test_selection_rates_are_shares_of_one_choice_each() -> None:
    rates = selection_rates(simulated_curve(true_means("log_law")), resamples=200)
    np.testing.assert_allclose(rates.sum(axis=1), 1.0)
    assert (np.diag(rates) > 0.2).all()
