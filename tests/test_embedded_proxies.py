"""Proxies and best-of-n as tasks of the embedded default; the quickstart's tests run its other tasks."""

import json

import pandas as pd
import pytest

from overopt.checkpoints.format import read_model_checkpoint
from overopt.data.datamodule import data_of_checkpoint
from overopt.embedded import BestOfN, Cell, EmbeddedExperiment, Proxy, Recipe
from overopt.reward_stages.best_of_n import BestOfNSettings
from overopt.tracking.runs import start_run
from overopt.tracking.store import open_store


@pytest.fixture
def experiment(preference_folder, tmp_path):
    recipe = Recipe(
        source="jsonl",
        path=str(preference_folder),
        gold_fraction=0.3,
        gold_size="0.4M",
        vocab_size=300,
        batch_size=8,
        sft_steps=3,
        gold_steps=2,
        gold_pairs=12,
        pairs=40,
        align_batch_size=8,
        evaluation_prompts=4,
    )
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    return EmbeddedExperiment(tmp_path / "out", uri, start_run(open_store(uri, create=True), "test", "study"), recipe)


def test_an_ensemble_of_proxies_is_trained_evaluated_and_chooses(experiment):
    proxies = tuple(Proxy("0.4M", 16, seed, policy_size="0.4M", policy_seed=0, passes=3) for seed in (0, 1))
    choice = BestOfN(proxies, BestOfNSettings(combine="worst", pool=4, ns=(1, 4)))
    tasks = experiment.proxy_tasks(proxies, [choice])
    assert proxies[1].name == "proxy-0.4M-pairs16-seed1-of-0.4M-seed0-passes3"
    done = set()
    for name, task in tasks.items():
        assert set(task.needs) <= done
        done.add(name)
        result = task.run()
        if name.startswith("proxy"):
            assert 0 <= result["accuracy_low"] <= result["accuracy"] <= result["accuracy_high"] <= 1
            assert {"calibration_error", "brier_score", "gold_same_order", "training_seconds"} <= result.keys()
    client = open_store(experiment.tracking_uri, create=False)
    for proxy in proxies:
        path = experiment.out / proxy.name / "checkpoints" / "last.ckpt"
        checkpoint = read_model_checkpoint(path)
        data = data_of_checkpoint(checkpoint, path)
        data.setup("fit")
        assert len(data.train_set) == 16
        assert checkpoint.training["examples_seen"] == 3 * 16
        run = client.get_run(checkpoint.training["run_id"])
        assert (run.info.run_name, run.info.status) == (proxy.name, "FINISHED")
        assert run.data.metrics["eval/brier_score"] > 0
        assert (experiment.out / proxy.name / "reward_evaluation" / "reliability.csv").is_file()
    table = pd.read_csv(experiment.out / choice.name / "best_of_n.csv")
    assert table["n"].tolist() == [1, 4]
    rows = [json.loads(line) for line in (experiment.out / choice.name / "completions.jsonl").read_text().splitlines()]
    assert len(rows) == 4 * 4
    assert {len(row["member_rewards"]) for row in rows} == {2}
    # Found done, nothing is made again.
    before = (experiment.out / choice.name / "best_of_n.csv").stat().st_mtime_ns
    for task in tasks.values():
        task.run()
    assert (experiment.out / choice.name / "best_of_n.csv").stat().st_mtime_ns == before


def test_cells_keep_their_tasks(experiment):
    assert [*experiment.tasks([Cell("dpo", 0.1, "0.4M", 1)])] == [
        "sft-0.4M-seed0",
        "gold-pairs",
        "gold",
        "sft-0.4M-seed1",
        "pairs-0.4M-seed1",
        "reference-0.4M-seed1",
        "dpo-beta0.1-0.4M-seed1",
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Proxy("7B"), "no size '7B'"),
        (lambda: Proxy(policy_size="7B"), "no size '7B'"),
        (lambda: Proxy(pairs=0), "at least 1"),
        (lambda: BestOfN(()), "pairs of one policy"),
        (lambda: BestOfN((Proxy(seed=0), Proxy(seed=1))), "pairs of one policy"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_more_pairs_than_a_policy_has_are_refused(experiment):
    with pytest.raises(ValueError, match="wants 64 pairs, the recipe has 40"):
        experiment.proxy_tasks([Proxy("0.4M", 64)])
