import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient

from overopt.cli import main
from overopt.theory.tree_mdp import paper_data, with_more_preferences
from overopt.theory.tree_training import TreeTraining
from overopt.theory_stages import tree_mdp
from overopt.theory_stages.tree_mdp import EXPERIMENT, TreeStudy, train, variants

FAST = ["--seeds", "3", "--width", "4", "--sft-steps", "4", "--steps", "5"]


@pytest.fixture
def store(tmp_path):
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def test_the_command_keeps_every_probability_draws_and_tracks(tmp_path, store, capsys, monkeypatch):
    monkeypatch.setitem(tree_mdp.VARIATIONS, "preferences", (1, 3))
    out = tmp_path / "out"
    options = ["--betas", "0.1", "0.5", "--objectives", "dpo", "ipo", "--vary", "preferences", "--vary-seeds", "4"]
    main(["tree-mdp", *FAST, *options, "--out", str(out), "--tracking-uri", store])
    printed = capsys.readouterr().out
    assert "sum to 1 within" in printed
    every = pd.read_parquet(out / "trajectories" / "ipo_beta_0.5.parquet")
    assert every.shape == (3 * 6, 2 + 27)
    np.testing.assert_allclose(every.drop(columns=["seed", "step"]).sum(axis=1), 1, atol=1e-12)
    masses = pd.read_parquet(out / "masses.parquet")
    assert len(masses) == 2 * 2 * 3 * 6
    last = masses[
        (masses["objective"] == "ipo") & (masses["beta"] == 0.5) & (masses["seed"] == 2) & (masses["step"] == 5)
    ]
    same = every[(every["seed"] == 2) & (every["step"] == 5)]
    assert last["chosen"].item() == pytest.approx(same["s1 a1 s3 a1 s9 a0"].item())
    assert len(pd.read_csv(out / "sensitivity.csv")) == 2 * 4
    assert {"settings.csv", "claims.csv"} <= {path.name for path in out.iterdir()}
    assert (out / "figures" / "fig18_dpo_repeats.png").is_file()
    client = MlflowClient(store)
    runs = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])
    [study] = [run for run in runs if run.data.tags["overopt.stage"] == "study"]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == study.info.run_id]
    assert {(run.data.params["objective"], run.data.params["beta"]) for run in children} == {
        ("dpo", "0.1"), ("dpo", "0.5"), ("ipo", "0.1"), ("ipo", "0.5")
    }  # fmt: skip
    assert all(run.info.status == "FINISHED" for run in runs)
    [child] = [run for run in children if run.data.params["objective"] == "ipo" and run.data.params["beta"] == "0.5"]
    history = client.get_metric_history(child.info.run_id, "trajectory/s1 a1 s3 a1 s9 a0")
    assert [point.step for point in history] == list(range(6))
    assert history[-1].value == pytest.approx(every[every["step"] == 5]["s1 a1 s3 a1 s9 a0"].mean())


def test_another_tree_with_its_own_data(tmp_path, store):
    out = tmp_path / "out"
    data = ["--demonstrations", "a0 a0", "a1 a1", "--preferences", "a1 a1 > a0 a0"]
    main(["tree-mdp", "--branching", "2", "--depth", "2", *data, *FAST, "--out", str(out), "--tracking-uri", store])
    assert pd.read_parquet(out / "trajectories" / "sft.parquet").shape == (3 * 5, 2 + 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--branching", "1"], "branching of at least 2"),
        (["--depth", "0"], "depth of at least 1"),
        (["--depth", "2"], "--demonstrations 'a0 a0' --preferences 'a2 a2 > a0 a0'"),
        (["--demonstrations", "a0 a0 a7"], "outside the tree"),
        (["--preferences", "a0 a0 a0 > a0 a0 a0"], "to itself"),
        (["--objectives", "ppo"], "unknown objective 'ppo'"),
        (["--betas", "0"], "beta > 0"),
        (["--seeds", "0"], "at least one seed"),
        (["--steps", "0"], "steps >= 1"),
        (["--width", "0"], "width >= 1"),
        (["--vary", "weather"], "'weather' can be varied"),
        (["--learning-rate", "-1"], "learning_rate > 0"),
    ],
)
def test_odd_input_ends_with_one_clear_line_and_writes_nothing(tmp_path, store, capsys, options, message):
    with pytest.raises(SystemExit) as ended:
        main(["tree-mdp", *options, "--out", str(tmp_path / "out"), "--tracking-uri", store])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_random_preferences_keep_the_paper_s_and_are_explained_by_one_reward():
    data = with_more_preferences(paper_data(), 60, seed=3)
    assert data.preferences[0] == paper_data().preferences[0]
    assert len({frozenset((p.chosen, p.rejected)) for p in data.preferences}) == 60
    # One reward explains them all if and only if no trajectory is, step by step, preferred to itself.
    reach = np.zeros((27, 27), bool)
    for p in data.preferences:
        reach[p.chosen, p.rejected] = True
    for middle in range(27):
        reach |= reach[:, [middle]] & reach[[middle]]
    assert not reach.diagonal().any()
    assert with_more_preferences(paper_data(), 60, seed=4) != data


@pytest.mark.parametrize("number", [0, 352])
def test_too_few_or_too_many_preferences_are_refused(number):
    with pytest.raises(ValueError, match="351 pairs"):
        with_more_preferences(paper_data(), number, seed=0)


@pytest.mark.parametrize(("factor", "values"), tree_mdp.VARIATIONS.items())
def test_a_variation_changes_one_thing_and_trains(factor, values):
    study = TreeStudy(paper_data(), TreeTraining(sft_steps=50, steps=2), ("dpo",), (0.1,), 4)
    found = [variants(study, factor, value) for value in values]
    assert sum(changed == [study] for changed in found) == 1
    results = train(found[-1][0])
    assert np.isfinite(results.masses["unseen"]).all()
    assert results.largest_error < 1e-12
