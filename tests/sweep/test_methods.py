"""sweeps/methods.py, as a person starts it."""

import os
import subprocess
import sys
from pathlib import Path

import optuna
import pandas as pd
import pytest
import yaml

from overopt.embedded.cells import BestOfN, Cell, PolicyGradientCell, Proxies, Proxy
from overopt.sweep.board import parameters_of
from sweep.small_sweep import small_recipe

SCRIPT = Path(__file__).parents[2] / "sweeps" / "methods.py"


def run(folder, *options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run(
        [sys.executable, SCRIPT, "--tracking-uri", f"sqlite:///{folder}/mlflow.db", "--out", folder / "out", *options],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def test_every_kind_of_method_has_its_points_in_one_report(tmp_path, preference_folder):
    recipe = small_recipe(preference_folder)
    settings = {name: value for name, value in vars(recipe).items() if isinstance(value, int | float | str)}
    preset = tmp_path / "recipe.yaml"
    preset.write_text(yaml.safe_dump({**settings, "rl_prompts": 4, "rl_steps": 2, "monitored_pairs": 40}))
    space = ["--alignments", "dpo", "rpo", "iterated_by_proxy", "--betas", "0.1", "--rl-betas", "0.05"]
    space += ["--proxy-pairs", "16", "--ensembles", "worst", "--ensemble-pairs", "16", "--members", "2", "--seeds", "0"]
    done = run(tmp_path, "--preset", str(preset), *space, "--workers", "2")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "7 of 7 cells done" in done.stdout
    study = optuna.load_study(study_name="methods", storage=f"sqlite:///{tmp_path}/out/sweep.db")
    shown = [trial.params.get("proxy") for trial in study.trials]
    assert sorted(filter(None, shown)) == 2 * ["proxy 0.4M on 16 pairs"] + 2 * ["worst of 2 proxies 0.4M on 16 pairs"]
    points = pd.read_csv(tmp_path / "out/report/points.csv")
    assert points["objective"].nunique() == 5
    assert points[["proxy_reward", "gold_reward", "cost_tokens"]].notna().all(axis=None)
    costs = pd.read_csv(tmp_path / "out/report/costs.csv")
    assert (costs.loc[costs["examples_seen"] > 0, "cost_seconds"] > 0).all()


def test_the_whole_study_is_planned_before_anything_is_done(tmp_path):
    done = run(tmp_path, "--dry-run")
    assert done.returncode == 0, done.stderr
    # Thirteen alignments at three betas, five choices of proxies at three betas and with best-of-n, over three seeds.
    assert f"{3 * (13 * 3 + 5 * 3 + 5)} cells" in done.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--proxy-pairs", "9999"], "wants 9999 pairs, the recipe has 2048"),
        (["--members", "1"], "an ensemble has at least 2 members"),
        (["--alignments", "--optimisers"], "nothing to compare"),
        (["--alignments", "--optimisers", "best_of_n"], "needs a policy that is trained"),
        (["--size", "7B"], "no size '7B'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path, options, message):
    done = run(tmp_path, *options)
    assert done.returncode == 2
    assert message in done.stderr.strip().splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_cells_of_several_kinds_are_shown_with_what_each_has():
    few, many = (Proxies((Proxy("0.4M", pairs),)) for pairs in (256, 2048))
    cells = [Cell("dpo", 0.1, "0.4M"), PolicyGradientCell(few, beta=0.02), BestOfN(many)]
    shown = [parameters_of(cells)[cell.name].values for cell in cells]
    of_all = {"objective", "beta", "proxy"}
    assert [values.keys() & of_all for values in shown] == [{"objective", "beta"}, of_all, {"objective", "proxy"}]
    assert shown[1]["proxy"] == "proxy 0.4M on 256 pairs"


@pytest.mark.parametrize("kind", [PolicyGradientCell, BestOfN])
def test_what_is_optimised_against_proxies_belongs_to_the_policy_of_their_pairs(kind):
    members = tuple(Proxy("0.7M", 64, seed, policy_size="0.4M", policy_seed=7) for seed in (7, 8))
    cell = kind(Proxies(members))
    assert (cell.size, cell.seed) == ("0.4M", 7)
