"""What kind of method an objective's name in the points table stands for, and which method it is a variant of."""

from collections.abc import Collection, Iterable
from typing import Literal, get_args

from overopt.tracking.method_labels import BEST_OF_N, single_proxy

Family = Literal["direct alignment", "mitigations", "RLHF and best-of-n"]
FAMILIES: tuple[Family, ...] = get_args(Family)
ANCHOR = "dpo"
"""What a method is held against that is no variant of another."""
_POLICY_GRADIENTS = ("rloo", "reinforce", "ppo")
# How something was trained, which makes it no other method of alignment.
_TRAINING = ("learning rate",)


def family(method: str) -> Family:
    """The kind of a method.

    >>> family("ipo, learning rate 0.01"), family("dpo, length penalty 0.02")
    ('direct alignment', 'mitigations')
    >>> family("best of n, proxy 0.4M on 256 pairs")
    'RLHF and best-of-n'
    """
    head, *rest = method.split(", ")
    if head in (*_POLICY_GRADIENTS, BEST_OF_N):
        return "RLHF and best-of-n"
    return "mitigations" if any(not part.startswith(_TRAINING) for part in rest) else "direct alignment"


def in_order(methods: Iterable[str]) -> list[str]:
    """By family, plain DPO first, then by name.

    >>> in_order(["rloo", "dpo, chi_squared link", "cdpo", "dpo"])
    ['dpo', 'cdpo', 'dpo, chi_squared link', 'rloo']
    """
    return sorted(methods, key=lambda method: (FAMILIES.index(family(method)), method != ANCHOR, method))


def baseline(method: str, methods: Collection[str]) -> str | None:
    """The plainest of ``methods`` that this one is a variant of, or plain DPO; ``None`` where there is neither.

    Plainer is what has some of its parts (between commas) and no others, where several proxies become one of their
    kind: an ensemble is held against the single proxy.

    >>> baseline("rloo, worst of 4 proxies 0.4M on 256 pairs", ["dpo", "rloo, proxy 0.4M on 256 pairs"])
    'rloo, proxy 0.4M on 256 pairs'
    >>> baseline("ipo, length penalty 0.02", ["dpo", "ipo"]), baseline("ipo", ["dpo", "ipo"]), baseline("dpo", ["dpo"])
    ('ipo', 'dpo', None)
    """
    own = set(single_proxy(method).split(", "))
    plainer = [other for other in methods if other != method and set(other.split(", ")) <= own]
    if plainer:
        return min(plainer, key=lambda other: (other.count(", "), other))
    return ANCHOR if method != ANCHOR and ANCHOR in methods else None
