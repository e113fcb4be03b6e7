"""Stage ``judge``: completions in, verdicts and what they say out, with progress, cost limit, cache and tracking."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mlflow import MlflowClient
from rich.progress import Progress, TaskID

from overopt.evaluation.judges.budget import Budget, CostLimitError
from overopt.evaluation.judges.orders import Order, in_order
from overopt.evaluation.judges.protocol import Estimate, Judge, OnVerdict, ignore
from overopt.evaluation.judges.verdict_cache import Cached, VerdictCache
from overopt.evaluation.records import Comparison, Verdict, read_json_lines, write_json_lines
from overopt.evaluation.verdict_summary import VerdictSummary, summarise_by_words
from overopt.progress import progress_bar
from overopt.tracking.runs import (
    find_run,
    finishing,
    log_artifact,
    log_metrics,
    log_params,
    require_run,
    set_tags,
    start_run,
)
from overopt.tracking.store import open_store

_JUDGING_TAG = "overopt.judging"


@dataclass(frozen=True)
class Judging:
    """How comparisons are judged.

    Attributes:
        judge: who judges.
        order: in which a judge that reads both texts sees them.
        seed: of the order.
        cache: SQLite file of verdicts.
        max_cost: of all verdicts; no limit by default.
    """

    judge: Judge
    order: Order
    seed: int
    cache: Path
    max_cost: float | None = None

    def cached(self) -> Judge:
        """The judge behind its cache, asked in the order wanted.

        Raises:
            ValueError: the file is no cache.
        """
        return in_order(Cached(self.judge, VerdictCache(self.cache)), self.order, self.seed)

    def open(self, progress: Progress) -> "SupervisedJudge":
        """The same with a cost limit, and a bar on what it does.

        Raises:
            ValueError: the file is no cache, or the limit no cost.
        """
        budget = Budget(self.max_cost)
        return SupervisedJudge(self.cached(), budget, self.cache, progress)

    def require(self, comparisons: Sequence[Comparison] = ()) -> None:
        """Say what is missing before anything is made: what the judge needs, unless its cache knows all answers.

        Args:
            comparisons: as far as they are there already.

        Raises:
            ValueError: something is missing, or a file that is there is no cache.
        """
        asks = self.judge.estimate(comparisons[:1]).calls > 0
        all_known = asks and self.cache.exists() and not self.cached().estimate(comparisons).calls
        if not all_known:
            self.judge.require(comparisons, self.max_cost)


class SupervisedJudge(Judge):
    """A judge that says beforehand what it will ask, shows how far it is, and keeps to a budget.

    Args:
        judge: answers from its cache first.
        budget: shared by all that is judged.
        cache: its file, for messages.
        progress: gets a row.
    """

    def __init__(self, judge: Judge, budget: Budget, cache: Path, progress: Progress) -> None:
        self._judge = judge
        self._budget = budget
        self._cache = cache
        self._progress = progress
        self._task: TaskID | None = None
        self._total = 0

    @property
    def settings(self) -> dict[str, str]:
        """The judge's."""
        return self._judge.settings

    def judge(
        self, comparisons: Sequence[Comparison], on_verdict: OnVerdict = ignore, budget: Budget | None = None
    ) -> list[Verdict]:
        """The judge's verdicts.

        Raises:
            ValueError: it stopped; the message says how much is kept, and how to go on.
        """
        estimate = self.estimate(comparisons)
        if estimate.calls:
            self._progress.console.print(estimate_text(estimate, len(comparisons)), highlight=False, soft_wrap=True)
        self._total += len(comparisons)
        if self._task is None:
            self._task = self._progress.add_task("judging", total=self._total)
        self._progress.update(self._task, total=self._total)
        task, done = self._task, 0

        def count(place: int, verdict: Verdict) -> None:
            nonlocal done
            done += 1
            speed = self._progress.tasks[self._progress.task_ids.index(task)].speed
            rate = f", {speed:.3g}/s" if speed else ""
            cost = f", {self._budget.spent:.4g} {estimate.currency}" if self._budget.spent else ""
            self._progress.update(task, advance=1, description=f"judging{rate}{cost}")
            on_verdict(place, verdict)

        try:
            return self._judge.judge(comparisons, count, self._budget)
        except ValueError as error:
            if not done:
                raise
            more = " with a higher --max-cost" if isinstance(error, CostLimitError) else ""
            raise ValueError(
                f"{error}; {done:,} of {len(comparisons):,} comparisons are judged and kept in {self._cache}: start "
                f"the same command again{more} to go on"
            ) from error

    def estimate(self, comparisons: Sequence[Comparison]) -> Estimate:
        """The judge's."""
        return self._judge.estimate(comparisons)


def estimate_text(estimate: Estimate, comparisons: int) -> str:
    """What will be asked, for people."""
    cost = f"about {estimate.cost:.4g} {estimate.currency}" if estimate.cost is not None else "at a price unknown here"
    return (
        f"{comparisons:,} comparisons: {estimate.calls:,} questions to ask, about {estimate.input_tokens:,.0f} tokens "
        f"in and {estimate.output_tokens:,.0f} out, {cost}"
    )


class _File(NamedTuple):
    """A file of completions: its rows as they are, and what is compared."""

    path: Path
    rows: list[dict[str, Any]]
    comparisons: list[Comparison]

    @property
    def examples_seen(self) -> int | None:
        """As evaluate names its files; ``None`` where the name says nothing."""
        found = re.fullmatch(r"examples-(\d+)", self.path.stem)
        return int(found.group(1)) if found else None


def judge_files(
    judging: Judging,
    completions: Path,
    estimate_only: bool,
    out: Path | None,
    run_id: str | None,
    tracking_uri: str | None,
) -> None:
    """Stage ``judge``; see :func:`overopt.stages.judge`."""
    files = _read(completions)
    folder = out or (completions if completions.is_dir() else completions.parent) / "judged"
    if folder.resolve() in {file.path.parent.resolve() for file in files}:
        raise ValueError(
            f"--out {folder} is where the completions are, which would be overwritten: name another folder"
        )
    unnamed = [file.path.name for file in files if file.examples_seen is None]
    if run_id is not None and unnamed:
        raise ValueError(
            f"{unnamed[0]} does not say at which examples seen run {run_id} gave it: evaluate's files, such as "
            "examples-00019968.jsonl, do; leave --run-id out to log to a run of its own"
        )
    comparisons = [comparison for file in files for comparison in file.comparisons]
    if estimate_only:
        print(estimate_text(judging.cached().estimate(comparisons), len(comparisons)))
        return
    judging.require(comparisons)
    client = open_store(tracking_uri, create=run_id is None)
    if run_id is not None:
        require_run(client, run_id)
    with progress_bar() as progress:
        judge = judging.open(progress)
        if run_id is None:
            run_id = _own_run(client, judge, completions, files)
            tracked: AbstractContextManager[str] = finishing(client, run_id)
        else:
            tracked = nullcontext(run_id)  # it has ended long ago, and stays so
        with tracked:
            verdicts = iter(judge.judge(comparisons))
            # Not before: until there are verdicts, the metrics of a run that was given are of another judge.
            set_tags(client, run_id, judge_tags(judge))
            summaries: dict[Path, VerdictSummary] = {}
            answered_by: set[str] = set()
            for place, file in enumerate(files):
                of_file = [next(verdicts) for _ in file.rows]
                answered_by |= {v.answered_by for v in of_file if v.answered_by is not None}
                judged = folder / file.path.name
                write_json_lines(judged, map(judged_row, file.rows, of_file))
                summary = summarise_by_words(file.comparisons, of_file)
                summaries[file.path] = summary
                log_metrics(client, run_id, summary.metrics(), step=place if unnamed else file.examples_seen or 0)
                log_artifact(client, run_id, judged, "judged")
    print("\n".join(summary_text(summaries)))
    _warn_of_aliases(judge, answered_by)
    print(f"judged completions in {folder}, metrics in run {run_id}")


def judged_row(row: dict[str, Any], verdict: Verdict) -> dict[str, Any]:
    """A completion with its verdict, under the names of :class:`overopt.evaluation.records.Completion`."""
    reward = {} if verdict.sample_reward is None else {"gold_reward": verdict.sample_reward}
    return (
        row
        | reward
        | {
            "win_probability": verdict.win_probability,
            "verdict": verdict.kind,
            "judge_answer": verdict.answer,
            "judge_model": verdict.answered_by,
            "judge_cost": verdict.cost,
            "judge_input_tokens": verdict.input_tokens,
            "judge_output_tokens": verdict.output_tokens,
            "first_preferred": verdict.first_preferred,
        }
    )


def summary_text(summaries: Mapping[Path, VerdictSummary]) -> list[str]:
    """For people: all that is to be said of one file, a table of several."""
    if len(summaries) == 1:
        [(path, summary)] = summaries.items()
        return [f"{path}:", *(f"  {line}" for line in summary.lines())]
    header = ("win rate [95% interval]", "at equal length", "no verdict", "position bias", "cost")
    width = max(len(path.name) for path in summaries)
    lines = [f"{'':<{width}} {'':>7} " + " ".join(f"{name:>23}" for name in header)]
    for path, summary in summaries.items():
        rate, cells = summary.rate, []
        cells.append(f"{rate.win_rate:.3f} [{rate.low:.3f}, {rate.high:.3f}]")
        at_equal, bias = summary.length_controlled, summary.position
        cells.append("-" if at_equal.note else f"{at_equal.win_rate:.3f} [{at_equal.low:.3f}, {at_equal.high:.3f}]")
        cells.append(f"{rate.unreadable_share:.1%}")
        cells.append(f"{bias.bias:+.3f} [{bias.low:+.3f}, {bias.high:+.3f}]" if bias.num_verdicts else "-")
        cells.append(f"{summary.cost:.4g}" if summary.num_priced else "-")
        lines.append(f"{path.name:<{width}} {summary.num_verdicts:>7} " + " ".join(f"{cell:>23}" for cell in cells))
    [*_, last] = summaries.values()
    return [*lines, *(f"of the last one: {line}" for line in last.lines()[1:2])]


def judge_tags(judge: Judge) -> dict[str, str]:
    """Who judged, as tags: a run may be judged again by another, and parameters can't change."""
    return {f"overopt.{name}": value for name, value in judge.settings.items()}


def _read(completions: Path) -> list[_File]:
    paths = sorted(completions.glob("*.jsonl")) if completions.is_dir() else [completions]
    if not paths:
        raise ValueError(f"no completions in {completions}: expected .jsonl files, such as evaluate writes")
    return [_read_file(path) for path in paths]


def _read_file(path: Path) -> _File:
    rows = read_json_lines(path, "completion", dict)
    if not rows:
        raise ValueError(f"{path} is empty: expected completions as JSON Lines")
    comparisons = []
    for number, row in enumerate(rows, start=1):
        if missing := [name for name in ("prompt", "response", "opponent") if not isinstance(row.get(name), str)]:
            raise ValueError(
                f"{path}, line {number}: no {missing[0]}; a completion to be judged has prompt, response and opponent, "
                "the dataset's response that it is held against"
            )
        if not isinstance(row.get("reference"), str | None):
            raise ValueError(f"{path}, line {number}: the reference is no text; leave it out where there is none")
        comparisons.append(
            Comparison(
                str(row.get("prompt_id", number)),
                row["prompt"],
                sample=row["response"],
                opponent=row["opponent"],
                reference=row.get("reference"),
            )
        )
    return _File(path, rows, comparisons)


def _own_run(client: MlflowClient, judge: Judge, completions: Path, files: Sequence[_File]) -> str:
    """The run of this judging, which an interrupted one has left perhaps."""
    digest = hashlib.sha256(json.dumps([judge.settings, [file.rows for file in files]]).encode()).hexdigest()
    tags = {_JUDGING_TAG: digest}
    name = f"{judge.settings['judge']} on {completions.name}"
    run_id = find_run(client, tags) or start_run(client, name, "judge", tags=tags)
    log_params(client, run_id, judge.settings | {"completions": str(completions)})
    return run_id


def _warn_of_aliases(judge: Judge, answered_by: set[str]) -> None:
    name = judge.settings["judge"]
    if len(answered_by) > 1:
        print(f"warning: {name} was answered by {', '.join(sorted(answered_by))}: name the snapshot with --judge.model")
