"""Optimiser steps out of tokenised examples: seeded order, equal ranks, resumable inside an epoch."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from overopt.data.schema import PreferenceBatch, StepBatch, TokenBatch


class StepLoader:
    """Yields one :class:`StepBatch` per optimiser step; every example exactly once an epoch.

    A step is ``batch_size`` examples over all ranks, whatever the micro-batch, and the last partial batch
    is a step too. The order depends on the seed and the epoch alone, so that a run resumed inside an epoch
    (Lightning keeps ``state_dict``) goes on with the very next step.
    """

    def __init__(
        self,
        num_examples: int,
        collate: Callable[[Sequence[int]], TokenBatch | PreferenceBatch],
        *,
        batch_size: int,
        micro_batch_size: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Plan an epoch.

        Args:
            num_examples: how many there are.
            collate: example indices -> one micro-batch.
            batch_size: examples per optimiser step over all ranks.
            micro_batch_size: examples per forward pass on one rank; all of the rank's by default.
            seed: fixes the order.
            rank: this process.
            world_size: all processes.

        Raises:
            ValueError: there is nothing to load, or a size is not positive.
        """
        if num_examples < 1:
            raise ValueError("no training examples: the source's training part is empty")
        if batch_size < world_size or (micro_batch_size is not None and micro_batch_size < 1):
            raise ValueError(
                f"need batch_size >= number of processes and micro_batch_size >= 1, "
                f"got {batch_size=}, {world_size=}, {micro_batch_size=}"
            )
        self.num_examples = num_examples
        self.batch_size = batch_size
        self._collate = collate
        self._micro_batch_size = micro_batch_size or -(-batch_size // world_size)
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self._epoch = 0
        self._first_step = 0
        self._next_step = 0

    def __len__(self) -> int:
        """Optimiser steps in an epoch."""
        return -(-self.num_examples // self.batch_size)

    def __iter__(self) -> Iterator[StepBatch]:
        order = np.random.default_rng([self._seed, self._epoch]).permutation(self.num_examples)
        # Past the first step only once after a resume: an epoch cut short (limit_train_batches) is not gone on with.
        resumed, self._first_step = self._first_step % len(self), 0
        for step in range(resumed, len(self)):
            first = step * self.batch_size
            # Counted before it is handed out: a checkpoint written during the step resumes after it.
            self._next_step = step + 1
            yield self._step(order[first : first + self.batch_size].tolist())

    def _step(self, examples: list[int]) -> StepBatch:
        mine = examples[self._rank :: self._world_size]
        per_rank = -(-len(examples) // self._world_size)
        num_micro_batches = -(-per_rank // self._micro_batch_size)
        shares = [mine[i * self._micro_batch_size : (i + 1) * self._micro_batch_size] for i in range(num_micro_batches)]
        return StepBatch(
            tuple(self._collate(share or examples[:1]) for share in shares),
            tuple(1.0 if share else 0.0 for share in shares),
            len(examples),
        )

    @property
    def sampler(self) -> "StepLoader":
        """Lightning tells a loader's ``sampler`` which epoch begins."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order is used."""
        self._epoch = epoch

    def state_dict(self) -> dict[str, Any]:
        """Where in the epoch the loader stands; which epoch it is, the trainer knows."""
        return {"next_step": self._next_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a :meth:`state_dict`."""
        self._first_step = self._next_step = state["next_step"]


class EvaluationLoader:
    """Yields batches of examples in their own order, each example on exactly one rank."""

    def __init__(
        self,
        num_examples: int,
        collate: Callable[[Sequence[int]], TokenBatch | PreferenceBatch],
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._mine = list(range(rank, num_examples, world_size))
        self._collate = collate
        self._batch_size = batch_size

    def __len__(self) -> int:
        """Batches on this rank."""
        return -(-len(self._mine) // self._batch_size)

    def __iter__(self) -> Iterator[TokenBatch | PreferenceBatch]:
        for first in range(0, len(self._mine), self._batch_size):
            yield self._collate(self._mine[first : first + self._batch_size])
