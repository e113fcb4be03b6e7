from collections.abc import Callable

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from overopt.analysis.figures.catalogue import FIGURES, FigureTables
from overopt.analysis.figures.missing import MEASUREMENT_NAMES, missing_measurements
from overopt.analysis.figures.style import beta_styles, drawing, model_styles, models_by_size, rendered
from overopt.analysis.findings.method_curves import method_points
from overopt.analysis.laws.fit_tables import fit_points

BETAS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_comes_out_the_same_twice_and_names_its_units(measured_points, name: str) -> None:
    points = measured_points(("dpo", "dpo, length penalty 0.1"), models=("tiny", "large"), betas=(0.05, 0.1, 0.5))
    tables = FigureTables(points, fit_points(points).table, method_points(points))
    assert FIGURES[name].missing(tables) == ""
    files = []
    for _ in range(2):
        with drawing():
            figure = FIGURES[name].draw(tables)
            files.append(rendered(figure, "svg"))
    assert files[0] == files[1]
    assert len(files[0]) > 10_000
    assert FIGURES[name].stem.startswith(name)
    shown = [ax for ax in figure.axes if ax.get_visible()]
    for ax in shown:
        assert "[" in ax.get_xlabel() or "Fraction" in ax.get_xlabel()
    assert "[" in shown[0].get_ylabel()


MEASUREMENTS = sorted(MEASUREMENT_NAMES)
NARROW_TABLES: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    **{f"no {column}": lambda points, column=column: points.drop(columns=column) for column in MEASUREMENTS},
    "NaN for KL": lambda points: points.assign(kl_nats=np.nan, forward_kl_nats=np.nan),
    "NaN for win rate": lambda points: points.assign(win_rate=np.nan),
    "no standard errors": lambda points: points.drop(columns=[name for name in points if name.endswith("_se")]),
    "no sizes": lambda points: points.drop(columns="num_parameters"),
    "several seeds": lambda points: pd.concat(
        [points, points.assign(run_id=points["run_id"] + "again", seed=1)], ignore_index=True
    ),
    "one beta": lambda points: points[points["beta"] == 0.1],
    "one model": lambda points: points[points["model"] == "tiny"],
    "one run": lambda points: points[points["run_id"] == points["run_id"].iloc[0]],
    "one checkpoint": lambda points: points[points["run_id"] == points["run_id"].iloc[0]].iloc[:2],
    "the reference only": lambda points: points[points["examples_seen"] == 0],
    "no reference": lambda points: points[points["examples_seen"] > 0],
    "KL of 0": lambda points: points.assign(kl_nats=0.0, forward_kl_nats=0.0),
    "one objective not measured": lambda points: points.assign(
        **{column: points[column].where(points["objective"] != "dpo") for column in MEASUREMENTS}
    ),
    "the largest model not measured": lambda points: points.assign(
        **{column: points[column].where(points["model"] != "large") for column in MEASUREMENTS}
    ),
    "final checkpoints not measured": lambda points: points.assign(
        **{column: points[column].where(points["examples_seen"] < 15_360) for column in MEASUREMENTS}
    ),
    "only one objective and model measured": lambda points: points.assign(
        **{
            column: points[column].where((points["objective"] == "dpo") & (points["model"] == "tiny"))
            for column in MEASUREMENTS
        }
    ),
    "empty": lambda points: points.iloc[:0],
}


@pytest.mark.parametrize("narrowed", NARROW_TABLES.values(), ids=NARROW_TABLES)
def test_a_table_that_lacks_something_gives_a_reason_or_axes_that_show_something(measured_points, narrowed) -> None:
    objectives = ("dpo", "dpo, length penalty 0.1")
    points = measured_points(objectives, models=("tiny", "large"), betas=(0.05, 0.1, 0.5))
    points = narrowed(points[points["examples_seen"].isin([0, 6_144, 15_360])])
    fits = fit_points(points).table if "win_rate" in points else pd.DataFrame()
    tables = FigureTables(points, fits, method_points(points))
    reasons = {name: figure.missing(tables) for name, figure in FIGURES.items()}
    for name, reason in reasons.items():
        if reason:
            assert not reason.endswith(".")
            continue
        with drawing():
            figure = FIGURES[name].draw(tables)
        shown = [ax for ax in figure.axes if ax.get_visible()]
        assert shown
        for ax in shown:
            # Markers, or lines through several places; not a horizontal line at the reference alone.
            values = [
                line.get_xydata() for line in ax.lines if line.get_marker() != "None" or len(line.get_xdata()) > 2
            ]
            assert any(np.isfinite(value).all(axis=1).any() for value in values), (name, ax.get_title())


def test_drawing_leaves_matplotlibs_settings_as_they_were() -> None:
    before = dict(mpl.rcParams)
    with drawing():
        assert mpl.rcParams["svg.hashsalt"] == "overopt"
    assert dict(mpl.rcParams) == before


def test_betas_are_told_apart_in_greyscale_and_by_marker() -> None:
    styles = beta_styles(reversed(BETAS))
    assert tuple(styles) == BETAS
    lightness = [np.dot(style.color[:3], [0.2126, 0.7152, 0.0722]) for style in styles.values()]
    assert (np.diff(lightness) > 0.04).all()
    assert len({style.marker for style in styles.values()}) == len(BETAS)
    assert lightness[-1] < 0.85  # still seen on white


@pytest.mark.parametrize("name", ["one checkpoint", "KL of 0"])
def test_ranges_of_one_place_can_be_rendered(measured_points, name: str) -> None:
    points = NARROW_TABLES[name](measured_points(models=("tiny",), betas=(0.05, 0.1)))
    tables = FigureTables(points, fit_points(points).table, method_points(points))
    drawn = 0
    for figure in FIGURES.values():
        if not figure.missing(tables):
            with drawing():
                assert rendered(figure.draw(tables), "png")
            drawn += 1
    assert drawn >= 3


def test_models_are_told_apart_in_greyscale_and_by_marker() -> None:
    styles = model_styles(["small", "medium", "large"])
    lightness = [np.dot(style.color[:3], [0.2126, 0.7152, 0.0722]) for style in styles.values()]
    assert (np.diff(lightness) < -0.15).all()
    assert lightness[0] < 0.85  # still seen on white
    assert len({style.marker for style in styles.values()}) == 3


def test_models_go_by_parameters_and_not_by_name() -> None:
    points = pd.DataFrame({"model": ["a-10M", "b-2M", "c", "b-2M"], "num_parameters": [10e6, 2e6, None, 2e6]})
    assert models_by_size(points) == ["c", "b-2M", "a-10M"]
    assert models_by_size(points.astype({"num_parameters": "Int64"})) == ["c", "b-2M", "a-10M"]
    assert models_by_size(points.drop(columns="num_parameters")) == ["a-10M", "b-2M", "c"]


def test_a_reason_names_the_first_measurement_that_no_checkpoint_has(make_points) -> None:
    points = make_points()
    assert missing_measurements(points, "kl_nats", "win_rate") == ""
    assert missing_measurements(points.drop(columns="win_rate"), "kl_nats", "win_rate") == (
        "no checkpoint has a win rate"
    )
    assert missing_measurements(points[points["examples_seen"] == 0], "kl_nats") == "no checkpoint after the reference"
    points.loc[points["beta"] > 0.1, "kl_nats"] = np.nan
    points.loc[points["beta"] <= 0.1, "win_rate"] = np.nan
    assert "no checkpoint has all of" in missing_measurements(points, "kl_nats", "win_rate")
