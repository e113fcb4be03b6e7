import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from overopt.analysis.figures.reward_metrics import (
    correlation_text,
    draw_reward_metrics,
    missing_reward_metrics,
    reward_metrics,
)
from overopt.analysis.figures.style import drawing


def test_panels_hold_trained_checkpoints_and_their_correlations(measured_points) -> None:
    points = measured_points(("dpo", "ipo"))
    panels = reward_metrics(points)
    assert [(panel.objective, panel.metric) for panel in panels] == [
        ("dpo", "implicit_reward_accuracy"),
        ("ipo", "implicit_reward_accuracy"),
        ("dpo", "loss"),
        ("ipo", "loss"),
    ]
    for panel in panels:
        assert len(panel.dots) == 3 * 35
        assert panel.dots["metric"].min() > 0  # the reference's accuracy of 0 is not one
        assert panel.correlations.index.tolist() == ["pooled", "tiny", "small", "large"]
        large = panel.dots[panel.dots["model"] == "large"]
        expected = spearmanr(large["metric"], large["win_rate"]).statistic
        assert panel.correlations.loc["large", "correlation"] == pytest.approx(expected)


def test_the_correlations_are_printed_with_the_runs_they_rest_on(measured_points) -> None:
    points = measured_points(models=("tiny", "large"))
    with drawing():
        figure = draw_reward_metrics(points, pd.DataFrame())
    accuracy = reward_metrics(points)[0].correlations
    printed = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert printed == [
        f"all sizes: {correlation_text(accuracy.loc['pooled'])}",
        f"tiny: {correlation_text(accuracy.loc['tiny'])}",
        f"large: {correlation_text(accuracy.loc['large'])}",
    ]
    assert printed[0].endswith("14 runs")
    names = [line.get_gid() for line in figure.axes[0].lines if line.get_gid()]
    assert len(names) == len(set(names)) == 70


def test_few_runs_or_a_constant_say_so() -> None:
    row = pd.Series({"correlation": 0.25, "low": np.nan, "high": np.nan, "num_runs": 1})
    assert correlation_text(row) == "+0.25, 1 run, too few for an interval"
    assert correlation_text(row.replace(0.25, np.nan)) == "none to be had, 1 run"


def test_one_metric_is_enough(measured_points) -> None:
    points = measured_points(models=("tiny",)).drop(columns="implicit_reward_accuracy")
    assert missing_reward_metrics(points) == ""
    assert [panel.metric for panel in reward_metrics(points)] == ["loss"]
    assert reward_metrics(points)[0].correlations.index.tolist() == ["tiny"]
    assert "accuracy; no checkpoint has a loss" in missing_reward_metrics(points.assign(loss=np.nan))
