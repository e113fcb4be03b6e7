"""Divergence of a policy from its reference: estimators, their standard errors and the distance."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor
from torchmetrics import Metric


class MeanEstimate(NamedTuple):
    """A sample mean with its uncertainty.

    Attributes:
        mean: NaN without samples.
        standard_error: sample standard deviation over sqrt(num_samples); NaN below two samples.
        num_samples: samples seen.
    """

    mean: Float[Tensor, ""]
    standard_error: Float[Tensor, ""]
    num_samples: Int[Tensor, ""]


def mean_estimate(
    total: Float64[Tensor, ""], total_of_squares: Float64[Tensor, ""], num_samples: Int[Tensor, ""]
) -> MeanEstimate:
    """Mean and standard error from sums, which add up over batches and devices.

    Args:
        total: sum of the samples. In float64: the variance is a difference of sums, and the squares of a
            mean a million times its standard deviation would still leave four digits of it.
        total_of_squares: sum of the samples' squares.
        num_samples: how many there were.
    """
    mean = total / num_samples
    # Rounding can leave a variance of zero a hair below it.
    variance = ((total_of_squares - total * mean) / (num_samples - 1)).clamp(min=0)
    standard_error = torch.where(num_samples > 1, (variance / num_samples).sqrt(), torch.nan)
    return MeanEstimate(mean, standard_error, num_samples)


def token_log_ratios(
    policy: Float[Tensor, "sequence token"],
    reference: Float[Tensor, "sequence token"],
    mask: Bool[Tensor, "sequence token"],
) -> Float64[Tensor, "sequence token"]:
    """r_t = log pi(y_t|x,y_<t) - log pi_ref(y_t|x,y_<t) [nats], 0 where the mask is false.

    Args:
        policy: log-probabilities of the sampled token ids under the policy [nats]; rescored in float32 by
            the code that trains, never a serving engine's. Any value where the mask is false.
        reference: the same under the reference [nats].
        mask: true on the response's tokens, its end-of-text included.
    """
    # float64: exp(-r) - 1 + r of a small r is a difference of nearly equal numbers.
    return torch.where(mask, policy.double() - reference.double(), 0.0)


def kl_k1(log_ratios: Float[Tensor, "sequence token"]) -> Float[Tensor, " sequence"]:
    """The k1 estimate of each sequence: the sum of its r_t, which is its log-ratio [nats].

    Unbiased for KL(policy || reference) when the policy sampled the sequences; of either sign.

    Args:
        log_ratios: from :func:`token_log_ratios`.

    Source: Schulman 2020, "Approximating KL divergence".
    """
    return log_ratios.sum(dim=-1)


def kl_k3(log_ratios: Float[Tensor, "sequence token"]) -> Float[Tensor, " sequence"]:
    """The k3 estimate of each sequence: the sum over its tokens of exp(-r_t) - 1 + r_t [nats].

    Never negative, and unbiased for KL(policy || reference) when the policy sampled the sequences and
    covers the reference's tokens. Heavy-tailed where the two are far apart: a few tokens the policy finds
    unlikely and the reference does not carry the mean, and their standard error is then too small.
    Infinite for a token with r_t below -709.

    Args:
        log_ratios: from :func:`token_log_ratios`.

    Source: Schulman 2020, "Approximating KL divergence", with the token's conditional distributions.
    """
    return (torch.expm1(-log_ratios) + log_ratios).sum(dim=-1)


class KLDistance(NamedTuple):
    """The axis of the over-optimization curves.

    Attributes:
        distance: sqrt(max(KL, 0)) [sqrt(nats)].
        cut: true where a negative KL estimate was cut to 0; to be told to the reader.
    """

    distance: Float[Tensor, "*estimate"]
    cut: Bool[Tensor, "*estimate"]


def distance(kl: Float[Tensor, "*estimate"]) -> KLDistance:
    """sqrt(KL) as a distance, KL estimates in nats; NaN stays NaN.

    >>> distance(torch.tensor([4.0, -0.5]))
    KLDistance(distance=tensor([2., 0.]), cut=tensor([False,  True]))
    """
    return KLDistance(kl.clamp(min=0).sqrt(), kl < 0)


class SequenceKLEstimate(NamedTuple):
    """KL(policy || reference) per response [nats], estimated twice; see :func:`kl_k1`, :func:`kl_k3`."""

    k1: MeanEstimate
    k3: MeanEstimate


class SequenceKL(Metric):
    """KL(policy || reference) per response [nats], from responses sampled by the policy.

    Samples are drawn at temperature 1 from the whole distribution (top_p 1, no top_k), or neither
    estimator is unbiased. k1, the mean log-ratio, is the estimate to report: it can be negative on few
    responses, and nothing is clamped. k3 stands beside it as a check: never negative, but heavy-tailed.
    NaN before the first update. Source: Schulman 2020, "Approximating KL divergence".

    Args:
        sync_on_compute: add up over all processes; false where one process holds all samples.

    >>> kl = SequenceKL()
    >>> policy = torch.tensor([[-1.0, -2.0], [-4.0, 0.0]])
    >>> reference = torch.tensor([[-2.0, -4.0], [-5.0, 0.0]])
    >>> kl.update(policy, reference, mask=torch.tensor([[True, True], [True, False]]))
    >>> kl.compute().k1.mean.item(), kl.compute().k1.standard_error.item()
    (2.0, 1.0)
    """

    full_state_update = False
    k1_total: Tensor
    k1_squares: Tensor
    k3_total: Tensor
    k3_squares: Tensor
    count: Tensor

    def __init__(self, sync_on_compute: bool = True) -> None:
        super().__init__(sync_on_compute=sync_on_compute)
        # float64: a large float32 running sum swallows the small terms that follow.
        for sum_ in ("k1_total", "k1_squares", "k3_total", "k3_squares"):
            self.add_state(sum_, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self,
        policy: Float[Tensor, "sequence token"],
        reference: Float[Tensor, "sequence token"],
        mask: Bool[Tensor, "sequence token"],
    ) -> None:
        """Add sampled responses; arguments as in :func:`token_log_ratios`."""
        log_ratios = token_log_ratios(policy, reference, mask)
        k1, k3 = kl_k1(log_ratios), kl_k3(log_ratios)
        # Not in place: a module moved to bfloat16 takes its metrics' states along, and this takes them back.
        self.k1_total = self.k1_total + k1.sum()
        self.k1_squares = self.k1_squares + k1.square().sum()
        self.k3_total = self.k3_total + k3.sum()
        self.k3_squares = self.k3_squares + k3.square().sum()
        self.count = self.count + len(k1)

    def compute(self) -> SequenceKLEstimate:
        """Both estimates over all responses seen."""
        return SequenceKLEstimate(
            k1=mean_estimate(self.k1_total, self.k1_squares, self.count),
            k3=mean_estimate(self.k3_total, self.k3_squares, self.count),
        )


class ForwardKL(Metric):
    """Minus the mean log-ratio of held-out preferred responses [nats]: Eq. 7, not times beta.

    It approximates KL(reference || policy) as far as preferred responses resemble the reference's own
    samples, no further: it is negative where the policy finds them likelier than the reference does.
    NaN before the first update. Source: Rafailov et al. 2024 (arXiv:2406.02900).

    >>> forward_kl = ForwardKL()
    >>> forward_kl.update(chosen_log_ratios=torch.tensor([-3.0, -1.0]))
    >>> forward_kl.compute().mean.item()
    2.0
    """

    full_state_update = False
    total: Tensor
    squares: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("squares", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, chosen_log_ratios: Float[Tensor, " pair"]) -> None:
        """Add pairs.

        Args:
            chosen_log_ratios: log pi/pi_ref of the preferred responses, summed over tokens [nats].
        """
        nats = -chosen_log_ratios.double()
        self.total = self.total + nats.sum()
        self.squares = self.squares + nats.square().sum()
        self.count = self.count + len(nats)

    def compute(self) -> MeanEstimate:
        """The estimate over all pairs seen [nats]."""
        return mean_estimate(self.total, self.squares, self.count)
