import numpy as np
import pandas as pd

from overopt.analysis.figures.style import drawing, rendered
from overopt.analysis.figures.tree_mdp import (
    along_training,
    draw_sensitivity,
    mass_vs_distance,
    most_likely_unseen,
    tree_figures,
)

KINDS = {"t0": "chosen", "t1": "rejected", "t2": "demonstrated", "t3": "unseen", "t4": "unseen"}


def tables(objectives=("dpo", "ipo"), betas=(0.1, 0.5), seeds=4, steps=3):
    rng = np.random.default_rng(1)
    trajectories, masses = [], []
    for objective in objectives:
        for beta in betas:
            for seed in range(seeds):
                for step in range(steps):
                    drawn = rng.dirichlet(np.ones(5))
                    named = {"objective": objective, "beta": beta, "seed": seed, "step": step}
                    trajectories += [
                        {**named, "trajectory": t, "kind": kind, "probability": p}
                        for (t, kind), p in zip(KINDS.items(), drawn, strict=True)
                    ]
                    of_classes = {kind: drawn[place] for place, kind in enumerate(list(KINDS.values())[:3])}
                    of_unseen = {"unseen": drawn[3:].sum(), "unseen_effective": 1.5, "unseen_few": 1.0}
                    masses.append({**named, **of_classes, **of_unseen, "kl_nats": float(step**2)})
    return pd.DataFrame(trajectories), pd.DataFrame(masses)


def test_bands_are_quantiles_over_seeds():
    _, masses = tables()
    bands = along_training(masses, ["chosen", "unseen"])
    row = bands[
        (bands["objective"] == "ipo") & (bands["beta"] == 0.5) & (bands["step"] == 2) & (bands["measure"] == "unseen")
    ]
    seeds = masses[(masses["objective"] == "ipo") & (masses["beta"] == 0.5) & (masses["step"] == 2)]["unseen"]
    np.testing.assert_allclose(
        row[["quantile_05", "median", "quantile_95"]].to_numpy()[0], np.quantile(seeds, [0.05, 0.5, 0.95])
    )
    assert len(bands) == 2 * 2 * 3 * 2


def test_distance_is_the_root_of_the_divergence():
    assert mass_vs_distance(tables()[1])["d"].tolist()[:3] == [0, 1, 2]


def test_unseen_trajectories_are_named_by_their_highest_probability():
    trajectories, _ = tables(("dpo",), (0.1,), seeds=1)
    highest = trajectories[trajectories["kind"] == "unseen"].groupby("trajectory")["probability"].max()
    assert most_likely_unseen(trajectories) == highest.sort_values(ascending=False).index.tolist()


def test_every_figure_is_named_after_the_paper_s_and_drawn():
    trajectories, masses = tables()
    with drawing():
        figures = dict(tree_figures(trajectories, masses))
        assert list(figures) == [
            "fig07_tree_mdp", "fig09_dpo_beta_0.1", "fig15_dpo_beta_0.5", "fig10_ipo_beta_0.1", "fig16_ipo_beta_0.5",
            "fig18_dpo_repeats", "tree_masses", "tree_concentration", "tree_mass_vs_kl",
        ]  # fmt: skip
        top, bottom = figures["fig09_dpo_beta_0.1"].axes
        run = trajectories[
            (trajectories["objective"] == "dpo") & (trajectories["beta"] == 0.1) & (trajectories["seed"] == 0)
        ]
        for ax, kinds in ((top, ["unseen"]), (bottom, ["chosen", "rejected", "demonstrated"])):
            drawn = sorted(tuple(line.get_ydata()) for line in ax.lines)
            expected = run[run["kind"].isin(kinds)].groupby("trajectory")["probability"]
            assert drawn == sorted(tuple(values) for _, values in expected)
        for figure in figures.values():
            assert rendered(figure, "svg").startswith(b"<?xml")


def test_other_settings_than_the_paper_s_are_drawn_under_their_own_name():
    trajectories, masses = tables(("savage",), (0.3,), seeds=1)
    with drawing():
        names = [name for name, _ in tree_figures(trajectories, masses)]
    assert names == ["fig07_tree_mdp", "tree_savage_beta_0.3", "tree_masses", "tree_concentration", "tree_mass_vs_kl"]


def test_sensitivity_has_a_panel_for_each_factor_and_objective():
    rows = [
        {"factor": f, "value": v, "objective": o, "beta": b, "unseen_change": 0.2, "unseen_change_low": 0.1,
         "unseen_change_high": 0.4}
        for f, values in (("width", "4 16"), ("cell", "rnn gru lstm"))
        for v in values.split() for o in ("dpo", "ipo") for b in (0.1, 0.5)
    ]  # fmt: skip
    with drawing():
        figure = draw_sensitivity(pd.DataFrame(rows))
    assert len(figure.axes) == 4
    assert [label.get_text() for label in figure.axes[2].get_xticklabels()] == ["rnn", "gru", "lstm"]
