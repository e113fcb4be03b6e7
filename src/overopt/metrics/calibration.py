"""Are Bradley-Terry probabilities (Eq. 1) what they say: calibration of a reward model on labelled pairs."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from torchmetrics import Metric

NUM_BINS = 10


class BinSums(NamedTuple):
    """What pairs add up to in each bin of confidence; sums of batches and devices add.

    Bins part 0.5 to 1 evenly, each with its lower end, the last with both.

    Attributes:
        pairs: how many there are.
        confidence: summed probability of the response with the higher reward.
        right: summed outcome of that prediction: 1 for the chosen response, 0 for the rejected one, 1/2 for a tie.
        variance: summed p (1 - p), the variance of an outcome that has the probability p.
    """

    pairs: Int64[Tensor, " bin"]
    confidence: Float64[Tensor, " bin"]
    right: Float64[Tensor, " bin"]
    variance: Float64[Tensor, " bin"]


class CalibrationEstimate(NamedTuple):
    """How far probabilities are from frequencies; NaN where there are no pairs, or where a margin was NaN.

    Attributes:
        expected_error: expected calibration error, mean over pairs of their bin's |accuracy - mean confidence|. Biased
            twice: upwards, as noise within a bin counts as error, and downwards, as errors that cancel within a bin
            do not.
        error_if_calibrated: what ``expected_error`` would come to on as many pairs in these bins if all probabilities
            were right, hence about its upward bias; by the normal approximation, which needs some ten pairs a bin.
        overconfidence: mean confidence less accuracy, ties half right; below 0 where the model is too timid.
        brier_score: mean (1 - P(chosen beats rejected))^2: 1/4 for a coin. Unbiased.
        bins: sums a bin, for a reliability diagram.
        num_pairs: pairs seen.
    """

    expected_error: Float64[Tensor, ""]
    error_if_calibrated: Float64[Tensor, ""]
    overconfidence: Float64[Tensor, ""]
    brier_score: Float64[Tensor, ""]
    bins: BinSums
    num_pairs: Int64[Tensor, ""]


def bin_sums(margins: Float[Tensor, " pair"], num_bins: int = NUM_BINS) -> BinSums:
    """Pairs in bins of the probability that a model gives to the response with the higher reward.

    That the chosen response wins is the label itself: its probability can't be held against how often it wins, which is
    always. What can be right or wrong is the prediction, so confidence is sigmoid(abs(margin)).

    Args:
        margins: reward of the chosen minus the rejected response [logits].
        num_bins: of equal width.

    >>> sums = bin_sums(torch.tensor([1.0, -1.0, 5.0]), num_bins=2)  # confidences .731, .731, .993
    >>> sums.pairs.tolist(), sums.right.tolist()
    ([2, 1], [1.0, 1.0])
    """
    margins = margins.double()
    confidence = margins.abs().sigmoid()
    right = torch.where(margins.isnan(), torch.nan, (margins > 0).double() + 0.5 * (margins == 0))
    place = ((confidence - 0.5) * 2 * num_bins).nan_to_num().long().clamp(max=num_bins - 1)
    zeros = torch.zeros(num_bins, dtype=torch.float64, device=margins.device)
    return BinSums(
        torch.bincount(place, minlength=num_bins),
        *(zeros.index_add(0, place, x) for x in (confidence, right, confidence * (1 - confidence))),
    )


def brier_scores(margins: Float[Tensor, " pair"]) -> Float64[Tensor, " pair"]:
    """(1 - P(chosen beats rejected))^2 of each pair, from its margin [logits]. Source: Brier 1950."""
    return (-margins.double()).sigmoid().square()


def expected_calibration_error(bins: BinSums) -> Float64[Tensor, ""]:
    """Mean over pairs of their bin's |accuracy - mean confidence|. Source: Guo et al. 2017 (arXiv:1706.04599)."""
    return (bins.right - bins.confidence).abs().sum() / bins.pairs.sum()


def error_if_calibrated(bins: BinSums) -> Float64[Tensor, ""]:
    """Expected calibration error of right probabilities: of a normal variable, E|x| = sqrt(2 / pi) of its deviation."""
    return math.sqrt(2 / math.pi) * bins.variance.sqrt().sum() / bins.pairs.sum()


class BradleyTerryCalibration(Metric):
    """Calibration of a reward model's probabilities on labelled pairs; see :class:`CalibrationEstimate`.

    torchmetrics' BinaryCalibrationError on confidences and outcomes comes to the same error; it keeps every pair, has
    no half for a tie and says nothing of the bias.

    Args:
        num_bins: of confidence, from 0.5 to 1.

    Raises:
        ValueError: fewer than one bin.

    >>> calibration = BradleyTerryCalibration()
    >>> calibration.update(torch.tensor([math.log(3.0)] * 4 + [-math.log(3.0)] * 4))  # sure by 3/4, right in 1/2
    >>> round(calibration.compute().expected_error.item(), 4)
    0.25
    """

    full_state_update = False
    count: Tensor
    confidence: Tensor
    right: Tensor
    variance: Tensor
    brier_total: Tensor

    def __init__(self, num_bins: int = NUM_BINS) -> None:
        super().__init__()
        if num_bins < 1:
            raise ValueError(f"calibration needs a bin at least, got {num_bins=}")
        self._num_bins = num_bins
        self.add_state("count", torch.zeros(num_bins, dtype=torch.int64), dist_reduce_fx="sum")
        # float64: a large float32 running sum swallows the small terms that follow.
        for sum_ in ("confidence", "right", "variance"):
            self.add_state(sum_, torch.zeros(num_bins, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("brier_total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, margins: Float[Tensor, " pair"]) -> None:
        """Add pairs.

        Args:
            margins: reward of the chosen minus the rejected response [logits].
        """
        sums = bin_sums(margins, self._num_bins)
        # Not in place: a module moved to bfloat16 takes its metrics' states along, and this takes them back.
        self.count = self.count + sums.pairs
        self.confidence = self.confidence + sums.confidence
        self.right = self.right + sums.right
        self.variance = self.variance + sums.variance
        self.brier_total = self.brier_total + brier_scores(margins).sum()

    def compute(self) -> CalibrationEstimate:
        """Errors and scores over all pairs seen."""
        bins = BinSums(self.count, self.confidence.double(), self.right.double(), self.variance.double())
        num_pairs = bins.pairs.sum()
        return CalibrationEstimate(
            expected_error=expected_calibration_error(bins),
            error_if_calibrated=error_if_calibrated(bins),
            overconfidence=(bins.confidence - bins.right).sum() / num_pairs,
            brier_score=self.brier_total.double() / num_pairs,
            bins=bins,
            num_pairs=num_pairs,
        )
