"""What the paper claims, held against whatever grid is at hand: an estimate, its interval, and a verdict.

Each claim has a rule of its own for what its interval must lie above, below or within, stated with it. Where the grid
lacks what a claim is about, its verdict is undecided, and says what is missing.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from overopt.analysis.findings.claim import (
    Claim,
    Verdict,
    above,
    below,
    by_interval,
    mean_estimate,
    share_estimate,
)
from overopt.analysis.findings.rank_correlation import rank_correlations
from overopt.analysis.laws.curves import OBJECTIVE_NAMES, Curves, final_checkpoints, training_fractions
from overopt.analysis.laws.fit_tables import fit_resamples, peak_places
from overopt.analysis.laws.intervals import LEVEL, TAILS, Estimate, around, t_quantile
from overopt.analysis.laws.laws import LAWS
from overopt.analysis.laws.resampling import RESAMPLES, resample

PAPER_OBJECTIVES = ("dpo", "ipo", "slic")
WIDE_KL_BETAS = 1 / 3  # the third of the betas that lets policies go furthest
FIRST_QUARTER = 0.25
ALIKE = 0.05  # win rate
HALF, AS_GOOD = 0.7, (0.75, 1.33)
STRONG_CORRELATION = 0.5
NO_FALL = 0.02  # win rate


_NO_FALLS = pd.DataFrame({"objective": pd.Series(dtype=str)})


class _Study(NamedTuple):
    points: pd.DataFrame
    curves: Curves
    falls: pd.DataFrame
    laws: pd.DataFrame

    @property
    def final(self) -> pd.DataFrame:
        """Last checkpoints that have a KL and a win rate."""
        final = final_checkpoints(self.points[self.points["examples_seen"] > 0])
        return final[final[["kl_nats", "win_rate"]].notna().all(axis=1)]

    def falls_against(self, axis: str) -> pd.DataFrame:
        """Tests of the fall against one divergence."""
        return self.falls[self.falls["axis"] == axis] if len(self.falls) else _NO_FALLS


def paper_claims(points: pd.DataFrame, curves: Curves, falls: pd.DataFrame, laws: pd.DataFrame) -> list[Claim]:
    """All claims, in the paper's order, of the paper's methods; of a study that has none of these, of all it has.

    Args:
        points: rows as :func:`overopt.tracking.tables.read_points` gives them.
        curves: of the same.
        falls: of :func:`overopt.analysis.findings.falls.fall_tests` on all checkpoints, against both divergences.
        laws: of :func:`overopt.analysis.laws.model_comparison.compare_laws` on all checkpoints.
    """
    if "num_parameters" not in points:
        points = points.assign(num_parameters=math.nan)
    objectives = points["objective"].astype(str)
    kept = [name for name in objectives.unique() if _of_the_paper(name)]
    if kept:
        points = points[objectives.isin(kept)]
        falls, laws = (table[table["objective"].isin(kept)] if len(table) else table for table in (falls, laws))
    study = _Study(points, curves, falls, laws)
    humps = [_hump(study, objective) for objective in sorted(points["objective"].astype(str).unique())]
    return [*humps, *(claim(study) for claim in _CLAIMS)]


def _of_the_paper(objective: str) -> bool:
    head, *rest = objective.split(", ")
    return head in PAPER_OBJECTIVES and all(part.startswith("length penalty") for part in rest)


def _slope(x: Float[np.ndarray, " value"], y: Float[np.ndarray, " value"], groups: np.ndarray) -> Estimate:
    """Slope of y over x, within groups that have their own level, with Student's interval."""
    kept = np.isfinite(x) & np.isfinite(y)
    table = pd.DataFrame({"x": x[kept], "y": y[kept], "group": groups[kept]})
    centred = table[["x", "y"]] - table.groupby("group")[["x", "y"]].transform("mean")
    squares = float((centred["x"] ** 2).sum())
    freedom = len(table) - table["group"].nunique() - 1
    if squares == 0 or freedom < 1:
        return Estimate(math.nan)
    slope = float((centred["x"] * centred["y"]).sum()) / squares
    residual = centred["y"] - slope * centred["x"]
    return around(slope, math.sqrt(float((residual**2).sum()) / freedom / squares), t_quantile(freedom))


class _Falls(NamedTuple):
    """What tests of several curves say together."""

    estimate: Estimate
    verdict: Verdict
    basis: str


_FALL_RULE = (
    f"holds where some curve's fall is significant (p below {LEVEL:.2f} after correction for the number of curves), "
    f"does not where no fall can be larger than {NO_FALL}"
)


def _falls(falls: pd.DataFrame, missing: str) -> _Falls:
    """The most significant fall, and whether any is real (Bonferroni)."""
    if falls.empty:
        return _Falls(Estimate(math.nan), "undecided", missing)
    corrected = np.minimum(falls["p_value"] * len(falls), 1.0)
    falling = int((corrected < LEVEL).sum())
    verdict: Verdict = "undecided"
    if falling:
        verdict = "holds"
    elif falls["drop_high"].max() < NO_FALL:
        verdict = "does not"
    most = falls.sort_values(["p_value", "drop_low"], ascending=[True, False]).iloc[0]
    basis = f"{falling} of {len(falls)} curves fall, smallest corrected p = {corrected.min():.2g}"
    return _Falls(Estimate(*(float(most[name]) for name in ("drop", "drop_low", "drop_high"))), verdict, basis)


def _hump(study: _Study, objective: str) -> Claim:
    falls = study.falls_against("kl")
    found = _falls(falls[falls["objective"] == objective], "too few checkpoints")
    return Claim(
        source="Fig. 1, Sec. 3.2",
        text=f"{OBJECTIVE_NAMES.get(objective, objective)} over-optimizes: win rate falls again as KL grows.",
        measure="fall from the best stretch to the furthest points, most significant curve [win rate]",
        estimate=found.estimate,
        rule=_FALL_RULE,
        verdict=found.verdict,
        basis=found.basis,
    )


def _pairs(study: _Study, first: str, second: str) -> pd.DataFrame:
    """Final checkpoints of two objectives at equal model, beta and seed."""
    sides = [study.final[study.final["objective"] == name] for name in (first, second)]
    return sides[0].merge(sides[1], on=["model", "beta", "seed"], suffixes=("_first", "_second"))


def _ipo_keeps_kl_lower(study: _Study) -> Claim:
    ratios = []
    for other in ("dpo", "slic"):
        pairs = _pairs(study, "ipo", other)
        ratios += np.log(pairs["kl_nats_first"].clip(1e-3) / pairs["kl_nats_second"].clip(1e-3)).tolist()
    log_ratio = mean_estimate(ratios)
    estimate = Estimate(*(math.exp(end) for end in log_ratio))
    return Claim(
        source="Sec. 3.2",
        text="IPO keeps KL lower than DPO and SLiC at equal beta.",
        measure="KL of IPO over KL of the others, last checkpoints, geometric mean",
        estimate=estimate,
        rule="holds where the ratio lies below 1, does not where it lies above",
        verdict=below(1.0, estimate),
        basis=f"{len(ratios)} pairs of runs" if ratios else "no runs of IPO beside DPO or SLiC at equal beta",
    )


def _dpo_and_slic_alike(study: _Study) -> Claim:
    pairs = _pairs(study, "dpo", "slic")
    estimate = mean_estimate((pairs["win_rate_first"] - pairs["win_rate_second"]).to_numpy(float))
    return Claim(
        source="Sec. 3.2",
        text="DPO and SLiC perform alike.",
        measure="win rate of DPO less that of SLiC at equal beta, last checkpoints",
        estimate=estimate,
        rule=f"holds where the difference lies within ± {ALIKE}, does not where it lies outside",
        verdict=by_interval(
            estimate, lambda low, high: low > -ALIKE and high < ALIKE, lambda low, high: low > ALIKE or high < -ALIKE
        ),
        basis=f"{len(pairs)} pairs of runs" if len(pairs) else "no runs of DPO beside SLiC at equal beta",
    )


def _smaller_go_further(study: _Study) -> Claim:
    final = study.final[study.final["num_parameters"].notna()]
    estimate = _slope(
        np.log10(final["num_parameters"].to_numpy(float)),
        np.log(final["kl_nats"].clip(1e-3).to_numpy(float)),
        (final["objective"].astype(str) + final["beta"].astype(str)).to_numpy(),
    )
    estimate = Estimate(*(math.exp(end) for end in estimate))
    return Claim(
        source="Sec. 3.2",
        text="Smaller models go further from the reference at equal beta.",
        measure="factor on KL for ten times the parameters, last checkpoints at equal objective and beta",
        estimate=estimate,
        rule="holds where the factor lies below 1, does not where it lies above",
        verdict=below(1.0, estimate),
        basis=f"{final['model'].nunique()} sizes, {len(final)} runs",
    )


def _smaller_fall_sooner(study: _Study) -> Claim:
    sizes = study.points.groupby("model")["num_parameters"].first()
    law = LAWS["log_law"]
    slopes, objectives = [], []
    for objective in study.points["objective"].astype(str).unique():
        curves = [c for c in study.curves.select() if c.objective == objective and not pd.isna(sizes.get(c.model))]
        curves = [curve for curve in curves if curve.can_be_fitted()]
        logs = np.log10([float(sizes[curve.model]) for curve in curves])
        if len(np.unique(logs)) < 2:
            continue
        places = []
        for curve in curves:
            many = fit_resamples(law, resample(curve)["prompts and runs"])
            # What rises on peaks out of sight: at twice the largest distance, no matter where.
            places.append(np.clip(peak_places(law, many.coefficients), 0.1, 2 * float(curve.d.max())))
        centred = (logs - logs.mean()) / ((logs - logs.mean()) ** 2).sum()
        slopes.append(centred @ np.log(np.array(places)))
        objectives.append(objective)
    if slopes:
        drawn = np.mean(slopes, axis=0)
        low, middle, high = np.exp(np.quantile(drawn, [TAILS[0], 0.5, TAILS[1]]))
        estimate = Estimate(float(middle), float(low), float(high))
    else:
        estimate = Estimate(math.nan)
    return Claim(
        source="Sec. 3.2",
        text="Smaller models fall sooner: their peak is at a smaller distance.",
        measure="factor on the distance of the log law's peak for ten times the parameters",
        estimate=estimate,
        rule="holds where the factor lies above 1, does not where it lies below",
        verdict=above(1.0, estimate),
        basis=f"log law of {len(objectives)} objectives, median and interval of {RESAMPLES} resamples"
        if objectives
        else "fewer than two sizes with three betas",
    )


def _wide_runs_peak_early(study: _Study) -> Claim:
    trained = study.points[(study.points["examples_seen"] > 0) & study.points["win_rate"].notna()]
    trained = trained.assign(fraction=training_fractions(study.points))
    betas = np.sort(trained["beta"].unique())
    wide = trained[trained["beta"].isin(betas[: max(1, round(len(betas) * WIDE_KL_BETAS))])]
    best = wide.loc[wide.groupby("run_id")["win_rate"].idxmax(), "fraction"]
    first = float(trained["fraction"].min()) if len(trained) else math.nan
    early = int((best <= FIRST_QUARTER).sum())
    # Without a checkpoint in the first quarter nobody can tell.
    estimate = share_estimate(early, len(best)) if first <= FIRST_QUARTER else Estimate(math.nan)
    return Claim(
        source="Fig. 2",
        text="Under a wide KL budget, most runs are best within the first quarter of training.",
        measure="share of runs with the smallest third of betas that are best within the first quarter",
        estimate=estimate,
        rule="holds where the share lies above one half, does not where it lies below",
        verdict=above(0.5, estimate),
        basis=f"{early} of {len(best)} runs; the first checkpoint is at {first:.0%} of training",
    )


def _law_ratio(study: _Study, other: str) -> tuple[Estimate, int]:
    """Error of the log law over another's, all curves together; the interval by leaving curves out (jackknife)."""
    if study.laws.empty:
        return Estimate(math.nan), 0
    laws = study.laws[study.laws["axis"] == "kl"]
    squares = laws.assign(squares=laws["rmse"] ** 2 * laws["num_points"])
    table = squares.pivot_table("squares", ["objective", "model"], "law")
    num = len(table)
    if not table[other].sum() > 0:
        return Estimate(math.nan), num
    ratio = math.sqrt(table["log_law"].sum() / table[other].sum())
    if num < 3:
        return Estimate(ratio), num
    rest = table.sum() - table
    left_out = np.log((rest["log_law"] / rest[other]).to_numpy(float)) / 2
    spread = math.sqrt((num - 1) / num * float(np.sum((left_out - left_out.mean()) ** 2)))
    half = t_quantile(num - 1) * spread
    return Estimate(ratio, ratio * math.exp(-half), ratio * math.exp(half)), num


def _log_law_halves_the_error(study: _Study) -> Claim:
    estimate, num = _law_ratio(study, "quadratic_in_kl")
    return Claim(
        source="Sec. 3.2, App. C",
        text="The log law (a) has half the error of the parabola in KL (c).",
        measure="RMSE of (a) over RMSE of (c), all checkpoints",
        estimate=estimate,
        rule=f"holds where the ratio lies below {HALF}, does not where it lies above",
        verdict=below(HALF, estimate),
        basis=f"{num} curves, each left out in turn",
    )


def _parabola_in_d_is_as_good(study: _Study) -> Claim:
    estimate, num = _law_ratio(study, "quadratic_in_d")
    low_limit, high_limit = AS_GOOD
    return Claim(
        source="Sec. 3.2, App. C",
        text="The parabola in d (b) is about as good as the log law (a).",
        measure="RMSE of (a) over RMSE of (b), all checkpoints",
        estimate=estimate,
        rule=f"holds where the ratio lies within {low_limit} to {high_limit}, does not where it lies outside",
        verdict=by_interval(
            estimate,
            lambda low, high: low > low_limit and high < high_limit,
            lambda low, high: high < low_limit or low > high_limit,
        ),
        basis=f"{num} curves, each left out in turn",
    )


def _length_term_is_no_cure(study: _Study) -> Claim:
    every = study.falls_against("kl")
    falls = _falls(every[every["objective"].str.contains("length penalty")], "no run with a length penalty")
    return Claim(
        source="Fig. 3 left, Sec. 3.3",
        text="A length term does not cure over-optimization.",
        measure="fall of a length-regularised curve, most significant one [win rate]",
        estimate=falls.estimate,
        rule=_FALL_RULE,
        verdict=falls.verdict,
        basis=falls.basis,
    )


def _weaker_lean_on_length(study: _Study) -> Claim:
    trained = study.points[(study.points["examples_seen"] > 0) & study.points["num_parameters"].notna()]
    if "length_r2_uncentred" not in trained:
        trained = trained.assign(length_r2_uncentred=math.nan)
    per_run = trained.groupby(["run_id", "objective", "beta", "num_parameters"], as_index=False)[
        "length_r2_uncentred"
    ].mean()
    estimate = _slope(
        np.log10(per_run["num_parameters"].to_numpy(float)),
        per_run["length_r2_uncentred"].to_numpy(float),
        (per_run["objective"].astype(str) + per_run["beta"].astype(str)).to_numpy(),
    )
    return Claim(
        source="Fig. 3 right, Sec. 3.3",
        text="Weaker models lean on length more.",
        measure="change of the length regression's uncentred R² for ten times the parameters, runs averaged",
        estimate=estimate,
        rule="holds where it lies below 0, does not where it lies above",
        verdict=below(0.0, estimate),
        basis=f"{per_run['num_parameters'].nunique()} sizes, {len(per_run)} runs",
    )


def _metric_does_not_predict(metric: str, name: str) -> Callable[[_Study], Claim]:
    def claim(study: _Study) -> Claim:
        table = rank_correlations(study.points)
        within = table[(table["metric"] == metric) & (table["model"] != "pooled")].dropna(subset=["low", "high"])
        strength = within["correlation"].abs()
        estimate = mean_estimate(strength.to_numpy(float)) if len(within) else Estimate(math.nan)
        strong = int(((within["low"] > STRONG_CORRELATION) | (within["high"] < -STRONG_CORRELATION)).sum())
        return Claim(
            source="Fig. 4, Sec. 3.4",
            text=f"Within a size, {name} does not predict win rate.",
            measure="size of Spearman's rank correlation, mean over objectives and models",
            estimate=estimate,
            rule=f"holds where it lies below {STRONG_CORRELATION}, does not where it lies above",
            verdict=below(STRONG_CORRELATION, estimate),
            basis=f"{len(within)} curves; in {strong} the correlation is beyond {STRONG_CORRELATION} with confidence"
            if len(within)
            else f"no checkpoints with {name}",
        )

    return claim


def _chosen_likelihood_falls(study: _Study) -> Claim:
    column = "chosen_log_ratio"
    ratios = study.final[column].dropna().to_numpy(float) if column in study.final else np.array([])
    estimate = mean_estimate(ratios)
    return Claim(
        source="Sec. 3.5",
        text="The likelihood of chosen responses falls in training.",
        measure="log pi / pi_ref of held-out chosen responses, last checkpoints [nats]",
        estimate=estimate,
        rule="holds where it lies below 0, does not where it lies above",
        verdict=below(0.0, estimate),
        basis=f"{int((ratios < 0).sum())} of {len(ratios)} runs below 0" if len(ratios) else f"no {column}",
    )


def _hump_against_forward_kl(study: _Study) -> Claim:
    falls = _falls(study.falls_against("forward_kl"), "no forward KL")
    return Claim(
        source="Fig. 5, Sec. 3.5",
        text="Against the forward KL, too, win rate rises and falls: some loss of that likelihood helps, more hurts.",
        measure="fall against the forward KL, most significant curve [win rate]",
        estimate=falls.estimate,
        rule=_FALL_RULE,
        verdict=falls.verdict,
        basis=falls.basis,
    )


_CLAIMS: tuple[Callable[[_Study], Claim], ...] = (
    _ipo_keeps_kl_lower,
    _dpo_and_slic_alike,
    _smaller_go_further,
    _smaller_fall_sooner,
    _wide_runs_peak_early,
    _log_law_halves_the_error,
    _parabola_in_d_is_as_good,
    _length_term_is_no_cure,
    _weaker_lean_on_length,
    _metric_does_not_predict("implicit_reward_accuracy", "implicit-reward accuracy"),
    _metric_does_not_predict("loss", "the loss"),
    _chosen_likelihood_falls,
    _hump_against_forward_kl,
)
