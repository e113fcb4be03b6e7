"""The published models at full size, without a byte of their weights: on the meta device."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from overopt.models.pythia import PYTHIA_SUITE, pythia_config


def build(size: str) -> torch.nn.Module:
    config = pythia_config(f"EleutherAI/pythia-{size}")
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize(
    ("size", "parameters"),
    [
        # The model cards' totals; those of the paper first.
        ("1b", 1_011_781_632),
        ("2.8b", 2_775_208_960),
        ("6.9b", 6_857_302_016),
        ("70m", 70_426_624),
        ("160m", 162_322_944),
        ("410m", 405_334_016),
        ("1.4b", 1_414_647_808),
        ("12b", 11_846_072_320),
    ],
)
def test_a_published_model_has_its_published_number_of_parameters(size, parameters):
    assert sum(parameter.numel() for parameter in build(size).parameters()) == parameters


@pytest.mark.parametrize("size", ["1b", "2.8b", "6.9b"])
def test_every_weight_of_a_published_model_has_its_shape(size):
    hidden, layers, _, vocabulary = PYTHIA_SUITE[size]
    expected = {
        "gpt_neox.embed_in.weight": (vocabulary, hidden),
        "gpt_neox.final_layer_norm.weight": (hidden,),
        "gpt_neox.final_layer_norm.bias": (hidden,),
        "lm_head.weight": (vocabulary, hidden),
    }
    for layer in range(layers):
        for name, outputs, inputs in (
            ("attention.query_key_value", 3 * hidden, hidden),
            ("attention.dense", hidden, hidden),
            ("mlp.dense_h_to_4h", 4 * hidden, hidden),
            ("mlp.dense_4h_to_h", hidden, 4 * hidden),
        ):
            expected[f"gpt_neox.layers.{layer}.{name}.weight"] = (outputs, inputs)
            expected[f"gpt_neox.layers.{layer}.{name}.bias"] = (outputs,)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            for part in ("weight", "bias"):
                expected[f"gpt_neox.layers.{layer}.{norm}.{part}"] = (hidden,)
    assert {name: tuple(weight.shape) for name, weight in build(size).named_parameters()} == expected


def test_other_names_are_nobodys():
    assert pythia_config("EleutherAI/pythia-1b-deduped") == pythia_config("EleutherAI/pythia-1b")
    assert pythia_config("EleutherAI/pythia-13b") is None
    assert pythia_config("someone/pythia-1b") is None
