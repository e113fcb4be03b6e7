"""Optimiser steps out of tokenised examples: seeded order, equal ranks, resumable inside an epoch."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from overopt.data.packing import Packing
from overopt.data.schema import EvaluationBatch, PreferenceBatch, StepBatch
from overopt.packed_tokens import PackedTokens


class StepLoader:
    """Yields one :class:`StepBatch` per optimiser step; every example exactly once an epoch.

    A step is ``batch_size`` examples over all ranks, however they are packed, and the last partial batch
    is a step too. The order depends on the seed and the epoch alone, so that a run resumed inside an epoch
    (Lightning keeps ``state_dict``) goes on with the very next step.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        collate: Callable[[Sequence[int]], PackedTokens | PreferenceBatch],
        *,
        batch_size: int,
        packing: Packing,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Plan an epoch.

        Args:
            lengths: of each example [tokens].
            collate: example indices -> one micro-batch.
            batch_size: examples per optimiser step over all ranks.
            packing: how many tokens go through the model at a time.
            seed: fixes the order.
            rank: this process.
            world_size: all processes.

        Raises:
            ValueError: there is nothing to load, or fewer examples a step than processes.
        """
        if not lengths:
            raise ValueError("no training examples: the source's training part is empty")
        if batch_size < world_size:
            raise ValueError(f"need batch_size >= number of processes, got {batch_size=}, {world_size=}")
        self.num_examples = len(lengths)
        self.batch_size = batch_size
        self._lengths = lengths
        self._collate = collate
        self._packing = packing
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
        # Past the first step only once after a resume: an epoch cut short (limit_train_batches) is not gone on with.
        resumed, self._first_step = self._first_step % len(self), 0
        for step, examples in enumerate(self._examples_of_steps()):
            if step >= resumed:
                # Counted before it is handed out: a checkpoint written during the step resumes after it.
                self._next_step = step + 1
                yield self._step(examples)

    def passes(self) -> Iterator[list[list[list[int]]]]:
        """Of each step of the epoch, for each rank: which examples go through the model together."""
        for examples in self._examples_of_steps():
            yield self._packing.shares_of_ranks(examples, self._lengths, self._world_size)

    def _examples_of_steps(self) -> Iterator[list[int]]:
        order = np.random.default_rng([self._seed, self._epoch]).permutation(self.num_examples)
        for first in range(0, self.num_examples, self.batch_size):
            yield order[first : first + self.batch_size].tolist()

    def _step(self, examples: list[int]) -> StepBatch:
        mine, fillers = self._packing.rank_shares(examples, self._lengths, self._rank, self._world_size)
        return StepBatch(
            tuple(self._collate(share) for share in [*mine, *fillers]),
            (1.0,) * len(mine) + (0.0,) * len(fillers),
            len(examples),
            sum(self._lengths[example] for example in examples),
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
    """Yields batches of examples, each example on exactly one rank, and on every rank as many batches.

    Attributes:
        batches: the examples of each batch of this rank; a filler, which counts nothing, is none of them.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        collate: Callable[[Sequence[int]], PackedTokens | PreferenceBatch],
        *,
        packing: Packing,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.batches, self._fillers = packing.rank_shares(range(len(lengths)), lengths, rank, world_size)
        self._collate = collate

    def __len__(self) -> int:
        """Batches on this rank, the fillers among them."""
        return len(self.batches) + len(self._fillers)

    def __iter__(self) -> Iterator[EvaluationBatch]:
        for examples in self.batches:
            yield EvaluationBatch(self._collate(examples), counts=True)
        for filler in self._fillers:
            yield EvaluationBatch(self._collate(filler), counts=False)
