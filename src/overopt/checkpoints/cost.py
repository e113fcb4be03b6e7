"""What a checkpoint took."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Cost:
    """Tokens and time of training, and of making what was trained on.

    Attributes:
        tokens: that a model was trained on, prompts included and anew in each pass, and that were sampled for it.
        seconds: of optimiser steps, and of sampling and labelling; opening models, evaluating and saving left out.
    """

    tokens: int = 0
    seconds: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.tokens + other.tokens, self.seconds + other.seconds)

    def record(self) -> dict[str, float]:
        """For a checkpoint, a stage's result or, after ``eval/``, a metric."""
        return {"cost_tokens": float(self.tokens), "cost_seconds": self.seconds}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Cost":
        """From what :meth:`record` gave; nothing where there is none.

        >>> Cost.of(Cost(3, 0.5).record()) + Cost(1)
        Cost(tokens=4, seconds=0.5)
        """
        return cls(int(record.get("cost_tokens", 0)), float(record.get("cost_seconds", 0.0)))
