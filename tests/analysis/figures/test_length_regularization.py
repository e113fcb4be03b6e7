import numpy as np
import pandas as pd
import pytest

from overopt.analysis.figures.length_regularization import (
    draw_length_regularization,
    length_regularization,
    missing_length_regularization,
)
from overopt.analysis.figures.style import drawing
from overopt.analysis.laws.fit_tables import fit_points
from overopt.analysis.laws.fitting import fit_law
from overopt.analysis.laws.laws import LAWS

PENALISED = "dpo, length penalty 0.05"


def test_an_objective_meets_its_penalised_selves_in_both_win_rates(measured_points) -> None:
    points = measured_points(("dpo", "dpo, length penalty 0.1", PENALISED, "ipo"), models=("tiny", "large"))
    found = length_regularization(points, fit_points(points).table)
    assert [(one.objective, one.model, one.measure) for one in found] == [
        ("dpo", "tiny", "win_rate"),
        ("dpo", "tiny", "win_rate_length_controlled"),
        ("dpo", "large", "win_rate"),
        ("dpo", "large", "win_rate_length_controlled"),
    ]
    assert [list(one.series) for one in found] == [[0.0, 0.05, 0.1]] * 4
    judged, corrected = found[0].series[0.05].dots, found[1].series[0.05].dots
    assert len(judged) == 35
    kl = judged["d"] ** 2
    np.testing.assert_allclose(corrected["win_rate"], judged["win_rate"] - 0.01 * kl / (1 + kl))
    assert corrected["win_rate_high"].iloc[0] - corrected["win_rate"].iloc[0] == pytest.approx(1.96 * 0.024)


def test_the_curve_of_the_length_controlled_win_rate_is_fitted_to_it(measured_points) -> None:
    points = measured_points(("dpo", PENALISED), models=("tiny",))
    _, corrected = length_regularization(points, fit_points(points).table)
    panel = corrected.series[0.05]
    fit = fit_law(
        LAWS["log_law"],
        panel.dots["d"].to_numpy(),
        panel.dots["win_rate"].to_numpy(),
        r0=panel.reference_win_rate,
    )
    np.testing.assert_allclose(panel.curves["log_law"], fit.predict(panel.curve_d))
    assert panel.d_star.value == pytest.approx(fit.d_star().value)


def test_what_is_missing_is_said_in_words(measured_points) -> None:
    plain = measured_points(("dpo", "ipo"), models=("tiny",))
    assert missing_length_regularization(plain) == "no run with a length penalty"
    alone = pd.concat([plain[plain["objective"] == "ipo"], measured_points((PENALISED,), models=("tiny",))])
    assert "both with and without" in missing_length_regularization(alone)
    assert missing_length_regularization(pd.concat([plain, alone])) == ""
    unjudged = pd.concat([plain, alone]).assign(win_rate=np.nan)
    assert missing_length_regularization(unjudged) == "no checkpoint has a win rate"


def test_without_length_controlled_win_rates_one_column_is_drawn(measured_points) -> None:
    points = measured_points(("dpo", PENALISED), models=("tiny",)).drop(columns="win_rate_length_controlled")
    with drawing():
        figure = draw_length_regularization(points, fit_points(points).table)
    assert len(figure.axes) == 1
    names = [line.get_gid() for line in figure.axes[0].lines if line.get_gid()]
    assert len(names) == len(set(names)) == 70
