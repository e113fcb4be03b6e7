import numpy as np
import pytest

from overopt.analysis.laws.fitting import fit_law
from overopt.analysis.laws.laws import log_law
from overopt.analysis.laws.local_curve import local_curve

ALPHA, BETA_FIT = 0.165, 0.085
DISTANCES = np.geomspace(0.8, 9.0, 24)
PLACES = np.linspace(0.8, 9.0, 60)


def test_points_on_a_law_give_that_law_everywhere() -> None:
    d = np.array([0.7, 1.5, 4.0])
    found = local_curve(d, d * (ALPHA - BETA_FIT * np.log(d)), np.array([0.7, 2.0, 6.0]))
    np.testing.assert_allclose(found, [x * (ALPHA - BETA_FIT * np.log(x)) for x in (0.7, 2.0, 6.0)], atol=1e-12)


def steep_fall(d: np.ndarray) -> np.ndarray:
    """Rises to 0.09 at 2.5 and falls off more steeply than the log law with that peak."""
    return np.where(d < 2.5, 0.09 * np.sqrt(d / 2.5), 0.09 - 0.05 * (d - 2.5))


def test_where_the_law_is_wrong_the_curve_follows_the_points() -> None:
    gain = steep_fall(DISTANCES)
    law = fit_law(log_law, DISTANCES, gain, r0=0.0).predict(PLACES)
    found = local_curve(DISTANCES, gain, PLACES)
    assert abs(law.max() - 0.09) > 0.015  # the law's peak is off: without that, this would prove nothing
    assert abs(found.max() - 0.09) < 0.008
    assert np.abs(found - steep_fall(PLACES)).mean() < np.abs(law - steep_fall(PLACES)).mean() / 3


def test_far_from_every_point_the_law_decides() -> None:
    gain = steep_fall(DISTANCES)
    far = np.array([1e-4, 1e4])
    law = fit_law(log_law, DISTANCES, gain, r0=0.0).predict(far)
    np.testing.assert_allclose(local_curve(DISTANCES, gain, far), law, rtol=1e-6)


def test_a_checkpoint_that_has_not_moved_is_no_trouble() -> None:
    d = np.append(0.0, DISTANCES)
    found = local_curve(d, np.append(0.01, steep_fall(DISTANCES)), PLACES)
    np.testing.assert_allclose(found, local_curve(DISTANCES, steep_fall(DISTANCES), PLACES), atol=1e-6)


@pytest.mark.parametrize("d", [[1.0, 2.0], [1.5, 1.5, 1.5], [0.0, 0.0, 1.0], []])
def test_too_few_distances_are_refused(d: list[float]) -> None:
    with pytest.raises(ValueError, match="at least 3 at several distances"):
        local_curve(np.array(d), np.zeros(len(d)), PLACES)
