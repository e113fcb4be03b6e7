import dataclasses
import json

import pandas as pd
import pytest
from mlflow import MlflowClient

from overopt.analysis.store_report import report_from_store
from overopt.data.sources import SOURCES, docstrings
from overopt.embedded.recipe import Recipe
from overopt.quickstart import run_quickstart

# The real stages on the real corpus, cut to a few small packages and a few steps.
TINY = Recipe(
    gold_size="0.4M",
    vocab_size=300,
    batch_size=16,
    sft_steps=3,
    gold_steps=2,
    gold_pairs=12,
    pairs=40,
    align_batch_size=8,
    align_steps=10,
    evaluation_prompts=12,
)
BETAS = [0.02, 0.1, 0.5]


@pytest.fixture(scope="module")
def corpus():
    """A small part of the corpus, so that reading it takes no half minute."""
    patch = pytest.MonkeyPatch()
    few = tuple(package for package in docstrings.PACKAGES if package.module in ("optuna", "rich", "sqlalchemy"))
    patch.setitem(SOURCES, "docstrings", lambda path, cache_dir: docstrings.DocstringSource(cache_dir, packages=few))
    yield
    patch.undo()


def run(folder, seeds=(0,), recipe=TINY, betas=BETAS, out=None):
    store = f"sqlite:///{folder}/mlflow.db"
    return run_quickstart(["dpo"], betas, list(seeds), ["0.4M"], out or folder / "out", store, recipe)


@pytest.fixture(scope="module")
def done(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("quickstart")
    return folder, run(folder)


def points(folder):
    return pd.read_csv(folder / "out" / "report" / "points.csv")


def runs(folder):
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    return client.search_runs([e.experiment_id for e in client.search_experiments()])


def test_it_ends_with_points_fits_figures_and_a_page(done):
    folder, html = done
    assert html == folder / "out" / "report" / "report.html"
    for name in ("points.csv", "fits.csv", "report.html"):
        assert (folder / "out" / "report" / name).stat().st_size > 0
    table = points(folder)
    # The reference, four checkpoints inside the run and the last.
    assert table.groupby("beta").size().to_dict() == dict.fromkeys(BETAS, 6)
    reference = table[table.examples_seen == 0]
    assert (reference.kl_nats == 0).all()
    assert (reference.win_rate == reference.win_rate.iloc[0]).all()


def test_runs_are_children_of_one_study_and_none_is_left_running(done):
    folder, _ = done
    tracked = runs(folder)
    assert {run.info.status for run in tracked} == {"FINISHED"}
    [study] = [run for run in tracked if run.data.tags["overopt.stage"] == "study"]
    aligned = [run for run in tracked if run.data.tags["overopt.stage"] == "align"]
    assert {run.data.tags["mlflow.parentRunId"] for run in tracked if run is not study} == {study.info.run_id}
    assert sorted(float(run.data.params["beta"]) for run in aligned) == BETAS
    for run in aligned:
        for name in ("objective", "model", "num_parameters", "seed", "data_fingerprint", "git_commit", "split"):
            assert run.data.params[name]


def test_no_policy_and_gold_model_share_a_training_post_and_evaluation_posts_are_unseen(done):
    folder, _ = done
    pairs = [json.loads(line) for line in (folder / "out/pairs-0.4M-seed0/sampled.jsonl").read_text().splitlines()]
    gold = [json.loads(line) for line in (folder / "out/gold-pairs/sampled.jsonl").read_text().splitlines()]
    split = docstrings.DocstringSource.split_fractions
    policy_posts = {row["post_id"] for row in pairs if split.part_of(row["post_id"]) != "evaluation"}
    gold_posts = {row["post_id"] for row in gold if split.part_of(row["post_id"]) != "evaluation"}
    assert {split.part_of(post) for post in policy_posts} == {"train"}
    assert {split.part_of(post) for post in gold_posts} == {"gold"}
    evaluated = (folder / "out/dpo-beta0.1-0.4M-seed0/evaluation/examples-00000000.jsonl").read_text().splitlines()
    prompts = {json.loads(line)["prompt_id"].removesuffix(" human") for line in evaluated}
    post_of = {row["id"]: row["post_id"] for row in pairs}
    assert {split.part_of(post_of[prompt]) for prompt in prompts} == {"evaluation"}


def test_the_same_seed_gives_the_same_points_and_another_seed_others(done, tmp_path):
    folder, _ = done
    run(tmp_path, seeds=[0, 1])
    table, first = points(tmp_path), points(folder)
    again = table[table.seed == 0].reset_index(drop=True)
    pd.testing.assert_frame_equal(
        again.drop(columns="run_id"), first.drop(columns="run_id"), check_exact=True, check_dtype=False
    )
    other = table[(table.seed == 1) & (table.examples_seen > 0)]
    assert set(other.kl_nats).isdisjoint(first.kl_nats)


def test_started_again_it_does_nothing_twice(done):
    folder, html = done
    before = {run.info.run_id: run.info.end_time for run in runs(folder) if run.data.tags["overopt.stage"] != "study"}
    page = html.read_bytes()
    run(folder)
    after = {run.info.run_id: run.info.end_time for run in runs(folder) if run.data.tags["overopt.stage"] != "study"}
    assert after == before
    assert html.read_bytes() == page


def test_interrupted_in_training_it_goes_on_where_it_was(corpus, tmp_path, monkeypatch, done):
    folder, _ = done
    steps = 0

    def interrupt(module, *arguments):
        nonlocal steps
        steps += 1
        if steps == 17:  # in the second beta, after two of its checkpoints
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("overopt.modules.direct_alignment.DirectAlignmentModule.on_train_batch_start", interrupt)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            run(tmp_path)
    states = {run.info.run_name: run.info.status for run in runs(tmp_path)}
    assert "RUNNING" not in states.values()
    assert states["dpo-beta0.02-0.4M-seed0"] == "FINISHED"
    assert states["dpo-beta0.1-0.4M-seed0"] == "KILLED"
    run(tmp_path)
    assert {run.info.status for run in runs(tmp_path)} == {"FINISHED"}
    pd.testing.assert_frame_equal(
        points(tmp_path).drop(columns="run_id"),
        points(folder).drop(columns="run_id"),
        check_exact=True,
        check_dtype=False,
    )


def test_two_quickstarts_share_a_store_but_no_run(corpus, tmp_path):
    pages = [run(tmp_path, betas=[0.1], out=tmp_path / name) for name in ("one", "two")]
    one, two = (pd.read_csv(page.parent / "points.csv") for page in pages)
    assert set(one.run_id).isdisjoint(two.run_id)
    pd.testing.assert_frame_equal(one.drop(columns="run_id"), two.drop(columns="run_id"))


def test_a_changed_recipe_is_not_mistaken_for_what_was_done(done, tmp_path):
    folder, _ = done
    run(tmp_path, recipe=dataclasses.replace(TINY, align_steps=12), betas=[0.1, 0.5, 1.0])
    assert points(tmp_path).examples_seen.max() > points(folder).examples_seen.max()


def test_the_report_can_be_made_again_from_the_store_alone(done, tmp_path):
    folder, _ = done
    report = report_from_store(tmp_path, tracking_uri=f"sqlite:///{folder}/mlflow.db")
    assert report.tables["points"].read_bytes() == (folder / "out/report/points.csv").read_bytes()
