"""Numbers as a reader sees them, with their intervals."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from overopt.analysis.laws.intervals import Estimate

MISSING = "-"


def number_text(value: Any, template: str = "{:.3g}") -> str:
    """A number in a format, or a sign for a missing or an infinite one.

    >>> number_text(0.12345), number_text(None), number_text(math.inf)
    ('0.123', '-', '∞')
    """
    if value is None or pd.isna(value):
        return MISSING
    number = float(value)
    return template.format(number) if math.isfinite(number) else "∞" if number > 0 else "-∞"


def fixed(digits: int) -> Callable[[float], str]:
    """Numbers with so many digits behind the point."""
    return lambda value: number_text(value, f"{{:.{digits}f}}")


def squared(d: float) -> str:
    """A distance [sqrt(nats)] as the KL it stands for [nats]."""
    return number_text(np.square(d), "{:.2f}" if d < 10 else "{:.4g}")


def distance_text(d: float) -> str:
    """A distance [sqrt(nats)]; of a large one, which no run reaches, only the size.

    >>> distance_text(1.634), distance_text(410.2345)
    ('1.63', '410')
    """
    return number_text(d, "{:.2f}" if abs(d) < 100 else "{:.3g}")


def interval_text(estimate: Estimate, shown: Callable[[float], str]) -> str:
    """A value and its interval.

    >>> interval_text(Estimate(0.5, 0.4, math.inf), fixed(2))
    '0.50 [0.40, ∞]'
    """
    value = shown(estimate.value)
    if math.isnan(estimate.low):
        return value
    return f"{value} [{shown(estimate.low)}, {shown(estimate.high)}]"


def spread_text(value: Any, half_width: Any, digits: int) -> str:
    """A value and the half-width of its interval, where it has one.

    >>> spread_text(0.5, 0.031, 2), spread_text(0.5, None, 2)
    ('0.50 ± 0.03', '0.50')
    """
    text, spread = fixed(digits)(value), fixed(digits)(half_width)
    return text if MISSING in (text, spread) else f"{text} ± {spread}"
