from dataclasses import replace

import numpy as np
import pytest
import torch
from live_tensors import LiveTensors
from torch.optim import AdamW, RMSprop
from transformers import AutoModelForCausalLM

from overopt.models.activation_memory import compute_types
from overopt.models.compute import ComputeSettings
from overopt.models.log_probs import response_log_probs
from overopt.models.memory import StepSetting, evaluation_bytes, peak, step_phases
from overopt.models.model_shape import model_shape
from overopt.models.pythia import PythiaShape
from overopt.packed_tokens import PromptGroup, pack, pass_shape

CONFIG = PythiaShape(64, 3, 4, 1000).config()
MODEL = model_shape(CONFIG)
# Two embeddings of 1,000 x 64, three layers of 12 h^2 + 13 h, the last norm.
PARAMETERS = 2 * 64_000 + 3 * (12 * 64**2 + 13 * 64) + 2 * 64
SIZES = pass_shape([PromptGroup(np.zeros(100, int), (np.zeros(20, int), np.zeros(30, int)))] * 4)
FLOAT32 = StepSetting(compute_types("32-true", sharded=False, device="cuda"))
MIXED = StepSetting(compute_types("bf16-mixed", sharded=False, device="cuda"))


def at_peak(setting):
    return peak(step_phases(MODEL, SIZES, setting)).parts


def step_on_cpu(compute=ComputeSettings(logits_mib=0.2)):
    """Peaks of a step's passes and of its update, as tensors are made and freed, and the phases as predicted."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG)
    compute.apply(model)
    model.train()
    optimizer = RMSprop(model.parameters())
    draw = np.random.default_rng(0)
    pairs = [PromptGroup(draw.integers(0, 1000, 300), tuple(draw.integers(0, 1000, (2, 60)))) for _ in range(4)]
    peaks = []
    with LiveTensors() as live:
        for parameter in model.parameters():
            live.add(parameter)
        for _ in range(2):  # the optimiser's states come with the first update
            optimizer.zero_grad()
            for _ in range(2):
                live.peak = live.now
                loss = response_log_probs(model, pack(pairs), logits_mib=compute.logits_mib).sum()
                peaks.append(live.peak)
                live.peak = live.now
                loss.backward()
                peaks.append(live.peak)
                del loss
            live.peak = live.now
            optimizer.step()
            peaks.append(live.peak)
    # A GPU's: holes in the heap are no tensors.
    setting = replace(FLOAT32, compute=compute)
    return peaks[-3:], [phase.parts for phase in step_phases(MODEL, pass_shape(pairs), setting)]


@pytest.mark.parametrize("logits_mib", [0.2, 100.0], ids=["logits in chunks", "logits at once"])
def test_every_phase_holds_what_its_tensors_take(logits_mib):
    (forward, backward, update), parts = step_on_cpu(ComputeSettings(logits_mib=logits_mib))
    assert parts[0].total == pytest.approx(forward, rel=0.02)
    assert max(parts[1].total, parts[2].total, parts[3].total) == pytest.approx(backward, rel=0.02)
    # CPUs update parameter after parameter, GPUs all at once.
    largest, every = 4 * 64_000, 4 * PARAMETERS
    assert parts[4].total - every + largest == pytest.approx(update, rel=0.02)


def test_weights_gradients_and_states_are_four_bytes_a_parameter_each():
    assert MODEL.num_parameters == PARAMETERS
    for setting in (FLOAT32, MIXED):  # master weights stay in float32
        parts = at_peak(setting)
        assert (parts.weights, parts.gradients, parts.optimizer) == (4 * PARAMETERS,) * 3
    assert at_peak(replace(FLOAT32, optimizer_states=2)).optimizer == 8 * PARAMETERS


@pytest.mark.parametrize(("optimizer", "states"), [(RMSprop, 1), (AdamW, 2)])
def test_optimisers_keep_as_many_states(optimizer, states):
    model = AutoModelForCausalLM.from_config(CONFIG)
    used = optimizer(model.parameters())
    for parameter in model.parameters():
        parameter.grad = parameter.detach().clone()
    used.step()
    kept = sum(value.nbytes for state in used.state.values() for value in state.values() if value.ndim)
    assert kept == 4 * states * PARAMETERS


def test_sharding_divides_what_is_kept_and_nothing_of_the_activations():
    alone, four = FLOAT32, replace(FLOAT32, shards=4)
    assert at_peak(four).weights == at_peak(alone).weights // 4
    assert at_peak(four).optimizer == at_peak(alone).optimizer // 4
    first = [step_phases(MODEL, SIZES, setting)[0].parts for setting in (alone, four)]
    assert first[0].activations == first[1].activations > 0
    # The root, and three times a layer, gathered.
    assert first[1].passing - first[0].passing == 4 * (2 * 64_000 + 128 + 3 * MODEL.layer_parameters)


def test_replicas_hold_all_and_a_copy_of_the_gradients():
    assert at_peak(replace(FLOAT32, replicas=2)).gradients == 2 * at_peak(FLOAT32).gradients


def test_offloaded_shards_are_not_on_the_device():
    parts = at_peak(replace(FLOAT32, shards=2, offloaded=True))
    assert (parts.weights, parts.gradients, parts.optimizer) == (0, 0, 0)
    assert parts.passing > 0
    # Also on a single device, weights come and go layer by layer.
    assert at_peak(replace(FLOAT32, offloaded=True)).passing >= 4 * (2 * 64_000 + MODEL.layer_parameters)


def test_the_first_forward_pass_of_a_step_finds_no_gradients():
    forward = step_phases(MODEL, SIZES, replace(FLOAT32, several_passes=False))[0]
    assert forward.parts.gradients == 0
    assert step_phases(MODEL, SIZES, FLOAT32)[0].parts.gradients == 4 * PARAMETERS


def test_the_update_needs_a_copy_of_all_parameters_on_gpus_and_of_the_largest_on_cpus():
    update = {
        device: step_phases(MODEL, SIZES, replace(FLOAT32, device=device))[-1].parts for device in ("cuda", "cpu")
    }
    assert update["cuda"].passing == 4 * PARAMETERS
    assert update["cpu"].passing == 4 * 64_000


def test_activation_checkpointing_holds_one_layer_at_a_time():
    checkpointed = replace(FLOAT32, compute=ComputeSettings(activation_checkpointing=True))
    plain, few = (step_phases(MODEL, SIZES, setting)[0].parts.activations for setting in (FLOAT32, checkpointed))
    assert few < plain / 3
    forward, _, backward, *_ = step_phases(MODEL, SIZES, checkpointed)
    assert forward.parts.activations < backward.parts.activations < plain


def test_smaller_chunks_of_logits_take_less():
    chunked = replace(FLOAT32, compute=ComputeSettings(logits_mib=0.1))
    assert step_phases(MODEL, SIZES, chunked)[0].parts.logits < step_phases(MODEL, SIZES, FLOAT32)[0].parts.logits
    assert step_phases(MODEL, SIZES, replace(FLOAT32, log_probs=False))[0].parts.logits == 0


def test_evaluation_holds_two_models_and_a_cache():
    # 2 models, and for each of 8 x 10 tokens, keys and values of 64 in 3 layers.
    assert evaluation_bytes(MODEL, prompts=8, tokens=10) == 4 * (2 * PARAMETERS + 8 * 10 * 2 * 64 * 3)


def test_holes_in_the_heap_are_of_cpus_alone_and_grow_with_the_layers():
    on_cpu, on_gpu = (step_phases(MODEL, SIZES, replace(FLOAT32, device=kind))[0].parts for kind in ("cpu", "cuda"))
    deeper = replace(MODEL, layers=2 * MODEL.layers)
    deep = step_phases(deeper, SIZES, replace(FLOAT32, device="cpu"))[0].parts
    assert deep.passing - on_gpu.passing == pytest.approx(2 * (on_cpu.passing - on_gpu.passing), rel=1e-6)
    assert on_cpu.passing > on_gpu.passing
