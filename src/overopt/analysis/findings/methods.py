"""Methods beside each other: where each peaks, how far it falls, what its proxy does meanwhile, and what it costs.

The highest of many measured checkpoints is partly luck, the more so the more there are; methods have different numbers
of them. So nothing here is the maximum of measurements: each seed's checkpoints give a curve
(:mod:`overopt.analysis.laws.local_curve`), whose height is read at the place where the *other* seeds' mean curve is
highest. Seeds are what intervals are made of: Student's, over one value a seed, none below three seeds. They answer the
same prompts, so that intervals say what other training runs would give on these prompts.

A fall has no meaning without how far the runs went. It ends at the furthest distance that every seed went to, and in
comparisons of two methods at the furthest that both went to.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from overopt.analysis.findings.claim import above, below, mean_estimate
from overopt.analysis.findings.falls import holm
from overopt.analysis.findings.method_curves import (
    COSTS,
    MethodCurve,
    MethodPoints,
    SeedPeaks,
    compared_models,
    method_curve,
    seed_peaks,
)
from overopt.analysis.findings.method_names import baseline, family
from overopt.analysis.laws.intervals import Estimate

TARGETS = ("win_rate", "gold_reward")
"""Measures of quality: what may peak."""
BUDGETS = tuple(2.0**power for power in range(11))
"""KL [nats] at which methods are compared, where both were measured."""
_KEYS = ("model", "method", "family", "measure")
_PEAKS = ("peak", "kl_at_peak_nats", "fall", "proxy_at_peak", "proxy_at_furthest", "proxy_rise", *COSTS)


def _with_ends(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{name}{end}" for name in names for end in ("", "_low", "_high"))


COLUMNS = (
    *_KEYS,
    "num_betas",
    "num_seeds",
    "num_checkpoints",
    "num_transients",
    *_with_ends(_PEAKS[:3]),
    "furthest_kl_nats",
    "largest_kl_nats",
    "peak_is",
    *_with_ends(_PEAKS[3:6]),
    "goodhart",
    "best_beta",
    "best_step",
    *_with_ends(_PEAKS[6:]),
)
"""Columns of methods.csv."""
EFFECT_COLUMNS = (
    *_KEYS,
    "baseline",
    "quantity",
    "kl_nats",
    "difference",
    "low",
    "high",
    "num_seeds",
    "p_value",
    "p_holm",
    "verdict",
)
"""Columns of method_effects.csv."""


class Methods(NamedTuple):
    """Every method of a study.

    Attributes:
        table: one row a model, method and measure (win_rate, or gold_reward as the gain over the reference [logits]).
            num_betas, num_seeds (behind the curve), num_checkpoints, and num_transients, dips left out. peak;
            kl_at_peak_nats; fall, from there to furthest_kl_nats, which every seed went to (largest_kl_nats: any).
            peak_is: inside (the fall's interval lies above 0), undecided, at the start or at the end of what was
            measured (the peak is a bound), unknown (too few checkpoints for a curve, or seeds without distances in
            common). proxy_at_peak, proxy_at_furthest and proxy_rise, between them: gains of the proxy reward
            [logits]. goodhart: yes where the measure falls and the proxy rises meanwhile, both intervals above 0, no
            where one lies below 0, not reached where the measure is highest at the end, else undecided. best_beta and
            best_step (examples seen, a mean where seeds differ by a few, or n) of the best checkpoint, the highest mean
            over seeds, and what it took beyond the reference. NAME_low and NAME_high are 95% intervals over seeds; an
            infinite or zero end of kl_at_peak_nats says that some seed is best at an end of what was measured.
        effects: one row a method, measure and quantity, less the baseline's, paired by seed: peak; d_at_peak
            [sqrt(nats)]; fall, to kl_nats, the furthest that both went; at_kl, the curves at kl_nats. p_holm counts
            the methods that were compared in this quantity.
    """

    table: pd.DataFrame
    effects: pd.DataFrame

    @property
    def compared(self) -> bool:
        """Whether some model was aligned by several methods."""
        return bool(compared_models(self.table))


def compare_methods(found: MethodPoints) -> Methods:
    """Work out both tables."""
    rows: list[dict[str, object]] = []
    effects: list[dict[str, object]] = []
    for model in sorted(found.table["model"].astype(str).unique()):
        methods = found.methods(model)
        for target in TARGETS:
            curves = {method: method_curve(found.table, model, method, target) for method in methods}
            rows += [
                _row(found, model, method, target, curves[method])
                for method in methods
                if found.table.loc[_of(found.table, model, method), target].notna().any()
            ]
            effects += _effects(curves)
    effect_table = pd.DataFrame(effects, columns=list(EFFECT_COLUMNS))
    families = ["model", "measure", "quantity", "kl_nats"]
    if len(effect_table):
        # A fall's end is the pair's own: all falls are one family.
        grouped = effect_table.assign(kl_nats=effect_table["kl_nats"].where(effect_table["quantity"] == "at_kl", 0.0))
        effect_table["p_holm"] = grouped.groupby(families)["p_value"].transform(_holm_of_known)
    return Methods(pd.DataFrame(rows, columns=list(COLUMNS)), effect_table)


def _of(table: pd.DataFrame, model: str, method: str) -> "pd.Series[bool]":
    return (table["model"] == model) & (table["method"] == method)


def _row(found: MethodPoints, model: str, method: str, target: str, curve: MethodCurve | None) -> dict[str, object]:
    rows = found.table[_of(found.table, model, method) & found.table[target].notna()]
    dips = found.transients[_of(found.transients, model, method)]["number"]
    row: dict[str, object] = {
        **dict(zip(_KEYS, (model, method, family(method), target), strict=True)),
        "num_betas": int(rows["beta"].nunique()),
        "num_seeds": int(rows["seed"].nunique()) if curve is None else len(curve.seeds),
        "num_checkpoints": len(rows),
        "largest_kl_nats": float(rows["kl_nats"].max()),
        "num_transients": int(dips.sum()),
        "peak_is": "unknown",
        "goodhart": "",
    }
    best = best_checkpoint(rows, target)
    row["best_beta"], row["best_step"] = best["beta"].iloc[0], round(float(best["step"].mean()))
    for cost in COSTS:
        row |= _columns(cost, scattered_mean(best[cost].dropna().to_numpy(float)))
    if curve is None:
        return row
    peaks = seed_peaks(curve)
    fall = Estimate(math.nan) if peaks.end == "at the end" else scattered_mean(peaks.fall)
    row |= {
        **_columns("peak", scattered_mean(peaks.height)),
        **_columns("kl_at_peak_nats", Estimate(*(end**2 for end in peaks.place))),
        **_columns("fall", fall),
        "furthest_kl_nats": curve.furthest**2,
        "peak_is": peaks.end if peaks.end != "inside" or fall.low > 0 else "undecided",
    }
    return row | _proxy(method_curve(found.table, model, method, "proxy_reward"), curve, peaks, fall)


def best_checkpoint(rows: pd.DataFrame, target: str) -> pd.DataFrame:
    """The rows, one a seed, of the beta and checkpoint whose mean over seeds is highest, of those that most seeds have.

    Its height would be partly luck, and is not reported; what it took is no matter of luck.
    """
    # Best-of-n has no beta, and no two of its rows a seed and n.
    cells = rows.assign(beta=rows["beta"].fillna(-1.0)).groupby(["beta", "checkpoint"])
    table = cells.agg(seeds=("seed", "nunique"), value=(target, "mean"))
    beta, checkpoint = table[table["seeds"] == table["seeds"].max()]["value"].idxmax()
    best: pd.DataFrame = rows[(rows["beta"].fillna(-1.0) == beta) & (rows["checkpoint"] == checkpoint)]
    return best


def _proxy(proxy: MethodCurve | None, curve: MethodCurve, peaks: SeedPeaks, fall: Estimate) -> dict[str, object]:
    """What the proxy reward does after the measure's peak, where both were measured."""
    if proxy is None or peaks.mean_d < proxy.nearest or proxy.furthest < curve.furthest:
        return {}
    gains = proxy.at(np.array([peaks.mean_d, curve.furthest]))
    rise = scattered_mean(gains[:, 1] - gains[:, 0])
    verdict = "undecided"
    if peaks.end == "at the end":
        rise, verdict = Estimate(math.nan), "not reached"
    elif fall.low > 0 and rise.low > 0:
        verdict = "yes"
    elif fall.high < 0 or rise.high < 0:
        verdict = "no"
    return {
        **_columns("proxy_at_peak", scattered_mean(gains[:, 0])),
        **_columns("proxy_at_furthest", scattered_mean(gains[:, 1])),
        **_columns("proxy_rise", rise),
        "goodhart": verdict,
    }


def _effects(curves: dict[str, MethodCurve | None]) -> Iterator[dict[str, object]]:
    known = {method: curve for method, curve in curves.items() if curve is not None}
    for method, curve in known.items():
        plain = baseline(method, list(known))
        if plain is None:
            continue
        keys = dict(zip(_KEYS, (curve.model, method, family(method), curve.measure), strict=True))
        for effect in paired_effects(curve, known[plain]):
            yield {**keys, "baseline": plain, **effect}


def paired_effects(curve: MethodCurve, plain: MethodCurve) -> list[dict[str, object]]:
    """Differences of a method and its baseline, over the seeds of both; empty where they have none in common."""
    seeds = [seed for seed in curve.seeds if seed in plain.seeds]
    if not seeds:
        return []
    pair = [one.of_seeds(seeds) for one in (curve, plain)]
    nearest, furthest = max(one.nearest for one in pair), min(one.furthest for one in pair)
    peaks = [seed_peaks(one) for one in pair]
    effects = [_height_effect(*peaks), _place_effect(*peaks)]
    if all(one.nearest < furthest for one in pair):
        near = [seed_peaks(one, furthest) for one in pair]
        if any(peak.end != "at the end" for peak in near):
            effects.append(_effect("fall", furthest**2, near[0].fall - near[1].fall))
    for kl in BUDGETS:
        if nearest <= math.sqrt(kl) <= furthest:
            values = [one.at(np.array([math.sqrt(kl)]))[:, 0] for one in pair]
            effects.append(_effect("at_kl", kl, values[0] - values[1]))
    return effects


def _height_effect(peaks: SeedPeaks, plain: SeedPeaks) -> dict[str, object]:
    """Of the peaks' heights: what is highest at an end of what was measured may be higher beyond."""
    effect = _effect("peak", math.nan, peaks.height - plain.height)
    up, down = (bool((each.at_start | each.at_end).any()) for each in (peaks, plain))
    return _opened(effect, up=up, down=down)


def _place_effect(peaks: SeedPeaks, plain: SeedPeaks) -> dict[str, object]:
    """Of the peaks' places: open on the side where one lies beyond what was measured."""
    effect = _effect("d_at_peak", math.nan, peaks.d - plain.d)
    up = bool((peaks.at_end | plain.at_start).any())
    down = bool((peaks.at_start | plain.at_end).any())
    return _opened(effect, up=up, down=down)


def _opened(effect: dict[str, object], *, up: bool, down: bool) -> dict[str, object]:
    """A difference whose interval has no end on some side, hence no p-value."""
    found = Estimate(*(float(str(effect[name])) for name in ("difference", "low", "high")))
    if (up or down) and not math.isnan(found.low):
        found = Estimate(found.value, -math.inf if down else found.low, math.inf if up else found.high)
        effect |= {"low": found.low, "high": found.high, "p_value": math.nan, "verdict": _verdict(found)}
    return effect


def _effect(quantity: str, kl: float, differences: Float[np.ndarray, " seed"]) -> dict[str, object]:
    found = scattered_mean(differences)
    return {
        "quantity": quantity,
        "kl_nats": kl,
        "difference": found.value,
        "low": found.low,
        "high": found.high,
        "num_seeds": len(differences),
        "p_value": _p_value(differences),
        "verdict": _verdict(found),
    }


def _verdict(found: Estimate) -> str:
    if above(0.0, found) == "holds":
        return "higher"
    return "lower" if below(0.0, found) == "holds" else "undecided"


def scattered_mean(values: Float[np.ndarray, " seed"]) -> Estimate:
    """As :func:`mean_estimate`, without an interval where all seeds agree to rounding: that is no certainty."""
    return (
        mean_estimate(values) if _scattered(values) else Estimate(float(np.mean(values)) if len(values) else math.nan)
    )


def _scattered(values: Float[np.ndarray, " seed"]) -> bool:
    return len(values) > 0 and bool(np.ptp(values) > 1e-9 * np.abs(values).max())


def _p_value(differences: Float[np.ndarray, " seed"]) -> float:
    """Of no difference, by Student's test; NaN below three seeds."""
    from scipy.special import stdtr

    num = len(differences)
    if num < 3 or not _scattered(differences):
        return math.nan
    t = abs(float(differences.mean())) / (float(differences.std(ddof=1)) / math.sqrt(num))
    return float(2 * stdtr(num - 1, -t))


def _holm_of_known(p_values: "pd.Series[float]") -> "pd.Series[float]":
    corrected = p_values.copy()
    known = p_values.notna()
    if known.any():
        corrected[known] = holm(p_values[known].to_numpy(float))
    return corrected


def _columns(name: str, estimate: Estimate) -> dict[str, object]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), estimate, strict=True))
