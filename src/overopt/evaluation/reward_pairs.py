"""Rewards of labelled pairs -> how good a reward model is: accuracy, calibration, agreement with a gold model."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from scipy.stats import spearmanr

from overopt.evaluation.win_rate import wilson_interval
from overopt.metrics.calibration import NUM_BINS, BradleyTerryCalibration, CalibrationEstimate
from overopt.objectives.reward import bradley_terry_loss

#: Chosen and rejected response of each pair.
PairRewards = Float[np.ndarray, "pair 2"]
RESAMPLES = 500


class Interval(NamedTuple):
    """An estimate with its 95% interval; NaN where it is not defined."""

    value: float
    low: float
    high: float


class PairEvaluation(NamedTuple):
    """What a reward model makes of held-out pairs.

    Intervals take pairs for independent; several of one post are not quite.

    Attributes:
        accuracy: share of pairs whose chosen response has the strictly higher reward, with Wilson's interval.
        tie_share: share of pairs of equal rewards, neither right nor wrong.
        loss: mean Bradley-Terry loss (Eq. 2) [nats].
        mean_margin: mean reward of the chosen minus the rejected response [logits].
        mean_margin_se: its standard error; NaN for one pair.
        calibration: of the Bradley-Terry probabilities.
        num_pairs: pairs.
    """

    accuracy: Interval
    tie_share: float
    loss: float
    mean_margin: float
    mean_margin_se: float
    calibration: CalibrationEstimate
    num_pairs: int

    def metrics(self) -> dict[str, float]:
        """By the contract's names, ``eval/...``; what could not be had is absent."""
        calibration = self.calibration
        metrics = {
            "eval/loss": self.loss,
            "eval/accuracy": self.accuracy.value,
            "eval/accuracy_low": self.accuracy.low,
            "eval/accuracy_high": self.accuracy.high,
            "eval/tie_share": self.tie_share,
            "eval/mean_margin": self.mean_margin,
            "eval/mean_margin_se": self.mean_margin_se,
            "eval/calibration_error": float(calibration.expected_error),
            "eval/calibration_error_if_calibrated": float(calibration.error_if_calibrated),
            "eval/overconfidence": float(calibration.overconfidence),
            "eval/brier_score": float(calibration.brier_score),
        }
        return {name: value for name, value in metrics.items() if not math.isnan(value)}


def evaluate_pairs(rewards: PairRewards, num_bins: int = NUM_BINS) -> PairEvaluation:
    """Accuracy and calibration on labelled pairs.

    Args:
        rewards: of each pair's chosen and rejected response.
        num_bins: of the calibration.

    Raises:
        ValueError: no pairs, or a reward is no finite number.
    """
    if not len(rewards):
        raise ValueError("no held-out pairs to evaluate a reward model on: hold out a larger share, or name other data")
    if not np.isfinite(rewards).all():
        raise ValueError(
            "a reward is no finite number: the reward model has diverged, or computes in too low a precision"
        )
    chosen, rejected = torch.from_numpy(rewards.astype(np.float64)).unbind(dim=1)
    margins = chosen - rejected
    calibration = BradleyTerryCalibration(num_bins)
    calibration.update(margins)
    count, right = len(margins), float((margins > 0).double().mean())
    return PairEvaluation(
        accuracy=Interval(right, *wilson_interval(right, count)),
        tie_share=float((margins == 0).double().mean()),
        loss=float(bradley_terry_loss(chosen, rejected).mean()),
        mean_margin=float(margins.mean()),
        mean_margin_se=float(margins.std() / math.sqrt(count)) if count > 1 else math.nan,
        calibration=calibration.compute(),
        num_pairs=count,
    )


class GoldAgreement(NamedTuple):
    """How a proxy's rewards compare with gold rewards of the same responses. Intervals: bootstrap over pairs.

    Attributes:
        same_order: share of pairs that both put in the same order, of those that neither ties, with Wilson's interval.
        rank_correlation: Spearman's, over all responses to all prompts. A reward is fixed up to a constant a prompt
            only (Eq. 1), which this takes at face value.
        margin_rank_correlation: Spearman's of the differences within pairs, each in both orders: no constant and no
            label enters.
    """

    same_order: Interval
    rank_correlation: Interval
    margin_rank_correlation: Interval

    def metrics(self) -> dict[str, float]:
        """By the contract's names, ``eval/...``; what could not be had is absent."""
        return {
            f"eval/gold_{name}{suffix}": value
            for name, interval in self._asdict().items()
            for suffix, value in zip(("", "_low", "_high"), interval, strict=True)
            if not math.isnan(value)
        }


def gold_agreement(proxy: PairRewards, gold: PairRewards, *, seed: int = 0) -> GoldAgreement:
    """Agreement of two reward models on the same pairs, whatever their scales.

    >>> rewards = np.array([[0.0, 1.0], [3.0, 2.0], [5.0, 4.0]])
    >>> gold_agreement(rewards, 2 * rewards).rank_correlation.value
    1.0
    """
    mine, theirs = (np.sign(rewards[:, 0] - rewards[:, 1]) for rewards in (proxy, gold))
    decided = (mine != 0) & (theirs != 0)
    same = float((mine == theirs)[decided].mean()) if decided.any() else math.nan
    order = Interval(same, *(wilson_interval(same, int(decided.sum())) if decided.any() else (math.nan, math.nan)))

    def rewards_of(places: Int64[np.ndarray, " drawn"]) -> float:
        return _spearman(proxy[places].ravel(), gold[places].ravel())

    def margins_of(places: Int64[np.ndarray, " drawn"]) -> float:
        margins = [rewards[places, 0] - rewards[places, 1] for rewards in (proxy, gold)]
        return _spearman(*(np.concatenate([margin, -margin]) for margin in margins))

    return GoldAgreement(order, _bootstrap(rewards_of, len(proxy), seed), _bootstrap(margins_of, len(proxy), seed))


def _spearman(x: Float64[np.ndarray, " value"], y: Float64[np.ndarray, " value"]) -> float:
    if len(x) < 3 or not (np.ptp(x) and np.ptp(y)):
        return math.nan
    return float(spearmanr(x, y).statistic)


def _bootstrap(statistic: Callable[[Int64[np.ndarray, " drawn"]], float], count: int, seed: int) -> Interval:
    """The statistic of all pairs, with its percentile interval under resampling of pairs."""
    generator = np.random.default_rng(seed)
    values = [statistic(generator.integers(count, size=count)) for _ in range(RESAMPLES)]
    known = [value for value in values if not math.isnan(value)]
    low, high = np.quantile(known, [0.025, 0.975]) if known else (math.nan, math.nan)
    return Interval(statistic(np.arange(count)), float(low), float(high))
