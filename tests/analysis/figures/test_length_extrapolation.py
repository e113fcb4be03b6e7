import numpy as np
import pandas as pd
import pytest

from overopt.analysis.figures.length_extrapolation import (
    draw_length_extrapolation,
    length_extrapolation,
    median_trend,
    missing_length_extrapolation,
)
from overopt.analysis.figures.style import drawing


def test_each_checkpoint_has_both_r2_against_its_kl_and_models_go_by_size(measured_points) -> None:
    points = measured_points(("dpo", "ipo"))
    found = length_extrapolation(points)
    assert len(found) == 2 * 2 * 3
    assert list(dict.fromkeys(scatter.model for scatter in found)) == ["tiny", "small", "large"]
    for scatter in found:
        assert len(scatter.dots) == 35
        height = {"length_r2": 0.4, "length_r2_uncentred": 0.8}[scatter.measure]
        np.testing.assert_allclose(scatter.dots["r2"], height / (1 + scatter.dots["kl_nats"]))


def test_the_trend_is_the_median_of_equal_groups() -> None:
    dots = pd.DataFrame({"kl_nats": np.arange(1.0, 16.0), "r2": [0.1, 0.2, 0.3, 9.0, 0.4, *[0.5] * 5, *[0.6] * 5]})
    trend = median_trend(dots)
    assert trend["kl_nats"].tolist() == [3.0, 8.0, 13.0]
    assert trend["r2"].tolist() == pytest.approx([0.3, 0.5, 0.6])
    assert list(median_trend(dots.iloc[:9]).columns) == ["kl_nats", "r2"]
    assert len(median_trend(dots.iloc[:9])) == 0


def test_a_kl_that_has_no_logarithm_is_left_out_and_one_r2_is_enough(measured_points) -> None:
    points = measured_points(models=("tiny",)).drop(columns="length_r2_uncentred")
    points.loc[1, "kl_nats"] = -0.01
    assert [len(scatter.dots) for scatter in length_extrapolation(points)] == [34]
    with drawing():
        assert len(draw_length_extrapolation(points, pd.DataFrame()).axes) == 1
    assert missing_length_extrapolation(points.assign(kl_nats=0.0)) == "no checkpoint has a KL above 0"
    assert "R²" in missing_length_extrapolation(points.drop(columns="length_r2"))
