"""Methods as curves: each seed's win rate, gold and proxy reward against how far its policies went.

A method is one value of ``objective``: all its betas and checkpoints lie on one curve a seed, as in Fig. 1. Best-of-n's
rows join here, and nowhere else in the analysis.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from overopt.analysis.findings.claim import mean_estimate
from overopt.analysis.findings.falls import DRAWS, transients
from overopt.analysis.findings.method_names import in_order
from overopt.analysis.laws.curves import Curves, checkpoint_ranks, curves_of
from overopt.analysis.laws.intervals import Estimate, t_quantile
from overopt.analysis.laws.laws import distance
from overopt.analysis.laws.local_curve import local_curve
from overopt.analysis.laws.resampling import prompt_deviations

MEASURES = {"win_rate": "win rate", "gold_reward": "gold reward", "proxy_reward": "proxy reward"}
"""What a method's curve may show. Of a reward, whose constant means nothing, only gains over the reference."""
COSTS = ("cost_tokens", "cost_seconds")
PLACES = 80
UNKNOWN_SEED = -1
_COLUMNS = (
    "model",
    "num_parameters",
    "method",
    "run_id",
    "seed",
    "beta",
    "step",
    "checkpoint",
    "kl_nats",
    *MEASURES,
    *COSTS,
)


class MethodPoints(NamedTuple):
    """What methods are compared by.

    Attributes:
        table: one row a checkpoint after the reference, or an n above 1 of best-of-n, that has a KL: model,
            num_parameters, method, run_id (empty for best-of-n), seed (-1 where it is unknown), beta [reward / nat],
            step (examples seen, or n), checkpoint (which of its run's, or n), kl_nats, d [sqrt(nats)], win_rate and
            its reference_win_rate, gold_reward and proxy_reward as gains over the run's own reference [logits],
            cost_tokens, cost_seconds.
        transients: model, method and number of checkpoints left out, since training recovered from their dip.
    """

    table: pd.DataFrame
    transients: pd.DataFrame

    def methods(self, model: str) -> list[str]:
        """Of a model, by family."""
        return in_order(self.table.loc[self.table["model"] == model, "method"].unique())


def method_points(
    points: pd.DataFrame, best_of_n: pd.DataFrame | None = None, curves: Curves | None = None
) -> MethodPoints:
    """Checkpoints of every method beside their reference; without a reference a run says nothing here.

    Args:
        points: rows as :func:`overopt.tracking.tables.read_points` gives them.
        best_of_n: rows as :func:`overopt.tracking.best_of_n_points.read_best_of_n` gives them; n = 1 is the reference.
        curves: of these points. Curves that know every prompt's outcome find more dips, since checkpoints that answer
            the same prompts err alike.
    """
    dips = _transients(points, curves)
    keys = pd.Series(list(zip(points["run_id"].astype(str), points["examples_seen"], strict=True)), points.index)
    dipped = keys.isin(dips) if len(keys) else pd.Series(data=False, index=points.index, dtype=bool)
    left_out = points[dipped].groupby(["model", "objective"]).size().rename("number").reset_index()
    points = points.assign(checkpoint=checkpoint_ranks(points))
    tables = [_gains(points[~dipped].rename(columns={"objective": "method", "examples_seen": "step"}), reference=0)]
    if best_of_n is not None and len(best_of_n):
        samples = best_of_n.rename(columns={"objective": "method", "n": "step"}).assign(checkpoint=best_of_n["n"])
        # Runs of a tracking store, but of no policy: no dot of a figure leads to a checkpoint.
        tables.append(_gains(samples, reference=1).assign(run_id=""))
    table = pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)
    table = table.sort_values(["model", "method", "seed", "d", "step"], ignore_index=True)
    return MethodPoints(table, left_out.rename(columns={"objective": "method"}))


def compared_models(table: pd.DataFrame) -> list[str]:
    """Models of a table that were aligned by several methods."""
    pairs = table[["model", "method"]].drop_duplicates().groupby("model").size()
    return sorted(str(model) for model in pairs.index[pairs > 1])


def _gains(rows: pd.DataFrame, *, reference: int) -> pd.DataFrame:
    rows = rows.reindex(columns=list(_COLUMNS))
    rows = rows.astype({**dict.fromkeys(("beta", "kl_nats", *MEASURES, *COSTS), float), "run_id": str, "method": str})
    rows = rows.assign(
        seed=pd.to_numeric(rows["seed"]).astype("Int64").fillna(UNKNOWN_SEED).astype(int),
        num_parameters=pd.to_numeric(rows["num_parameters"]).astype("Int64"),
    )
    starts = rows[rows["step"] == reference].groupby("run_id")[list(MEASURES)].mean()
    own = starts.reindex(rows["run_id"]).set_axis(rows.index)
    rows = rows.assign(
        d=distance(rows["kl_nats"].to_numpy(float)),
        reference_win_rate=own["win_rate"],
        gold_reward=rows["gold_reward"] - own["gold_reward"],
        proxy_reward=rows["proxy_reward"] - own["proxy_reward"],
    )
    rows["win_rate"] = rows["win_rate"].where(rows["reference_win_rate"].notna())
    kept = (rows["step"] > reference) & rows["d"].notna() & rows[list(MEASURES)].notna().any(axis=1)
    return rows[kept]


def _transients(points: pd.DataFrame, curves: Curves | None) -> set[tuple[str, int]]:
    """Run and examples seen of each."""
    if not {"win_rate", "kl_nats"} <= set(points) or not len(points):
        return set()
    found: set[tuple[str, int]] = set()
    for curve in (curves or curves_of(points)).select():
        if curve.outcomes is not None or np.isfinite(curve.win_rate_se).all():
            for place in np.flatnonzero(transients(curve, prompt_deviations(curve, DRAWS).win_rate)):
                found.add((curve.run_ids[int(curve.run[place])], int(curve.examples_seen[place])))
    return found


class SeedPoints(NamedTuple):
    """One seed's checkpoints of one method.

    Attributes:
        d: distances [sqrt(nats)].
        gain: over the reference [win rate, or logits].
        reference: what the curve starts from: the seed's mean reference win rate, 0 for rewards.
    """

    d: Float[np.ndarray, " point"]
    gain: Float[np.ndarray, " point"]
    reference: float

    def at(self, places: Float[np.ndarray, " place"]) -> Float[np.ndarray, " place"]:
        """The curve at distances, from the reference's own value."""
        return self.reference + local_curve(self.d, self.gain, places)


@dataclass(frozen=True)
class MethodCurve:
    """One method, model and measure.

    Attributes:
        model: as in the points table.
        method: as the objective there.
        measure: a key of :data:`MEASURES`.
        seeds: in order; those with too few checkpoints for a curve are left out.
        nearest: smallest distance that every seed has a checkpoint within [sqrt(nats)].
        furthest: largest distance that every seed went to [sqrt(nats)].
    """

    model: str
    method: str
    measure: str
    seeds: dict[int, SeedPoints]
    nearest: float
    furthest: float

    def of_seeds(self, seeds: Sequence[int]) -> "MethodCurve":
        """The same between its ends, of some seeds."""
        return replace(self, seeds={seed: self.seeds[seed] for seed in seeds})

    @cached_property
    def places(self) -> Float[np.ndarray, " place"]:
        """Distances at which the curve is looked at: where every seed has measurements on both sides."""
        return self.places_to(self.furthest)

    def places_to(self, furthest: float) -> Float[np.ndarray, " place"]:
        """The same, ending earlier."""
        places: Float[np.ndarray, " place"] = np.geomspace(self.nearest, furthest, PLACES)
        return places

    def at(self, places: Float[np.ndarray, " place"]) -> Float[np.ndarray, "seed place"]:
        """Every seed's curve."""
        return np.stack([points.at(places) for points in self.seeds.values()])


def method_curve(table: pd.DataFrame, model: str, method: str, measure: str) -> MethodCurve | None:
    """The curve of one method, ``None`` where no seed has enough checkpoints or seeds have no distances in common.

    Args:
        table: of :class:`MethodPoints`.
        model: whose.
        method: which.
        measure: a key of :data:`MEASURES`.
    """
    kept = table[(table["model"] == model) & (table["method"] == method) & table[measure].notna()]
    seeds = {}
    for seed, rows in kept.groupby("seed", sort=True):
        start = float(rows["reference_win_rate"].mean()) if measure == "win_rate" else 0.0
        points = SeedPoints(rows["d"].to_numpy(float), rows[measure].to_numpy(float) - start, start)
        try:
            points.at(points.d[:1])
        except ValueError:
            continue
        seeds[int(str(seed))] = points
    if not seeds:
        return None
    nearest = max(float(points.d[points.d > 0].min()) for points in seeds.values())
    furthest = min(float(points.d.max()) for points in seeds.values())
    return MethodCurve(model, method, measure, seeds, nearest, furthest) if nearest < furthest else None


class SeedPeaks(NamedTuple):
    """The peak of each seed's curve up to some distance.

    Attributes:
        height: the seed's curve at the place where the mean curve of the *other* seeds is highest. The highest place
            of a noisy curve is partly luck, and its height too high; other seeds' luck is another. With one seed
            there are no others: its height is somewhat optimistic.
        fall: from that height to the seed's curve at the furthest distance.
        d: where the seed's own curve is highest [sqrt(nats)]; noise moves it either way.
        at_start: whether that is the nearest distance looked at.
        at_end: whether it is the furthest.
        mean_d: where the mean curve of all seeds is highest [sqrt(nats)].
        end: where that is: at the start, inside, or at the end.
    """

    height: Float[np.ndarray, " seed"]
    fall: Float[np.ndarray, " seed"]
    d: Float[np.ndarray, " seed"]
    at_start: Bool[np.ndarray, " seed"]
    at_end: Bool[np.ndarray, " seed"]
    mean_d: float
    end: str

    @property
    def place(self) -> Estimate:
        """Where the curve peaks [sqrt(nats)]; open where a seed's curve is highest at an end of what was measured."""
        found = mean_estimate(self.d)
        if math.isnan(found.low):
            return found
        return Estimate(
            found.value,
            0.0 if self.at_start.any() else max(found.low, 0.0),
            math.inf if self.at_end.any() else found.high,
        )


def seed_peaks(curve: MethodCurve, furthest: float | None = None) -> SeedPeaks:
    """The peaks of a curve, up to ``furthest`` [sqrt(nats)], by default as far as every seed went."""
    places = curve.places if furthest is None else curve.places_to(furthest)
    values = curve.at(places)
    own = values.argmax(axis=1)
    num = len(values)
    others: Int[np.ndarray, " seed"] = own if num == 1 else (values.sum(axis=0) - values).argmax(axis=1)
    height = values[np.arange(num), others]
    mean = int(values.mean(axis=0).argmax())
    last = len(places) - 1
    return SeedPeaks(
        height=height,
        fall=height - values[:, -1],
        d=places[own],
        at_start=own == 0,
        at_end=own == last,
        mean_d=float(places[mean]),
        end={0: "at the start", last: "at the end"}.get(mean, "inside"),
    )


class Band(NamedTuple):
    """A mean over seeds and its 95% interval, NaN below three seeds."""

    mean: Float[np.ndarray, " place"]
    low: Float[np.ndarray, " place"]
    high: Float[np.ndarray, " place"]


def seed_band(values: Float[np.ndarray, "seed place"]) -> Band:
    """Student's interval at each place, as :func:`overopt.analysis.findings.claim.mean_estimate` at one."""
    mean, num = values.mean(axis=0), len(values)
    half = (
        t_quantile(num - 1) * values.std(axis=0, ddof=1) / math.sqrt(num) if num >= 3 else np.full_like(mean, math.nan)
    )
    return Band(mean, mean - half, mean + half)
