"""The bytes that autograd really saves, storage by storage, against what the sizes say."""

import contextlib
import math

import numpy as np
import pytest
import torch
from live_tensors import LiveTensors
from transformers import GPTNeoXConfig, LlamaConfig, MistralConfig, Qwen2Config
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from overopt.models.activation_memory import (
    ComputeTypes,
    after_layers_bytes,
    angles_bytes,
    compute_types,
    layer_bytes,
    layer_input_bytes,
    layer_temporaries_bytes,
    logits_memory,
)
from overopt.models.compute import ComputeSettings
from overopt.models.log_probs import response_log_probs
from overopt.models.model_shape import model_shape
from overopt.packed_tokens import PromptGroup, pack, pass_shape

VOCABULARY = 1000
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
CONFIGS = {
    "pythia": GPTNeoXConfig(**SIZES, intermediate_size=256),
    "neox without parallel residual": GPTNeoXConfig(**SIZES, intermediate_size=256, use_parallel_residual=False),
    "llama with shared keys": LlamaConfig(**SIZES, intermediate_size=160, num_key_value_heads=2),
    "llama with tied embeddings": LlamaConfig(**SIZES, intermediate_size=160, tie_word_embeddings=True),
    "mistral": MistralConfig(**SIZES, intermediate_size=160, num_key_value_heads=2, sliding_window=None),
    "qwen2": Qwen2Config(**SIZES, intermediate_size=160, num_key_value_heads=4),
}
FLOAT32 = ("32-true", compute_types("32-true", sharded=False, device="cpu"))
AUTOCAST = ("bf16-mixed", compute_types("bf16-mixed", sharded=False, device="cpu"))
# What a layer sees under FSDP2 in bf16-mixed: weights gathered in bfloat16.
GATHERED = ("bf16-true", compute_types("bf16-mixed", sharded=True, device="cpu"))


def groups(num_responses):
    draw = np.random.default_rng(0)
    return [
        PromptGroup(draw.integers(0, VOCABULARY, prompt), tuple(draw.integers(0, VOCABULARY, n) for n in row))
        for prompt, row in [
            (90, (20, 33)[:num_responses]),
            (70, (31, 15)[:num_responses]),
            (61, (9, 40)[:num_responses]),
        ]
    ]


def saved_bytes(config, groups, precision, *, one_row, logits_mib, checkpointing=False):
    """Bytes of the distinct storages that a forward pass leaves for its backward pass, parameters left out."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    ComputeSettings(activation_checkpointing=checkpointing).apply(model)
    if precision == "bf16-true":
        model = model.to(torch.bfloat16)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    # Held on to, so that no address is given out twice.
    storages = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage
        return tensor

    autocast = torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False)
    context = autocast if precision == "bf16-mixed" else contextlib.nullcontext()
    model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), context:
        log_probs = response_log_probs(model, pack(groups, one_row=one_row), logits_mib=logits_mib)
    assert log_probs.requires_grad
    return sum(storage.nbytes() for address, storage in storages.items() if address not in own)


def predicted_bytes(config, groups, types, *, one_row, logits_mib):
    model, sizes = model_shape(config), pass_shape(groups, one_row=one_row)
    kept = logits_memory(model, sizes.targets, logits_mib, types).kept
    outside = angles_bytes(model, sizes, types) + after_layers_bytes(model, sizes, types) + kept
    return model.layers * layer_bytes(model, sizes, types, "cpu") + outside


@pytest.mark.parametrize("one_row", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("num_responses", [1, 2], ids=["demonstrations", "pairs"])
@pytest.mark.parametrize(("precision", "types"), [FLOAT32, AUTOCAST, GATHERED], ids=["float32", "autocast", "gathered"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_what_autograd_keeps_is_what_the_sizes_say(config, precision, types, num_responses, one_row):
    settings = {"one_row": one_row, "logits_mib": 0.05}
    counted = saved_bytes(config, groups(num_responses), precision, **settings)
    assert predicted_bytes(config, groups(num_responses), types, **settings) == pytest.approx(counted, rel=0.03)


@pytest.mark.parametrize("one_row", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("config", [CONFIGS["pythia"], CONFIGS["llama with shared keys"]], ids=["pythia", "llama"])
def test_what_a_layer_frees_is_what_it_makes_and_does_not_keep(config, one_row):
    made, kept = [], []
    for layers in (2, 3):  # what comes with one layer more
        deeper = type(config)(**config.to_dict() | {"num_hidden_layers": layers})
        model = AutoModelForCausalLM.from_config(deeper)
        ComputeSettings().apply(model)
        with LiveTensors() as live:
            for parameter in model.parameters():
                live.add(parameter)
            before, live.made = live.now, 0
            log_probs = response_log_probs(model, pack(groups(2), one_row=one_row), logits_mib=0.05)
            made.append(live.made)
            kept.append(live.now - before)
        del log_probs
    sizes = pass_shape(groups(2), one_row=one_row)
    freed = (made[1] - made[0]) - (kept[1] - kept[0])
    assert layer_temporaries_bytes(model_shape(config), sizes, FLOAT32[1]) == pytest.approx(freed, rel=0.03)


@pytest.mark.parametrize(("precision", "types"), [FLOAT32, AUTOCAST], ids=["float32", "autocast"])
def test_logits_that_fit_at_once_are_kept(precision, types):
    config, pairs = CONFIGS["pythia"], groups(2)
    whole, chunked = (saved_bytes(config, pairs, precision, one_row=True, logits_mib=mib) for mib in (math.inf, 0.05))
    model, targets = model_shape(config), pass_shape(pairs).targets
    expected = logits_memory(model, targets, math.inf, types).kept - logits_memory(model, targets, 0.05, types).kept
    assert expected > 0.1 * chunked
    assert expected == pytest.approx(whole - chunked, rel=0.03)


def test_under_activation_checkpointing_a_layers_input_is_kept():
    config, pairs = CONFIGS["pythia"], groups(2)
    model, sizes, (precision, types) = model_shape(config), pass_shape(pairs), FLOAT32
    counted = saved_bytes(config, pairs, precision, one_row=True, logits_mib=0.05, checkpointing=True)
    kept = logits_memory(model, sizes.targets, 0.05, types).kept
    inputs = model.layers * layer_input_bytes(model, sizes, types)
    assert inputs == 3 * 4 * sizes.tokens * 64
    # Hooks see no keyword arguments of a checkpointed layer, which the angles and the mask are.
    assert inputs + after_layers_bytes(model, sizes, types) + kept == pytest.approx(counted, rel=0.03)


def test_a_layer_by_hand():
    # Pythia in float32, one group of 3 tokens, hidden 2, 1 head, inner 8, no mask:
    # input 6, norms' statistics 12, norms' outputs 12, attention's output in the row 6, MLP 2 x 24;
    # queries, keys, values and output in the grid 24, normalisers 3.
    config = GPTNeoXConfig(
        vocab_size=10, hidden_size=2, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    sizes = pass_shape([PromptGroup(np.zeros(2, int), (np.zeros(1, int),))])
    types = ComputeTypes(4, 4, 4, 4, False)
    assert layer_bytes(model_shape(config), sizes, types, "cpu") == 4 * (6 + 12 + 12 + 6 + 48 + 24 + 3)


def test_autocast_keeps_a_cast_of_each_matrix():
    model, sizes = model_shape(CONFIGS["pythia"]), pass_shape(groups(1))
    mixed, gathered = AUTOCAST[1], GATHERED[1]
    casts = 2 * model.layer_matrices
    assert mixed.casts_weights
    assert not gathered.casts_weights
    states = sizes.tokens * model.hidden * 2  # the residual stream is in float32 under autocast
    assert layer_bytes(model, sizes, mixed, "cpu") == layer_bytes(model, sizes, gathered, "cpu") + casts + states


@pytest.mark.parametrize("precision", ["64-true", "transformer-engine"])
def test_a_precision_that_is_not_known_is_refused(precision):
    with pytest.raises(ValueError, match=f"trainer.precision={precision} is not known"):
        compute_types(precision, sharded=False, device="cuda")
