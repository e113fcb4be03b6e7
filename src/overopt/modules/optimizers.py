"""Optimiser and learning-rate schedule, shared by all modules."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import nn
from torch.optim import AdamW, Optimizer, RMSprop
from torch.optim.lr_scheduler import LambdaLR


@dataclass(frozen=True)
class OptimizerSettings:
    """An optimiser with linear warm-up, then a constant or cosine learning rate.

    Attributes:
        name: ``rmsprop`` (alpha 0.99, eps 1e-8: the paper's) or ``adamw`` (betas 0.9 and 0.95).
        learning_rate: after warm-up.
        warmup_steps: optimiser steps of linear warm-up from zero; a number below 1 is a share of the run.
        decay: after warm-up: ``constant`` (the paper's) or ``cosine`` to zero at the run's end.
        weight_decay: AdamW's, on matrices only.
    """

    name: Literal["rmsprop", "adamw"] = "rmsprop"
    learning_rate: float = 0.5e-6
    warmup_steps: int | float = 150
    decay: Literal["constant", "cosine"] = "constant"
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or self.warmup_steps < 0 or self.weight_decay < 0:
            raise ValueError(
                f"need learning_rate > 0, warmup_steps >= 0 and weight_decay >= 0, got {self.learning_rate=}, "
                f"{self.warmup_steps=}, {self.weight_decay=}".replace("self.", "")
            )

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        """The optimiser over parameters that train."""
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        if self.name == "rmsprop":
            return RMSprop(trained, lr=self.learning_rate, alpha=0.99, eps=1e-8)
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return AdamW(groups, lr=self.learning_rate, betas=(0.9, 0.95))

    def schedule(self, optimizer: Optimizer, total_steps: int) -> LambdaLR:
        """The learning-rate schedule, stepped after each optimiser step."""
        return LambdaLR(optimizer, lambda step: self.rate_factor(step, total_steps))

    def rate_factor(self, step: int, total_steps: int) -> float:
        """Share of the learning rate at an optimiser step, counted from 0.

        >>> settings = OptimizerSettings(warmup_steps=4)
        >>> [settings.rate_factor(step, 100) for step in (0, 1, 3, 4, 99)]
        [0.25, 0.5, 1.0, 1.0, 1.0]
        """
        warmup = self.warmup_steps if self.warmup_steps >= 1 else round(self.warmup_steps * total_steps)
        if step < warmup:
            return (step + 1) / warmup
        if self.decay == "constant":
            return 1.0
        progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        return 0.5 * (1.0 + math.cos(math.pi * progress))
