import numpy as np
import pytest

from overopt.analysis.laws.resampling import prompt_deviations, resample, run_weights
from overopt.analysis.laws.simulation import simulated_curve, true_means


def test_other_prompts_move_points_as_much_and_as_much_together_as_their_covariance_says() -> None:
    curve = simulated_curve(true_means("log_law"))
    assert curve.outcomes is not None
    moved = prompt_deviations(curve, 20_000).win_rate
    expected = np.cov(curve.outcomes.wins, rowvar=False, bias=True) / len(curve.outcomes.wins)
    np.testing.assert_allclose(np.cov(moved, rowvar=False), expected, atol=4e-5)
    assert np.corrcoef(moved, rowvar=False)[0, 1] > 0.1  # the same prompts for every point
    assert abs(moved.mean(axis=0)).max() < 1e-3


def test_without_prompts_each_point_errs_by_its_standard_error_alone(make_points) -> None:
    from overopt.analysis.laws.curves import curves_of

    curve = curves_of(make_points()).select()[0]
    moved = prompt_deviations(curve, 20_000)
    np.testing.assert_allclose(moved.win_rate.std(axis=0), 0.022, rtol=0.05)
    np.testing.assert_allclose(moved.divergence.std(axis=0), curve.divergence_se, rtol=0.05)
    assert abs(np.corrcoef(moved.win_rate, rowvar=False)[0, 1]) < 0.05


def test_prompts_without_a_verdict_do_not_count() -> None:
    curve = simulated_curve(true_means("log_law"), num_prompts=200)
    assert curve.outcomes is not None
    curve.outcomes.wins[:150, 3] = np.nan
    moved = prompt_deviations(curve, 20_000).win_rate[:, 3]
    left = curve.outcomes.wins[150:, 3]
    assert moved.std() == pytest.approx(left.std() / 50**0.5, rel=0.05)


def test_runs_are_weighed_as_wholes_with_mean_one() -> None:
    curve = simulated_curve(true_means("log_law"))
    weights = run_weights(curve, 20_000)
    of_runs = weights.reshape(20_000, 7, 5)
    assert (of_runs == of_runs[:, :, :1]).all()
    np.testing.assert_allclose(weights.mean(axis=0), 1.0, atol=0.05)


def test_each_source_moves_what_it_is_named_after() -> None:
    curve = simulated_curve(true_means("log_law"))
    drawn = resample(curve, 50)
    assert (drawn["prompts"].weights == curve.weights).all()
    assert (drawn["runs"].win_rate == curve.win_rate).all()
    assert (drawn["prompts and runs"].win_rate == drawn["prompts"].win_rate).all()
    assert (drawn["prompts and runs"].weights == drawn["runs"].weights).all()
    assert drawn["prompts"].reference.std() > 0 == drawn["runs"].reference.std()
