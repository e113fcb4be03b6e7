import numpy as np
import pandas as pd
import pytest

from overopt.analysis.figures.likelihoods import draw_likelihoods, likelihoods, missing_likelihoods
from overopt.analysis.figures.style import drawing


def test_log_ratios_start_at_the_reference_and_carry_the_forward_kls_error(measured_points) -> None:
    points = measured_points(("dpo", "ipo"))
    panels = likelihoods(points)
    assert [(panel.objective, panel.model) for panel in panels] == [
        (objective, model) for model in ("tiny", "small", "large") for objective in ("dpo", "ipo")
    ]
    panel = panels[0]
    steps = panel.lines[0.01]
    assert steps["training_fraction"].tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert steps["chosen_log_ratio"].iloc[0] == 0
    run = points[points["run_id"] == "dpo-tiny-0.01-0"]
    np.testing.assert_allclose(steps["chosen_log_ratio"], -1.3 * run["kl_nats"])
    np.testing.assert_allclose(steps["chosen_log_ratio_high"] - steps["chosen_log_ratio"], 1.96 * 0.04 * run["kl_nats"])
    assert steps["rejected_log_ratio_low"].isna().all()
    assert len(panel.dots) == 35
    np.testing.assert_allclose(panel.dots["chosen_log_ratio"], -1.3 * panel.dots["d"] ** 2)
    assert (panel.num_fallen, panel.num_runs) == (7, 7)


def test_runs_that_raise_the_chosen_are_counted_by_their_last_checkpoint(measured_points) -> None:
    points = measured_points(models=("tiny",))
    risen = (points["run_id"] == "dpo-tiny-1-0") & (points["examples_seen"] == points["examples_seen"].max())
    points.loc[risen, "chosen_log_ratio"] = 0.5
    (panel,) = likelihoods(points)
    assert (panel.num_fallen, panel.num_runs) == (6, 7)


def test_without_kl_the_lower_panels_stay_away(measured_points) -> None:
    points = measured_points(models=("tiny",)).drop(columns="kl_nats")
    with drawing():
        figure = draw_likelihoods(points, pd.DataFrame())
    assert [ax.get_visible() for ax in figure.axes] == [True, False]
    assert "rejected" in missing_likelihoods(points.assign(rejected_log_ratio=np.nan))
