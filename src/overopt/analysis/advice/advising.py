"""What to do about an objective and model, of a sweep that may be a part of one only: ship, stop or try what.

It refuses where the data can't carry it, and says what is missing.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from overopt.analysis.advice.checkpoint_choice import TOLERANCE, Choice, choose_checkpoint
from overopt.analysis.advice.next_beta import NextBeta, propose_beta
from overopt.analysis.advice.peak_rule import STANDARD_ERRORS, Measured, PeakRule, lost_since
from overopt.analysis.advice.predicted_peak import PredictedPeak, predict_peak
from overopt.analysis.laws.curves import Curve, curves_of, group_name, require_columns
from overopt.analysis.laws.intervals import NORMAL_QUANTILE, Estimate, around
from overopt.analysis.laws.resampling import RESAMPLES, prompt_deviations

_SURE, _LIKELY = 0.95, 0.5
State = Literal["past", "perhaps past", "not past"]


@dataclass(frozen=True)
class Wishes:
    """What whoever ships a policy wants of it.

    Attributes:
        kl_budget: only checkpoints within it count [nats]; no limit by default.
        target: a win rate that is enough.
        tolerance: win rate that may be given up for a policy nearer to the reference.

    Raises:
        ValueError: a budget that is not positive, or a rate that is none.
    """

    kl_budget: float | None = None
    target: float | None = None
    tolerance: float = TOLERANCE

    def __post_init__(self) -> None:
        if self.kl_budget is not None and not 0 < self.kl_budget < math.inf:
            raise ValueError(f"a KL budget is a positive number of nats, got {self.kl_budget:g}")
        if self.target is not None and not 0 < self.target < 1:
            raise ValueError(f"a target is a win rate between 0 and 1, such as 0.55, got {self.target:g}")
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"a tolerance is a difference of win rates from 0 to below 1, got {self.tolerance:g}")


@dataclass(frozen=True)
class EvaluatedCheckpoint:
    """A checkpoint as measured.

    Attributes:
        run_id: of its run; empty where the table has none.
        beta: of training [reward / nat].
        examples_seen: pairs trained on.
        kl_nats: with its 95% interval [nats].
        win_rate: likewise.
    """

    run_id: str
    beta: float
    examples_seen: int
    kl_nats: Estimate
    win_rate: Estimate


@dataclass(frozen=True)
class RunState:
    """How a run stands to the peak.

    Attributes:
        newest: its last evaluated checkpoint.
        best: the checkpoint of it that wins most within the budget; ``None`` where none is.
        lost: win rate of ``best`` less that of ``newest``, paired; NaN without a best.
        over_budget: whether its last checkpoint is.
        beyond_peak: share of resamples in which the curve peaks before its last checkpoint.
        state: past: over the budget, or below its own best by more than two standard errors, or beyond the curve's
            peak in 95% of resamples; perhaps past: beyond it in more than half.
        started_last: among the runs of the curve.
        furthest: whether no run of the curve went further.
    """

    newest: EvaluatedCheckpoint
    best: EvaluatedCheckpoint | None
    lost: Estimate
    over_budget: bool
    beyond_peak: float
    state: State
    started_last: bool
    furthest: bool


@dataclass(frozen=True)
class Advice:
    """Of one objective and model.

    Attributes:
        objective: as in the points table.
        model: as in the points table.
        wishes: that were kept to.
        num_runs: with an evaluated checkpoint.
        num_checkpoints: evaluated, the reference not counted.
        num_prompts: behind each win rate, where completions are kept.
        reference_win_rate: with its 95% interval.
        ship: the checkpoint to ship; ``None`` for the reference.
        expected: win rate of ``ship`` on fresh prompts, the luck of being picked taken off; NaN for the reference.
        best: the checkpoint that wins most within the budget, as measured; ``None`` without one.
        gain: of ``best`` over the reference, paired; NaN without one.
        alike: checkpoints that can't be told from ``best``, nearest to the reference first.
        best_of_all: the one that wins most, budget or not.
        reaches_target: whether a checkpoint wins more than the target beyond chance; ``None`` without a target.
        peak: predicted.
        runs: all of them, by beta.
        next_beta: to try.
        remarks: what limits the advice, in words.
    """

    objective: str
    model: str
    wishes: Wishes
    num_runs: int
    num_checkpoints: int
    num_prompts: int | None
    reference_win_rate: Estimate
    ship: EvaluatedCheckpoint | None
    expected: Estimate
    best: EvaluatedCheckpoint | None
    gain: Estimate
    alike: tuple[EvaluatedCheckpoint, ...]
    best_of_all: EvaluatedCheckpoint
    reaches_target: bool | None
    peak: PredictedPeak
    runs: tuple[RunState, ...]
    next_beta: NextBeta
    remarks: tuple[str, ...]

    @property
    def name(self) -> str:
        """In words."""
        return group_name(self.objective, self.model)


class Advices(NamedTuple):
    """Of a study.

    Attributes:
        given: one an objective and model.
        refused: of the others, why not, in words.
        notes: what was left out of the points, in words.
    """

    given: list[Advice]
    refused: tuple[str, ...]
    notes: tuple[str, ...]


def advise(
    points: pd.DataFrame,
    completions: pd.DataFrame | None = None,
    *,
    wishes: Wishes = Wishes(),
    started: Mapping[str, float] | None = None,
    resamples: int = RESAMPLES,
) -> Advices:
    """Advise on every objective and model of a points table.

    Args:
        points: rows as :func:`overopt.tracking.tables.read_points` gives them.
        completions: as for :func:`overopt.analysis.laws.curves.curves_of`; without them differences of win rates are
            taken as if each checkpoint had prompts of its own, which hides small ones.
        wishes: of whoever ships.
        started: when each run was started, by id.
        resamples: for intervals and choices.

    Raises:
        ValueError: no objective and model has data enough; the message says what is missing.
    """
    require_columns(points, ["run_id", "objective", "model", "beta", "examples_seen", "kl_nats", "win_rate"])
    found = curves_of(points, completions)
    curves = {(curve.objective, curve.model): curve for curve in found.select()}
    given, refused = [], []
    for (objective, model), rows in points.groupby(["objective", "model"], sort=True):
        name = group_name(str(objective), str(model))
        try:
            if (str(objective), str(model)) not in curves:
                raise ValueError(_nothing_measured(rows))
            given.append(advise_on(curves[str(objective), str(model)], wishes, started, resamples))
        except ValueError as problem:
            refused.append(f"{name}: no advice: {problem}")
    if not given:
        more = f" (and {len(refused) - 1} more of {len(refused)} curves)" if len(refused) > 1 else ""
        raise ValueError((refused[0] if refused else "no advice: the points table is empty") + more)
    return Advices(given, tuple(refused), found.notes)


def advise_on(
    curve: Curve,
    wishes: Wishes = Wishes(),
    started: Mapping[str, float] | None = None,
    resamples: int = RESAMPLES,
) -> Advice:
    """Advise on one curve: all checkpoints of an objective and model against KL.

    Raises:
        ValueError: its data can't carry it; the message says what is missing.
    """
    _require_enough(curve)
    own = prompt_deviations(curve, resamples).win_rate.std(axis=0)
    if not (own > 0).any():
        raise ValueError(
            "its win rates have neither standard errors nor kept completions, so chance can't be told from more: "
            "evaluate its checkpoints again (overopt evaluate keeps both)"
        )
    choice = choose_checkpoint(
        curve, kl_budget=wishes.kl_budget, target=wishes.target, tolerance=wishes.tolerance, resamples=resamples
    )
    peak = predict_peak(curve, resamples)
    resolution = float(np.median(own))
    reached = curve.reference_win_rate if choice.pick is None else choice.expected.value
    checkpoints = [_checkpoint(curve, place, float(own[place])) for place in range(len(curve.d))]
    alike = sorted(choice.alike.tolist(), key=lambda place: float(curve.divergence[place]))
    return Advice(
        objective=curve.objective,
        model=curve.model,
        wishes=wishes,
        num_runs=int(curve.run.max()) + 1,
        num_checkpoints=len(curve.d),
        num_prompts=None if curve.outcomes is None else len(curve.outcomes.wins),
        reference_win_rate=around(curve.reference_win_rate, curve.reference_se),
        ship=None if choice.pick is None else checkpoints[choice.pick],
        expected=choice.expected,
        best=None if choice.best is None else checkpoints[choice.best],
        gain=choice.gain,
        alike=tuple(checkpoints[place] for place in alike),
        best_of_all=checkpoints[int(curve.win_rate.argmax())],
        reaches_target=choice.reaches_target,
        peak=peak,
        runs=_run_states(curve, checkpoints, wishes, peak, started or {}),
        next_beta=propose_beta(curve, peak, reached=reached, resolution=resolution, kl_budget=wishes.kl_budget),
        remarks=tuple(_remarks(curve, choice, peak, resolution)),
    )


def _nothing_measured(rows: pd.DataFrame) -> str:
    trained = rows[rows["examples_seen"] > 0]
    if not len(trained):
        return "only its reference is evaluated: evaluate trained checkpoints (overopt evaluate FOLDER --judge ...)"
    missing = [name for name in ("kl_nats", "win_rate") if trained[name].isna().all()]
    what = f"none of its {len(trained)} checkpoints has a {' and a '.join(missing or ['KL and a win rate together'])}"
    return f"{what}: evaluate them with a judge (overopt evaluate FOLDER --judge ...)"


def _require_enough(curve: Curve) -> None:
    try:
        curve.require_betas()
    except ValueError as problem:
        betas = ", ".join(f"{beta:g}" for beta in np.unique(curve.beta))
        raise ValueError(
            f"{problem} to tell a curve from luck (found {betas}): train and evaluate at another beta, a few times "
            "smaller or larger"
        ) from problem
    if not math.isfinite(curve.reference_win_rate):
        raise ValueError(
            "the reference's own win rate is not known (no row at 0 examples has one), so nothing says whether "
            "training helped: overopt evaluate measures it beside any checkpoint"
        )
    if not curve.can_be_fitted():
        raise ValueError(
            f"its {len(curve.d)} checkpoints lie at fewer than 2 distances from the reference, so there is no curve: "
            "evaluate earlier checkpoints too, or train longer"
        )


def _checkpoint(curve: Curve, place: int, win_rate_se: float) -> EvaluatedCheckpoint:
    return EvaluatedCheckpoint(
        run_id=curve.run_ids[int(curve.run[place])] if curve.run_ids else "",
        beta=float(curve.beta[place]),
        examples_seen=int(curve.examples_seen[place]),
        kl_nats=around(float(curve.divergence[place]), float(curve.divergence_se[place])),
        win_rate=around(float(curve.win_rate[place]), win_rate_se),
    )


def _run_states(
    curve: Curve,
    checkpoints: list[EvaluatedCheckpoint],
    wishes: Wishes,
    peak: PredictedPeak,
    started: Mapping[str, float],
) -> tuple[RunState, ...]:
    rule = PeakRule(wishes.kl_budget, STANDARD_ERRORS)
    last_start = max((started[run] for run in curve.run_ids if run in started), default=math.nan)
    last = np.array([curve.examples_seen[curve.run == run].max() for run in curve.run])
    furthest = float(curve.divergence[curve.examples_seen == last].max())
    states = []
    for run in range(int(curve.run.max()) + 1):
        places = {int(curve.examples_seen[place]): int(place) for place in np.flatnonzero(curve.run == run)}
        measured = {seen: _measured(curve, place) for seen, place in places.items()}
        newest = max(places)
        best = rule.best(measured)
        lost = Estimate(math.nan)
        if best:
            mean, error = lost_since(measured[best], measured[newest])
            lost = around(mean, error)
        beyond = peak.chance_before(float(curve.d[places[newest]]))
        past = rule.past_peak(measured)
        states.append(
            RunState(
                newest=checkpoints[places[newest]],
                best=checkpoints[places[best]] if best else None,
                lost=lost,
                over_budget=not rule.allows(measured[newest].kl_nats),
                beyond_peak=beyond,
                state="past" if past or beyond >= _SURE else "perhaps past" if beyond > _LIKELY else "not past",
                started_last=bool(curve.run_ids) and started.get(curve.run_ids[run]) == last_start,
                furthest=measured[newest].kl_nats == furthest,
            )
        )
    return tuple(sorted(states, key=lambda state: (state.newest.beta, state.newest.run_id)))


def _measured(curve: Curve, place: int) -> Measured:
    return Measured(
        float(curve.divergence[place]),
        float(curve.win_rate[place]),
        float(curve.win_rate_se[place]),
        None if curve.outcomes is None else curve.outcomes.wins[:, place],
    )


def _remarks(curve: Curve, choice: Choice, peak: PredictedPeak, resolution: float) -> list[str]:
    remarks = []
    if curve.outcomes is None:
        remarks.append(
            "no completions are kept for all its checkpoints: differences are taken as if each had prompts of its own, "
            "which hides small ones"
        )
    if choice.pick is not None and peak.exists and peak.win_rate.value < choice.expected.low:
        remarks.append(
            f"the law lies below the checkpoints near its peak (it says {peak.win_rate.value:.3f} at most): "
            "far ones pull it down, so trust the place of its peak more than the height"
        )
    if len(np.unique(curve.run)) == len(np.unique(curve.beta)):
        remarks.append("one run a beta: how much another seed would change is not known")
    if resolution > 0.025:
        remarks.append(
            f"a win rate here is known to ± {100 * NORMAL_QUANTILE * resolution:.0f} points only: "
            "more prompts would tell more"
        )
    return remarks
