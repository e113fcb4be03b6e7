import numpy as np
import pytest

from overopt.analysis.figures.style import drawing, rendered
from overopt.analysis.figures.training_dynamics import draw_training_dynamics, training_dynamics
from overopt.analysis.fit_tables import fit_points


def test_a_line_per_beta_runs_from_the_reference_to_the_end_of_training(make_points) -> None:
    lines = training_dynamics(make_points(("dpo", "ipo")))
    assert len(lines) == 14
    assert [line.beta for line in lines[:3]] == [0.01, 0.02, 0.05]
    steps = lines[0].steps
    assert steps["training_fraction"].tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert steps["kl_nats"].iloc[0] == 0
    assert steps["win_rate"].iloc[0] == pytest.approx(0.42)


def test_seeds_are_averaged_within_an_error_that_their_number_does_not_shrink(make_points) -> None:
    points = make_points(num_seeds=3)
    step = training_dynamics(points)[0].steps.iloc[-1]
    last = points[(points["beta"] == 0.01) & (points["examples_seen"] == 15_360)]
    assert len(last) == 3
    assert step["num_seeds"] == 3
    assert step["win_rate"] == pytest.approx(last["win_rate"].mean())
    assert step["win_rate_high"] - step["win_rate"] == pytest.approx(1.96 * 0.022)


def test_missing_numbers_leave_gaps_and_not_zeros(make_points) -> None:
    points = make_points().drop(columns=["kl_se"])
    points.loc[3, "win_rate"] = np.nan
    steps = training_dynamics(points)[0].steps
    assert steps["win_rate"].isna().tolist() == [False, False, False, True, False, False]
    assert steps["kl_low_nats"].isna().all()
    with drawing():
        figure = draw_training_dynamics(points, fit_points(points).table)
        assert rendered(figure, "png")
    assert len(figure.axes[0].lines) == 7
