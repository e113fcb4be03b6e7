"""Cells that carry a mitigation or go in rounds; those that carry none are who they were."""

import hashlib
import json
import math
from dataclasses import replace

import pandas as pd
import pytest

from overopt.checkpoints.format import read_model_checkpoint
from overopt.checkpoints.stage_folder import read_record
from overopt.embedded.cells import Cell
from overopt.embedded.experiment import EmbeddedExperiment
from overopt.embedded.names import round_pairs_name
from overopt.embedded.plan import plan
from overopt.embedded.recipe import Recipe
from overopt.evaluation.preference_pairs import read_sampled_pairs
from overopt.modules.moving_reference import ReferenceUpdates
from overopt.sweep.board import parameters_of
from overopt.tracking.tables import read_points
from sweep.small_sweep import small_recipe


def test_a_cell_without_mitigations_has_the_name_it_always_had():
    assert Cell("ipo", 0.05, "0.4M", 3, 0.01, 1e-4).name == "ipo-beta0.05-length0.01-lr0.0001-0.4M-seed3"
    assert Cell().name == "dpo-beta0.1-0.7M-seed0"


def test_cells_that_differ_have_names_that_differ():
    changes = [
        {"nll_weight": 0.1},
        {"nll_weight": 0.1, "nll_per": "response"},
        {"link": "chi_squared"},
        {"link": "chi_squared", "max_reward": 2.0},
        {"positive_penalty": 5.0},
        {"reference_every": 8},
        {"reference_every": 8, "reference_alpha": 0.6},
        {"rounds": 2},
        {"rounds": 3},
        {"rounds": 3, "round_reference": "last"},
        {"rounds": 3, "round_labels": "proxy"},
    ]
    assert len({Cell(**change).name for change in [{}, *changes]}) == len(changes) + 1


def test_a_cells_reference_moves_hard_softly_or_not_at_all():
    assert Cell().reference_updates is None
    assert Cell(reference_every=8).reference_updates == ReferenceUpdates("hard", every=8)
    assert Cell(reference_every=2, reference_alpha=0.6).reference_updates == ReferenceUpdates("soft", 0.6, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"objective": "ipo", "positive_penalty": 1.0}, "beyond its target"),
        ({"reference_alpha": 0.5}, "needs reference_every"),
        ({"reference_every": 2, "reference_alpha": 2.0}, "got alpha=2.0"),
        ({"rounds": 0}, "rounds >= 1"),
        ({"round_reference": "last"}, "got rounds=1"),
        ({"round_labels": "proxy"}, "got rounds=1"),
        ({"seed": -1}, "seeds are 0 or above, got -1"),
        ({"learning_rate": math.nan}, "learning rate is positive, got nan"),
    ],
    ids=str,
)
def test_bad_cells_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Cell(**arguments)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"evaluation_prompts": 0}, "at least 1 of everything, got evaluation_prompts=0"),
        ({"betas": ()}, "at least one beta"),
        ({"gold_size": "9M"}, "no size gold_size='9M'; one of 0.4M"),
        ({"gold_temperature": math.nan}, "gold_temperature > 0, got nan"),
        ({"gold_fraction": 3.0}, "gold_fraction in"),
    ],
    ids=str,
)
def test_bad_recipes_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**settings)


def test_a_sweep_shows_mitigations_as_parameters_and_leaves_out_what_a_cell_has_not():
    cells = [Cell(nll_weight=0.0), Cell(nll_weight=0.1), Cell(link="chi_squared", max_reward=2.0)]
    cells.append(replace(cells[2], max_reward=1.0))
    shown = parameters_of(cells)
    assert shown[cells[1].name].values == {"beta": 0.1, "nll_weight": 0.1, "link": "log"}
    assert shown[cells[2].name].values == {"beta": 0.1, "nll_weight": 0.0, "link": "chi_squared", "max_reward": 2.0}
    for parameters in shown.values():
        assert parameters.distributions.keys() == parameters.values.keys()


def test_rounds_need_those_before_and_share_them(tmp_path):
    three = Cell(size="0.4M", rounds=3)
    tasks = plan(EmbeddedExperiment(tmp_path, "", ""), [three])
    one, two = (replace(three, rounds=n).name for n in (1, 2))
    shared = ("sft-0.4M-seed0", "gold", "pairs-0.4M-seed0", "reference-0.4M-seed0")
    assert tasks[one].needs == shared
    assert tasks[f"pairs-{one}"].needs == (*shared, one)
    assert tasks[two].needs == (*shared, one, f"pairs-{one}")
    assert tasks[three.name].needs == (*tasks[two].needs, two, f"pairs-{two}")
    order = list(tasks)
    assert all(order.index(need) < order.index(name) for name, task in tasks.items() for need in task.needs)
    # A proxy that labels later rounds has learned from all of the first round's pairs.
    by_proxy = replace(three, rounds=2, round_labels="proxy")
    relabelled = plan(EmbeddedExperiment(tmp_path, "", ""), [by_proxy])
    assert relabelled[by_proxy.name].needs == (*shared, one, "proxy-0.4M-pairs2048-seed0", f"pairs-{one}-by-proxy")
    # Another reference in later rounds leaves the first round and its policy's pairs as they are.
    both = plan(EmbeddedExperiment(tmp_path, "", ""), [three, replace(three, round_reference="last")])
    assert len(both) == len(tasks) + 3


@pytest.fixture(scope="module")
def done(tmp_path_factory, preference_folder):
    """Cells with rounds and mitigations, done; the experiment and what its tasks gave."""
    folder = tmp_path_factory.mktemp("embedded")
    experiment = EmbeddedExperiment(
        folder, f"sqlite:///{folder}/mlflow.db", "0" * 32, small_recipe(preference_folder, align_steps=4)
    )
    cells = [
        Cell(size="0.4M", rounds=2),
        Cell(size="0.4M", rounds=2, round_reference="last"),
        Cell(size="0.4M", nll_weight=0.1, reference_every=2, reference_alpha=0.5),
        Cell(size="0.4M", rounds=2, round_labels="proxy"),
    ]
    return experiment, cells, {name: task.run() for name, task in plan(experiment, cells).items()}


def test_a_later_round_starts_from_the_last_policy_on_its_own_pairs(done):
    experiment, (first, last, *_), _ = done
    one = first.round_before.name
    sft = str(experiment.tasks.checkpoint("sft-0.4M-seed0"))
    for cell, reference, start in (
        (first, sft, experiment.tasks.checkpoint(one)),
        (last, experiment.tasks.checkpoint(one), None),
    ):
        checkpoint = read_model_checkpoint(experiment.tasks.checkpoint(cell.name))
        assert checkpoint.training["reference"] == str(reference)
        assert checkpoint.training.get("policy") == (None if start is None else str(start))
        assert checkpoint.data["path"] == str(experiment.out / f"pairs-{one}" / "labelled")
    before, after = (
        read_sampled_pairs(experiment.out / name / "sampled.jsonl") for name in ("pairs-0.4M-seed0", f"pairs-{one}")
    )
    assert {pair.id for pair in before} == {pair.id.removesuffix(" human") for pair in after}
    assert {(pair.first, pair.second) for pair in before} != {(pair.first, pair.second) for pair in after}


def test_a_proxy_labels_the_same_samples_by_its_own_rewards(done):
    experiment, (first, _, _, by_proxy), results = done
    folders = [experiment.out / round_pairs_name(cell) for cell in (first, by_proxy)]
    assert len({(folder / "sampled.jsonl").read_bytes() for folder in folders}) == 1
    gold, proxy = (pd.read_json(folder / "labelled" / "pairs.jsonl", lines=True) for folder in folders)
    assert gold["id"].tolist() == proxy["id"].tolist()
    assert (gold["probability"] - proxy["probability"]).abs().max() > 0.01
    # The first round, its pairs and, with the proxy's labels, the proxy are paid for.
    costs = {cell: results[cell.name]["cost_tokens"] for cell in (first, by_proxy, first.round_before)}
    points = read_points(experiment.tracking_uri)[0].groupby("objective")["cost_tokens"].last()
    shared = costs[first.round_before] + results["pairs-0.4M-seed0"]["cost_tokens"]
    names = "dpo, round 2 from the first reference", "dpo, round 2 by proxy labels from the first reference"
    for name, cell in zip(names, (first, by_proxy), strict=True):
        labeller = 0 if cell is first else results[experiment.labeller(cell).name]["cost_tokens"]
        pairs = results[round_pairs_name(cell)]["cost_tokens"]
        assert points[name] == shared + labeller + pairs + costs[cell]


def test_every_round_is_measured_against_the_original_reference(done):
    experiment, _, _ = done
    table, _ = read_points(experiment.tracking_uri)
    assert set(table["objective"]) == {
        "dpo",
        "dpo, round 2 from the first reference",
        "dpo, round 2 from the last reference",
        "dpo, round 2 by proxy labels from the first reference",
        "dpo, NLL 0.1 per token, reference moving soft 0.5 every 2",
    }
    starts = table.query("examples_seen == 0")
    assert set(starts["kl_nats"]) == {0}
    assert len(set(starts["win_rate"])) == 1
    # A round whose reference is the last policy is still that far from the original.
    ends = table.query("examples_seen > 0").groupby("objective")["kl_nats"].last()
    assert ends["dpo, round 2 from the last reference"] > 0


def test_done_again_nothing_is_trained(done):
    experiment, cells, results = done
    records = {path: path.read_text() for path in experiment.out.glob("*/stage.json")}
    again = EmbeddedExperiment(experiment.out, experiment.tracking_uri, experiment.study, experiment.recipe)
    assert {name: task.run() for name, task in plan(again, cells).items()} == results
    assert {path: path.read_text() for path in experiment.out.glob("*/stage.json")} == records


def test_the_key_of_a_stage_without_mitigations_is_that_of_the_settings_it_always_had(done):
    experiment, (first, *_), _ = done
    cell, recipe = first.round_before, experiment.recipe
    data = read_model_checkpoint(experiment.tasks.checkpoint(cell.name)).data
    fingerprint = experiment._preferences("pairs-0.4M-seed0", "0.4M", 0).fingerprint
    settings = {
        "name": "dpo-beta0.1-0.4M-seed0",
        "objective": "dpo",
        "beta": 0.1,
        "length_penalty": 0.0,
        "label_smoothing": 0.0,
        "smoothing": "conservative",
        "reference": str(experiment.tasks.checkpoint("sft-0.4M-seed0")),
        "optimizer": vars(recipe.align_optimizer),
        "data": {name: value for name, value in data.items() if name != "cache_dir"},
        "fingerprint": fingerprint,
        "max_steps": recipe.align_steps,
        "seed": 0,
    }
    if recipe.peak.standard_errors is not None:
        settings["peak"] = vars(recipe.peak)
    text = json.dumps(settings, sort_keys=True, default=str).replace(str(experiment.out), "OUT")
    key = hashlib.sha256(text.encode()).hexdigest()[:32]
    assert read_record(experiment.out / cell.name)["key"] == key
