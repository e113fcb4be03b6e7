"""How well a policy's implicit reward, beta * log_ratio, ranks labelled pairs."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from torchmetrics import Metric


class ImplicitRewardEstimate(NamedTuple):
    """Means over pairs; NaN where there are none, or where a log-ratio was NaN.

    Attributes:
        accuracy: share of pairs whose chosen response has the strictly higher implicit reward.
        tie_share: share of pairs with equal rewards, counted as neither right nor wrong. All of them are
            ties while policy and reference are the same.
        chosen_log_ratio: mean log pi/pi_ref of the chosen responses [nats]; minus the forward KL of Eq. 7.
        rejected_log_ratio: the same of the rejected ones [nats].
        num_pairs: pairs seen.
    """

    accuracy: Float[Tensor, ""]
    tie_share: Float[Tensor, ""]
    chosen_log_ratio: Float[Tensor, ""]
    rejected_log_ratio: Float[Tensor, ""]
    num_pairs: Int[Tensor, ""]


def pair_is_ranked_right(
    chosen_log_ratios: Float[Tensor, " pair"], rejected_log_ratios: Float[Tensor, " pair"]
) -> Float64[Tensor, " pair"]:
    """1 where the chosen log-ratio is strictly above the rejected one, else 0; NaN where either is NaN.

    Beta is positive and so changes no order: log-ratios [nats] stand in for rewards.
    """
    return _indicator(chosen_log_ratios > rejected_log_ratios, chosen_log_ratios, rejected_log_ratios)


def pair_is_tied(
    chosen_log_ratios: Float[Tensor, " pair"], rejected_log_ratios: Float[Tensor, " pair"]
) -> Float64[Tensor, " pair"]:
    """1 where both log-ratios [nats] are exactly equal, else 0; NaN where either is NaN."""
    return _indicator(chosen_log_ratios == rejected_log_ratios, chosen_log_ratios, rejected_log_ratios)


def _indicator(condition: Tensor, chosen_log_ratios: Tensor, rejected_log_ratios: Tensor) -> Float64[Tensor, " pair"]:
    # A comparison with NaN is false, and would pass for a wrong ranking.
    unknown = chosen_log_ratios.isnan() | rejected_log_ratios.isnan()
    return torch.where(unknown, torch.nan, condition.double())


class ImplicitRewardAccuracy(Metric):
    """Share of labelled pairs that the implicit reward ranks as the label does, ties apart.

    NaN before the first update; see :class:`ImplicitRewardEstimate`. Source: Rafailov et al. 2024,
    Sec. 3.4 (arXiv:2406.02900).

    >>> accuracy = ImplicitRewardAccuracy()
    >>> chosen_log_ratios, rejected_log_ratios = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 0.0])
    >>> accuracy.update(chosen_log_ratios, rejected_log_ratios)
    >>> accuracy.compute().accuracy.item(), accuracy.compute().tie_share.item()
    (0.5, 0.5)
    """

    full_state_update = False
    ranked_right: Tensor
    tied: Tensor
    chosen_total: Tensor
    rejected_total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        # float64: a large float32 running sum swallows the small terms that follow.
        for sum_ in ("ranked_right", "tied", "chosen_total", "rejected_total"):
            self.add_state(sum_, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, chosen_log_ratios: Float[Tensor, " pair"], rejected_log_ratios: Float[Tensor, " pair"]) -> None:
        """Add pairs.

        Args:
            chosen_log_ratios: log pi/pi_ref of the chosen responses, summed over tokens [nats].
            rejected_log_ratios: the same of the rejected responses [nats].
        """
        # Not in place: a module moved to bfloat16 takes its metrics' states along, and this takes them back.
        self.ranked_right = self.ranked_right + pair_is_ranked_right(chosen_log_ratios, rejected_log_ratios).sum()
        self.tied = self.tied + pair_is_tied(chosen_log_ratios, rejected_log_ratios).sum()
        self.chosen_total = self.chosen_total + chosen_log_ratios.double().sum()
        self.rejected_total = self.rejected_total + rejected_log_ratios.double().sum()
        self.count = self.count + len(chosen_log_ratios)

    def compute(self) -> ImplicitRewardEstimate:
        """The shares and means over all pairs seen."""
        return ImplicitRewardEstimate(
            accuracy=self.ranked_right / self.count,
            tie_share=self.tied / self.count,
            chosen_log_ratio=self.chosen_total / self.count,
            rejected_log_ratio=self.rejected_total / self.count,
            num_pairs=self.count,
        )
