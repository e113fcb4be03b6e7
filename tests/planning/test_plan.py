import json
import sys
from pathlib import Path

import pytest

from overopt.cli import main
from overopt.packed_tokens import pass_shape
from overopt.planning.architecture import architecture_of
from overopt.planning.grid import Grid, JudgePrices
from overopt.planning.hardware import GIB, Hardware
from overopt.planning.plan import make_plan
from overopt.planning.workload import epoch_of, workload_of

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ALIGN = ["--model", "overopt.modules.direct_alignment.DirectAlignmentModule"]
TLDR = ["--data.source", "tldr_openai", "--trainer.max_epochs", "1"]
PYTHIA_1B = [*ALIGN, "--model.reference", "EleutherAI/pythia-1b", *TLDR, "--data.batch_size", "128"]
WORKLOAD = {
    "examples": "preferences",
    "shared_prompts": True,
    "packed": True,
    "micro_batch_tokens": 2048,
    "batch_size": 7,
    "seed": 0,
    "max_prompt_tokens": None,
    "max_response_tokens": None,
    "evaluation_fraction": None,
    "vocab_size": 2048,
}
FEW = ["--data.max_examples", "400"]


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def plan(*options, architecture=None, **hardware):
    return make_plan(
        options, hardware=Hardware(**hardware), grid=Grid(), prices=JudgePrices(), architecture=architecture
    )


def test_without_data_the_lengths_of_tldr_are_assumed_and_it_is_said():
    data = {"source": "tldr_openai", "path": None, "examples": "preferences", "max_examples": None, "tokenizer": None}
    assert len(workload_of(WORKLOAD | data).groups) == 92_858
    assert len(workload_of(WORKLOAD | data | {"examples": "demonstrations"}).groups) == 116_722
    whole = plan(*PYTHIA_1B, *FEW, "--trainer.precision", "bf16-mixed")
    assert "ASSUMED" in whole.workload.origin
    assert whole.epoch.steps == -(-400 // 128)
    prompt, response = whole.workload.mean_lengths
    assert prompt == pytest.approx(320, abs=15)
    assert response == pytest.approx(35, abs=1)
    assert whole.memory.largest_pass.tokens <= 2048
    assert {stage.name: stage.runs for stage in whole.stages} == {
        "sft": 1,
        "reference": 1,
        "align": 21,
        "evaluate": 21 * 5,
    }
    # 6 FLOPs a parameter and token, of those that every token goes through; head and attention come on top.
    layers = 16 * 12 * 2048**2
    align = next(stage for stage in whole.stages if stage.name == "align")
    assert 1 < align.flops / (6 * layers * whole.epoch.tokens) < 1.2
    assert align.hours == pytest.approx(align.flops / (0.35 * 312e12) / 3600)


def test_lengths_are_the_datas_where_they_can_be_read(preference_folder, sft_checkpoint):
    data = ["--data.source", "jsonl", "--data.path", str(preference_folder), "--data.batch_size", "8"]
    read = plan(*ALIGN, "--model.reference", str(sft_checkpoint), *data)
    assert "ASSUMED" not in read.workload.origin
    assert len(read.workload.groups) < 60
    tokens = sum(pass_shape([group]).tokens for group in read.workload.groups)
    assert read.epoch.tokens == tokens


def test_flops_are_those_of_the_benchmarks_formula(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    from workload import SHAPES, TLDR, draw_pairs, needed_flops

    from overopt.models.model_shape import forward_flops, model_shape
    from overopt.packed_tokens import PromptGroup

    pairs = draw_pairs(8, TLDR, 1000)
    sizes = pass_shape([PromptGroup(pair.prompt, (pair.chosen, pair.rejected)) for pair in pairs])
    shape = model_shape(architecture_of("EleutherAI/pythia-160m"))
    ours = 3 * forward_flops(shape, tokens=sizes.tokens, attended=sizes.attended, targets=sizes.targets)
    assert ours == pytest.approx(needed_flops(pairs, SHAPES["160m"], 50_304), rel=1e-9)


def test_smaller_passes_hold_less_and_sharding_divides():
    one = plan(*PYTHIA_1B, *FEW, "--trainer.precision", "bf16-mixed").memory
    small = plan(*PYTHIA_1B, *FEW, "--trainer.precision", "bf16-mixed", "--data.micro_batch_tokens", "800").memory
    four = plan(*PYTHIA_1B, *FEW, "--trainer.precision", "bf16-mixed", "--trainer.strategy", "fsdp", gpus=4).memory
    assert small.peak.parts.activations < one.peak.parts.activations
    assert four.peak.parts.weights == pytest.approx(one.peak.parts.weights / 4, rel=1e-6)


def test_where_it_does_not_fit_it_says_what_would():
    mixed = [*PYTHIA_1B, *FEW, "--trainer.precision", "bf16-mixed"]
    cramped = plan(*mixed, gpu="A40", gpu_memory=12.0, gpus=2).memory
    assert not cramped.fits
    assert cramped.total > 12 * GIB
    # Each way out takes what a plan with these options says.
    fsdp = ["--trainer.strategy", "fsdp"]
    sharded = cramped.ways_out[" ".join(fsdp)]
    assert sharded < 12 * GIB
    assert sharded == plan(*mixed, *fsdp, gpu="A40", gpus=2).memory.total
    assert plan(*mixed, gpu="A40", gpus=2).memory.ways_out == {}
    assert all(needed <= 12 * GIB for needed in cramped.ways_out.values())


def test_every_pass_of_an_epoch_is_counted_once(preference_folder, sft_checkpoint):
    data = {"source": "jsonl", "path": str(preference_folder), "tokenizer": str(sft_checkpoint)}
    workload = workload_of(WORKLOAD | data | {"micro_batch_tokens": 150})
    alone, shared = (epoch_of(workload, devices) for devices in (1, 2))
    assert alone.steps == shared.steps == -(-len(workload.groups) // 7)
    assert alone.targets == shared.targets == sum(len(r) for group in workload.groups for r in group.responses)
    assert alone.most_passes > shared.most_passes
    assert max(sizes.tokens for sizes in alone.sizes) <= 150


def test_an_sft_of_a_fresh_policy_takes_its_vocabulary_from_the_data(preference_folder):
    data = ["--data.source", "jsonl", "--data.path", str(preference_folder), "--data.vocab_size", "300"]
    fresh = plan(*data, "--model.architecture", "{hidden_size: 16, num_layers: 1, num_heads: 2}")
    assert fresh.shape.vocabulary == fresh.workload.vocabulary <= 300
    assert [stage.name for stage in fresh.stages] == ["sft"]
    assert fresh.judge_calls == 0


def test_a_policy_that_is_not_there_yet_is_planned_by_its_architecture():
    later = [*ALIGN, "--model.reference", "outputs/sft/last.ckpt", *TLDR, *FEW]
    with pytest.raises(ValueError, match=r"no policy at outputs/sft/last.ckpt.*--architecture"):
        plan(*later)
    assert plan(*later, architecture="EleutherAI/pythia-160m").shape.hidden == 768


def test_a_file_that_can_not_be_read_is_no_reason_to_assume(tmp_path):
    (tmp_path / "pairs.jsonl").write_text('{"prompt": \n')
    with pytest.raises(ValueError, match=r"pairs.jsonl, line 1"):
        plan("--data.source", "jsonl", "--data.path", "pairs.jsonl")


def test_the_command_prints_a_verdict_and_writes_the_numbers(capsys, tmp_path):
    overlay = tmp_path / "tldr.yaml"
    overlay.write_text("data: {source: tldr_openai, max_examples: 2000}\ntrainer: {max_epochs: 1}\n")
    policy = [*ALIGN, "--model.reference", "EleutherAI/pythia-1b", "--config", str(overlay)]
    policy += ["--trainer.precision", "bf16-mixed"]
    machine = ["--gpu", "A40", "--gpus", "2", "--gpu-memory", "48", "--price-per-gpu-hour=0.5"]
    main(["plan", *machine, *policy, "--sizes", "3", "--judge-price-per-call", "0.01", "--out", "plans/plan.json"])
    printed = capsys.readouterr().out
    assert "FITS into 48.00 GiB" in printed
    assert "80,640 calls, 806.40" in printed
    numbers = json.loads(Path("plans/plan.json").read_text())
    assert numbers["shape"]["num_parameters"] == 1_011_781_632
    memory = numbers["memory_bytes"]
    parts = memory["phases"][memory["peak_phase"]]
    assert sum(value for name, value in parts.items() if name != "total") == memory["tensors"]
    assert memory["total"] == memory["tensors"] + memory["runtime"]
    assert numbers["gpu_cost"] == pytest.approx(0.5 * numbers["gpu_hours"])
    assert not Path("mlruns").exists()  # a plan tracks nothing
