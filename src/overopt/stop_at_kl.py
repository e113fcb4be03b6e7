"""Callback: end an alignment or a policy gradient at a KL budget or past its peak, or keep its best checkpoint."""

import math
import os
import shutil
from pathlib import Path
from typing import Literal

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import ModelParallelStrategy

from overopt.analysis.advice.peak_rule import STANDARD_ERRORS, Measured, PeakRule, lost_since
from overopt.checkpoints.checkpoint_names import checkpoint_path, checkpoint_paths, examples_of
from overopt.evaluation.checkpoint_metrics import CheckpointEvaluation, SampleEvaluator
from overopt.evaluation.judges.protocol import Judge
from overopt.evaluation.sampling import evaluation_prompts
from overopt.models.policy import load_policy
from overopt.modules.checkpoint_schedule import CheckpointSchedule
from overopt.modules.direct_alignment import DirectAlignmentModule
from overopt.modules.policy_gradient import PolicyGradientModule
from overopt.run_evaluations import measured

BEST = "best.ckpt"

HasReference = DirectAlignmentModule | PolicyGradientModule
"""What trains a policy that starts as its reference."""


class StopAtKL(Callback):
    """Looks at each scheduled checkpoint: how far it went, and how often it wins.

    A run is over when its KL to the reference exceeds the budget, or when it loses against its own best checkpoint by
    more than chance, prompt by prompt: the rule of sweeps and of ``overopt advise``. The best checkpoint within the
    budget is ``best.ckpt`` beside the others. A resumed run looks at what it has first.

    The samples are drawn by the first process, from the checkpoint's file; all end together by what it finds.

    Args:
        budget: KL(policy || reference) that a checkpoint may have at most [nats]; no limit by default.
        judge: compares samples with the dataset's responses; without one only the KL counts, and a budget is needed.
        action: stop ends a training that is over; keep_best trains on.
        standard_errors: by how many a win rate must have fallen.
        num_prompts: held-out prompts, one a post.
        opponent: the dataset's response that samples are judged against: human or preferred; human by default.
        seed: fixes the draws, for all checkpoints alike.

    Raises:
        ValueError: neither a budget nor a judge, or a number that is not positive.
    """

    def __init__(
        self,
        budget: float | None = None,
        judge: Judge | None = None,
        action: Literal["stop", "keep_best"] = "stop",
        standard_errors: float = STANDARD_ERRORS,
        num_prompts: int = 256,
        opponent: Literal["human", "preferred"] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if budget is None and judge is None:
            raise ValueError("StopAtKL needs a budget of KL [nats], or a judge that tells a fall, such as gold")
        if action not in ("stop", "keep_best"):
            raise ValueError(f"no action {action!r}; there are stop and keep_best")
        if num_prompts < 2:
            raise ValueError(f"num_prompts is at least 2, got {num_prompts}: chance can't be told from one prompt")
        self.rule = PeakRule(budget, standard_errors)
        self._judge = judge
        self._action = action
        self._num_prompts = num_prompts
        # Without a judge there is none to beat, and the prompts of what is trained on are sure to be there.
        self._opponent = opponent or ("preferred" if judge is None else "human")
        self._seed = seed
        self._seen: dict[int, Measured] = {}
        self._files: dict[int, Path] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse, before any step, what could not be looked at."""
        if not isinstance(pl_module, HasReference):
            raise ValueError(
                f"StopAtKL measures KL to a reference, which {type(pl_module).__name__} has none of: it goes with "
                "DirectAlignmentModule or PolicyGradientModule"
            )
        strategy = trainer.strategy
        if isinstance(strategy, ModelParallelStrategy) and strategy._save_distributed_checkpoint:
            raise ValueError(
                "StopAtKL opens checkpoints in one process, and these are folders of shards: save single files "
                "(save_distributed_checkpoint false, as --trainer.strategy fsdp does)"
            )
        schedule = self._schedule(trainer)
        if schedule.on_saved is not None:
            raise ValueError("something else looks at the checkpoints of this training already: leave StopAtKL out")
        evaluation_prompts(pl_module.data, self._num_prompts, self._opponent)
        if self._judge is not None:
            self._judge.require([])
        schedule.on_saved = lambda: self._look(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A resumed run looks at the checkpoints that it has, before it trains on."""
        assert isinstance(pl_module, HasReference)
        self._seen, self._files = {}, {}
        folder = self._schedule(trainer).folder
        if trainer.ckpt_path is None or not pl_module.examples_seen:
            if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
                (folder / BEST).unlink(missing_ok=True)  # of an earlier run
            return
        resumed = Path(trainer.ckpt_path)
        for place in dict.fromkeys([resumed.resolve().parent, folder.resolve()]):
            self._files |= {
                seen: path for path in checkpoint_paths(place) if (seen := examples_of(path)) <= pl_module.examples_seen
            }
        self._files.setdefault(pl_module.examples_seen, resumed)
        trainer.should_stop = trainer.should_stop or self._over(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the schedule as it was, and say which checkpoint is best."""
        self._schedule(trainer).on_saved = None
        if not trainer.is_global_zero or not self._seen:
            return
        best = self.rule.best(self._seen)
        if best:
            print(
                f"best checkpoint: {self._schedule(trainer).folder / BEST}, after {best:,} examples{self._words(best)}"
            )
        else:
            print(f"no checkpoint is within {self.rule.kl_budget:g} nats: the reference is the policy to ship")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the schedule as it was."""
        for schedule in trainer.checkpoint_callbacks:
            if isinstance(schedule, CheckpointSchedule):
                schedule.on_saved = None

    def _look(self, trainer: Trainer, module: HasReference) -> bool:
        """At the checkpoint that has just been saved."""
        self._files[module.examples_seen] = checkpoint_path(self._schedule(trainer).folder, module.examples_seen)
        return self._over(trainer, module)

    def _over(self, trainer: Trainer, module: HasReference) -> bool:
        """Measure what has not been, keep the best, and say whether the training ends, on all processes alike."""
        over, problem = False, None
        if trainer.is_global_zero:
            try:
                over = self._measure(trainer, module)
            except Exception as error:  # told to all first, or they would wait for this process for ever
                problem = error
        over, failed = trainer.strategy.broadcast((over, None if problem is None else str(problem)))
        if problem is not None:
            raise problem
        if failed is not None:
            raise ValueError(f"the first process could not look at a checkpoint: {failed}")
        return over and self._action == "stop"

    def _measure(self, trainer: Trainer, module: HasReference) -> bool:
        """Whether the run is over."""
        for seen in sorted(self._files.keys() - self._seen.keys()):
            evaluation = self._evaluate(self._files[seen], trainer, module)
            self._seen[seen] = measured(evaluation)
            if trainer.logger is not None:
                names = ("kl_nats", "kl_se", "win_rate", "win_rate_se")
                found = {f"watch/{name}": evaluation.metrics.get(f"eval/{name}", math.nan) for name in names}
                trainer.logger.log_metrics({k: v for k, v in found.items() if not math.isnan(v)}, step=seen)
        folder, best, newest = self._schedule(trainer).folder, self.rule.best(self._seen), max(self._seen)
        if best:
            _put_beside(self._files[best], folder / BEST)
        else:
            (folder / BEST).unlink(missing_ok=True)
        over = self.rule.past_peak(self._seen)
        print(f"after {newest:,} examples{self._words(newest)}{self._verdict(newest, best, over)}")
        return over

    def _evaluate(self, path: Path, trainer: Trainer, module: HasReference) -> CheckpointEvaluation:
        device = trainer.strategy.root_device
        # Opening a model draws weights before it reads them: what the training draws stays as it was.
        with torch.random.fork_rng(devices=[]):
            # Opened anew each time: between checkpoints the memory is the training's.
            reference, policy = (load_policy(location).to(device) for location in (module.reference, path))
            samples = SampleEvaluator(
                module.data,
                reference,
                self._judge,
                num_prompts=self._num_prompts,
                opponent=self._opponent,
                seed=self._seed,
            )
            return samples.evaluate(policy)

    def _words(self, seen: int) -> str:
        found = self._seen[seen]
        rate = "" if math.isnan(found.win_rate) else f", win rate {found.win_rate:.3f}"
        return f": KL {found.kl_nats:.2f} nats{rate}"

    def _verdict(self, newest: int, best: int, over: bool) -> str:
        if not over:
            return ""
        if not self.rule.allows(self._seen[newest].kl_nats):
            why = f"beyond the budget of {self.rule.kl_budget:g} nats"
        else:
            lost = lost_since(self._seen[best], self._seen[newest])
            why = f"{lost.mean:.3f} ± {lost.standard_error:.3f} below its best, after {best:,} examples"
        return f", {why}" + ("; the training ends" if self._action == "stop" else "; the training goes on")

    @staticmethod
    def _schedule(trainer: Trainer) -> CheckpointSchedule:
        schedules = [c for c in trainer.checkpoint_callbacks if isinstance(c, CheckpointSchedule)]
        if len(schedules) != 1:
            raise ValueError(
                f"StopAtKL looks at the checkpoints of one CheckpointSchedule, found {len(schedules)}: give the "
                "trainer one (overopt fit has it, unless --trainer.enable_checkpointing is false)"
            )
        return schedules[0]


def _put_beside(source: Path, target: Path) -> None:
    """The same file under another name, where possible without room of its own; whole or absent."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    unfinished.unlink(missing_ok=True)
    try:
        try:
            os.link(source.resolve(), unfinished)
        except OSError:  # another file system, or one without links
            shutil.copyfile(source, unfinished)
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)
