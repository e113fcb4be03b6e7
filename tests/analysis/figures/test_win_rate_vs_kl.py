import numpy as np
import pytest

from overopt.analysis.figures.style import checkpoint_gid, drawing, rendered
from overopt.analysis.figures.win_rate_vs_kl import (
    draw_win_rate_vs_forward_kl,
    draw_win_rate_vs_kl,
    win_rate_vs_kl,
)
from overopt.analysis.laws.fit_tables import fit_points
from overopt.analysis.laws.laws import COMPARED


def test_panels_hold_every_checkpoint_once_and_the_upper_ones_the_last_only(make_points) -> None:
    points = make_points(("dpo", "ipo"), num_seeds=2)
    panels = win_rate_vs_kl(points, fit_points(points).table)
    assert [(p.objective, p.points, len(p.dots)) for p in panels] == [
        ("dpo", "final", 14),
        ("dpo", "all", 70),
        ("ipo", "final", 14),
        ("ipo", "all", 70),
    ]
    assert panels[0].dots["final"].all()
    assert panels[1].dots["final"].sum() == 14
    assert set(panels[0].dots["examples_seen"]) == {15_360}
    one = points[(points["objective"] == "dpo") & (points["examples_seen"] == 15_360)].iloc[0]
    assert panels[0].dots["d"].iloc[0] == pytest.approx(one["kl_nats"] ** 0.5)
    dot = panels[0].dots.iloc[0]
    assert dot["win_rate_high"] - dot["win_rate"] == pytest.approx(1.96 * 0.022)
    assert dot["d_high"] == pytest.approx((one["kl_nats"] * (1 + 1.96 * 0.05)) ** 0.5)
    assert dot["run_id"] == one["run_id"]


def test_curves_start_at_the_reference_and_end_at_the_last_point(make_points) -> None:
    points = make_points()
    fits = fit_points(points).table
    panel = win_rate_vs_kl(points, fits)[1]
    assert panel.curves.keys() == COMPARED.keys()
    assert panel.curve_d[[0, -1]].tolist() == [0.0, panel.dots["d"].max()]
    row = fits.query("axis == 'kl' and points == 'all' and law == 'quadratic_in_d'").iloc[0]
    expected = row["r0"] + row["b1"] * panel.curve_d + row["b2"] * panel.curve_d**2
    np.testing.assert_allclose(panel.curves["quadratic_in_d"], expected)
    assert all(curve[0] == pytest.approx(panel.reference_win_rate) for curve in panel.curves.values())


def test_the_forward_kl_axis_takes_its_own_distances_and_fits(make_points) -> None:
    points = make_points()
    fits = fit_points(points).table
    forward = win_rate_vs_kl(points, fits, axis="forward_kl")[1]
    backward = win_rate_vs_kl(points, fits)[1]
    np.testing.assert_allclose(forward.dots["d"], np.sqrt(1.3) * backward.dots["d"])
    assert forward.d_star.value == pytest.approx(np.sqrt(1.3) * backward.d_star.value, rel=0.05)


def test_unfitted_and_incomplete_points_are_drawn_as_far_as_they_go(make_points) -> None:
    points = make_points(betas=(0.1,)).drop(columns="win_rate_se")
    points.loc[2, "kl_nats"] = np.nan
    points = points[points["examples_seen"] > 0]
    panels = win_rate_vs_kl(points, fit_points(points).table)
    assert [len(panel.dots) for panel in panels] == [1, 4]
    assert panels[0].curves == {}
    with drawing():
        assert rendered(draw_win_rate_vs_kl(points, fit_points(points).table), "png")


def test_the_shaded_region_starts_at_the_peak_and_is_there_only_inside_the_points(make_points) -> None:
    points = make_points()
    fits = fit_points(points).table

    def shaded(fits) -> list[float]:
        with drawing():
            axes = draw_win_rate_vs_kl(points, fits).axes
        return [float(patch.get_x()) for ax in axes for patch in ax.patches]

    log_law = fits.query("law == 'log_law' and axis == 'kl'")
    assert shaded(fits) == pytest.approx(log_law["d_star"].tolist())
    assert shaded(fits.assign(d_star=100.0)) == []
    assert shaded(fits.assign(d_star=np.nan)) == []


def test_every_dot_has_the_name_of_its_checkpoint(make_points) -> None:
    points = make_points(num_seeds=2)
    with drawing():
        final, every = draw_win_rate_vs_kl(points, fit_points(points).table).axes
    trained = points[points["examples_seen"] > 0]
    expected = {
        checkpoint_gid(run_id, seen) for run_id, seen in zip(trained["run_id"], trained["examples_seen"], strict=True)
    }
    names = [line.get_gid() for line in every.lines if line.get_gid()]
    assert len(names) == len(trained) == 70
    assert set(names) == expected
    assert {line.get_gid() for line in final.lines if line.get_gid()} == {n for n in expected if n.endswith(":15360")}
    dot = next(line for line in every.lines if line.get_gid() == "checkpoint:dpo-gpt_neox-0.5M-0.01-0:15360")
    row = trained[(trained["run_id"] == "dpo-gpt_neox-0.5M-0.01-0") & (trained["examples_seen"] == 15_360)].iloc[0]
    assert dot.get_xydata().tolist() == [[pytest.approx(row["kl_nats"] ** 0.5), pytest.approx(row["win_rate"])]]


def test_models_go_by_size_and_panels_without_points_are_not_drawn(measured_points) -> None:
    points = measured_points(("dpo", "ipo"))
    points.loc[(points["objective"] == "ipo") & (points["model"] == "large"), "forward_kl_nats"] = np.nan
    panels = win_rate_vs_kl(points, fit_points(points).table, axis="forward_kl")
    assert list(dict.fromkeys(panel.model for panel in panels)) == ["tiny", "small", "large"]
    assert len(panels) == 2 * 2 * 3 - 2
    with drawing():
        figure = draw_win_rate_vs_forward_kl(points, fit_points(points).table)
    assert sum(ax.get_visible() for ax in figure.axes) == len(panels)
