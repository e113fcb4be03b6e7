"""SFT and direct alignment of recurrent policies on a tree, by the modules that train language models."""

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from overopt.data.schema import PreferenceBatch, StepBatch
from overopt.modules.direct_alignment import AlignmentObjective, DirectAlignmentModule
from overopt.modules.optimizers import OptimizerSettings
from overopt.modules.sft import SFTModule
from overopt.modules.step import StepModule
from overopt.packed_tokens import PackedTokens, PromptGroup, pack
from overopt.theory.recurrent_policies import RecurrentArchitecture, RecurrentPolicies
from overopt.theory.tree_mdp import TreeData


@dataclass(frozen=True)
class TreeTraining:
    """How policies are trained; the paper gives none of it.

    Attributes:
        architecture: of the policies.
        sft_steps: optimiser steps of SFT, each on all demonstrations.
        steps: optimiser steps of alignment, each on all preferences.
        optimizer: of both stages.
    """

    architecture: RecurrentArchitecture = field(default_factory=RecurrentArchitecture)
    sft_steps: int = 200
    steps: int = 500
    optimizer: OptimizerSettings = field(
        default_factory=lambda: OptimizerSettings(name="adamw", learning_rate=1e-3, warmup_steps=0)
    )

    def __post_init__(self) -> None:
        if self.sft_steps < 0 or self.steps < 1:
            raise ValueError(f"need sft_steps >= 0 and steps >= 1, got {self.sft_steps} and {self.steps}")


LogProbs = Float[np.ndarray, "step seed trajectory"]
"""Log-probability of every trajectory after each number of optimiser steps, from 0 on [nats]."""


class TreeSFT(NamedTuple):
    """Policies that imitate the demonstrations, and how they came to."""

    policies: RecurrentPolicies
    log_probs: LogProbs


def train_sft(
    data: TreeData, seeds: Sequence[int], training: TreeTraining, on_step: Callable[[], None] = lambda: None
) -> TreeSFT:
    """Fresh policies, trained on the demonstrations."""
    policies = RecurrentPolicies(data.tree, seeds, training.architecture)
    tokens = for_all_seeds([(d,) for d in data.demonstrations], policies)
    batch = StepBatch((tokens,), (1.0,), len(data.demonstrations))
    module = SFTModule(optimizer=training.optimizer)
    return TreeSFT(policies, _fit(module, policies, batch, training.sft_steps, on_step))


def align(
    sft: RecurrentPolicies,
    data: TreeData,
    alignment: AlignmentObjective,
    training: TreeTraining,
    on_step: Callable[[], None] = lambda: None,
) -> LogProbs:
    """Copies of the SFT policies, each aligned to the preferences with itself as the reference.

    Returns:
        Log-probabilities at every step; at step 0 the reference's.
    """
    policies = copy.deepcopy(sft)
    pairs = [(p.chosen, p.rejected) for p in data.preferences]
    reference = policies.trajectory_log_probs()[:, torch.tensor(pairs)].flatten(0, 1)
    batch = PreferenceBatch(for_all_seeds(pairs, policies), reference)
    module = DirectAlignmentModule("the SFT policies", **vars(alignment), optimizer=training.optimizer)
    return _fit(module, policies, StepBatch((batch,), (1.0,), len(pairs)), training.steps, on_step)


def for_all_seeds(responses: Sequence[tuple[int, ...]], policies: RecurrentPolicies) -> PackedTokens:
    """Trajectories as responses to the start state, laid out as :class:`RecurrentPolicies` wants them.

    Args:
        responses: numbers of trajectories, a tuple for each example.
        policies: every seed's policy reads the same.
    """
    tree = policies.tree
    start = np.array([tree.branching])
    groups = [PromptGroup(start, tuple(tree.actions[number] for number in example)) for example in responses]
    return pack(groups * policies.num_seeds)


def _fit(
    module: StepModule, policies: RecurrentPolicies, batch: StepBatch, steps: int, on_step: Callable[[], None]
) -> LogProbs:
    if steps == 0:
        return policies.trajectory_log_probs().numpy()[None]
    module.add_module("policy", policies)
    recorder = _TrajectoryRecorder(policies, on_step)
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        max_epochs=1,
        limit_val_batches=0,
        logger=False,
        callbacks=[recorder],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module, train_dataloaders=_Repeated(batch, steps))
    return np.stack([log_probs.numpy() for log_probs in recorder.log_probs])


class _Repeated:
    """A loader of the same batch each step; a list would be taken for a list of loaders."""

    def __init__(self, batch: StepBatch, steps: int) -> None:
        self._batch, self._steps = batch, steps

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[StepBatch]:
        return itertools.repeat(self._batch, self._steps)


class _TrajectoryRecorder(Callback):
    """Keeps the log-probability of every trajectory before each optimiser step, and after the last."""

    def __init__(self, policies: RecurrentPolicies, on_step: Callable[[], None]) -> None:
        self.log_probs: list[Float[Tensor, "seed trajectory"]] = []
        self._policies, self._on_step = policies, on_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.log_probs.append(self._policies.latest)
        self._on_step()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.log_probs.append(self._policies.trajectory_log_probs())
