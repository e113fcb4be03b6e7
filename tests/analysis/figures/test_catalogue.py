import matplotlib as mpl
import numpy as np
import pytest

from overopt.analysis.figures.catalogue import FIGURES
from overopt.analysis.figures.style import beta_styles, drawing, rendered
from overopt.analysis.fitting import fit_table

BETAS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_comes_out_the_same_twice_and_names_its_units(measured_points, name: str) -> None:
    points = measured_points(("dpo", "ipo"), models=("tiny", "large"))
    assert FIGURES[name].missing(points) == ""
    fits = fit_table(points)
    files = []
    for _ in range(2):
        with drawing():
            figure = FIGURES[name].draw(points, fits)
            files.append(rendered(figure, "svg"))
    assert files[0] == files[1]
    assert len(files[0]) > 10_000
    assert FIGURES[name].stem.startswith(name)
    for ax in figure.axes:
        assert ax.get_xlabel()
    first = figure.axes[0]
    assert "[" in first.get_ylabel()


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
