import numpy as np
import pandas as pd
import pytest

from overopt.analysis.findings.tree_claims import both_fell, settings_summary, tree_claims


def masses(ends, betas=(0.1,), objective="dpo"):
    """Three steps of as many seeds as there are ends: the reference, half way, and these masses of the four classes."""
    start = np.array([0.3, 0.3, 0.3, 0.1])
    rows = []
    for beta in betas:
        for seed, end in enumerate(ends):
            for step, share in ((0, 0.0), (5, 0.5), (10, 1.0)):
                now = start + share * (np.array(end) - start)
                rows.append(
                    {"objective": objective, "beta": beta, "seed": seed, "step": step}
                    | dict(zip(("chosen", "rejected", "demonstrated", "unseen"), now, strict=True))
                    | {
                        "unseen_effective": 2.0,
                        "unseen_top": 0.6,
                        "unseen_few": 0.5 + 0.4 * share,
                        "margin_nats": share,
                        "kl_nats": share,
                    }
                )
    return pd.DataFrame(rows)


FALLING, RISING = (0.1, 0.0, 0.3, 0.6), (0.7, 0.0, 0.2, 0.1)


def of(claims, text):
    [claim] = [claim for claim in claims if text in claim.text]
    return claim


def test_the_pair_has_fallen_only_where_both_lost_and_the_unseen_gained():
    table = masses([FALLING, RISING, (0.1, 0.0, 0.9, 0.0)])
    fell = both_fell(table)
    assert fell[table["step"] == 10].tolist() == [True, False, False]
    assert not fell[table["step"] == 0].any()
    assert not both_fell(table, by=0.6).any()


def test_shares_of_seeds_means_and_spread_by_hand():
    claims = tree_claims(masses([FALLING] * 6 + [RISING] * 2))
    pair = of(claims, "both trajectories")
    assert pair.estimate.value == 0.75
    assert pair.basis == "6 of 8 seeds at the end, 6 at some step"
    assert of(claims, "mass moves").estimate.value == pytest.approx(0.5 * 6 / 8)
    assert of(claims, "end far apart").estimate.value == pytest.approx(np.std([0.1] * 6 + [0.7] * 2, ddof=1))
    assert of(claims, "SFT").estimate.value == pytest.approx(0.9)
    assert of(claims, "SFT").verdict == "holds"
    assert of(claims, "select few").estimate.value == pytest.approx(0.4)
    assert not [claim for claim in claims if "smaller beta" in claim.text]  # one beta shows no trend


def test_verdicts_follow_what_happened():
    assert of(tree_claims(masses([FALLING] * 20)), "both trajectories").verdict == "holds"
    assert of(tree_claims(masses([RISING] * 20)), "both trajectories").verdict == "does not"
    assert of(tree_claims(masses([FALLING] * 10 + [RISING] * 10)), "both trajectories").verdict == "undecided"


def test_the_trend_with_beta_is_a_slope_per_decade_within_seeds():
    rng = np.random.default_rng(0)
    tables = []
    for beta, unseen in ((0.01, 0.7), (0.1, 0.5), (1.0, 0.3)):
        ends = [(0.1, 0.0, 0.9 - u, u) for u in unseen + 0.02 * rng.normal(size=12)]
        tables.append(masses(ends, betas=(beta,)))
    claims = [claim for claim in tree_claims(pd.concat(tables)) if "smaller beta" in claim.text]
    assert len(claims) == 2
    for claim in claims:
        assert claim.verdict == "holds"
        assert claim.estimate.value == pytest.approx(-0.2, abs=0.02)


def test_the_summary_has_every_setting_moment_and_measure():
    table = settings_summary(masses([FALLING] * 4 + [RISING], betas=(0.1, 0.5)))
    assert len(table) == 2 * 3 * 9
    unseen = table[(table["measure"] == "unseen") & (table["beta"] == 0.5)].set_index("when")
    assert unseen.loc["reference", "mean"] == pytest.approx(0.1)
    assert unseen.loc["end", "median"] == pytest.approx(0.6)
    assert unseen.loc["most unseen", "mean"] == pytest.approx((4 * 0.6 + 0.1) / 5)
