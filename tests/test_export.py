"""From a training run to a Hugging Face folder, and from a server of it back to metrics, by the command line."""

import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from completion_endpoint import MODEL, changed, completions, served
from overopt.checkpoints.format import read_model_checkpoint
from overopt.cli import main
from overopt.evaluation.records import read_completions
from overopt.models.policy import load_policy
from overopt.tracking.store import open_store

QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.limit_val_batches", "0"]
LEARNS = ["--model.optimizer.learning_rate", "1e-2", "--model.optimizer.warmup_steps", "1"]


@pytest.fixture(scope="module")
def aligned(preference_folder, sft_checkpoint, tmp_path_factory) -> Path:
    """A folder with a tracked, aligned policy in checkpoints/, far from its reference, and its store."""
    folder = tmp_path_factory.mktemp("aligned")
    data = ["--data.source", "jsonl", "--data.path", str(preference_folder), "--data.cache_dir", str(folder / "cache")]
    data += ["--data.max_prompt_tokens", "48", "--data.max_response_tokens", "24", "--data.batch_size", "8"]
    data += ["--data.evaluation_fraction", "0.3"]
    align = ["--model", "overopt.modules.direct_alignment.DirectAlignmentModule"]
    align += ["--model.reference", str(sft_checkpoint), "--model.beta", "0.05"]
    tracked = ["--trainer.logger.tracking_uri", store(folder), "--checkpoints.folder", str(folder / "checkpoints")]
    main(["fit", *align, *LEARNS, *data, *QUIET, *tracked, "--trainer.max_epochs", "2"])
    return folder


def store(folder: Path) -> str:
    return f"sqlite:///{folder / 'mlflow.db'}"


def card_of(folder: Path) -> tuple[dict, str]:
    _, front_matter, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front_matter), text


def test_an_export_has_the_runs_record_in_its_card_and_equal_logits(aligned, tmp_path, capsys):
    checkpoint = aligned / "checkpoints" / "last.ckpt"
    main(["evaluate", str(checkpoint), "--num-prompts", "8", "--tracking-uri", store(aligned), "--out", str(tmp_path)])
    main(["export", str(checkpoint), str(tmp_path / "out"), "--tracking-uri", store(aligned)])
    training = read_model_checkpoint(checkpoint).training
    run = open_store(store(aligned), create=False).get_run(training["run_id"])
    front_matter, card = card_of(tmp_path / "out")
    assert front_matter["library_name"] == "transformers"
    assert front_matter["pipeline_tag"] == "text-generation"
    assert {"overopt", "align", "dpo"} <= set(front_matter["tags"])
    assert f"# dpo, beta 0.05, {training['examples_seen']} examples seen" in card
    assert f"| data_fingerprint | {run.data.params['data_fingerprint']} |" in card
    assert f"| reference | {training['reference']} |" in card
    assert f"| eval/kl_nats | {run.data.metrics['eval/kl_nats']:.6g} |" in card
    assert f"| version_torch | {run.data.params['version_torch']} |" in card
    manifest = json.loads((tmp_path / "out" / "overopt.json").read_text())
    assert manifest["metrics"]["eval/kl_nats"] == run.data.metrics["eval/kl_nats"]
    assert manifest["training"] == training
    tokens = torch.tensor([[5, 6, 7, 8]])
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(stock(tokens).logits, load_policy(checkpoint).causal_lm.eval()(tokens).logits)
    assert f"in {tmp_path / 'out'}, float32" in capsys.readouterr().out


def test_without_a_store_the_card_says_so_and_none_is_made(aligned, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    main(["export", str(aligned / "checkpoints" / "last.ckpt"), "out", "--dtype", "bfloat16"])
    _, card = card_of(tmp_path / "out")
    assert "was not at hand" in card
    assert "not known without the run's record" in card
    assert "objective | dpo" in card
    assert "mlruns/mlflow.db" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_reward_model_is_exported_as_what_it_is(sft_checkpoint, preference_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store(tmp_path))
    reward = ["--model", "overopt.modules.reward_modeling.RewardModule", "--model.policy", str(sft_checkpoint)]
    data = ["--data.source", "jsonl", "--data.path", str(preference_folder), "--trainer.max_steps", "1"]
    main(["fit", *reward, *data, *QUIET, "--checkpoints.folder", "reward"])
    main(["export", "reward/last.ckpt", "out"])
    front_matter, card = card_of(tmp_path / "out")
    assert front_matter["pipeline_tag"] == "text-classification"
    assert "AutoModelForSequenceClassification" in card
    assert "bradley_terry" in card


def evaluate(aligned: Path, url: str, out: Path, *options: str) -> dict[str, float]:
    checkpoint = aligned / "checkpoints" / "last.ckpt"
    server = ["--sampler-url", url, *options, "--num-prompts", "12", "--out", str(out)]
    main(["evaluate", str(checkpoint), *server, "--tracking-uri", store(aligned)])
    training = read_model_checkpoint(checkpoint).training
    client = open_store(store(aligned), create=False)
    wanted = 0 if "reference" in options else training["examples_seen"]
    run = client.get_run(training["run_id"])
    assert run.data.params["sampler"] == "a completions server"
    histories = {name: client.get_metric_history(training["run_id"], name) for name in run.data.metrics}
    return {
        name: max(here, key=lambda m: m.timestamp).value
        for name, history in histories.items()
        if (here := [m for m in history if m.step == wanted])
    }


def test_samples_of_a_server_give_the_metrics_of_their_rescored_tokens(aligned, tmp_path, capsys):
    policy = load_policy(aligned / "checkpoints" / "last.ckpt")
    with served(completions(policy)) as url:
        metrics = evaluate(aligned, url, tmp_path)
    [file] = tmp_path.glob("*.jsonl")  # the reference is not on that server
    rows = read_completions(file)
    assert len(rows) == 12
    log_ratios = [row.policy_log_prob - row.reference_log_prob for row in rows]
    assert metrics["eval/kl_nats"] == pytest.approx(sum(log_ratios) / 12, rel=1e-5)
    assert metrics["eval/kl_nats"] > 0.1
    assert abs(metrics["eval/sampler_kl_nats"]) < 1e-3
    assert "sampled by " + url in capsys.readouterr().out


def test_the_references_row_comes_from_a_server_that_has_the_reference(aligned, sft_checkpoint, tmp_path):
    with served(completions(load_policy(sft_checkpoint))) as url:
        metrics = evaluate(aligned, url, tmp_path, "--sampler-serves", "reference", "--sampler-model", MODEL)
    assert metrics["eval/kl_nats"] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["examples-00000000.jsonl"]


@pytest.fixture
def refused(capsys):
    """Runs a command line that must be refused; its last line."""

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as end:
            main(list(arguments))
        assert end.value.code == 2
        last: str = capsys.readouterr().err.strip().splitlines()[-1]
        assert last.startswith("error: ")
        return last

    return run


def test_the_wrong_model_on_a_server_is_refused_before_anything_is_written(aligned, sft_checkpoint, tmp_path, refused):
    checkpoint = str(aligned / "checkpoints" / "last.ckpt")
    with served(completions(load_policy(sft_checkpoint))) as url:
        common = ["evaluate", checkpoint, "--sampler-url", url, "--num-prompts", "12", "--out", str(tmp_path / "out")]
        assert "another model" in refused(*common, "--tracking-uri", store(aligned))
    assert not (tmp_path / "out").exists()


def test_text_without_token_ids_is_never_tokenised_anew(aligned, tmp_path, refused):
    checkpoint = str(aligned / "checkpoints" / "last.ckpt")
    answer = changed(completions(load_policy(checkpoint)), lambda choice: choice.pop("token_ids"))
    with served(answer) as url:
        common = ["evaluate", checkpoint, "--sampler-url", url, "--num-prompts", "3", "--out", str(tmp_path / "out")]
        assert "need not be what was sampled" in refused(*common, "--tracking-uri", store(aligned))
    assert not (tmp_path / "out").exists()


def test_a_server_without_log_probs_is_named_as_unchecked(aligned, tmp_path, capsys):
    policy = load_policy(aligned / "checkpoints" / "last.ckpt")
    with served(changed(completions(policy), lambda choice: choice.pop("logprobs"))) as url:
        metrics = evaluate(aligned, url, tmp_path)
    assert "gives no log-probabilities" in capsys.readouterr().out
    assert math.isfinite(metrics["eval/kl_nats"])


def test_requests_that_make_no_sense_are_refused(aligned, tmp_path, refused):
    checkpoints, last = str(aligned / "checkpoints"), str(aligned / "checkpoints" / "last.ckpt")
    assert "one checkpoint file" in refused("evaluate", checkpoints, "--sampler-url", "http://127.0.0.1:9/v1")
    assert "--sampler-url" in refused("evaluate", last, "--sampler-model", "a")
    assert "no URL" in refused("evaluate", last, "--sampler-url", "localhost")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "a").write_text("mine")
    assert "holds a, which no export wrote" in refused("export", last, str(tmp_path / "theirs"))
    (tmp_path / "half.ckpt").write_bytes(b"PK\x03\x04 half")
    assert "half.ckpt" in refused("export", str(tmp_path / "half.ckpt"), str(tmp_path / "out"))
    assert "gone.ckpt" in refused("export", "gone.ckpt", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
