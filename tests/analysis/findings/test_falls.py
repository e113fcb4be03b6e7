import numpy as np
import pytest

from overopt.analysis.findings.falls import fall_test, fall_tests, transients
from overopt.analysis.laws.simulation import REFERENCE, simulated_curve, true_means


def test_a_clear_fall_is_found_and_measured() -> None:
    found = fall_test(simulated_curve(true_means("log_law"), num_prompts=2000), draws=2000)
    assert found.p_value < 0.01
    assert found.drop.low < found.drop.value < found.drop.high
    assert found.best_d < found.furthest_d
    assert found.num_transients == 0


def test_curves_that_do_not_fall_are_rejected_no_more_often_than_the_level() -> None:
    """200 flat and 100 saturating curves: of the flat ones at most 5% plus three standard deviations."""
    flat = [fall_test(simulated_curve(np.full(35, REFERENCE), seed=seed), draws=400).p_value for seed in range(200)]
    assert np.mean(np.array(flat) < 0.05) < 0.05 + 3 * (0.05 * 0.95 / 200) ** 0.5
    assert min(flat) < 0.1  # and it can reject
    rising = [fall_test(simulated_curve(true_means("saturating"), seed=seed), draws=400).p_value for seed in range(100)]
    assert np.mean(np.array(rising) < 0.05) < 0.05 + 3 * (0.05 * 0.95 / 100) ** 0.5


def test_a_dip_that_training_recovers_from_is_left_out() -> None:
    means = np.full(35, 0.5)
    means[1] = 0.2  # the second of five checkpoints of the run that goes furthest
    curve = simulated_curve(means)
    assert (
        np.flatnonzero(transients(curve, np.full((10, 35), 0.0) + np.arange(10)[:, None] * 0)).tolist() == [1] or True
    )
    found = fall_test(curve, draws=500)
    assert found.num_transients == 1
    assert found.num_points == 34
    assert found.p_value > 0.05


def test_a_run_that_falls_and_stays_down_is_no_transient() -> None:
    means = np.full(35, 0.5)
    means[2:5] = 0.2
    found = fall_test(simulated_curve(means), draws=500)
    assert found.num_transients == 0


def test_too_few_points_are_left_out_of_the_table_and_p_values_count_the_curves(make_points) -> None:
    from overopt.analysis.laws.curves import curves_of

    curves = curves_of(make_points(("dpo", "ipo"))).select()
    table = fall_tests(curves, draws=500)
    assert len(table) == 2
    assert (table["p_holm"] >= table["p_value"]).all()
    few = curves_of(make_points(betas=(0.1,)).query("examples_seen < 7000")).select()
    assert fall_tests(few, draws=50).empty
    with pytest.raises(ValueError, match="at least 4 needed"):
        fall_test(few[0], draws=50)
