"""Every run of conf/ steps once on a tiny model, and the sample of real comparisons trains end to end."""

import json
from pathlib import Path

import pytest
import torch

from hub_layout import write_feedback
from overopt.checkpoints.format import read_model_checkpoint
from overopt.cli import main

ROOT = Path(__file__).parent.parent
CONF = ROOT / "conf"
REAL_COMPARISONS = ROOT.parent / "shared" / "data" / "tldr" / "comparisons_sample.jsonl"

TINY_MODEL = ["--model.architecture", "{hidden_size: 16, num_layers: 1, num_heads: 2}"]
ONE_STEP = ["--trainer.max_steps", "1", "--trainer.limit_val_batches", "1", "--trainer.enable_progress_bar", "false"]


@pytest.fixture
def offline(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return tmp_path


@pytest.fixture
def comparisons(tmp_path):
    """Comparisons in OpenAI's layout, ours."""
    rows = [
        {
            "info": {
                "id": f"t3_{i}",
                "post": f"My neighbour's {i} cats sleep.",
                "title": "Cats",
                "subreddit": "r/pets",
            },
            "split": "train",
            "summaries": [{"text": f" {i} cats sleep.", "policy": "a"}, {"text": " Cats.", "policy": "b"}],
            "choice": i % 2,
            "worker": "w",
            "extra": {"confidence": 5},
        }
        for i in range(40)
    ]
    path = tmp_path / "batch1.json"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def fit(config, *options):
    main(["fit", "--config", str(CONF / config), *ONE_STEP, *options, "--checkpoints.folder", config])
    return read_model_checkpoint(Path(config) / "last.ckpt")


@pytest.mark.parametrize("config", ["docstrings_sft.yaml", "tldr_sft.yaml"])
def test_every_sft_configuration_steps(config, offline, comparisons):
    source = ["--data.source", "tldr_openai", "--data.path", comparisons, "--data.vocab_size", "300"]
    checkpoint = fit(config, *source, *TINY_MODEL)
    assert checkpoint.training["stage"] == "sft"
    assert checkpoint.training["examples_seen"] > 0


def test_every_preference_configuration_and_objective_steps(offline, preference_folder, sft_checkpoint, comparisons):
    start = str(sft_checkpoint)
    pairs = ["--data.path", str(preference_folder)]
    assert fit("docstrings_reward.yaml", *pairs, "--model.policy", start).training["stage"] == "reward"
    fit("tldr_dpo.yaml", "--data.path", comparisons, "--model.reference", start)
    for overlay in sorted((CONF / "objective").glob("*.yaml")):
        checkpoint = fit("docstrings_dpo.yaml", "--config", str(overlay), *pairs, "--model.reference", start)
        assert checkpoint.training["objective"] == overlay.stem


def test_there_is_an_overlay_for_every_objective():
    from overopt.objectives.preference import PREFERENCE_LOSSES

    assert {path.stem for path in (CONF / "objective").glob("*.yaml")} == set(PREFERENCE_LOSSES)


@pytest.mark.skipif(not REAL_COMPARISONS.is_file(), reason="the sample of real comparisons is not part of the project")
def test_real_human_comparisons_train_end_to_end_by_data_options_alone(offline):
    real = ["--data.source", "tldr_openai", "--data.path", str(REAL_COMPARISONS), "--data.vocab_size", "512"]
    few = ["--data.batch_size", "8", "--trainer.max_steps", "3", "--trainer.enable_progress_bar", "false"]
    few += ["--trainer.limit_val_batches", "1"]
    main(["fit", *real, *few, *TINY_MODEL, "--checkpoints.folder", "sft"])
    align = ["--model", "overopt.modules.direct_alignment.DirectAlignmentModule", "--model.reference", "sft/last.ckpt"]
    align += ["--model.optimizer.learning_rate", "1e-3"]
    main(["fit", *align, *real, *few, "--checkpoints.folder", "dpo/checkpoints"])
    before, after = (
        read_model_checkpoint(Path(name), "policy.") for name in ("sft/last.ckpt", "dpo/checkpoints/last.ckpt")
    )
    assert any(not torch.equal(before.weights[name], after.weights[name]) for name in before.weights)
    main(["evaluate", "dpo/checkpoints", "--num-prompts", "8"])
    assert len(list(Path("dpo/evaluation").glob("*.jsonl"))) == 4


def test_a_dataset_laid_out_as_the_hub_has_it_trains_on_its_published_splits(offline):
    feedback = write_feedback(Path("feedback"))
    source = ["--data.source", "hub", "--data.path", str(feedback), "--data.splits", "published"]
    fit("tldr_sft.yaml", *source, *TINY_MODEL, "--data.vocab_size", "300")
    checkpoint = fit("tldr_dpo.yaml", *source, "--model.reference", "tldr_sft.yaml/last.ckpt")
    assert checkpoint.training["stage"] == "align"
    assert checkpoint.data["splits"] == "published"
    reports = [json.loads(path.read_text()) for path in offline.rglob("data_report.json")]
    assert len(reports) == 2
    for report in reports:
        assert report["parts"]["train"]["preferences"] == 30
        assert report["parts"]["evaluation"]["preferences"] == 3


def test_predictions_of_held_out_pairs_are_written_in_their_order(offline, preference_folder, sft_checkpoint):
    align = ["--config", str(CONF / "docstrings_dpo.yaml"), "--model.reference", str(sft_checkpoint)]
    align += ["--data.path", str(preference_folder), "--trainer.enable_progress_bar", "false"]
    main(["predict", *align])
    rows = [json.loads(line) for line in Path("outputs/predictions.jsonl").read_text().splitlines()]
    assert rows
    # The policy is its reference here: implicit rewards are 0 to float error.
    assert all(abs(row["chosen_implicit_reward"]) < 1e-5 for row in rows)
