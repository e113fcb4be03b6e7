import re

import numpy as np
import pytest
import torch
import transformers.integrations.flex_attention as flex_integration
from torch.nn.attention.flex_attention import flex_attention
from transformers import AutoModelForCausalLM, Gemma2Config, GPTNeoXConfig, LlamaConfig, MambaConfig, MistralConfig
from transformers.configuration_utils import PreTrainedConfig

from overopt.models.grouped_attention import use_grouped_attention
from overopt.models.log_probs import response_log_probs
from overopt.packed_tokens import PromptGroup, pack

SHAPE = {
    "vocab_size": 32,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}


def log_probs(config: PreTrainedConfig, prompt: int, *, shared: bool = True, flex: bool = False) -> torch.Tensor:
    """Of two pairs with prompts of so many tokens, by a random model."""
    torch.manual_seed(0)
    causal_lm = AutoModelForCausalLM.from_config(config).eval()
    use_grouped_attention(causal_lm, flex=flex)
    ids = np.random.default_rng(0).integers(1, 32, (2, prompt + 8))
    pairs = [PromptGroup(row[:prompt], (row[prompt : prompt + 5], row[prompt + 5 :])) for row in ids]
    if not shared:
        pairs = [PromptGroup(pair.prompt_ids, (response,)) for pair in pairs for response in pair.responses]
    with torch.no_grad():
        return response_log_probs(causal_lm, pack(pairs, one_row=shared))


WINDOWED = MistralConfig(**SHAPE, num_key_value_heads=1, sliding_window=12)


@pytest.mark.parametrize(
    ("config", "prompt", "obstacle"),
    [
        (WINDOWED, 20, "MistralModel sees 12 tokens back, fewer than the 28 of a prompt with its responses"),
        (
            Gemma2Config(**SHAPE, num_key_value_heads=1, head_dim=16),
            5,
            "Gemma2Model caps its attention logits, which SDPA does not",
        ),
        (
            MambaConfig(vocab_size=32, hidden_size=32, num_hidden_layers=1, state_size=4),
            5,
            "MambaModel does not take its attention from transformers' registry",
        ),
    ],
    ids=["sliding window", "capped logits", "no attention"],
)
def test_an_architecture_that_would_be_computed_otherwise_is_refused_with_the_way_out(config, prompt, obstacle):
    way_out = "train it with --data.shared_prompts false --data.packed false"
    with pytest.raises(ValueError, match=re.escape(f"{obstacle}: {way_out}")):
        log_probs(config, prompt)
    assert log_probs(config, prompt, shared=False).isfinite().all()  # and that is one


def test_rows_within_a_sliding_window_may_share_and_be_packed():
    torch.testing.assert_close(log_probs(WINDOWED, 4), log_probs(WINDOWED, 4, shared=False), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [GPTNeoXConfig, LlamaConfig])
def test_flex_attention_computes_what_sdpa_does(make, monkeypatch):
    # Transformers compiles it, which takes minutes here; the mask and what goes through it are the same.
    monkeypatch.setattr(
        flex_integration,
        "compile_friendly_flex_attention",
        lambda *states, training, **options: flex_attention(*states, **options),
    )
    config = make(**SHAPE)
    torch.testing.assert_close(log_probs(config, 20, flex=True), log_probs(config, 20), rtol=1e-5, atol=1e-5)
