"""The whole experiment around one training: how many policies, checkpoints, judge calls, and what those cost."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Grid:
    """What is trained and evaluated.

    Attributes:
        objectives: so many.
        betas: for each objective.
        seeds: for each beta.
        sizes: of models; each is planned by itself, their judge calls are counted together.
        num_prompts: that each checkpoint is evaluated on.
        judge_calls_per_prompt: of the judge; 2 where it is shown both orders.

    Raises:
        ValueError: one of them is not positive.
    """

    objectives: int = 3
    betas: int = 7
    seeds: int = 1
    sizes: int = 1
    num_prompts: int = 256
    judge_calls_per_prompt: int = 1

    def __post_init__(self) -> None:
        if low := {name: number for name, number in vars(self).items() if number < 1}:
            found = ", ".join(f"--{name.replace('_', '-')} {number}" for name, number in low.items())
            raise ValueError(f"a grid needs at least one of everything, got {found}")

    @property
    def policies(self) -> int:
        """Policies of one size."""
        return self.objectives * self.betas * self.seeds

    def judge_calls(self, checkpoints: int) -> int:
        """Of all sizes.

        >>> Grid(objectives=3, betas=7, seeds=1, sizes=3).judge_calls(checkpoints=5)  # the paper's
        80640
        """
        return self.sizes * self.policies * checkpoints * self.num_prompts * self.judge_calls_per_prompt


@dataclass(frozen=True)
class JudgePrices:
    """What a judge takes, in any currency.

    Attributes:
        per_call: of one judgement.
        per_million: of a million input and of a million output tokens.
        template_tokens: that a question has besides the post and the two summaries.
        output_tokens: of an answer: one sentence of comparison and the choice.

    Raises:
        ValueError: both kinds of prices, or a number that makes no sense.
    """

    per_call: float | None = None
    per_million: Sequence[float] | None = None
    template_tokens: int = 180
    output_tokens: int = 60

    def __post_init__(self) -> None:
        if self.per_call is not None and self.per_million is not None:
            raise ValueError("give --judge-price-per-call or --judge-price-per-million, not both")
        if self.per_million is not None and len(self.per_million) != 2:
            raise ValueError(
                "--judge-price-per-million takes two prices, of input and of output tokens, got "
                f"{list(self.per_million)}"
            )
        prices = [*(self.per_million or ()), *(() if self.per_call is None else (self.per_call,))]
        if any(not 0 <= price < math.inf for price in prices):
            raise ValueError(f"a judge's price is at least 0, got {prices}")
        if self.template_tokens < 0 or self.output_tokens < 1:
            raise ValueError(
                "need judge_template_tokens >= 0 and judge_output_tokens >= 1, got "
                f"{self.template_tokens} and {self.output_tokens}"
            )

    def cost(self, calls: int, prompt_tokens: float, response_tokens: float) -> float | None:
        """Of so many calls on posts and summaries of these mean lengths; ``None`` without a price."""
        if self.per_call is not None:
            return calls * self.per_call
        if self.per_million is None:
            return None
        of_input, of_output = self.per_million
        question = self.template_tokens + prompt_tokens + 2 * response_tokens
        return calls * (question * of_input + self.output_tokens * of_output) / 1e6
