import numpy as np
import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from overopt.models.policy import Policy, PythiaArchitecture, load_policy, model_name, new_policy, weights_hash
from overopt.packed_tokens import PackedTokens, PromptGroup, pack
from tiny import seeded_policy


def three_responses(policy: Policy) -> PackedTokens:
    ids = np.random.default_rng(0).integers(2, len(policy.tokenizer), (3, 9))
    return pack([PromptGroup(row[:4], (row[4:],)) for row in ids])


def saved_folder(policy: Policy, folder) -> str:
    policy.causal_lm.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_policy_out_of_a_checkpoint_is_the_one_that_was_trained(sft_checkpoint):
    policy, content = load_policy(sft_checkpoint), torch.load(sft_checkpoint, weights_only=True)
    trained = {k.removeprefix("policy.causal_lm."): v for k, v in content["state_dict"].items() if "causal_lm" in k}
    weights = policy.causal_lm.state_dict()
    assert weights.keys() == trained.keys()
    assert all(torch.equal(weights[name], trained[name]) for name in trained)
    assert policy.causal_lm.config.max_position_embeddings == 48 + 24
    assert policy.tokenizer.eos_token_id == policy.causal_lm.config.eos_token_id == 0


def test_a_policy_out_of_a_hugging_face_folder_says_the_same(tiny_policy, tmp_path):
    loaded = load_policy(saved_folder(tiny_policy, tmp_path))
    assert next(loaded.parameters()).dtype == torch.float32
    tokens = three_responses(tiny_policy)
    torch.testing.assert_close(loaded(tokens), tiny_policy(tokens), rtol=0, atol=0)
    assert loaded.tokenizer("the cat").input_ids == tiny_policy.tokenizer("the cat").input_ids
    assert weights_hash(load_policy(str(tmp_path))) == weights_hash(loaded)


def test_a_loaded_policy_has_no_dropout(tiny_tokenizer, tmp_path):
    config = PythiaArchitecture(hidden_size=16, num_layers=1, num_heads=2).config(tiny_tokenizer)
    config.hidden_dropout = config.attention_dropout = 0.5
    dropping = Policy(GPTNeoXForCausalLM(config), tiny_tokenizer).train()
    tokens = three_responses(dropping)
    assert not torch.equal(dropping(tokens), dropping(tokens))
    loaded = load_policy(saved_folder(dropping, tmp_path)).train()
    assert torch.equal(loaded(tokens), loaded(tokens))


def test_the_hash_is_the_weights_and_the_configuration(tiny_tokenizer):
    policy, twin = seeded_policy(0, tiny_tokenizer), seeded_policy(0, tiny_tokenizer)
    assert weights_hash(policy) == weights_hash(twin)
    assert weights_hash(policy) != weights_hash(seeded_policy(1, tiny_tokenizer))
    twin.causal_lm.config.rope_parameters["rope_theta"] = 500.0
    assert weights_hash(policy) != weights_hash(twin)
    with torch.no_grad():
        first = next(policy.parameters())
        before = weights_hash(policy)
        first.view(-1)[-1] += 1e-6
    assert weights_hash(policy) != before


def test_tied_parameters_are_counted_once(tiny_tokenizer):
    def size(tied: bool) -> int:
        shape = {"vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = GPTNeoXConfig(**shape, intermediate_size=32, tie_word_embeddings=tied)
        return Policy(GPTNeoXForCausalLM(config), tiny_tokenizer).num_parameters

    assert size(tied=False) - size(tied=True) == 300 * 16


def test_new_policies_follow_the_global_seed_and_fit_their_tokenizer(tiny_tokenizer):
    torch.manual_seed(3)
    first = new_policy(PythiaArchitecture(16, 2, 2), tiny_tokenizer)
    torch.manual_seed(3)
    second = new_policy(PythiaArchitecture(16, 2, 2), tiny_tokenizer)
    assert weights_hash(first) == weights_hash(second)
    assert first.causal_lm.config.vocab_size == len(tiny_tokenizer)


@pytest.mark.parametrize(
    ("num_parameters", "name"),
    [(530_000, "gpt_neox-0.5M"), (1_011_781_632, "gpt_neox-1.0B"), (2_775_208_960, "gpt_neox-2.8B")],
)
def test_models_are_named_by_kind_and_size(num_parameters, name):
    assert model_name(GPTNeoXConfig(), num_parameters) == name


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="hidden_size 16 is not a multiple of num_heads 3"):
        PythiaArchitecture(hidden_size=16, num_heads=3)


@pytest.mark.parametrize("location", ["missing.ckpt", "folder", "some/where/else", "./here"])
def test_what_is_not_there_is_one_line_that_names_it(location, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for given in (location, str(tmp_path / location)):
        with pytest.raises(ValueError, match="no policy") as error:
            load_policy(given)
        assert given in str(error.value)
        assert "\n" not in str(error.value)


def test_a_folder_without_a_tokenizer_is_refused(tiny_policy, tmp_path):
    tiny_policy.causal_lm.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no tokenizer") as error:
        load_policy(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)
