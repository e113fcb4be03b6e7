import math

import numpy as np
import pytest

from overopt.evaluation.sampler_agreement import TOLERANCE, sampler_agreement


def drawn(served: np.ndarray, policy: np.ndarray, num_tokens: int) -> tuple[list[list[float]], list[list[float]]]:
    """Log-probabilities of tokens drawn from ``served``, under it and under ``policy``, in responses of ten tokens."""
    tokens = np.random.default_rng(0).choice(len(served), size=(num_tokens // 10, 10), p=served)
    return np.log(served)[tokens].tolist(), np.log(policy)[tokens].tolist()


def test_the_mean_difference_is_the_kl_between_server_and_policy():
    served, policy = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.3, 0.3])
    kl = float(np.sum(served * np.log(served / policy)))
    agreement = sampler_agreement(*drawn(served, policy, 40_000))
    assert kl > TOLERANCE
    assert agreement.kl_per_token == pytest.approx(kl, abs=3 * agreement.standard_error)
    assert agreement.standard_error < kl / 10
    assert agreement.kl_per_response == pytest.approx(10 * agreement.kl_per_token)
    assert agreement.largest_difference == pytest.approx(math.log(1.5))
    with pytest.raises(ValueError, match="another model than this checkpoint's policy"):
        agreement.require_same_model()


def test_rounding_is_no_other_model():
    rng = np.random.default_rng(0)
    ours = rng.normal(-2, 1, size=(100, 20))
    agreement = sampler_agreement((ours + rng.normal(0, 0.05, size=ours.shape)).tolist(), ours.tolist())
    agreement.require_same_model()
    assert agreement.largest_difference > 0.1


def test_what_is_no_number_is_refused():
    with pytest.raises(ValueError, match="another model"):
        sampler_agreement([[math.nan, -1.0]], [[-1.0, -1.0]]).require_same_model()


def test_without_log_probs_there_is_nothing_to_compare():
    assert sampler_agreement([[-1.0], None], [[-1.0], [-2.0]]) is None
    assert sampler_agreement([], []) is None
