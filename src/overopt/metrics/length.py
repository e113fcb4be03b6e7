"""Response lengths, and how much of the implicit reward length alone explains (Eq. 6)."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor
from torchmetrics import Metric


class ResponseLengthEstimate(NamedTuple):
    """Means over responses; NaN where there are none.

    Attributes:
        response_tokens: mean tokens a response, its end-of-text included.
        unfinished_share: share of responses that hit the length limit before end-of-text.
        num_responses: responses seen.
    """

    response_tokens: Float[Tensor, ""]
    unfinished_share: Float[Tensor, ""]
    num_responses: Int[Tensor, ""]


class ResponseLength(Metric):
    """Mean length of responses [tokens] and the share of them that the limit cut off.

    NaN before the first update; see :class:`ResponseLengthEstimate`.

    Args:
        sync_on_compute: add up over all processes; false where one process holds all samples.

    >>> length = ResponseLength()
    >>> length.update(response_tokens=torch.tensor([3, 8]), unfinished=torch.tensor([False, True]))
    >>> length.compute().response_tokens.item(), length.compute().unfinished_share.item()
    (5.5, 0.5)
    """

    full_state_update = False
    tokens: Tensor
    unfinished: Tensor
    count: Tensor

    def __init__(self, sync_on_compute: bool = True) -> None:
        super().__init__(sync_on_compute=sync_on_compute)
        for sum_ in ("tokens", "unfinished", "count"):
            self.add_state(sum_, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, response_tokens: Int[Tensor, " sequence"], unfinished: Bool[Tensor, " sequence"]) -> None:
        """Add responses.

        Args:
            response_tokens: length of each response, its end-of-text included.
            unfinished: true where the response hit the length limit before end-of-text.
        """
        self.tokens = self.tokens + response_tokens.sum()
        self.unfinished = self.unfinished + unfinished.sum()
        self.count = self.count + len(response_tokens)

    def compute(self) -> ResponseLengthEstimate:
        """The means over all responses seen."""
        return ResponseLengthEstimate(
            response_tokens=self.tokens.double() / self.count,
            unfinished_share=self.unfinished.double() / self.count,
            num_responses=self.count,
        )


class LengthFit(NamedTuple):
    """Least squares of ``log_ratio = gamma * length``, without intercept (Eq. 6).

    Attributes:
        gamma: slope [nats / token]; NaN without a response of positive length.
        gamma_standard_error: the usual one, for errors of one variance; NaN below two responses.
        r2_centred: 1 - SSR / sum (y - mean y)^2. Negative where a line through the origin fits worse than
            the mean does. NaN where the log-ratios are all equal (to float64 rounding), as they are while
            policy and reference are the same.
        r2_uncentred: 1 - SSR / sum y^2, in [0, 1]: what statistics packages print for a fit without
            intercept. Large whenever the log-ratios share a sign. NaN where they are all 0.
        num_responses: responses seen.
    """

    gamma: Float[Tensor, ""]
    gamma_standard_error: Float[Tensor, ""]
    r2_centred: Float[Tensor, ""]
    r2_uncentred: Float[Tensor, ""]
    num_responses: Int[Tensor, ""]


class LengthSums(NamedTuple):
    """What the fit needs of its data: x is length [tokens], y the log-ratio [nats]; sums add up."""

    xx: Float64[Tensor, ""]
    xy: Float64[Tensor, ""]
    yy: Float64[Tensor, ""]
    y: Float64[Tensor, ""]
    num_responses: Int[Tensor, ""]


def length_sums(log_ratios: Float[Tensor, " sequence"], response_tokens: Int[Tensor, " sequence"]) -> LengthSums:
    """Sums over responses; arguments as in :func:`length_regression`."""
    # float64: the residuals are a difference of these sums.
    x, y = response_tokens.double(), log_ratios.double()
    count = torch.tensor(len(y), device=y.device)
    return LengthSums(x.square().sum(), (x * y).sum(), y.square().sum(), y.sum(), count)


def fit_length_sums(sums: LengthSums) -> LengthFit:
    """The fit of Eq. 6 from :func:`length_sums`, added up over batches and devices."""
    xx, xy, yy, y, count = sums
    gamma = xy / xx
    residuals = (yy - gamma * xy).clamp(min=0)
    total_centred = yy - y.square() / count
    # What rounding leaves of a zero would turn a ratio to it into an arbitrary number.
    rounding = 4 * count * torch.finfo(torch.float64).eps * yy
    total_centred = torch.where(total_centred > rounding, total_centred, torch.nan)
    return LengthFit(
        gamma=gamma,
        gamma_standard_error=torch.where(count > 1, (residuals / (count - 1) / xx).sqrt(), torch.nan),
        r2_centred=1 - residuals / total_centred,
        r2_uncentred=1 - residuals / torch.where(yy > 0, yy, torch.nan),
        num_responses=count,
    )


def length_regression(log_ratios: Float[Tensor, " sequence"], response_tokens: Int[Tensor, " sequence"]) -> LengthFit:
    """How far length alone explains the log-ratios: Eq. 6, ``log_ratio = gamma * |y| + eps``.

    Args:
        log_ratios: log pi/pi_ref of each response, summed over tokens [nats]; not times beta.
        response_tokens: length of each response, its end-of-text included.

    Source: Rafailov et al. 2024, Eq. 6 (arXiv:2406.02900). The paper does not say which R^2 it plots, and
    without an intercept the two differ widely; hence both, by name.

    >>> fit = length_regression(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10, 20, 30]))
    >>> round(fit.gamma.item(), 6), round(fit.r2_centred.item(), 6)
    (0.1, 1.0)
    """
    return fit_length_sums(length_sums(log_ratios, response_tokens))


class LengthRegression(Metric):
    """:func:`length_regression` over batches and devices: its state is the sums that the fit needs.

    Gamma and both R^2 are NaN before the first update.

    Args:
        sync_on_compute: add up over all processes; false where one process holds all samples.

    >>> regression = LengthRegression()
    >>> regression.update(log_ratios=torch.tensor([2.0, 1.0]), response_tokens=torch.tensor([4, 2]))
    >>> regression.compute().gamma.item()
    0.5
    """

    full_state_update = False
    xx: Tensor
    xy: Tensor
    yy: Tensor
    y: Tensor
    count: Tensor

    def __init__(self, sync_on_compute: bool = True) -> None:
        super().__init__(sync_on_compute=sync_on_compute)
        # float64: a large float32 running sum swallows the small terms that follow.
        for sum_ in ("xx", "xy", "yy", "y"):
            self.add_state(sum_, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, log_ratios: Float[Tensor, " sequence"], response_tokens: Int[Tensor, " sequence"]) -> None:
        """Add responses; arguments as in :func:`length_regression`."""
        sums = length_sums(log_ratios, response_tokens)
        # Not in place: a module moved to bfloat16 takes its metrics' states along, and this takes them back.
        self.xx = self.xx + sums.xx
        self.xy = self.xy + sums.xy
        self.yy = self.yy + sums.yy
        self.y = self.y + sums.y
        self.count = self.count + sums.num_responses

    def compute(self) -> LengthFit:
        """The fit over all responses seen."""
        return fit_length_sums(LengthSums(self.xx, self.xy, self.yy, self.y, self.count))
