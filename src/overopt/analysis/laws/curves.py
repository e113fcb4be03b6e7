"""Curves: the checkpoints of one objective and model, as distances and win rates, with what each prompt gave."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from overopt.analysis.laws.laws import distance

R0Setting = Literal["measured", "fitted", "zero"]
AXES = {"kl": "kl_nats", "forward_kl": "forward_kl_nats"}
ERRORS = {"kl": "kl_se", "forward_kl": "forward_kl_se"}
POINT_SETS = ("final", "all")
# Two coefficients, and one beta more so that a curve can be checked at all.
MINIMUM_BETAS = 3
# Nearer distances than this, relative to the largest, leave a law's coefficients open.
APART = 1e-3
OBJECTIVE_NAMES = {
    "dpo": "DPO",
    "ipo": "IPO",
    "slic": "SLiC",
    "rloo": "RLOO",
    "reinforce": "REINFORCE",
    "ppo": "PPO",
}


class Outcomes(NamedTuple):
    """What single prompts gave, a row each; NaN where a prompt has none.

    Attributes:
        wins: probability that the sample beats the dataset's response.
        log_ratios: log pi - log pi_ref of the sample [nats], the k1 estimate of KL; all NaN for another axis.
        reference_wins: of the reference's own samples, averaged over the curve's references.
    """

    wins: Float[np.ndarray, "prompt point"]
    log_ratios: Float[np.ndarray, "prompt point"]
    reference_wins: Float[np.ndarray, " prompt"]


@dataclass(frozen=True)
class Curve:
    """Trained checkpoints of one objective and model, those without a divergence or win rate left out.

    Attributes:
        objective: as in the points table.
        model: as in the points table.
        axis: a key of :data:`AXES`, the divergence that d is the root of.
        points: final or all checkpoints.
        divergence: mean of each point [nats].
        divergence_se: its standard error; 0 where there is none.
        win_rate: of each point.
        win_rate_se: its standard error; NaN where there is none.
        beta: of training [reward / nat].
        run: number of each point's run, from 0.
        examples_seen: pairs trained on.
        reference_win_rate: R0 as measured; NaN where it was not.
        reference_se: its standard error; 0 where there is none.
        outcomes: by prompt; ``None`` where the completions were not kept.
        run_ids: of the runs, by their number.
    """

    objective: str
    model: str
    axis: str
    points: str
    divergence: Float[np.ndarray, " point"]
    divergence_se: Float[np.ndarray, " point"]
    win_rate: Float[np.ndarray, " point"]
    win_rate_se: Float[np.ndarray, " point"]
    beta: Float[np.ndarray, " point"]
    run: Int[np.ndarray, " point"]
    examples_seen: Int[np.ndarray, " point"]
    reference_win_rate: float
    reference_se: float = 0.0
    outcomes: Outcomes | None = None
    run_ids: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """In words."""
        return group_name(self.objective, self.model)

    @cached_property
    def d(self) -> Float[np.ndarray, " point"]:
        """Distances from the reference [sqrt(nats)]."""
        return distance(self.divergence)

    @cached_property
    def weights(self) -> Float[np.ndarray, " point"]:
        """1 / se^2 of each point's win rate over their mean; 1 where standard errors are missing."""
        squares = self.win_rate_se**2
        if not np.isfinite(squares).all() or not (squares > 0).any():
            return np.ones_like(squares)
        # A judge that always prefers one side leaves a standard error of 0, which is no certainty.
        weights = 1 / np.maximum(squares, squares[squares > 0].min())
        result: Float[np.ndarray, " point"] = weights / weights.mean()
        return result

    def require_betas(self) -> None:
        """Raise a ValueError where there are too few betas for a curve."""
        found = len(np.unique(self.beta))
        if found < MINIMUM_BETAS:
            raise ValueError(f"{found} distinct beta{'s' * (found != 1)}, {MINIMUM_BETAS} needed")

    def can_be_fitted(self, r0: R0Setting = "measured") -> bool:
        """Whether there are betas, points and distances enough, and a reference where it is asked for."""
        enough = len(np.unique(self.beta)) >= MINIMUM_BETAS and len(self.d) >= 3
        positive = self.d[self.d > 0]
        apart = len(positive) >= 2 and np.ptp(positive) > APART * positive.max()
        return bool(enough and apart) and (r0 != "measured" or math.isfinite(self.reference_win_rate))

    def r0(self, setting: R0Setting) -> float | None:
        """The value at d = 0 to hold fixed; ``None`` is to be fitted."""
        return {"measured": self.reference_win_rate, "fitted": None, "zero": 0.0}[setting]


class Curves(NamedTuple):
    """All curves of a points table.

    Attributes:
        curves: one an objective, model, axis and set of points.
        notes: what was left out or cut, and why, in words.
    """

    curves: list[Curve]
    notes: tuple[str, ...]

    def select(self, axis: str = "kl", points: str = "all") -> list[Curve]:
        """Those of one axis and set of points."""
        return [curve for curve in self.curves if (curve.axis, curve.points) == (axis, points)]


def curves_of(points: pd.DataFrame, completions: pd.DataFrame | None = None) -> Curves:
    """Every objective and model, against each divergence, final and all checkpoints.

    Rows at ``examples_seen`` 0 are the reference: they give R0 and are not points of a curve.

    Args:
        points: rows as :func:`overopt.tracking.tables.read_points` gives them.
        completions: run_id, examples_seen, prompt_id, win_probability, policy_log_prob and reference_log_prob.

    Raises:
        ValueError: columns are missing.
    """
    require_columns(points, ["objective", "model", "beta", "examples_seen", "run_id", "win_rate"])
    by_prompt = _ByPrompt.of(completions)
    curves: list[Curve] = []
    notes: list[str] = []
    for (objective, model), group in points.groupby(["objective", "model"], sort=True):
        name = group_name(str(objective), str(model))
        if len(group.groupby("run_id")["examples_seen"].max().unique()) > 1:
            notes.append(f"{name}: its runs end after different numbers of examples")
        remarks: dict[str, list[str]] = {}
        for axis, column in AXES.items():
            if column not in group:
                continue
            for which, selected in _point_sets(group):
                kept, cut = _finite_rows(selected, column)
                for remark in cut:
                    remarks.setdefault(remark, []).append(f"{which} checkpoints against {axis}")
                if len(kept):
                    curves.append(_curve(str(objective), str(model), axis, which, kept, group, by_prompt))
        notes += [f"{name}: {remark} ({', '.join(places)})" for remark, places in remarks.items()]
    return Curves(curves, tuple(notes))


def _curve(
    objective: str,
    model: str,
    axis: str,
    which: str,
    kept: pd.DataFrame,
    group: pd.DataFrame,
    by_prompt: "_ByPrompt | None",
) -> Curve:
    references = group[group["examples_seen"] == 0]
    reference_se = float(references["win_rate_se"].mean()) if "win_rate_se" in references else math.nan

    def column(name: str) -> Float[np.ndarray, " point"]:
        values: Float[np.ndarray, " point"] = (
            kept[name].to_numpy(float) if name in kept else np.full(len(kept), math.nan)
        )
        return values

    return Curve(
        objective=objective,
        model=model,
        axis=axis,
        points=which,
        divergence=column(AXES[axis]),
        divergence_se=np.nan_to_num(column(ERRORS[axis])),
        win_rate=column("win_rate"),
        win_rate_se=column("win_rate_se"),
        beta=column("beta"),
        run=pd.factorize(kept["run_id"])[0],
        examples_seen=kept["examples_seen"].to_numpy(int),
        reference_win_rate=float(references["win_rate"].mean()),
        reference_se=0.0 if math.isnan(reference_se) else reference_se,
        outcomes=None if by_prompt is None else by_prompt.select(kept, references, axis),
        run_ids=tuple(kept["run_id"].astype(str).unique()),
    )


@dataclass(frozen=True)
class _ByPrompt:
    """All completions of a study as matrices, a column a run and checkpoint."""

    columns: dict[tuple[str, int], int]
    wins: Float[np.ndarray, "prompt column"]
    log_ratios: Float[np.ndarray, "prompt column"]

    @classmethod
    def of(cls, completions: pd.DataFrame | None) -> "_ByPrompt | None":
        wanted = ["run_id", "examples_seen", "prompt_id", "win_probability", "policy_log_prob", "reference_log_prob"]
        if completions is None or not len(completions) or not set(wanted) <= set(completions.columns):
            return None
        rows, prompts = pd.factorize(completions["prompt_id"], sort=True)
        keys = pd.MultiIndex.from_frame(completions[["run_id", "examples_seen"]])
        columns, names = pd.factorize(keys)
        wins, log_ratios = (np.full((len(prompts), len(names)), math.nan) for _ in range(2))
        wins[rows, columns] = completions["win_probability"].to_numpy(float)
        log_ratios[rows, columns] = completions["policy_log_prob"].to_numpy(float) - completions[
            "reference_log_prob"
        ].to_numpy(float)
        places = {(str(run), int(seen)): place for place, (run, seen) in enumerate(names)}
        return cls(places, wins, log_ratios)

    def select(self, kept: pd.DataFrame, references: pd.DataFrame, axis: str) -> Outcomes | None:
        """Those of a curve; ``None`` where some checkpoint has none, or too few prompts a verdict."""
        places, starts = (
            [self.columns[key] for key in _keys(rows) if key in self.columns] for rows in (kept, references)
        )
        if len(places) < len(kept):
            return None
        wins = self.wins[:, places]
        used = np.isfinite(wins).any(axis=1)
        if not np.isfinite(wins).any(axis=0).all() or used.sum() < 2:
            return None
        log_ratios = self.log_ratios[:, places]
        reference_wins = np.full(len(wins), math.nan)
        if starts:
            known = np.isfinite(self.wins[:, starts])
            reference_wins = np.divide(
                np.where(known, self.wins[:, starts], 0).sum(axis=1),
                known.sum(axis=1),
                out=reference_wins,
                where=known.any(axis=1),
            )
        if axis != "kl":  # the forward KL is no mean over samples
            log_ratios = np.full_like(log_ratios, math.nan)
        return Outcomes(wins[used], log_ratios[used], reference_wins[used])


def _keys(rows: pd.DataFrame) -> list[tuple[str, int]]:
    return [(str(run), int(seen)) for run, seen in zip(rows["run_id"], rows["examples_seen"], strict=True)]


def group_name(objective: str, model: str) -> str:
    """How a curve is called in words: 'DPO, gpt_neox-0.5M'.

    >>> group_name("dpo", "pythia-1b")
    'DPO, pythia-1b'
    """
    return f"{OBJECTIVE_NAMES.get(objective, objective)}, {model}"


def objective_title(objective: str) -> str:
    """An objective as people write it.

    >>> objective_title("dpo, length penalty 0.01")
    'DPO, length penalty 0.01'
    """
    name, comma, rest = objective.partition(",")
    return OBJECTIVE_NAMES.get(name, name) + comma + rest


def require_columns(points: pd.DataFrame, columns: Sequence[str]) -> None:
    """Refuse a table that lacks columns.

    Raises:
        ValueError: naming the missing ones.
    """
    if missing := [column for column in columns if column not in points]:
        raise ValueError(f"the points table lacks {', '.join(missing)}; it has {', '.join(points.columns)}")


def final_checkpoints(points: pd.DataFrame) -> pd.DataFrame:
    """Each run's last evaluated checkpoint."""
    last = points.groupby("run_id")["examples_seen"].transform("max")
    return points[points["examples_seen"] == last]


def training_fractions(points: pd.DataFrame) -> "pd.Series[float]":
    """How much of its whole run each row has behind it; NaN where only the reference was evaluated."""
    fractions: pd.Series[float] = points["examples_seen"] / points.groupby("run_id")["examples_seen"].transform("max")
    return fractions


def checkpoint_ranks(points: pd.DataFrame) -> "pd.Series[int]":
    """Which of its run's checkpoints each row is: 1 for the first, 0 for the reference.

    Seeds whose pairs are a few more or fewer have the same checkpoint after different numbers of examples.
    """
    trained = points["examples_seen"].where(points["examples_seen"] > 0)
    ranks: pd.Series[int] = trained.groupby(points["run_id"]).rank(method="dense").fillna(0).astype(int)
    return ranks


def _point_sets(group: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    trained = group[group["examples_seen"] > 0]
    yield "final", final_checkpoints(trained)
    yield "all", trained


def _finite_rows(rows: pd.DataFrame, column: str) -> tuple[pd.DataFrame, list[str]]:
    """Rows that can be a point, and what was left out or cut."""
    notes = []
    finite = np.isfinite(rows[[column, "win_rate"]].to_numpy(float)).all(axis=1)
    kept = rows[finite]
    if lost := len(rows) - len(kept):
        notes.append(f"{lost} of {len(rows)} points left out: {column} or win_rate is missing")
    if negative := int((kept[column] < 0).sum()):
        notes.append(f"{negative} of {len(kept)} points have a negative mean {column}, taken as distance 0")
    return kept, notes
