"""What methods are called in tables and figures; commas stand between the parts of a name."""

import re

BEST_OF_N = "best of n"
_SEVERAL = re.compile(r"[^,]+ of \d+ (?:prox(?:y|ies)|reward models)\b ?(?P<kind>[^,]*)")


def ensemble_label(combine: str, price: float, count: int, noun: str = "reward models") -> str:
    """Several reward models in words.

    Args:
        combine: mean, worst or uncertainty_weighted.
        price: of disagreement; said where it counts.
        count: how many.
        noun: what they are.

    >>> ensemble_label("worst", 0.5, 4, "proxies 0.4M on 256 pairs")
    'worst of 4 proxies 0.4M on 256 pairs'
    >>> ensemble_label("uncertainty_weighted", 0.5, 4)
    'uncertainty-weighted at 0.5 of 4 reward models'
    """
    priced = f" at {price:g}" if combine == "uncertainty_weighted" else ""
    return f"{combine.replace('_', '-')}{priced} of {count} {noun}"


def single_proxy(method: str) -> str:
    """The method with one proxy in place of several.

    >>> single_proxy("rloo, worst of 4 proxies 0.4M on 256 pairs"), single_proxy("rloo, mean of 4 reward models")
    ('rloo, proxy 0.4M on 256 pairs', 'rloo')
    """
    parts = []
    for part in method.split(", "):
        several = _SEVERAL.fullmatch(part)
        if several is None:
            parts.append(part)
        elif several["kind"]:
            parts.append(f"proxy {several['kind']}")
    return ", ".join(parts)
