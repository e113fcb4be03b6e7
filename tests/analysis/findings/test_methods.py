"""Comparisons of methods whose curves are known."""

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.conftest import LOGITS, METHODS, make_best_of_n, make_methods
from overopt.analysis.findings.claim import mean_estimate
from overopt.analysis.findings.falls import fall_tests
from overopt.analysis.findings.method_curves import MethodCurve, SeedPoints, method_points, seed_peaks
from overopt.analysis.findings.method_names import baseline, family
from overopt.analysis.findings.methods import COLUMNS, EFFECT_COLUMNS, compare_methods, paired_effects
from overopt.analysis.findings.over_optimization import checkpoint_cells
from overopt.analysis.laws.curves import curves_of

LAW, OTHER = (0.16, 0.09), (0.17, 0.075)
PLACE, HEIGHT = math.exp(0.16 / 0.09 - 1), 0.09 * math.exp(0.16 / 0.09 - 1)
FURTHEST = 7.0
FALL = HEIGHT - FURTHEST * (0.16 - 0.09 * math.log(FURTHEST))
"""Of the first law: peak at exp(alpha / beta_fit - 1), gain beta_fit times that."""


def row(table: pd.DataFrame, method: str, measure: str = "win_rate", **keys: object) -> pd.Series:
    kept = table[(table["method"] == method) & (table["measure"] == measure)]
    for name, value in keys.items():
        kept = kept[kept[name] == value]
    assert len(kept) == 1
    return kept.iloc[0]


def sharp(d: np.ndarray) -> np.ndarray:
    """A curve that no law here has: it falls more steeply than it should for its peak of 0.1 at 3."""
    return np.where(d < 3, 0.1 * np.sin(np.pi / 2 * (d / 3) ** 0.7), 0.1 - 0.02 * np.maximum(d - 3, 0) ** 1.5)


def simulated(
    generator: np.random.Generator,
    *,
    num_seeds: int = 3,
    num_betas: int = 4,
    noise: float = 0.015,
    truth: Callable[[np.ndarray], np.ndarray] | None = None,
    law: tuple[float, float] = LAW,
    furthest: float = FURTHEST,
    scales: np.ndarray | None = None,
) -> MethodCurve:
    """Seeds whose curves are the truth times a factor of their own about 1."""
    seeds = {}
    factors = generator.normal(1.0, 0.08, num_seeds) if scales is None else scales
    for seed in range(num_seeds):
        reach = np.geomspace(1.3, furthest, num_betas)[:, None] * np.sqrt(np.linspace(0.2, 1, 5))
        d = (reach * generator.uniform(0.96, 1.0, reach.shape)).ravel()
        d[-1] = furthest
        true = d * (law[0] - law[1] * np.log(d)) if truth is None else truth(d)
        seeds[seed] = SeedPoints(d, factors[seed] * true + noise * generator.normal(size=len(d)), 0.42)
    nearest = max(points.d.min() for points in seeds.values())
    return MethodCurve("tiny", "dpo", "win_rate", seeds, float(nearest), furthest)


def test_without_noise_the_peak_the_place_and_the_fall_are_the_laws_own() -> None:
    points = make_methods({"dpo": LAW, "ipo": OTHER}, noise=0.0, between=0.0)
    found = row(compare_methods(method_points(points)).table, "dpo")
    assert found["peak"] == pytest.approx(0.42 + HEIGHT, abs=1e-3)
    assert found["kl_at_peak_nats"] == pytest.approx(PLACE**2, rel=0.06)
    assert found["fall"] == pytest.approx(FALL, abs=1e-3)
    assert found["furthest_kl_nats"] == pytest.approx(FURTHEST**2)
    assert (found["num_betas"], found["num_seeds"], found["num_checkpoints"]) == (4, 3, 60)


def test_rewards_are_gains_over_the_runs_own_reference_whatever_their_constants() -> None:
    points = make_methods({"dpo": LAW, "ipo": OTHER}, noise=0.0, between=0.0)
    found = row(compare_methods(method_points(points)).table, "dpo", "gold_reward")
    assert found["peak"] == pytest.approx(LOGITS * HEIGHT, abs=0.02)
    # The proxy gains 0.7 logits a unit of distance.
    assert found["proxy_at_peak"] == pytest.approx(0.7 * PLACE, rel=0.05)
    assert found["proxy_at_furthest"] == pytest.approx(0.7 * FURTHEST, rel=0.02)
    assert found["proxy_rise"] == pytest.approx(found["proxy_at_furthest"] - found["proxy_at_peak"])
    shifted = points.assign(gold_reward=points["gold_reward"] + points["beta"] * 40)
    pd.testing.assert_frame_equal(
        compare_methods(method_points(shifted)).table, compare_methods(method_points(points)).table
    )


def test_a_proxy_that_rises_while_the_gold_falls_is_named_and_one_that_falls_too_is_not() -> None:
    points = make_methods({"dpo": LAW, "ipo": LAW})
    both_fall = points["proxy_reward"].where(points["objective"] == "dpo", points["gold_reward"])
    table = compare_methods(method_points(points.assign(proxy_reward=both_fall))).table
    assert row(table, "dpo", "gold_reward")["goodhart"] == "yes"
    assert row(table, "ipo", "gold_reward")["goodhart"] == "no"
    assert row(table, "dpo", "gold_reward")["peak_is"] == "inside"


@pytest.mark.parametrize("truth", [None, sharp], ids=["log law", "no law"])
def test_intervals_over_seeds_hold_the_true_peak_and_fall_in_about_95_of_100_studies(truth) -> None:
    generator = np.random.default_rng(1)
    place, height, fall = (PLACE, HEIGHT, FALL) if truth is None else (3.0, 0.1, 0.1 - float(sharp(np.array(7.0))))
    held = {"height": 0, "fall": 0, "place": 0}
    misses = []
    studies = 250
    for _ in range(studies):
        peaks = seed_peaks(simulated(generator, num_seeds=4, truth=truth))
        for name, values, true in (("height", peaks.height, 0.42 + height), ("fall", peaks.fall, fall)):
            low, high = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
            held[name] += low <= true <= high
        held["place"] += peaks.place.low <= place <= peaks.place.high
        misses.append(peaks.height.mean() - 0.42 - height)
    # Where no law holds, averages flatten a sharp peak a little.
    least = 0.91 if truth is None else 0.86
    assert all(least * studies <= count for count in held.values()), held
    assert abs(np.mean(misses)) < 0.007


def test_more_checkpoints_make_no_higher_peak_as_they_would_by_the_best_measured_one() -> None:
    """The bias of the highest of many noisy checkpoints, and what is left of it here."""
    found = {}
    for num_betas in (3, 12):
        generator = np.random.default_rng(2)
        ours, naive = [], []
        for _ in range(150):
            curve = simulated(generator, num_betas=num_betas, noise=0.02, scales=np.ones(3))
            ours.append(seed_peaks(curve).height.mean() - 0.42 - HEIGHT)
            naive.append(np.mean([points.gain.max() for points in curve.seeds.values()]) - HEIGHT)
        found[num_betas] = float(np.mean(ours)), float(np.mean(naive))
    (few, few_naive), (many, many_naive) = found[3], found[12]
    assert many_naive > few_naive + 0.01 > 0.02
    assert abs(few) < 0.004
    assert abs(many) < 0.004


def test_a_flat_curve_is_seldom_said_to_fall() -> None:
    generator = np.random.default_rng(3)
    curves = [simulated(generator, truth=lambda d: 0.05 * np.minimum(d / 1.2, 1), noise=0.02) for _ in range(400)]
    peaks = [seed_peaks(curve) for curve in curves]
    alarms = [mean_estimate(peak.fall).low > 0 for peak in peaks]
    own = [mean_estimate(v.max(axis=1) - v[:, -1]) for v in (curve.at(curve.places) for curve in curves)]
    # Each seed's own maximum finds a fall of a point and a half everywhere; the law, which falls, leaves a trace.
    assert np.mean([fall.value for fall in own]) > 0.012
    assert abs(np.mean([peak.fall.mean() for peak in peaks])) < 0.006
    assert np.mean(alarms) < 0.06
    assert np.mean(alarms) < np.mean([fall.low > 0 for fall in own]) / 2


def test_a_peak_beyond_what_was_measured_is_a_bound_and_has_no_fall() -> None:
    points = make_methods({"dpo": (0.4, 0.1), "ipo": LAW}, furthest=4.0)
    table = compare_methods(method_points(points)).table
    censored = row(table, "dpo")
    assert censored["peak_is"] == "at the end"
    assert censored["kl_at_peak_nats"] == pytest.approx(16.0, rel=0.1)
    assert censored["kl_at_peak_nats_high"] == math.inf
    assert math.isnan(censored["fall"])
    assert row(table, "dpo", "gold_reward")["goodhart"] == "not reached"
    assert row(table, "ipo")["peak_is"] == "inside"


def test_seeds_with_a_few_more_examples_have_the_same_checkpoints() -> None:
    points = make_methods({"dpo": LAW, "ipo": OTHER}, noise=0.0, between=0.0)
    uneven = points.assign(examples_seen=points["examples_seen"] + points["seed"] * (points["examples_seen"] > 0))
    found, moved = (row(compare_methods(method_points(rows)).table, "dpo") for rows in (points, uneven))
    assert moved["best_step"] == found["best_step"] + 1  # the mean of 0, 1 and 2 more
    same = ["best_beta", "cost_tokens", "cost_tokens_low", "cost_seconds", "peak"]
    assert moved[same].tolist() == found[same].tolist()
    [cells, moved_cells] = [checkpoint_cells(rows[rows["objective"] == "dpo"]) for rows in (points, uneven)]
    assert len(moved_cells) == len(cells) == 20
    assert [cell.win_rate for cell in moved_cells] == [cell.win_rate for cell in cells]


def test_what_only_falls_is_highest_at_the_start() -> None:
    points = make_methods({"dpo": LAW, "ipo": (-0.05, 0.02)})
    found = row(compare_methods(method_points(points)).table, "ipo")
    assert found["peak_is"] == "at the start"
    assert found["kl_at_peak_nats_low"] == 0.0
    assert found["peak"] < 0.42


def test_differences_hold_the_truth_and_are_paired_by_seed() -> None:
    """What seeds share (a scale) leaves the difference of peaks; without pairing its interval would be far wider."""
    generator = np.random.default_rng(4)
    held = dict.fromkeys(("peak", "d_at_peak", "fall", "at_kl"), 0)
    widths = []
    true_place = math.exp(0.17 / 0.075 - 1)
    other_fall = 0.075 * true_place - FURTHEST * (0.17 - 0.075 * math.log(FURTHEST))
    truths = {
        "peak": 0.075 * true_place - HEIGHT,
        "d_at_peak": true_place - PLACE,
        "fall": other_fall - FALL,
        "at_kl": 4 * (0.17 - 0.16) - 4 * (0.075 - 0.09) * math.log(4),
    }
    studies = 150
    for _ in range(studies):
        scales = generator.normal(1.0, 0.25, 4)
        pair = [simulated(generator, law=law, num_seeds=4, scales=scales) for law in (OTHER, LAW)]
        effects = pd.DataFrame(paired_effects(*pair))
        effects = effects[(effects["quantity"] != "at_kl") | (effects["kl_nats"] == 16)].set_index("quantity")
        for name, true in truths.items():
            held[name] += effects.loc[name, "low"] <= true <= effects.loc[name, "high"]
        unpaired = [seed_peaks(curve).height.std(ddof=1) for curve in pair]
        widths.append((effects.loc["peak", "high"] - effects.loc["peak", "low"], math.hypot(*unpaired)))
    # A scale is shared, so that what it multiplies is not: differences move with it a little.
    assert all(0.9 * studies <= count for count in held.values()), held
    paired, apart = np.median(widths, axis=0)
    assert paired < 0.8 * 2 * stats.t.ppf(0.975, 3) * apart / 2


def test_effects_name_baseline_seeds_and_the_kl_that_both_went_to() -> None:
    near = make_methods({"dpo, chi_squared link": LAW}, furthest=5.0, noise=0.0, between=0.0)
    points = pd.concat([make_methods({"dpo": LAW}, noise=0.0, between=0.0), near], ignore_index=True)
    effects = compare_methods(method_points(points)).effects
    assert set(effects["baseline"]) == {"dpo"}
    fall = row(effects, "dpo, chi_squared link", quantity="fall")
    assert fall["kl_nats"] == pytest.approx(25.0)
    assert fall["difference"] == pytest.approx(0.0, abs=2e-3)  # the same law to the same distance
    at_kl = effects[(effects["quantity"] == "at_kl") & (effects["measure"] == "win_rate")]
    assert list(at_kl["kl_nats"]) == [1.0, 2.0, 4.0, 8.0, 16.0]
    assert at_kl["difference"].abs().max() < 2e-3
    assert set(effects["num_seeds"]) == {3}


def test_a_peak_beyond_what_was_measured_is_not_said_to_be_lower() -> None:
    near = make_methods({"ipo": (0.19, 0.03)}, furthest=1.0, noise=0.001, between=0.01)
    points = pd.concat([make_methods({"dpo": LAW}, noise=0.001, between=0.01), near], ignore_index=True)
    found = compare_methods(method_points(points))
    assert row(found.table, "ipo")["peak_is"] == "at the end"
    peak = row(found.effects, "ipo", quantity="peak")
    assert peak["difference"] < 0
    assert peak["high"] == math.inf
    assert math.isnan(peak["p_value"])
    assert peak["verdict"] == "undecided"
    assert row(found.effects, "ipo", quantity="at_kl", kl_nats=1.0)["verdict"] == "higher"


def test_only_seeds_of_both_are_compared() -> None:
    points = pd.concat(
        [make_methods({"dpo": LAW}, seeds=(0, 1, 2)), make_methods({"ipo": OTHER}, seeds=(1, 2, 3, 4))],
        ignore_index=True,
    )
    found = compare_methods(method_points(points))
    assert row(found.table, "ipo")["num_seeds"] == 4
    effect = row(found.effects, "ipo", quantity="peak")
    assert effect["num_seeds"] == 2
    assert math.isnan(effect["low"])
    assert effect["verdict"] == "undecided"
    apart = pd.concat([make_methods({"dpo": LAW}, seeds=(0,)), make_methods({"ipo": OTHER}, seeds=(1,))])
    assert compare_methods(method_points(apart.reset_index(drop=True))).effects.empty


def test_corrected_p_values_count_the_methods() -> None:
    effects = compare_methods(method_points(make_methods(METHODS))).effects
    peaks = effects[(effects["quantity"] == "peak") & (effects["measure"] == "win_rate")]
    assert len(peaks) == 5
    least = peaks["p_value"].min()
    assert peaks["p_holm"].min() == pytest.approx(min(1.0, 5 * least))
    assert (peaks["p_holm"] >= peaks["p_value"]).all()
    # A test and its interval say the same.
    beyond = (peaks["low"] > 0) | (peaks["high"] < 0)
    assert (beyond == (peaks["p_value"] < 0.05)).all()
    assert beyond.any()


def test_one_seed_has_estimates_and_no_interval() -> None:
    table = compare_methods(method_points(make_methods(seeds=(0,)))).table
    ends = [name for name in table if name.endswith(("_low", "_high"))]
    assert table[ends].isna().all(axis=None)
    assert table[["peak", "kl_at_peak_nats", "furthest_kl_nats"]].notna().all(axis=None)
    assert set(table["peak_is"]) <= {"undecided", "at the end"}


def test_costs_are_those_of_the_checkpoint_that_is_best_in_the_mean() -> None:
    points = make_methods({"dpo": LAW, "ipo": OTHER}, noise=0.0, between=0.0)
    chosen = (points["objective"] == "dpo") & (points["beta"] == 0.05) & (points["examples_seen"] == 3_000)
    points.loc[chosen, "win_rate"] += 0.2
    # A cell that one seed alone has doesn't count, however high.
    alone = (points["beta"] == 0.02) & (points["examples_seen"] == 2_000) & (points["seed"] > 0)
    points.loc[(points["beta"] == 0.02) & (points["examples_seen"] == 2_000), "win_rate"] += 0.5
    found = row(compare_methods(method_points(points[~alone])).table, "dpo")
    assert (found["best_beta"], found["best_step"]) == (0.05, 3_000)
    assert found["cost_seconds"] == pytest.approx(30.0)
    assert found["cost_tokens"] == pytest.approx(6e5 + 1e5)
    assert found["cost_tokens_low"] == pytest.approx(7e5 - stats.t.ppf(0.975, 2) * 1e5 / math.sqrt(3))


def test_best_of_n_stands_beside_the_others_from_its_own_first_sample() -> None:
    found = compare_methods(
        method_points(make_methods({"dpo": LAW, "rloo, proxy 0.4M on 256 pairs": OTHER}), make_best_of_n())
    )
    best = row(found.table, "best of n, proxy 0.4M on 256 pairs", "gold_reward")
    assert best["family"] == "RLHF and best-of-n"
    assert (best["num_betas"], best["num_checkpoints"]) == (0, 24)
    assert math.isnan(best["best_beta"])
    assert best["furthest_kl_nats"] == pytest.approx(math.log(256) - 255 / 256)
    # Peak of its law within what 256 samples reach.
    d = math.sqrt(best["furthest_kl_nats"])
    assert best["peak"] == pytest.approx(LOGITS * d * (0.22 - 0.12 * math.log(d)), abs=0.1)
    assert math.isnan(best["cost_tokens"])
    assert row(found.effects, "best of n, proxy 0.4M on 256 pairs", quantity="peak")["baseline"] == "dpo"


def test_best_of_n_alone_beside_one_method_compares() -> None:
    points = make_methods({"dpo": LAW})
    assert not compare_methods(method_points(points)).compared
    assert compare_methods(method_points(points, make_best_of_n())).compared
    assert not compare_methods(method_points(points, make_best_of_n().iloc[:0])).compared


def test_baselines_are_the_plainest_method_that_is_varied() -> None:
    methods = [*METHODS, "ipo, length penalty 0.02", "rloo, worst of 4 proxies 1.6M on 256 pairs", "slic"]
    found = {method: baseline(method, methods) for method in methods}
    assert found == {
        "dpo": None,
        "ipo": "dpo",
        "slic": "dpo",
        "dpo, NLL 0.1 per token": "dpo",
        "dpo, chi_squared link": "dpo",
        "ipo, length penalty 0.02": "ipo",
        "rloo, proxy 0.4M on 256 pairs": "dpo",
        "rloo, worst of 4 proxies 0.4M on 256 pairs": "rloo, proxy 0.4M on 256 pairs",
        "rloo, worst of 4 proxies 1.6M on 256 pairs": "dpo",  # of its own kind no single proxy was run
    }
    assert baseline("ipo", ["ipo", "slic"]) is None
    assert baseline("dpo, reference moving hard, every 32 steps", methods) == "dpo"
    assert {family(method) for method in methods} == {"direct alignment", "mitigations", "RLHF and best-of-n"}


def test_a_dip_that_training_recovers_from_is_left_out_and_counted() -> None:
    points = make_methods({"dpo": LAW, "ipo": LAW}, noise=0.002, between=0.0)
    dip = (points["objective"] == "dpo") & (points["beta"] == 0.02) & (points["examples_seen"] == 2_000)
    points.loc[dip, ["win_rate", "gold_reward"]] -= [0.4, 2.4]
    found = compare_methods(method_points(points))
    dipped = row(found.table, "dpo")
    assert (dipped["num_transients"], dipped["num_checkpoints"]) == (3, 57)
    assert dipped["peak"] == pytest.approx(row(found.table, "ipo")["peak"], abs=0.01)
    assert (method_points(points).table["win_rate"] > 0.2).all()


MISSING: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "no gold reward": lambda points: points.drop(columns="gold_reward"),
    "no rewards": lambda points: points.drop(columns=["gold_reward", "proxy_reward"]),
    "no costs": lambda points: points.drop(columns=["cost_tokens", "cost_seconds"]),
    "no standard errors": lambda points: points.drop(columns=["win_rate_se", "kl_se"]),
    "unknown seeds": lambda points: points.assign(seed=pd.NA),
    "no reference": lambda points: points[points["examples_seen"] > 0],
    "two checkpoints a seed": lambda points: points[points["examples_seen"].isin([0, 5_000]) & (points["beta"] > 0.06)],
    "negative distances": lambda points: points.assign(kl_nats=-0.01),
    "one distance": lambda points: points.assign(kl_nats=4.0),
    "no KL": lambda points: points.assign(kl_nats=np.nan),
    "rewards at a few checkpoints": lambda points: points.assign(
        gold_reward=points["gold_reward"].where(points["examples_seen"] < 3_000)
    ),
    "seeds that went to other distances": lambda points: points[(points["beta"] > 0.2) == (points["seed"] > 0)],
    "the reference only": lambda points: points[points["examples_seen"] == 0],
    "empty": lambda points: points.iloc[:0],
}


@pytest.mark.parametrize("narrowed", MISSING.values(), ids=MISSING)
def test_what_is_missing_leaves_gaps_and_no_error(narrowed) -> None:
    points = narrowed(make_methods({"dpo": LAW, "ipo": OTHER})).reset_index(drop=True)
    found = compare_methods(method_points(points))
    assert tuple(found.table) == COLUMNS
    assert tuple(found.effects) == EFFECT_COLUMNS
    for method in found.table["method"]:
        assert method in {"dpo", "ipo"}


def test_too_few_checkpoints_keep_their_row_and_say_so() -> None:
    points = MISSING["two checkpoints a seed"](make_methods({"dpo": LAW, "ipo": OTHER}))
    found = compare_methods(method_points(points))
    assert set(found.table["peak_is"]) == {"unknown"}
    assert (found.table["num_checkpoints"] == 6).all()
    assert found.table["peak"].isna().all()
    assert found.effects.empty


def test_prompts_in_common_show_dips_that_standard_errors_hide_and_tests_of_falls_leave_the_same_ones_out() -> None:
    points = make_methods({"dpo": LAW, "ipo": LAW}, noise=0.0, between=0.0).assign(win_rate_se=0.05)
    dip = (points["objective"] == "dpo") & (points["beta"] == 0.3) & (points["examples_seen"] == 2_000)
    points.loc[dip, "win_rate"] -= 0.08
    easiness = np.linspace(-0.3, 0.3, 100)
    completions = points.loc[points.index.repeat(len(easiness)), ["run_id", "examples_seen", "win_rate", "kl_nats"]]
    completions = completions.assign(
        prompt_id=[f"p{place}" for place in range(len(easiness))] * len(points),
        win_probability=completions["win_rate"] + np.tile(easiness, len(points)),
        policy_log_prob=completions["kl_nats"],
        reference_log_prob=0.0,
    )
    curves = curves_of(points, completions)
    known, unknown = (compare_methods(method_points(points, None, given)).table for given in (curves, None))
    dips = fall_tests(curves.select()).set_index("objective")["num_transients"].to_dict()
    assert dips == {"dpo": 3, "ipo": 0}
    assert {method: row(known, method)["num_transients"] for method in dips} == dips
    assert {row(unknown, method)["num_transients"] for method in dips} == {0}
