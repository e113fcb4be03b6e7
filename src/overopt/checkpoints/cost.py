"""What a checkpoint took."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Cost:
    """Tokens and time of training, and of making what was trained on.

    Attributes:
        tokens: that a model was trained on, prompts included and anew in each pass, and that were sampled for it.
        seconds: of optimiser steps, and of sampling and labelling; evaluating and saving checkpoints are left out.
    """

    tokens: int = 0
    seconds: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.tokens + other.tokens, self.seconds + other.seconds)

    def part(self, share: float) -> "Cost":
        """Of a part of what was made."""
        return Cost(round(self.tokens * share), self.seconds * share)

    def record(self) -> dict[str, float]:
        """For a checkpoint, a stage's result or, after ``eval/``, a metric."""
        return {"cost_tokens": float(self.tokens), "cost_seconds": self.seconds}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Cost | None":
        """From what :meth:`record` gave; ``None`` where there is none: what it took is not known.

        >>> Cost.of(Cost(3, 0.5).record()), Cost.of({})
        (Cost(tokens=3, seconds=0.5), None)
        """
        if "cost_tokens" not in record:
            return None
        return cls(int(record["cost_tokens"]), float(record["cost_seconds"]))
