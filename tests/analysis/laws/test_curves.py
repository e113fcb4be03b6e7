import numpy as np
import pandas as pd
import pytest

from overopt.analysis.laws.curves import curves_of


def completions_of(points: pd.DataFrame, num_prompts: int = 40) -> pd.DataFrame:
    """Verdicts and log-probabilities whose means are not the table's, so that both can be told apart."""
    generator = np.random.default_rng(0)
    return pd.DataFrame(
        [
            {
                "run_id": run,
                "examples_seen": seen,
                "prompt_id": f"post-{prompt:03d}",
                "win_probability": generator.uniform(),
                "policy_log_prob": -10 + generator.normal(),
                "reference_log_prob": -12 + generator.normal(),
            }
            for run, seen in zip(points["run_id"], points["examples_seen"], strict=True)
            for prompt in range(num_prompts)
        ]
    ).sample(frac=1, random_state=1)


def test_every_checkpoint_is_a_point_of_one_curve_and_the_reference_of_none(make_points) -> None:
    curves, notes = curves_of(make_points(("dpo", "ipo")))
    assert notes == ()
    assert [(c.objective, c.axis, c.points) for c in curves] == [
        (objective, axis, points)
        for objective in ("dpo", "ipo")
        for axis in ("kl", "forward_kl")
        for points in ("final", "all")
    ]
    assert [len(curve.d) for curve in curves[:2]] == [7, 35]
    assert curves[1].reference_win_rate == pytest.approx(0.42)
    assert curves[1].outcomes is None


def test_each_points_prompts_are_its_own_in_the_order_of_the_points(make_points) -> None:
    points = make_points()
    completions = completions_of(points)
    curve = curves_of(points, completions).select("kl", "all")[0]
    assert curve.outcomes is not None
    trained = points[points["examples_seen"] > 0].reset_index()
    for place in (0, 17, 34):
        row = trained.loc[place]
        here = (completions["run_id"] == row["run_id"]) & (completions["examples_seen"] == row["examples_seen"])
        mine = completions[here].sort_values("prompt_id")
        np.testing.assert_array_equal(curve.outcomes.wins[:, place], mine["win_probability"])
        np.testing.assert_array_equal(
            curve.outcomes.log_ratios[:, place], mine["policy_log_prob"] - mine["reference_log_prob"]
        )
    references = completions.query("examples_seen == 0").groupby("prompt_id")["win_probability"].mean()
    np.testing.assert_allclose(curve.outcomes.reference_wins, references.sort_index())


def test_the_forward_kl_is_no_mean_over_samples(make_points) -> None:
    points = make_points()
    curve = curves_of(points, completions_of(points)).select("forward_kl")[0]
    assert curve.outcomes is not None
    assert np.isnan(curve.outcomes.log_ratios).all()


def test_a_checkpoint_without_completions_leaves_its_curve_without_prompts(make_points) -> None:
    points = make_points(("dpo", "ipo"))
    completions = completions_of(points)
    gone = completions["run_id"].str.startswith("ipo") & (completions["examples_seen"] == points["examples_seen"].max())
    dpo, ipo = curves_of(points, completions[~gone]).select()
    assert dpo.outcomes is not None
    assert ipo.outcomes is None


def test_unreadable_verdicts_are_missing_and_not_losses(make_points) -> None:
    points = make_points()
    completions = completions_of(points)
    completions.loc[completions["prompt_id"] == "post-003", "win_probability"] = np.nan
    curve = curves_of(points, completions).select()[0]
    assert curve.outcomes is not None
    assert len(curve.outcomes.wins) == 39


def test_a_standard_error_of_zero_is_no_certainty(make_points) -> None:
    points = make_points()
    points.loc[4, "win_rate_se"] = 0.0
    curve = curves_of(points).select()[0]
    np.testing.assert_allclose(curve.weights, 1.0)
