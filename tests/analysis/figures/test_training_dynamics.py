import numpy as np
import pandas as pd
import pytest

from overopt.analysis.figures.style import drawing, rendered
from overopt.analysis.figures.training_dynamics import (
    draw_largest_model,
    draw_smaller_models,
    missing_smaller_models,
    training_dynamics,
)
from overopt.analysis.laws.fit_tables import fit_points


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


def test_seeds_that_end_a_few_examples_apart_are_averaged_all_the_same(make_points) -> None:
    points = make_points(num_seeds=2)
    longer = (points["seed"] == 1) & (points["examples_seen"] == 15_360)
    points.loc[longer, "examples_seen"] += 8
    for line in training_dynamics(points):
        assert line.steps["num_seeds"].tolist() == [2] * 6
        assert line.steps["training_fraction"].tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0], abs=1e-3)
    # Other schedules are other places.
    points.loc[(points["seed"] == 1) & (points["examples_seen"] == 3_072), "examples_seen"] = 4_608
    steps = training_dynamics(points)[0].steps
    assert steps["num_seeds"].tolist() == [2, 1, 1, 2, 2, 2, 2]
    assert steps["run_id"].tolist()[1:3] == ["dpo-gpt_neox-0.5M-0.01-0", "dpo-gpt_neox-0.5M-0.01-1"]


def test_missing_numbers_leave_gaps_and_not_zeros(make_points) -> None:
    points = make_points().drop(columns=["kl_se"])
    points.loc[3, "win_rate"] = np.nan
    steps = training_dynamics(points)[0].steps
    assert steps["win_rate"].isna().tolist() == [False, False, False, True, False, False]
    assert steps["kl_nats_low"].isna().all()
    with drawing():
        figure = draw_largest_model(points, fit_points(points).table)
        assert rendered(figure, "png")
    assert sum(len(line.get_xdata()) == 6 for line in figure.axes[0].lines) == 7


def test_the_largest_model_by_parameters_is_in_fig_2_and_the_others_in_fig_8_small_to_large(measured_points) -> None:
    points = measured_points()
    assert missing_smaller_models(points) == ""
    with drawing():
        shown = [
            list(dict.fromkeys(ax.get_title(loc="right") for ax in draw(points, fit_points(points).table).axes))
            for draw in (draw_largest_model, draw_smaller_models)
        ]
    assert shown == [["large"], ["tiny", "small"]]
    assert "one model" in missing_smaller_models(points[points["model"] == "tiny"])
    # A size that nobody recorded is not the largest.
    points.loc[points["model"] == "large", "num_parameters"] = pd.NA
    with drawing():
        assert draw_largest_model(points, fit_points(points).table).axes[0].get_title(loc="right") == "small"


def test_a_dot_names_its_checkpoint_unless_it_averages_seeds(measured_points) -> None:
    def names(num_seeds: int) -> list[str]:
        points = measured_points(models=("tiny",), num_seeds=num_seeds)
        with drawing():
            ax = draw_largest_model(points, fit_points(points).table).axes[0]
        return [line.get_gid() for line in ax.lines if line.get_gid()]

    assert len(names(1)) == 7 * 6
    assert "checkpoint:dpo-tiny-0.01-0:15360" in names(1)
    assert names(2) == []
