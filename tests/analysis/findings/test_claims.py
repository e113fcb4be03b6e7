import math

import numpy as np
import pandas as pd
import pytest

from overopt.analysis.findings.claim import Claim
from overopt.analysis.findings.claims import paper_claims
from overopt.analysis.findings.falls import fall_tests
from overopt.analysis.laws.curves import curves_of
from overopt.analysis.laws.model_comparison import compare_laws


def claims_of(points: pd.DataFrame) -> dict[str, Claim]:
    curves = curves_of(points)
    falls = pd.concat([fall_tests(curves.select(axis), draws=1000) for axis in ("kl", "forward_kl")])
    laws = compare_laws([curve for curve in curves.select() if curve.can_be_fitted()], resamples=5).laws
    return {claim.text: claim for claim in paper_claims(points, curves, falls, laws)}


def verdict(points: pd.DataFrame, words: str) -> str:
    (found,) = (claim for text, claim in claims_of(points).items() if words in text)
    return found.verdict


@pytest.fixture(name="points")
def _points(make_points) -> pd.DataFrame:
    """Three objectives and three sizes, all on one hump."""
    points = make_points(("dpo", "ipo", "slic"), ("small", "middle", "large"), noise=0.01).assign(win_rate_se=0.01)
    points["num_parameters"] = points["model"].map({"small": 10**6, "middle": 10**7, "large": 10**8})
    generator = np.random.default_rng(0)
    for metric in ("implicit_reward_accuracy", "loss", "length_r2_uncentred"):
        points[metric] = generator.uniform(0.4, 0.6, len(points))
    points["chosen_log_ratio"] = -points["forward_kl_nats"]
    return points


def test_every_claim_has_a_rule_a_measure_and_an_estimate_inside_its_interval(points) -> None:
    claims = claims_of(points)
    assert len(claims) == 16
    for claim in claims.values():
        assert all((claim.rule, claim.measure, claim.basis))
        if not math.isnan(claim.estimate.low):
            assert claim.estimate.low <= claim.estimate.value <= claim.estimate.high
        if claim.verdict != "undecided":
            assert not math.isnan(claim.estimate.value)


def test_a_hump_is_found_for_each_objective_that_has_one(points) -> None:
    flat = points["objective"] == "ipo"
    points.loc[flat, "win_rate"] = 0.42
    assert verdict(points, "DPO over-optimizes") == "holds"
    assert verdict(points, "SLiC over-optimizes") == "holds"
    assert verdict(points, "IPO over-optimizes") != "holds"


def test_the_papers_claims_are_about_its_own_methods(points) -> None:
    others = [points[points["objective"] == "dpo"].assign(objective=name) for name in ("rloo", "dpo, chi_squared link")]
    for other in others:
        other["win_rate"] = 0.42
        other["beta"] /= 100
        other["run_id"] = other["objective"] + other["run_id"]
    together = claims_of(pd.concat([points, *others], ignore_index=True))
    assert together == claims_of(points)
    assert any("RLOO over-optimizes" in text for text in claims_of(others[0]))


@pytest.mark.parametrize(("factor", "expected"), [(0.5, "holds"), (2.0, "does not")])
def test_ipo_is_compared_at_equal_model_beta_and_seed(points, factor: float, expected: str) -> None:
    points.loc[points["objective"] == "ipo", "kl_nats"] *= factor
    assert verdict(points, "IPO keeps KL lower") == expected


@pytest.mark.parametrize(("shift", "expected"), [(0.0, "holds"), (0.2, "does not"), (0.05, "undecided")])
def test_dpo_and_slic_are_alike_within_a_margin(points, shift: float, expected: str) -> None:
    points.loc[points["objective"] == "slic", "win_rate"] += shift
    assert verdict(points, "perform alike") == expected


@pytest.mark.parametrize(("power", "expected"), [(-0.3, "holds"), (0.3, "does not")])
def test_sizes_are_compared_on_how_far_they_go(points, power: float, expected: str) -> None:
    points["kl_nats"] *= (points["num_parameters"] / 1e7) ** power
    assert verdict(points, "Smaller models go further") == expected


def test_runs_that_are_best_early_and_late_are_told_apart_and_without_an_early_checkpoint_nobody_can(points) -> None:
    early = points.assign(win_rate=0.7 - 0.00001 * points["examples_seen"])
    assert verdict(early, "first quarter") == "holds"
    late = points.assign(win_rate=0.4 + 0.00001 * points["examples_seen"])
    assert verdict(late, "first quarter") == "does not"
    first = sorted(points["examples_seen"].unique())[1]
    assert verdict(early[early["examples_seen"] != first], "first quarter") == "undecided"


def test_the_log_law_beats_the_parabola_in_kl_on_a_log_law(make_points) -> None:
    points = make_points(("dpo", "ipo", "slic"), noise=0.001)
    claims = claims_of(points)
    (claim,) = (claim for text, claim in claims.items() if "half the error" in text)
    assert claim.estimate.value < 0.3
    assert claim.verdict == "holds"


def test_accuracy_that_orders_win_rates_predicts_them_and_noise_does_not(points) -> None:
    assert verdict(points, "implicit-reward accuracy does not predict") == "holds"
    ordered = points.assign(implicit_reward_accuracy=points["win_rate"])
    assert verdict(ordered, "implicit-reward accuracy does not predict") == "does not"


@pytest.mark.parametrize(("slope", "expected"), [(-0.1, "holds"), (0.1, "does not")])
def test_length_is_compared_between_sizes(points, slope: float, expected: str) -> None:
    points["length_r2_uncentred"] = 0.5 + slope * np.log10(points["num_parameters"] / 1e7)
    points["length_r2_uncentred"] += np.random.default_rng(1).normal(0, 0.01, len(points))
    assert verdict(points, "Weaker models lean on length") == expected


def test_what_the_grid_lacks_is_undecided_and_says_so(make_points) -> None:
    claims = claims_of(make_points().drop(columns=["forward_kl_nats"]))
    basis = {text: claim.basis for text, claim in claims.items() if claim.verdict == "undecided"}
    assert any("no run with a length penalty" in words for words in basis.values())
    assert any("no forward KL" in words for words in basis.values())
    assert any("no runs of IPO beside DPO" in words for words in basis.values())
    assert any("no chosen_log_ratio" in words for words in basis.values())


def test_a_penalised_curve_that_falls_is_not_cured(points) -> None:
    penalised = points[points["objective"] == "dpo"].assign(objective="dpo, length penalty 0.01")
    penalised["run_id"] = "penalised-" + penalised["run_id"]
    assert verdict(pd.concat([points, penalised], ignore_index=True), "A length term") == "holds"
