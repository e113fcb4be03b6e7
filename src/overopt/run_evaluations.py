"""The checkpoints of one run: evaluated as they are saved or when all are there, and what they say of the run."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from overopt.evaluation.checkpoint_metrics import CheckpointEvaluation, Evaluator
from overopt.experiment import Row, evaluate_paths
from overopt.modules.checkpoint_schedule import checkpoint_paths, examples_of

BEST_WIN_RATE, BEST_KL, BEST_EXAMPLES_SEEN = "best/win_rate", "best/kl_nats", "best/examples_seen"
"""What a run's best checkpoint gave, beside its metrics by step."""


@dataclass(frozen=True)
class PeakRule:
    """Which checkpoint of a run counts as its best, and when the run is past it.

    Attributes:
        kl_budget: only checkpoints within it count [nats]; no limit by default.
        standard_errors: a run is past its peak when its win rate has fallen by more than so many standard errors of
            the paired difference below its best; never by default.

    Raises:
        ValueError: a limit that is not positive.
    """

    kl_budget: float | None = None
    standard_errors: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not value > 0:
                raise ValueError(f"{name} is positive, got {value}")

    def best(self, evaluations: Mapping[int, CheckpointEvaluation]) -> int:
        """Examples seen by the trained checkpoint that wins most within the budget; 0, the reference, if none is."""
        within = {seen: e.metrics["eval/win_rate"] for seen, e in evaluations.items() if seen > 0 and self._within(e)}
        return max(within, key=lambda seen: within[seen], default=0)

    def past_peak(self, evaluations: Mapping[int, CheckpointEvaluation]) -> bool:
        """Whether training on can't be expected to give a better checkpoint.

        So it is when the newest checkpoint is beyond the budget, as KL grows in training, or loses against the best
        one by more than chance. All are judged on the same prompts, so that the difference is taken prompt by prompt.

        Args:
            evaluations: by examples seen, the reference at 0.
        """
        newest = max(evaluations)
        if newest == 0 or self.standard_errors is None:
            return False
        if not self._within(evaluations[newest]):
            return True
        best = self.best(evaluations)
        if best == newest:
            return False
        lost = _win_probabilities(evaluations[best]) - _win_probabilities(evaluations[newest])
        lost = lost[~np.isnan(lost)]
        return bool(lost.mean() > self.standard_errors * lost.std(ddof=1) / math.sqrt(len(lost)))

    def _within(self, evaluation: CheckpointEvaluation) -> bool:
        return self.kl_budget is None or evaluation.metrics["eval/kl_nats"] <= self.kl_budget


def _ignore(num_prompts: int) -> None: ...


def _win_probabilities(evaluation: CheckpointEvaluation) -> np.ndarray:
    return np.array([np.nan if c.win_probability is None else c.win_probability for c in evaluation.completions])


@dataclass
class RunEvaluations:
    """Evaluations of one run's checkpoints, each made once.

    Attributes:
        evaluator: of its reference.
        folder: of the run, with ``checkpoints``; completions go to ``evaluation`` in it.
        rule: which checkpoint is best.
        evaluations: made so far, by examples seen.
        seconds: that they took.
    """

    evaluator: Evaluator
    folder: Path
    rule: PeakRule
    evaluations: dict[int, CheckpointEvaluation] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def completions(self) -> Path:
        """Folder of the completions."""
        return self.folder / "evaluation"

    def missing(self) -> list[Path]:
        """Checkpoints that are not evaluated yet."""
        paths = checkpoint_paths(self.folder / "checkpoints")
        return [path for path in paths if examples_of(path) not in self.evaluations]

    def catch_up(self, on_batch: Callable[[int], None] | None = None) -> None:
        """Evaluate what is missing, the reference first.

        Args:
            on_batch: told how many more prompts are done.
        """
        if not (paths := self.missing()):
            return
        began = time.perf_counter()
        rows: list[Row] = ["checkpoint"] if self.evaluations else ["reference", "checkpoint"]
        self.evaluations |= evaluate_paths(self.evaluator, paths, self.completions, on_batch or _ignore, rows)
        self.seconds += time.perf_counter() - began

    def past_peak(self) -> bool:
        """Evaluate what is missing, and say whether the run is past its peak."""
        self.catch_up()
        return bool(self.evaluations) and self.rule.past_peak(self.evaluations)

    @property
    def best(self) -> dict[str, float]:
        """Win rate, KL and place of the best checkpoint, under names that a table of runs can show."""
        seen = self.rule.best(self.evaluations)
        metrics = self.evaluations[seen].metrics
        return {
            BEST_WIN_RATE: metrics["eval/win_rate"],
            BEST_KL: metrics["eval/kl_nats"],
            BEST_EXAMPLES_SEEN: float(seen),
        }
