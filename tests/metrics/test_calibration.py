"""Calibration by hand, against torchmetrics, and of labels that are drawn from the probabilities themselves."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import binary_calibration_error

from overopt.metrics.calibration import BradleyTerryCalibration, bin_sums

margin_lists = st.lists(st.floats(-6, 6, allow_nan=False, width=32), min_size=1, max_size=40)


def measured(margins, num_bins=10):
    metric = BradleyTerryCalibration(num_bins)
    metric.update(torch.as_tensor(margins, dtype=torch.float64))
    return metric.compute()


def logit(probability):
    return math.log(probability / (1 - probability))


def test_two_bins_by_hand():
    # Of three pairs at 0.6 two are right, of two at 0.9 one: |2 - 1.8| + |1 - 1.8| over five pairs.
    estimate = measured([logit(0.6), logit(0.6), -logit(0.6), logit(0.9), -logit(0.9)], num_bins=2)
    assert estimate.expected_error.item() == pytest.approx((0.2 + 0.8) / 5)
    assert estimate.overconfidence.item() == pytest.approx((3 * 0.6 + 2 * 0.9 - 3) / 5)
    assert estimate.brier_score.item() == pytest.approx((2 * 0.4**2 + 0.6**2 + 0.1**2 + 0.9**2) / 5)
    expected = math.sqrt(2 / math.pi) * (math.sqrt(3 * 0.24) + math.sqrt(2 * 0.09)) / 5
    assert estimate.error_if_calibrated.item() == pytest.approx(expected)
    assert estimate.bins.pairs.tolist() == [3, 2]


def test_a_model_that_knows_nothing_is_a_calibrated_coin():
    estimate = measured([0.0] * 7)
    assert (estimate.expected_error, estimate.overconfidence, estimate.brier_score) == (0, 0, 0.25)
    assert estimate.bins.pairs.tolist() == [7, *[0] * 9]


def test_certainty_falls_into_the_last_bin():
    assert bin_sums(torch.tensor([1000.0, -1000.0])).pairs.tolist() == [*[0] * 9, 2]


@settings(deadline=None, max_examples=50)
@given(margin_lists)
def test_without_ties_it_is_the_error_of_torchmetrics_on_confidence_and_outcome(margins):
    margins = torch.tensor([m for m in margins if m != 0] or [1.0], dtype=torch.float64)
    # Bins of [0, 1]: twice as many, of which confidence fills the upper half.
    theirs = binary_calibration_error(margins.abs().sigmoid(), (margins > 0).long(), n_bins=20)
    edges = (margins.abs().sigmoid() * 20) % 1
    if ((edges > 1e-5) & (edges < 1 - 1e-5)).all():  # theirs are edges in float32
        assert measured(margins).expected_error.item() == pytest.approx(theirs.item(), abs=1e-6)


@settings(deadline=None, max_examples=50)
@given(margin_lists, st.integers(0, 40))
def test_batches_add_up_and_order_does_not_matter(margins, cut):
    metric = BradleyTerryCalibration()
    for part in (margins[cut:], margins[:cut]):
        metric.update(torch.tensor(part, dtype=torch.float64))
    for mine, whole in zip(metric.compute(), measured(margins), strict=True):
        if isinstance(mine, torch.Tensor):
            assert mine.item() == pytest.approx(whole.item())
    assert metric.compute().bins.pairs.tolist() == measured(margins).bins.pairs.tolist()


@pytest.mark.parametrize("num_pairs", [60, 400])
def test_right_probabilities_get_the_error_that_is_foretold(num_pairs):
    generator = torch.Generator().manual_seed(0)
    margins = 2 * torch.randn(num_pairs, generator=generator, dtype=torch.float64)
    errors = []
    for _ in range(400):
        chosen_first = torch.rand(num_pairs, generator=generator, dtype=torch.float64) < margins.sigmoid()
        estimate = measured(torch.where(chosen_first, margins, -margins))
        errors.append(estimate.expected_error.item())
    mean, error = torch.tensor(errors).mean().item(), torch.tensor(errors).std().item() / math.sqrt(len(errors))
    assert mean > 0.01  # the bias is there
    assert mean == pytest.approx(estimate.error_if_calibrated.item(), abs=5 * error + 0.02 * mean)


def test_overconfidence_shows_beyond_the_bias():
    generator = torch.Generator().manual_seed(1)
    margins = torch.randn(2000, generator=generator, dtype=torch.float64)
    chosen_first = torch.rand(2000, generator=generator, dtype=torch.float64) < margins.sigmoid()
    exaggerated = measured(3 * torch.where(chosen_first, margins, -margins))
    assert exaggerated.overconfidence > 0.1
    assert exaggerated.expected_error > 5 * exaggerated.error_if_calibrated


def test_a_nan_is_not_taken_for_a_prediction():
    estimate = measured([1.0, math.nan])
    assert math.isnan(estimate.expected_error)
    assert math.isnan(estimate.brier_score)


def test_without_pairs_there_is_no_error():
    metric = BradleyTerryCalibration()
    metric.update(torch.zeros(0))
    assert math.isnan(metric.compute().expected_error)


def test_no_bins_are_refused():
    with pytest.raises(ValueError, match="needs a bin at least"):
        BradleyTerryCalibration(0)
