"""Losses of direct alignment: convex (and one not) functions of a preference pair's logit.

The logit ``z`` of a pair is ``beta * margin`` (Eq. 4), with a length term where asked for
(:func:`preference_logit`). Log-ratios are sums over a response's tokens, never means: the per-token
mean that TRL takes for IPO is another objective, with another beta.

``PREFERENCE_LOSSES`` names the objectives. Its entries share one interface, ``loss(logit, beta=beta)``,
because one convention of IPO cannot be told from the logit alone; :func:`conservative` and
:func:`robust` wrap any of them for labels known to be noisy. Every loss is one value a pair: the
caller sums and divides.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


@runtime_checkable
class PreferenceLoss(Protocol):
    """A loss per pair, from the pair's logit and the beta the logit was made with [reward / nat]."""

    def __call__(self, logit: Float[Tensor, " pair"], *, beta: float) -> Float[Tensor, " pair"]:
        """Loss of each pair [dimensionless, unless the objective says otherwise]."""
        ...


def preference_logit(
    log_ratio_margin: Float[Tensor, " pair"],
    length_margin: Int[Tensor, " pair"],
    *,
    beta: float,
    length_penalty: float = 0.0,
) -> Float[Tensor, " pair"]:
    """Bradley-Terry logit that the chosen response beats the rejected one.

    The length term has a plus: a longer chosen response needs less margin for the same logit, so it is
    pushed up less. (The regularised optimum has reward ``beta * log_ratio + length_penalty * length``.)

    Args:
        log_ratio_margin: log pi/pi_ref of the chosen minus the rejected response [nats].
        length_margin: length of the chosen minus the rejected response [tokens].
        beta: price of divergence from the reference, > 0 [reward / nat].
        length_penalty: price of length, >= 0 [reward / token]; 0 is the published objective.

    Raises:
        ValueError: ``beta`` is not positive, ``length_penalty`` is negative, or either is not finite.

    Source: Rafailov et al. 2023 (arXiv:2305.18290); length, Park et al. 2024 (arXiv:2403.19159).

    >>> preference_logit(torch.tensor([2.0]), torch.tensor([20]), beta=0.1, length_penalty=0.01)
    tensor([0.4000])
    """
    if not (0 < beta < math.inf and 0 <= length_penalty < math.inf):
        raise ValueError(f"need finite beta > 0 and length_penalty >= 0, got {beta=}, {length_penalty=}")
    # In the margin's precision: a float times an integer tensor would be float32 whatever the margin is.
    return beta * log_ratio_margin + length_penalty * length_margin.to(log_ratio_margin.dtype)


def dpo_loss(logit: Float[Tensor, " pair"]) -> Float[Tensor, " pair"]:
    """-log sigmoid(z): the logistic loss; log 2 at z = 0. Rafailov et al. 2023 (arXiv:2305.18290)."""
    return -F.logsigmoid(logit)


def ipo_loss(logit: Float[Tensor, " pair"]) -> Float[Tensor, " pair"]:
    """(z - 1)^2: beta^2 times Eq. 17 of Azar et al. 2023 (arXiv:2310.12036) at tau = beta / 2; 1 at z = 0.

    The paper's convention: ``beta^2 (margin - 1/beta)^2``. The minimum is where Azar et al. have it, the
    gradient is beta^2 times theirs (see :func:`ipo_azar_loss`), so a learning rate does not carry over.
    TRL's IPO takes the mean over tokens and is neither of the two.
    """
    return (logit - 1).square()


def ipo_azar_loss(logit: Float[Tensor, " pair"], *, beta: float) -> Float[Tensor, " pair"]:
    """((z - 1) / beta)^2: IPO as printed by Azar et al., ``(margin - 1/(2 tau))^2`` at tau = beta / 2.

    :func:`ipo_loss` divided by beta^2, hence 1 / beta^2 at z = 0. A length term is part of z, where it
    shifts the margin by ``length_penalty / beta`` [nats / token].

    Args:
        logit: from :func:`preference_logit`.
        beta: the one that the logit was made with, > 0 [reward / nat].

    Returns:
        Loss of each pair [nats^2].

    Raises:
        ValueError: ``beta`` is not positive and finite.

    Source: Azar et al. 2023, Eq. 17 (arXiv:2310.12036). Summed over tokens, unlike TRL's IPO.
    """
    if not 0 < beta < math.inf:
        raise ValueError(f"need finite beta > 0, got {beta=}")
    return ((logit - 1) / beta).square()


def slic_loss(logit: Float[Tensor, " pair"]) -> Float[Tensor, " pair"]:
    """max(0, 1 - z): the hinge; 1 at z = 0, no gradient beyond z = 1.

    The form with a reference (Liu et al. 2023, arXiv:2309.06657, "hinge-norm") that the paper calls SLiC;
    SLiC-HF itself (Zhao et al. 2023, arXiv:2305.10425) has no reference and adds a likelihood term.
    """
    return F.relu(1 - logit)


def squared_hinge_loss(logit: Float[Tensor, " pair"]) -> Float[Tensor, " pair"]:
    """max(0, 1 - z)^2: the truncated quadratic of Tang et al. 2024 (arXiv:2402.05749); 1 at z = 0."""
    return F.relu(1 - logit).square()


def exponential_loss(logit: Float[Tensor, " pair"]) -> Float[Tensor, " pair"]:
    """exp(-z): Tang et al. 2024 (arXiv:2402.05749); 1 at z = 0.

    Not cut off: in float32 it, and its gradient, overflow to infinity below z = -88 (in float64, -709).
    """
    return torch.exp(-logit)


def savage_loss(logit: Float[Tensor, " pair"]) -> Float[Tensor, " pair"]:
    """1 / (1 + exp(z))^2: Tang et al. 2024 (arXiv:2402.05749); 1/4 at z = 0.

    Not convex: it is concave below z = -log 2 and flattens towards 1, so pairs that are badly wrong are
    given up rather than pushed.
    """
    # sigmoid(-z) is 1 / (1 + exp(z)) without the overflow of exp.
    return torch.sigmoid(-logit).square()


def _ignoring_beta(
    loss: Callable[[Tensor], Tensor], logit: Float[Tensor, " pair"], *, beta: float
) -> Float[Tensor, " pair"]:
    return loss(logit)


# Partial applications, not closures: they survive pickling to worker processes.
PREFERENCE_LOSSES: dict[str, PreferenceLoss] = {
    "dpo": partial(_ignoring_beta, dpo_loss),
    "ipo": partial(_ignoring_beta, ipo_loss),
    "ipo_azar": ipo_azar_loss,
    "slic": partial(_ignoring_beta, slic_loss),
    "squared_hinge": partial(_ignoring_beta, squared_hinge_loss),
    "exponential": partial(_ignoring_beta, exponential_loss),
    "savage": partial(_ignoring_beta, savage_loss),
}


def preference_loss(objective: str) -> PreferenceLoss:
    """The loss named in ``PREFERENCE_LOSSES``.

    Raises:
        ValueError: there is no such name.

    >>> preference_loss("ipo")(torch.tensor([3.0]), beta=0.1)
    tensor([4.])
    """
    if objective not in PREFERENCE_LOSSES:
        raise ValueError(f"unknown objective {objective!r}; one of {', '.join(PREFERENCE_LOSSES)}")
    return PREFERENCE_LOSSES[objective]


def conservative(loss: PreferenceLoss, *, label_smoothing: float) -> PreferenceLoss:
    """The loss expected when each label is wrong with a known probability: ``(1-eps) g(z) + eps g(-z)``.

    For DPO, "conservative DPO": it stops pushing at a margin where sigmoid(z) = 1 - eps. Flipping a pair
    flips its length term too.

    Args:
        loss: any objective g.
        label_smoothing: eps, the share of labels taken to be flipped, in [0, 0.5); 0 gives ``loss`` back.

    Raises:
        ValueError: ``label_smoothing`` lies outside [0, 0.5).

    Source: Mitchell 2023, "A note on DPO with noisy preferences & relationship to IPO".
    """
    _check_label_smoothing(label_smoothing)
    if label_smoothing == 0:
        return loss
    return partial(_mixture_with_flipped, loss, 1 - label_smoothing, label_smoothing)


def robust(loss: PreferenceLoss, *, label_smoothing: float) -> PreferenceLoss:
    """Unbiased for the loss on clean labels: ``((1-eps) g(z) - eps g(-z)) / (1 - 2 eps)``.

    The expectation over labels flipped with probability eps is g(z) of the true label. The price is
    variance, and for most g no lower bound: with DPO, SLiC, squared hinge and exponential it falls without
    end as z grows.

    Args:
        loss: any objective g.
        label_smoothing: eps, the share of labels taken to be flipped, in [0, 0.5); 0 gives ``loss`` back.

    Raises:
        ValueError: ``label_smoothing`` lies outside [0, 0.5).

    Source: Chowdhury et al. 2024, "Provably robust DPO" (arXiv:2403.00409).
    """
    _check_label_smoothing(label_smoothing)
    if label_smoothing == 0:
        return loss
    scale = 1 / (1 - 2 * label_smoothing)
    return partial(_mixture_with_flipped, loss, scale * (1 - label_smoothing), -scale * label_smoothing)


LABEL_SMOOTHINGS = {"conservative": conservative, "robust": robust}


def _check_label_smoothing(label_smoothing: float) -> None:
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"need 0 <= label_smoothing < 0.5 (a share of flipped labels), got {label_smoothing}")


def _mixture_with_flipped(
    loss: PreferenceLoss,
    weight: float,
    flipped_weight: float,
    logit: Float[Tensor, " pair"],
    *,
    beta: float,
) -> Float[Tensor, " pair"]:
    return weight * loss(logit, beta=beta) + flipped_weight * loss(-logit, beta=beta)
