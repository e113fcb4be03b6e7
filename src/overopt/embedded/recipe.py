"""The embedded default's settings."""

import math
from dataclasses import dataclass

from overopt.analysis.advice.peak_rule import PeakRule
from overopt.embedded.cells import Proxy
from overopt.models.policy import EMBEDDED_SIZES
from overopt.modules.optimizers import OptimizerSettings


@dataclass(frozen=True)
class Recipe:
    """What all cells share; the defaults were found by the experiments that ``studies/README.md`` tells of.

    Attributes:
        source: of the texts; any that holds demonstrations, see ``overopt data-report``.
        path: file or folder of the source.
        gold_fraction: share of posts kept for the gold model; the source's own by default.
        betas: prices of divergence [reward / nat].
        gold_size: of the gold reward model's backbone.
        vocab_size: of the byte-level BPE that all models share.
        max_prompt_tokens: of all stages.
        max_response_tokens: of all stages, the end of text included.
        batch_size: examples per optimiser step of SFT and of the gold reward model.
        sft_steps: optimiser steps of the SFT policy.
        gold_steps: optimiser steps of the gold reward model.
        gold_pairs: posts of the gold part whose human summaries it learns to prefer.
        gold_repetitions: whether the gold model learns that degenerate repetition is worse than people's summaries.
            Without that, policy gradients find out that it is not.
        gold_temperature: divides the gold model's rewards, in labels and verdicts alike.
        pairs: sampled pairs that policies are aligned to.
        align_batch_size: pairs per optimiser step of alignment and of proxy reward models.
        align_steps: optimiser steps of an alignment run.
        evaluation_prompts: held-out prompts.
        rl_prompts: per optimiser step of a policy gradient.
        rl_steps: optimiser steps of a policy gradient.
        rl_samples: responses to each prompt of a policy gradient.
        monitored_pairs: so many of a policy's labelled pairs train a reward model of its size and seed, whose reward is
            measured beside the gold one for the policies that are aligned to the pairs; 0: none does.
        peak: which checkpoint of a run is its best, and whether a run past it goes on; policy
            gradients go on in any case.
        sft_optimizer: of the SFT policy.
        gold_optimizer: of the gold reward model and of proxies.
        align_optimizer: of alignment.
        rl_optimizer: of policy gradients.

    Raises:
        ValueError: a number of steps, pairs, prompts or the like below 1, no betas, an unknown size, or a fraction or
            temperature out of its range.
    """

    source: str = "docstrings"
    path: str | None = None
    gold_fraction: float | None = None
    gold_size: str = "0.7M"
    betas: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
    vocab_size: int = 2048
    max_prompt_tokens: int = 48
    max_response_tokens: int = 24
    batch_size: int = 64
    sft_steps: int = 1000
    gold_steps: int = 400
    gold_pairs: int = 6400
    gold_repetitions: bool = False
    gold_temperature: float = 0.5
    pairs: int = 2048
    align_batch_size: int = 32
    align_steps: int = 256
    evaluation_prompts: int = 512
    rl_prompts: int = 32
    rl_steps: int = 256
    rl_samples: int = 4
    monitored_pairs: int = 0
    peak: PeakRule = PeakRule()
    sft_optimizer: OptimizerSettings = OptimizerSettings("adamw", 4e-3, 0.05, "cosine")
    gold_optimizer: OptimizerSettings = OptimizerSettings("adamw", 2e-3, 0.1, "cosine")
    align_optimizer: OptimizerSettings = OptimizerSettings("rmsprop", 4e-4, 0.2)
    rl_optimizer: OptimizerSettings = OptimizerSettings("adamw", 3e-4, 0.05)

    def __post_init__(self) -> None:
        least = {"monitored_pairs": 0}
        numbers = {name: value for name, value in vars(self).items() if type(value) is int}
        if low := [f"{name}={value}" for name, value in numbers.items() if value < least.get(name, 1)]:
            raise ValueError(f"a recipe needs at least 1 of everything, got {', '.join(low)}")
        if not self.betas:
            raise ValueError("a recipe needs at least one beta, got none")
        if self.gold_size not in EMBEDDED_SIZES:
            raise ValueError(f"no size gold_size={self.gold_size!r}; one of {', '.join(EMBEDDED_SIZES)}")
        if not 0 < self.gold_temperature < math.inf:
            raise ValueError(f"need gold_temperature > 0, got {self.gold_temperature}")
        if self.gold_fraction is not None and not 0 < self.gold_fraction < 1:
            raise ValueError(f"need gold_fraction in (0, 1), got {self.gold_fraction}")

    def monitored_proxy(self, size: str, seed: int) -> Proxy | None:
        """The reward model that is measured beside the gold one for policies of a size and seed."""
        return Proxy(size, self.monitored_pairs, seed) if self.monitored_pairs else None
