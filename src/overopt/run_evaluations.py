"""The checkpoints of one run: evaluated as they are saved or when all are there, and what they say of the run."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from overopt.analysis.advice.peak_rule import Measured, PeakRule
from overopt.checkpoints.checkpoint_names import checkpoint_paths, examples_of
from overopt.checkpoints.cost import Cost
from overopt.evaluation.checkpoint_metrics import CheckpointEvaluation, Evaluator
from overopt.experiment import Row, evaluate_paths

BEST_WIN_RATE, BEST_KL, BEST_EXAMPLES_SEEN = "best/win_rate", "best/kl_nats", "best/examples_seen"
"""What a run's best checkpoint gave, beside its metrics by step."""
BEST_N = "best/n"
"""The best n of best-of-n, in place of examples seen."""


def _ignore(num_prompts: int) -> None: ...


def measured(evaluation: CheckpointEvaluation) -> Measured:
    """What a rule must know of an evaluated checkpoint."""
    wins = [math.nan if c.win_probability is None else c.win_probability for c in evaluation.completions]
    win_rate = evaluation.metrics.get("eval/win_rate", math.nan)
    return Measured(evaluation.metrics["eval/kl_nats"], win_rate, wins=np.array(wins, dtype=float))


@dataclass
class RunEvaluations:
    """Evaluations of one run's checkpoints, each made once.

    Attributes:
        evaluator: of its reference.
        folder: of the run, with ``checkpoints``; completions go to ``evaluation`` in it.
        rule: which checkpoint is best.
        cost_before: of what the run was trained on.
        evaluations: made so far, by examples seen.
        seconds: that they took.
    """

    evaluator: Evaluator
    folder: Path
    rule: PeakRule
    cost_before: Cost = Cost()
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
        self.evaluations |= evaluate_paths(
            self.evaluator, paths, self.completions, on_batch or _ignore, rows, self.cost_before
        )
        self.seconds += time.perf_counter() - began

    def past_peak(self) -> bool:
        """Evaluate what is missing, and say whether the run is past its peak."""
        self.catch_up()
        return bool(self.evaluations) and self.rule.past_peak(self._measured)

    @property
    def best(self) -> dict[str, float]:
        """Win rate, KL and place of the best checkpoint, under names that a table of runs can show."""
        seen = self.rule.best(self._measured)
        metrics = self.evaluations[seen].metrics
        return {
            BEST_WIN_RATE: metrics["eval/win_rate"],
            BEST_KL: metrics["eval/kl_nats"],
            BEST_EXAMPLES_SEEN: float(seen),
        }

    @property
    def _measured(self) -> dict[int, Measured]:
        return {seen: measured(evaluation) for seen, evaluation in self.evaluations.items()}
