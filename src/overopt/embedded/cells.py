"""What a study varies: aligned policies, policies that are optimised against reward models, best-of-n."""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from overopt.evaluation.best_of_n import require_pool
from overopt.models.policy import EMBEDDED_SIZES
from overopt.models.reward_ensemble import require_combination
from overopt.modules.direct_alignment import AlignmentObjective
from overopt.modules.moving_reference import ReferenceUpdates
from overopt.modules.policy_gradient import PolicyGradientObjective
from overopt.tracking.method_labels import BEST_OF_N, ensemble_label


@dataclass(frozen=True)
class Cell:
    """One aligned policy: what a study varies.

    Attributes:
        objective: direct alignment objective.
        beta: price of divergence [reward / nat].
        size: of the policy, a name in ``EMBEDDED_SIZES``.
        seed: of SFT policy, pairs, labels and training order.
        length_penalty: price of length [reward / token].
        learning_rate: of the alignment; the recipe's by default.
        nll_weight: of the chosen response's negative log-likelihood (RPO); this and the following as
            :class:`overopt.modules.direct_alignment.DirectAlignmentModule` has them.
        nll_per: token or response.
        link: log or chi_squared (chi-PO).
        max_reward: clips chi-PO's logit [reward].
        positive_penalty: price of a fallen chosen response (DPO-positive).
        reference_every: the reference follows the policy every so many optimiser steps (TR-DPO); 0: it does not.
        reference_alpha: the policy's part in that, in [0, 1]; 1 is a hard update.
        rounds: of iterated DPO: each after the first samples pairs from the policy that the one before ended with,
            and trains on from that policy once they are labelled. A round is a run of its own, and the last round's is
            this cell's. All rounds are evaluated against the SFT policy, on the first round's held-out pairs, and so is
            the row at 0 examples.
        round_reference: of the training in later rounds: ``first``, the SFT policy, or ``last``, the policy that the
            round starts from.
        round_labels: who labels later rounds' pairs: the ``gold`` model again, or a ``proxy`` that has learned from all
            of the first round's pairs, so that no more labels are asked for.

    Raises:
        ValueError: an unknown objective or size, a negative seed, a bad beta or penalty, or settings that make no
            sense together.
    """

    objective: str = "dpo"
    beta: float = 0.1
    size: str = "0.7M"
    seed: int = 0
    length_penalty: float = 0.0
    learning_rate: float | None = None
    nll_weight: float = 0.0
    nll_per: Literal["token", "response"] = "token"
    link: Literal["log", "chi_squared"] = "log"
    max_reward: float | None = None
    positive_penalty: float = 0.0
    reference_every: int = 0
    reference_alpha: float = 1.0
    rounds: int = 1
    round_reference: Literal["first", "last"] = "first"
    round_labels: Literal["gold", "proxy"] = "gold"

    def __post_init__(self) -> None:
        _ = self.alignment, self.reference_updates  # refuse bad settings
        if self.rounds < 1 or self.round_reference not in ("first", "last"):
            raise ValueError(
                f"need rounds >= 1 and round_reference first or last, got {self.rounds} and {self.round_reference!r}"
            )
        if self.round_labels not in ("gold", "proxy"):
            raise ValueError(f"labels of later rounds are by gold or proxy, got {self.round_labels!r}")
        if self.rounds == 1 and (self.round_reference, self.round_labels) != ("first", "gold"):
            raise ValueError("round_reference and round_labels are of rounds after the first, got rounds=1")
        _require_size(self.size)
        _require_seed(self.seed)
        _require_learning_rate(self.learning_rate)

    @property
    def alignment(self) -> AlignmentObjective:
        """What the policy is trained by."""
        return AlignmentObjective(
            self.objective,
            self.beta,
            self.length_penalty,
            nll_weight=self.nll_weight,
            nll_per=self.nll_per,
            link=self.link,
            max_reward=self.max_reward,
            positive_penalty=self.positive_penalty,
        )

    @property
    def reference_updates(self) -> ReferenceUpdates | None:
        """How the reference moves, if it does."""
        if self.reference_every == 0:
            if self.reference_alpha != 1:
                raise ValueError(f"reference_alpha={self.reference_alpha} needs reference_every, in optimiser steps")
            return None
        if self.reference_alpha == 1:
            return ReferenceUpdates("hard", every=self.reference_every)
        return ReferenceUpdates("soft", self.reference_alpha, self.reference_every)

    @property
    def round_before(self) -> "Cell":
        """The cell whose last policy this one's last round starts from; only where there are several rounds."""
        if self.rounds > 2:
            return replace(self, rounds=self.rounds - 1)
        return replace(self, rounds=1, round_reference="first", round_labels="gold")

    @property
    def all_rounds(self) -> "list[Cell]":
        """The cells of all its rounds, this one last."""
        return [*([] if self.rounds == 1 else self.round_before.all_rounds), self]

    @property
    def name(self) -> str:
        """Of folder and run.

        >>> Cell("ipo", 0.05, length_penalty=0.01).name
        'ipo-beta0.05-length0.01-0.7M-seed0'
        >>> Cell(nll_weight=0.1, reference_every=8, rounds=2).name
        'dpo-beta0.1-nll0.1-moving8-rounds2-0.7M-seed0'
        """
        parts = {
            f"-length{self.length_penalty:g}": self.length_penalty,
            f"-lr{self.learning_rate or 0:g}": self.learning_rate is not None,
            f"-nll{self.nll_weight:g}{'' if self.nll_per == 'token' else self.nll_per}": self.nll_weight,
            f"-{self.link}": self.link != "log",
            f"-max{self.max_reward or 0:g}": self.max_reward is not None,
            f"-positive{self.positive_penalty:g}": self.positive_penalty,
            f"-moving{self.reference_every}": self.reference_every,
            f"-alpha{self.reference_alpha:g}": self.reference_alpha != 1,
            f"-rounds{self.rounds}{'' if self.round_reference == 'first' else self.round_reference}": self.rounds > 1,
            f"-{self.round_labels}": self.round_labels != "gold",
        }
        changed = "".join(part for part, said in parts.items() if said)
        return f"{self.objective}-beta{self.beta:g}{changed}-{self.size}-seed{self.seed}"

    @property
    def parameters(self) -> dict[str, Any]:
        """What a table of cells shows."""
        return dict(vars(self))


@dataclass(frozen=True)
class Proxy:
    """A proxy reward model (Eq. 2) on pairs that the gold model labelled.

    Members of an ensemble differ in their seed and have one ``policy_seed``.

    Attributes:
        size: of its backbone, a name in ``EMBEDDED_SIZES``.
        pairs: so many at most of the policy's labelled pairs, chosen by a hash of their posts.
        seed: of the SFT policy that is its backbone, and of the training order.
        policy_size: of the policy whose pairs it learns from; its own by default.
        policy_seed: of that policy; its own by default.
        epochs: of training.

    Raises:
        ValueError: an unknown size, or a negative seed, or no pairs or epochs.
    """

    size: str = "0.7M"
    pairs: int = 2048
    seed: int = 0
    policy_size: str | None = None
    policy_seed: int | None = None
    epochs: int = 2

    def __post_init__(self) -> None:
        for size in (self.size, self.labelled[0]):
            _require_size(size)
        for seed in (self.seed, self.labelled[1]):
            _require_seed(seed)
        if self.pairs < 1 or self.epochs < 1:
            raise ValueError(f"a proxy needs at least 1 of pairs and epochs, got {self.pairs} and {self.epochs}")

    @property
    def labelled(self) -> tuple[str, int]:
        """Size and seed of the policy whose pairs it learns from."""
        return (
            self.size if self.policy_size is None else self.policy_size,
            self.seed if self.policy_seed is None else self.policy_seed,
        )

    @property
    def name(self) -> str:
        """Of folder and run.

        >>> Proxy("0.4M", 512, 1).name, Proxy("0.4M", 512, 1, policy_size="0.7M", policy_seed=0).name
        ('proxy-0.4M-pairs512-seed1', 'proxy-0.4M-pairs512-seed1-of-0.7M-seed0')
        """
        of = "" if self.labelled == (self.size, self.seed) else "-of-{}-seed{}".format(*self.labelled)
        epochs = "" if self.epochs == Proxy.epochs else f"-epochs{self.epochs}"
        return f"proxy-{self.size}-pairs{self.pairs}-seed{self.seed}{of}{epochs}"


@dataclass(frozen=True)
class Proxies:
    """One proxy reward model, or several as an ensemble: what a policy is optimised against.

    Attributes:
        members: reward models that learn from the pairs of one policy, which is the one that is optimised.
        combine: how several rewards become one: mean, worst or uncertainty_weighted.
        price: of disagreement, for uncertainty_weighted.

    Raises:
        ValueError: no members, or members of several policies, sizes, pairs or epochs, or twice the same; an unknown
            combination or a bad price.
    """

    members: tuple[Proxy, ...]
    combine: Literal["mean", "worst", "uncertainty_weighted"] = "mean"
    price: float = 0.5

    def __post_init__(self) -> None:
        if not self.members:
            raise ValueError("no proxies: name at least one reward model to optimise against")
        if len({member.labelled for member in self.members}) != 1:
            raise ValueError(
                "proxies of one ensemble learn from the pairs of one policy: set their policy_size and policy_seed"
            )
        if len({(member.size, member.pairs, member.epochs) for member in self.members}) != 1:
            raise ValueError("proxies of one ensemble differ in their seeds alone, got several sizes, pairs or epochs")
        if len(set(self.members)) != len(self.members):
            raise ValueError("a proxy is named twice: an ensemble of copies is no ensemble")
        require_combination(self.combine, self.price)

    @property
    def policy(self) -> tuple[str, int]:
        """Size and seed of the policy whose pairs they learn from."""
        return self.members[0].labelled

    @property
    def name(self) -> str:
        """Of folders and runs.

        >>> few = tuple(Proxy("0.4M", 256, seed, policy_seed=0) for seed in range(4))
        >>> Proxies(few[:1]).name, Proxies(few, "worst").name
        ('proxy-0.4M-pairs256-seed0', 'proxy-0.4M-pairs256-seed0-and-1-2-3-worst')
        """
        first, *others = self.members
        if not others:
            return first.name
        price = f"{self.price:g}" if self.combine == "uncertainty_weighted" else ""
        return f"{first.name}-and-{'-'.join(str(other.seed) for other in others)}-{self.combine}{price}"

    @property
    def label(self) -> str:
        """For people, without seeds: runs of several seeds are one curve.

        >>> few = tuple(Proxy("0.4M", 256, seed, policy_seed=0) for seed in range(4))
        >>> Proxies(few[:1]).label, Proxies(few, "worst").label
        ('proxy 0.4M on 256 pairs', 'worst of 4 proxies 0.4M on 256 pairs')
        """
        first = self.members[0]
        epochs = "" if first.epochs == Proxy.epochs else f" in {first.epochs} epochs"
        what = f"{first.size} on {first.pairs} pairs{epochs}"
        if len(self.members) == 1:
            return f"proxy {what}"
        return ensemble_label(self.combine, self.price, len(self.members), f"proxies {what}")


@dataclass(frozen=True)
class _AgainstProxies:
    """Of the policy whose pairs its proxies learn from."""

    proxies: Proxies

    @property
    def size(self) -> str:
        """Of the policy."""
        return self.proxies.policy[0]

    @property
    def seed(self) -> int:
        """Of the policy, and of training or samples."""
        return self.proxies.policy[1]


@dataclass(frozen=True)
class PolicyGradientCell(_AgainstProxies):
    """A policy that is optimised against reward models (Eq. 3); attributes that it shares with a module are its own.

    Attributes:
        proxies: what against; the policy is the one whose pairs they learn from.
        objective: rloo, reinforce or ppo.
        beta: price of divergence [reward / nat].
        kl: where the divergence goes: reward or penalty.
        learning_rate: the recipe's by default.

    Raises:
        ValueError: an unknown objective, or a bad beta or learning rate.
    """

    objective: Literal["rloo", "reinforce", "ppo"] = "rloo"
    beta: float = 0.1
    kl: Literal["reward", "penalty"] = "reward"
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        PolicyGradientObjective(self.objective, self.beta, kl=self.kl)  # refuse bad settings
        _require_learning_rate(self.learning_rate)

    @property
    def name(self) -> str:
        """Of folder and run.

        >>> PolicyGradientCell(Proxies((Proxy("0.4M", 256, 1),)), beta=0.02).name
        'rloo-beta0.02-proxy-0.4M-pairs256-seed1'
        """
        penalty = "-penalty" if self.kl == "penalty" else ""
        rate = "" if self.learning_rate is None else f"-lr{self.learning_rate:g}"
        return f"{self.objective}-beta{self.beta:g}{penalty}{rate}-{self.proxies.name}"

    @property
    def parameters(self) -> dict[str, Any]:
        """What a table of cells shows."""
        own = {name: value for name, value in vars(self).items() if name != "proxies"}
        return {**own, "size": self.size, "seed": self.seed, "proxy": self.proxies.label}


@dataclass(frozen=True)
class BestOfN(_AgainstProxies):
    """Best-of-n from an SFT policy by proxies.

    Attributes:
        proxies: what samples are chosen by; the policy is the one whose pairs they learn from.
        pool: samples of each prompt.
        ns: of best-of-n.

    Raises:
        ValueError: an n that the pool has not.
    """

    pool: int = 64
    ns: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)

    def __post_init__(self) -> None:
        require_pool(self.pool, self.ns)

    @property
    def name(self) -> str:
        """Of folder and run.

        >>> BestOfN(Proxies((Proxy("0.4M", 512, 1),))).name
        'best-of-64-proxy-0.4M-pairs512-seed1'
        """
        largest = max(self.ns)
        pool = "" if self.pool == largest else f"-of-{self.pool}"
        return f"best-of-{largest}{pool}-{self.proxies.name}"

    @property
    def parameters(self) -> dict[str, Any]:
        """What a table of cells shows."""
        return {"objective": BEST_OF_N, "size": self.size, "seed": self.seed, "proxy": self.proxies.label}


StudyCell = Cell | PolicyGradientCell | BestOfN
"""What a study compares: each has a run, and points against the KL from its SFT policy."""


def _require_size(size: str) -> None:
    """Raise a ValueError for a size that the embedded default has not."""
    if size not in EMBEDDED_SIZES:
        raise ValueError(f"no size {size!r}; the embedded default has {', '.join(EMBEDDED_SIZES)}")


def _require_seed(seed: int) -> None:
    if seed < 0:
        raise ValueError(f"seeds are 0 or above, got {seed}")


def _require_learning_rate(rate: float | None) -> None:
    if rate is not None and not 0 < rate < math.inf:
        raise ValueError(f"a learning rate is positive, got {rate}")
