import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from overopt.analysis.findings.rank_correlation import COLUMNS, rank_correlations, spearman, weighted_spearman


def table(num_runs: int, models: tuple[str, ...] = ("a",), seed: int = 0) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    rows = []
    for shift, model in enumerate(models):
        for run in range(num_runs):
            for step in range(6):
                win_rate, accuracy = generator.uniform(0.3, 0.5), generator.uniform(0.5, 0.6)
                rows.append(
                    {
                        "run_id": f"{model}-{run}",
                        "objective": "dpo",
                        "model": model,
                        "examples_seen": 100 * step,
                        "win_rate": win_rate + shift,
                        # The reference ties with itself: an accuracy of 0 that would look like a correlation.
                        "implicit_reward_accuracy": accuracy + shift if step else 0.0,
                        "loss": round(generator.uniform(0.6, 0.8), 1),
                    }
                )
    return pd.DataFrame(rows)


def test_correlations_are_scipys_over_trained_checkpoints_pooled_and_within_each_model() -> None:
    points = table(6, ("a", "b"))
    found = rank_correlations(points)
    assert tuple(found.columns) == COLUMNS
    assert len(found) == 2 * 3
    trained = points[points["examples_seen"] > 0]
    for row in found.to_dict("records"):
        part = trained if row["model"] == "pooled" else trained[trained["model"] == row["model"]]
        expected = spearmanr(part[row["metric"]], part["win_rate"]).statistic
        assert row["correlation"] == pytest.approx(expected)
        assert row["num_points"] == len(part)
        assert row["num_runs"] == part["run_id"].nunique()
        assert row["low"] < row["correlation"] < row["high"]
    accuracy = found[found["metric"] == "implicit_reward_accuracy"].set_index("model")["correlation"]
    # Model size alone makes the pooled correlation, as the paper saw with IPO.
    assert accuracy["pooled"] > 0.6
    assert accuracy[["a", "b"]].abs().max() < 0.5


def test_weights_stand_for_repetitions_of_a_point_ties_included() -> None:
    generator = np.random.default_rng(3)
    x, y = generator.integers(0, 5, 20).astype(float), generator.integers(0, 5, 20).astype(float)
    times = generator.integers(0, 4, size=(10, 20))
    expected = [spearmanr(np.repeat(x, row), np.repeat(y, row)).statistic for row in times]
    np.testing.assert_allclose(weighted_spearman(x, y, times.astype(float)), expected)


def test_checkpoints_that_repeat_their_run_leave_the_interval_as_it_was() -> None:
    generator = np.random.default_rng(5)
    x, y = generator.normal(size=12), generator.normal(size=12)
    once = spearman(x, y, np.arange(12))
    five_times = spearman(np.repeat(x, 5), np.repeat(y, 5), np.repeat(np.arange(12), 5))
    assert five_times == pytest.approx(once)
    as_if_independent = spearman(np.repeat(x, 5), np.repeat(y, 5), np.arange(60))
    assert as_if_independent.high - as_if_independent.low < 0.6 * (once.high - once.low)


def test_the_order_of_rows_does_not_matter() -> None:
    points = table(6)
    pd.testing.assert_frame_equal(rank_correlations(points), rank_correlations(points.sample(frac=1, random_state=1)))


def test_what_cannot_be_known_is_nan_or_left_out() -> None:
    few = rank_correlations(table(4))
    assert few["correlation"].notna().all()
    assert few[["low", "high"]].isna().all(axis=None)
    constant = rank_correlations(table(6).assign(loss=0.7)).set_index("metric")
    assert constant.loc["loss", ["correlation", "low", "high"]].isna().all(axis=None)
    assert set(rank_correlations(table(6).drop(columns="loss"))["metric"]) == {"implicit_reward_accuracy"}
    empty = rank_correlations(table(6).assign(loss=np.nan, implicit_reward_accuracy=np.nan))
    assert tuple(empty.columns) == COLUMNS
    assert len(empty) == 0
    with pytest.raises(ValueError, match="win_rate"):
        rank_correlations(table(6).drop(columns="win_rate"))


def test_intervals_of_seven_runs_hold_the_truth_about_as_often_as_they_say() -> None:
    generator = np.random.default_rng(1)
    runs = np.repeat(np.arange(7), 5)
    held, held_if_independent = [], []
    for _ in range(300):
        # Half of the variance belongs to the run, and nothing to do with the other side.
        x, y = (generator.normal(size=7)[runs] + generator.normal(size=35) for _ in range(2))
        for clusters, count in ((runs, held), (np.arange(35), held_if_independent)):
            estimate = spearman(x, y, clusters, resamples=400)
            count.append(estimate.low <= 0 <= estimate.high)
    assert 0.88 <= np.mean(held) <= 0.97
    assert np.mean(held_if_independent) < np.mean(held) - 0.05
