"""What happened along a curve: where the win rate peaked, and how far it fell from there."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from overopt.analysis.laws.curves import checkpoint_ranks, group_name, require_columns, training_fractions
from overopt.analysis.laws.intervals import LEVEL, Estimate, around

Verdict = Literal["over-optimized", "undecided", "not reached"]


@dataclass(frozen=True)
class Cell:
    """One beta and checkpoint, averaged over its seeds.

    Attributes:
        beta: price of divergence in training [reward / nat].
        examples_seen: pairs trained on; the mean where seeds differ by a few.
        training_fraction: of the whole run.
        kl_nats: KL(policy || reference) [nats].
        win_rate: fraction.
        win_rate_se: its standard error; seeds share prompts, so that averaging them does not shrink it.
    """

    beta: float
    examples_seen: int
    training_fraction: float
    kl_nats: float
    win_rate: float
    win_rate_se: float

    @property
    def d(self) -> float:
        """sqrt(KL) [sqrt(nats)]."""
        return math.sqrt(max(self.kl_nats, 0.0))


@dataclass(frozen=True)
class OverOptimization:
    """The rise and fall of one objective and model.

    Attributes:
        objective: as in the points table.
        model: as in the points table.
        reference_win_rate: R0; NaN where the reference was not evaluated.
        num_cells: combinations of beta and checkpoint that the peak was picked from.
        peak: the cell with the highest win rate.
        furthest: the cell with the largest KL.
        rise: win rate of ``peak`` less the reference's.
        drop: win rate of ``peak`` less that of ``furthest``. In rise and drop the two win rates are taken as
            independent, although they share prompts; and both are optimistic: the highest of many noisy win
            rates is partly luck.
        d_star: where the log law on all checkpoints peaks [sqrt(nats)]; NaN where it has no hump or no fit.
        largest_d: largest distance measured [sqrt(nats)].
        p_value: of no fall, corrected for the number of curves (:mod:`overopt.analysis.findings.falls`); NaN where it
            could not be tested.
    """

    objective: str
    model: str
    reference_win_rate: float
    num_cells: int
    peak: Cell
    furthest: Cell
    rise: Estimate
    drop: Estimate
    d_star: Estimate
    largest_d: float
    p_value: float = math.nan

    @property
    def verdict(self) -> Verdict:
        """Whether the fall is real: the test rejects a curve that never falls."""
        if self.peak == self.furthest:
            return "not reached"
        return "over-optimized" if self.p_value < LEVEL else "undecided"

    @property
    def statement(self) -> str:
        """The curve in words."""
        peak, furthest = self.peak, self.furthest
        place = f"near √KL = {peak.d:.1f} (beta {peak.beta:g}, {peak.training_fraction:.0%} of training)"
        if peak.win_rate > self.reference_win_rate:
            text = f"win rate rises from {self.reference_win_rate:.2f} to {peak.win_rate:.2f} {place}"
            if not self.rise.low > 0:
                text += ", a rise within the noise"
        elif math.isnan(self.reference_win_rate):
            text = f"win rate is highest, {peak.win_rate:.2f}, {place}"
        else:
            text = (
                f"win rate never exceeds the reference's {self.reference_win_rate:.2f}; "
                f"it comes closest, {peak.win_rate:.2f}, {place}"
            )
        if self.verdict == "not reached":
            text += ", the largest divergence measured: over-optimization is not reached"
        else:
            text += f", then falls to {furthest.win_rate:.2f} at √KL = {furthest.d:.1f}"
            if self.verdict == "undecided":
                text += ", within the noise of two measurements"
        return f"{group_name(self.objective, self.model)}: {text}{self._onset()}."

    def _onset(self) -> str:
        """Where the fitted curve starts to fall, after a separator; empty where nothing was fitted."""
        if math.isnan(self.largest_d):
            return ""
        if math.isnan(self.d_star.value):
            return "; the fitted log law has no hump"
        if self.d_star.value >= self.largest_d:
            return "; the fitted log law does not fall within the measured range"
        low, high = self.d_star.low, self.d_star.high
        if low <= 0 and math.isinf(high):
            interval = "the points do not pin this down"
        elif math.isinf(high):
            interval = f"95% interval: {_nats(low)} or later, if at all"
        else:
            interval = f"95% interval {_kl(low)} to {_nats(high)}"
        where = f"KL ≈ {_nats(self.d_star.value)}"
        if self.verdict == "over-optimized":
            return f": over-optimization starts at {where} by the log law ({interval})"
        return f"; the fitted log law peaks at {where} ({interval})"


def _nats(d: float) -> str:
    return f"{_kl(d)} nats"


def _kl(d: float) -> str:
    return f"{d**2:.1f}" if d**2 < 10 else f"{d**2:.0f}"


def over_optimization(points: pd.DataFrame, fits: pd.DataFrame, falls: pd.DataFrame) -> list[OverOptimization]:
    """The facts of every objective and model in the points table, in its order.

    Groups without a trained checkpoint that has both a KL and a win rate are left out.

    Args:
        points: rows as :func:`overopt.tracking.tables.read_points` gives them.
        fits: the table of :func:`overopt.analysis.laws.fit_tables.fit_points`.
        falls: the table of :func:`overopt.analysis.findings.falls.fall_tests`.
    """
    require_columns(points, ["objective", "model", "beta", "examples_seen", "run_id", "kl_nats", "win_rate"])
    fits = fits[(fits["law"] == "log_law") & (fits["axis"] == "kl") & (fits["points"] == "all")]
    tested = falls[(falls["axis"] == "kl") & (falls["points"] == "all")] if len(falls) else falls
    p_values = {(row["objective"], row["model"]): row["p_holm"] for row in tested.to_dict("records")}
    facts = []
    for (objective, model), group in points.groupby(["objective", "model"], sort=True):
        references = group[group["examples_seen"] == 0]
        reference = float(references["win_rate"].mean())
        cells = checkpoint_cells(group)
        if not cells:
            continue
        peak = max(cells, key=lambda cell: cell.win_rate)
        furthest = max(cells, key=lambda cell: cell.kl_nats)
        reference_se = float(references["win_rate_se"].mean()) if "win_rate_se" in references else math.nan
        fitted = fits[(fits["objective"] == objective) & (fits["model"] == model)]
        facts.append(
            OverOptimization(
                objective=str(objective),
                model=str(model),
                reference_win_rate=reference,
                num_cells=len(cells),
                peak=peak,
                furthest=furthest,
                rise=_difference(peak.win_rate, peak.win_rate_se, reference, reference_se),
                drop=_difference(peak.win_rate, peak.win_rate_se, furthest.win_rate, furthest.win_rate_se),
                d_star=Estimate(*(float(fitted[name].iloc[0]) for name in ("d_star", "d_star_low", "d_star_high")))
                if len(fitted)
                else Estimate(math.nan),
                largest_d=furthest.d if len(fitted) else math.nan,
                p_value=p_values.get((str(objective), str(model)), math.nan),
            )
        )
    return facts


def _difference(value: float, se: float, other: float, other_se: float) -> Estimate:
    return around(value - other, math.hypot(se, other_se))


def checkpoint_cells(group: pd.DataFrame) -> list[Cell]:
    """Trained checkpoints of one objective and model, seeds averaged, ordered by beta and examples.

    The standard error adds what seeds differ by to what a single win rate carries: seeds are judged on the
    same prompts, so their errors do not average out.
    """
    group = group.assign(training_fraction=training_fractions(group), checkpoint=checkpoint_ranks(group))
    trained = group[(group["examples_seen"] > 0) & group[["kl_nats", "win_rate"]].notna().all(axis=1)]
    cells = []
    for _, seeds in trained.groupby(["beta", "checkpoint"], sort=True):
        rates = seeds["win_rate"].to_numpy(float)
        errors = seeds["win_rate_se"].to_numpy(float) if "win_rate_se" in seeds else np.array([math.nan])
        between = float(rates.var(ddof=1)) / len(rates) if len(rates) > 1 else 0.0
        cells.append(
            Cell(
                beta=float(seeds["beta"].iloc[0]),
                examples_seen=round(float(seeds["examples_seen"].mean())),
                training_fraction=float(seeds["training_fraction"].mean()),
                kl_nats=float(seeds["kl_nats"].mean()),
                win_rate=float(rates.mean()),
                win_rate_se=math.sqrt(float(np.mean(errors**2)) + between),
            )
        )
    return cells
