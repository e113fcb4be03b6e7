import numpy as np
import pytest
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig

from overopt.models.compute import ComputeSettings
from overopt.models.log_probs import response_log_probs
from overopt.models.model_shape import forward_flops, model_shape
from overopt.models.pythia import PYTHIA_SUITE, PythiaShape
from overopt.packed_tokens import PromptGroup, pack, pass_shape


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("70m", 70_426_624),
        ("1b", 1_011_781_632),
        ("2.8b", 2_775_208_960),
        ("6.9b", 6_857_302_016),
        ("12b", 11_846_072_320),
    ],
)
def test_pythias_have_their_published_numbers_of_parameters(name, parameters):
    shape = model_shape(PYTHIA_SUITE[name].config())
    assert shape.num_parameters == parameters
    # 12 h^2 in matrices and 13 h in biases and norms.
    assert shape.layer_parameters == 12 * shape.hidden**2 + 13 * shape.hidden
    assert shape.layer_matrices == 12 * shape.hidden**2


def test_a_tied_embedding_is_counted_once():
    sizes = {"vocab_size": 100, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    tied, untied = (model_shape(LlamaConfig(**sizes, tie_word_embeddings=tie)) for tie in (True, False))
    assert untied.num_parameters - tied.num_parameters == 100 * 16
    assert tied.head_parameters == 100 * 16


def test_an_architecture_whose_layers_are_not_known_is_refused():
    with pytest.raises(ValueError, match="'gpt2'"):
        model_shape(GPT2Config())


def pairs():
    draw = np.random.default_rng(0)
    return [
        PromptGroup(draw.integers(0, 90, prompt), (draw.integers(0, 90, chosen), draw.integers(0, 90, rejected)))
        for prompt, chosen, rejected in [(30, 8, 5), (21, 3, 9)]
    ]


@pytest.mark.parametrize(
    "config",
    [
        GPTNeoXConfig(vocab_size=90, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64),
        LlamaConfig(vocab_size=90, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2),
    ],
    ids=lambda config: config.model_type,
)
def test_flops_are_those_that_torch_counts(config):
    model = AutoModelForCausalLM.from_config(config)
    ComputeSettings().apply(model)
    with FlopCounterMode(display=False) as counter:
        response_log_probs(model, pack(pairs())).sum().backward()
    counts = {str(operation): number for operation, number in counter.get_flop_counts()["Global"].items()}
    attention = sum(number for operation, number in counts.items() if "attention" in operation)
    shape, sizes = model_shape(config), pass_shape(pairs())
    ours = forward_flops(shape, tokens=sizes.tokens, attended=0, targets=sizes.targets)
    assert counter.get_total_flops() - attention == 3 * ours


def test_attention_is_counted_pair_by_pair():
    shape, sizes = model_shape(PythiaShape(16, 2, 2, 90).config()), pass_shape(pairs())
    # Every token reads what came before it in its prompt and response, and itself.
    attended = sum(
        p * (p + 1) // 2 + sum(r * p + r * (r + 1) // 2 for r in responses)
        for p, responses in [(30, (8, 5)), (21, (3, 9))]
    )
    assert sizes.attended == attended
    with_attention, without = (forward_flops(shape, tokens=10, attended=n, targets=0) for n in (attended, 0))
    assert with_attention - without == 2 * 2 * (2 * 16) * attended  # layers, products, multiply and add


def test_sizes_of_a_pass_are_those_of_its_tensors():
    for one_row in (True, False):
        tokens, sizes = pack(pairs(), one_row=one_row), pass_shape(pairs(), one_row=one_row)
        assert (sizes.tokens, sizes.targets) == (tokens.input_ids.numel(), len(tokens.targets))
        assert sizes.masked == (tokens.branches is not None)
        grid = tokens.input_ids if tokens.grid is None else tokens.grid.places
        assert (sizes.groups, sizes.longest) == grid.shape
