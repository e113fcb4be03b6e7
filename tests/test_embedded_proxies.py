"""Proxies and best-of-n as tasks of the embedded default; the quickstart's tests run its other tasks."""

import json
import math
from dataclasses import replace

import pandas as pd
import pytest

from overopt.checkpoints.cost import Cost
from overopt.checkpoints.format import read_model_checkpoint
from overopt.cli import main
from overopt.data.datamodule import data_of_checkpoint
from overopt.embedded.cells import BestOfN, Cell, PolicyGradientCell, Proxies, Proxy
from overopt.embedded.experiment import EmbeddedExperiment
from overopt.embedded.plan import plan
from overopt.embedded.recipe import Recipe
from overopt.tracking.best_of_n_points import read_best_of_n
from overopt.tracking.runs import start_run
from overopt.tracking.store import open_store
from overopt.tracking.tables import read_points


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
    proxies = tuple(Proxy("0.4M", 16, seed, policy_size="0.4M", policy_seed=0, epochs=3) for seed in (0, 1))
    choice = BestOfN(Proxies(proxies, "worst"), pool=4, ns=(1, 4))
    tasks = plan(experiment, [choice])
    assert proxies[1].name == "proxy-0.4M-pairs16-seed1-of-0.4M-seed0-epochs3"
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


def test_a_policy_is_optimised_against_an_ensemble_beside_an_aligned_one_and_best_of_n(experiment):
    experiment = replace(experiment, recipe=replace(experiment.recipe, rl_prompts=4, rl_steps=5, monitored_pairs=24))
    members = tuple(Proxy("0.4M", 16, seed, policy_seed=0) for seed in (0, 1))
    worst = Proxies(members, "worst")
    cells = [PolicyGradientCell(worst, beta=0.2), Cell("dpo", 0.1, "0.4M"), BestOfN(worst, pool=2, ns=(1, 2))]
    tasks = plan(experiment, cells)
    assert tasks[cells[0].name].needs[0] == tasks[cells[1].name].needs[0] == "sft-0.4M-seed0"
    results = {name: task.run() for name, task in tasks.items()}
    for cell in cells:
        assert {"best/win_rate", "best/kl_nats"} < results[cell.name].keys()
    assert results[cells[2].name]["best/n"] in (1, 2)

    points, notes = read_points(experiment.tracking_uri, parent_run_id=experiment.study)
    assert not notes
    points = points.set_index(["objective", "examples_seen"])
    assert set(points.index.levels[0]) == {"dpo", "rloo, worst of 2 proxies 0.4M on 16 pairs"}
    optimised, aligned = points.loc["rloo, worst of 2 proxies 0.4M on 16 pairs"], points.loc["dpo"]
    assert optimised.index.tolist() == [0, 4, 8, 12, 16, 20]
    assert points[["gold_reward", "proxy_reward", "win_rate", "kl_nats"]].notna().all(axis=None)
    # One reference, one set of draws; what reads them differs.
    assert optimised.loc[0, "win_rate"] == aligned.loc[0, "win_rate"]
    assert optimised.loc[0, "proxy_reward"] != aligned.loc[0, "proxy_reward"]

    # The same prompts for all.
    answered = [{row["prompt_id"] for row in rows_of(experiment.out / cell.name)} for cell in cells]
    assert answered[0] == answered[1] == answered[2]

    best_of_n = read_best_of_n(experiment.tracking_uri, parent_run_id=experiment.study).table
    assert best_of_n["objective"].tolist() == ["best of n, worst of 2 proxies 0.4M on 16 pairs"] * 2

    def cost(*names):
        return sum((Cost.of(results[name]) for name in names), Cost())

    # The part of the pairs that the proxies learn from, both reward models, and the backbone that is not the policy;
    # then the run itself, step by step.
    before = cost("pairs-0.4M-seed0").part(16 / experiment.recipe.pairs)
    before += cost("sft-0.4M-seed1", *(member.name for member in members))
    assert best_of_n["cost_tokens"].tolist() == [0, before.tokens]
    assert optimised.loc[0, "cost_tokens"] == 0
    assert optimised.loc[20, "cost_tokens"] == (before + cost(cells[0].name)).tokens
    assert (optimised["cost_seconds"].diff().dropna() > 0).all()
    assert aligned["cost_tokens"].iloc[-1] == cost("pairs-0.4M-seed0", cells[1].name).tokens
    assert {name: task.run() for name, task in tasks.items()} == results

    # Evaluated again by hand, a checkpoint does not know of the pairs and reward models: what is known stays.
    last = experiment.out / cells[0].name / "checkpoints" / "last.ckpt"
    main(["evaluate", str(last), "--num-prompts", "4", "--tracking-uri", experiment.tracking_uri])
    again, _ = read_points(experiment.tracking_uri, parent_run_id=experiment.study)
    assert again.set_index(["objective", "examples_seen"])["cost_tokens"].equals(points["cost_tokens"])


def rows_of(folder):
    """Completions of a cell: of best-of-n all in one file."""
    first = next(path for path in sorted(folder.rglob("*.jsonl")))
    return [json.loads(line) for line in first.read_text().splitlines()]


def test_tokens_of_a_policy_gradient_are_those_it_drew_and_trained_on(experiment):
    experiment = replace(experiment, recipe=replace(experiment.recipe, rl_prompts=4, rl_steps=1, rl_samples=3))
    cell = PolicyGradientCell(Proxies((Proxy("0.4M", 16),)), beta=0.2)
    result = [task.run() for task in plan(experiment, [cell]).values()][-1]
    lengths = [4 * experiment.recipe.max_prompt_tokens, 12 * experiment.recipe.max_response_tokens]
    assert 12 * 2 < result["cost_tokens"] <= lengths[0] + 2 * lengths[1]


def test_what_optimises_a_proxy_needs_no_reference_of_alignment(experiment):
    watched = replace(experiment, recipe=replace(experiment.recipe, monitored_pairs=24))
    cells = [PolicyGradientCell(Proxies((Proxy("0.4M", 16),)), beta=0.2), BestOfN(Proxies((Proxy("0.4M", 16),)))]
    assert [*plan(watched, cells)][-3:] == ["proxy-0.4M-pairs16-seed0", *(cell.name for cell in cells)]
    assert not any(name.startswith("reference") for name in plan(watched, cells))


def test_cells_keep_their_tasks(experiment):
    assert [*plan(experiment, [Cell("dpo", 0.1, "0.4M", 1)])] == [
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
        (lambda: Proxy(seed=-1), "seeds are 0 or above, got -1"),
        (lambda: Proxy(policy_seed=-1), "seeds are 0 or above, got -1"),
        (lambda: Proxies((Proxy(),), price=math.nan), "price of disagreement >= 0, got nan"),
        (lambda: Proxies(()), "at least one reward model"),
        (lambda: Proxies((Proxy(), Proxy())), "named twice"),
        (lambda: Proxies((Proxy(pairs=64), Proxy(pairs=32))), "differ in their seeds alone"),
        (lambda: Proxies((Proxy(seed=0), Proxy(seed=1))), "pairs of one policy"),
        (lambda: BestOfN(Proxies((Proxy(),)), pool=4), "pool of 4"),
        (lambda: PolicyGradientCell(Proxies((Proxy(),)), beta=-1.0), "beta"),
        (lambda: PolicyGradientCell(Proxies((Proxy(),)), learning_rate=0.0), "learning rate is positive"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_more_pairs_than_a_policy_has_are_refused(experiment):
    with pytest.raises(ValueError, match="wants 64 pairs, the recipe has 40"):
        plan(experiment, [], [Proxy("0.4M", 64)])
    experiment = replace(experiment, recipe=replace(experiment.recipe, rl_samples=1))
    with pytest.raises(ValueError, match="at least 2 responses a prompt"):
        plan(experiment, [PolicyGradientCell(Proxies((Proxy("0.4M", 16),)))])
