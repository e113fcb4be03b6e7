"""A reference that follows the policy in training: TR-DPO."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from overopt.packed_tokens import PackedTokens


@dataclass(frozen=True)
class ReferenceUpdates:
    """When and how far the reference moves towards the policy: ``pi_ref <- alpha pi + (1 - alpha) pi_ref``, in weights.

    Attributes:
        mode: ``hard``: the policy's weights take the reference's place; ``soft``: they are mixed in.
        alpha: the policy's part in a soft update, in [0, 1]; a hard one has none to choose.
        every: optimiser steps from one update to the next.

    Raises:
        ValueError: ``alpha`` outside its range, missing from a soft update or given to a hard one, or
            ``every`` below 1.

    Source: Gorbatovski et al. 2024, "Learn your reference model for real good alignment" (arXiv:2404.09656), whose
    soft updates are ``soft`` with their alpha, whose hard ones ``hard`` with tau for ``every``. Either goes with any
    objective: they write TR-DPO, TR-IPO and so on.
    """

    mode: Literal["hard", "soft"] = "hard"
    alpha: float | None = None
    every: int = 1

    def __post_init__(self) -> None:
        if self.mode == "hard" and self.alpha is not None:
            raise ValueError(f"a hard update replaces the whole reference; alpha={self.alpha} is for mode soft")
        if self.mode != "hard" and (self.alpha is None or not 0 <= self.alpha <= 1):
            raise ValueError(f"a soft update needs alpha in [0, 1], the policy's part, got alpha={self.alpha}")
        if self.every < 1:
            raise ValueError(f"the reference moves every so many steps, at least 1, got every={self.every}")

    @property
    def weight(self) -> float:
        """The policy's part in an update."""
        return 1.0 if self.alpha is None else self.alpha

    def __str__(self) -> str:
        """Short, for tables.

        >>> print(ReferenceUpdates("soft", 0.6, every=2), ReferenceUpdates(every=64), sep=", ")
        soft 0.6 every 2, hard every 64
        """
        return f"{self.mode}{'' if self.alpha is None else f' {self.alpha:g}'} every {self.every}"


class MovingReference:
    """A frozen model beside the policy, in memory, moved towards it after optimiser steps.

    Not a module, so that neither the optimiser nor the count of parameters sees it; its weights go into checkpoints by
    :meth:`state`.

    Args:
        model: tokens -> log-probability of each response token; starts as the reference, and is frozen here.
        updates: when and how far it moves.
    """

    def __init__(self, model: nn.Module, updates: ReferenceUpdates) -> None:
        self._model = model.eval().requires_grad_(False)
        self._updates = updates
        self._steps = 0

    @torch.no_grad()
    def totals(self, tokens: PackedTokens) -> Float[Tensor, "pair 2"]:
        """Log-probabilities of chosen and rejected responses [nats], summed over tokens."""
        log_probs: Callable[[PackedTokens], Tensor] = self._model
        return tokens.sums(log_probs(tokens)).view(-1, 2)

    @torch.no_grad()
    def after_step(self, policy: nn.Module) -> None:
        """Move, where an update is due.

        Args:
            policy: after its optimiser step.
        """
        self._steps += 1
        if self._steps % self._updates.every:
            return
        for reference, trained in zip(self._model.parameters(), policy.parameters(), strict=True):
            reference.lerp_(trained.to(reference), self._updates.weight)

    def state(self) -> dict[str, Any]:
        """What a resumed run goes on from; plain values and tensors."""
        return {"steps": self._steps, "weights": self._model.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a :meth:`state`."""
        self._steps = state["steps"]
        self._model.load_state_dict(state["weights"])
