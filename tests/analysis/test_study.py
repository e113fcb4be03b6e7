from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from overopt.analysis.study import analyse

ODD: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "one beta": lambda points: points[points["beta"] == 0.1],
    "two betas": lambda points: points[points["beta"].isin([0.1, 0.2])],
    "one run of each": lambda points: points.drop_duplicates(["objective", "examples_seen"]),
    "last checkpoints only": lambda points: points[points["examples_seen"].isin([0, points["examples_seen"].max()])],
    "no reference": lambda points: points[points["examples_seen"] > 0],
    "no standard errors": lambda points: points.drop(columns=["win_rate_se", "kl_se"]),
    "no forward KL": lambda points: points.drop(columns="forward_kl_nats"),
    "no sizes": lambda points: points.drop(columns="num_parameters"),
    "unknown sizes and seeds": lambda points: points.assign(num_parameters=pd.NA, seed=pd.NA),
    "half without a win rate": lambda points: points.assign(win_rate=points["win_rate"].where(points.index % 2 == 0)),
    "one objective without any": lambda points: points.assign(
        win_rate=points["win_rate"].where(points["objective"] == "dpo")
    ),
    "no distance at all": lambda points: points.assign(kl_nats=0.0),
    "hardly any distance": lambda points: points.assign(kl_nats=1.0 + 1e-12 * points.index),
    "negative distances": lambda points: points.assign(kl_nats=-0.01),
    "one win rate": lambda points: points.assign(win_rate=0.5),
    "certain win rates": lambda points: points.assign(win_rate_se=0.0),
    "win rates of 0 and 1": lambda points: points.assign(win_rate=(points.index % 2).astype(float)),
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_odd_points_are_analysed_as_far_as_they_carry_and_every_gap_is_named(make_points, odd) -> None:
    points = odd(make_points(("dpo", "ipo"))).reset_index(drop=True)
    study = analyse(points)
    fitted = study.fits.table.groupby(["objective", "axis", "points"]).ngroups
    wanted = points["objective"].nunique() * (1 + ("forward_kl_nats" in points)) * 2
    assert fitted == wanted or study.fits.notes  # no curve is missing without a word
    assert np.isfinite(study.fits.table[["r0", "rmse"]].to_numpy(float)).all()
    assert len(study.claims) >= 14
    for name, table in study.tables.items():
        assert isinstance(table, pd.DataFrame), name


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (lambda points: points.assign(win_rate=np.nan), "evaluate checkpoints with a judge first"),
        (lambda points: points.assign(kl_nats=np.nan, forward_kl_nats=np.nan), "evaluate checkpoints with a judge"),
        (lambda points: points[points["examples_seen"] == 0], "evaluate checkpoints with a judge first"),
        (lambda points: points.drop(columns="kl_nats"), "lacks kl_nats"),
    ],
)
def test_points_without_any_curve_are_refused_with_the_way_out(make_points, odd, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        analyse(odd(make_points()))


def test_tables_are_the_same_every_time(make_points) -> None:
    points = make_points(("dpo", "ipo"))
    first, second = (analyse(points).tables for _ in range(2))
    for name, table in first.items():
        pd.testing.assert_frame_equal(table, second[name])
