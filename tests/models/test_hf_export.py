import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
)

from full_disk import no_file_larger_than
from overopt.checkpoints.format import POLICY_PREFIX, REWARD_PREFIX, ModelCheckpoint, load_tokenizer
from overopt.checkpoints.tokenizer import tokenizer_from_json, tokenizer_to_json
from overopt.models.hf_export import MANIFEST, require_ours, stock_model, whole_distribution, write_hf_folder
from overopt.models.policy import Policy, load_policy
from overopt.models.reward_model import RewardModel, reward_model_from_policy
from overopt.packed_tokens import PromptGroup, pack
from tiny import seeded_policy

TEXTS = ["the cat sees a tree.", " Post 3:\n\nTL;DR:", "<|endoftext|> ünïcode", ""]


def checkpoint_of(model: Policy | RewardModel) -> ModelCheckpoint:
    prefix, stage = (POLICY_PREFIX, "align") if isinstance(model, Policy) else (REWARD_PREFIX, "reward")
    weights = model.causal_lm.state_dict() if isinstance(model, Policy) else model.state_dict()
    return ModelCheckpoint(
        model.describe(), {prefix + name: weight for name, weight in weights.items()}, {"stage": stage}
    )


def exported(model: Policy | RewardModel, folder: Path, dtype: str = "float32") -> Path:
    checkpoint = checkpoint_of(model)
    write_hf_folder(
        folder,
        stock_model(checkpoint),
        checkpoint.description.tokenizer(),
        dtype=dtype,
        card="# A card\n",
        provenance={"training": checkpoint.training},
    )
    return folder


def llama_policy(tokenizer, *, tied: bool) -> Policy:
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=tied, eos_token_id=2, **shape)
    torch.manual_seed(0)
    return Policy(LlamaForCausalLM(config), tokenizer)


@pytest.fixture(params=["gpt_neox", "llama", "tied llama"])
def policy(request, tiny_policy, tiny_tokenizer) -> Policy:
    if request.param == "gpt_neox":
        return tiny_policy
    return llama_policy(tiny_tokenizer, tied=request.param == "tied llama")


def test_stock_transformers_gives_equal_logits_and_token_ids(policy, tmp_path):
    folder = exported(policy, tmp_path / "out")
    stock, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    tokens = torch.tensor(np.random.default_rng(0).integers(0, len(tokenizer), (3, 20)))
    with torch.inference_mode():
        assert torch.equal(stock(tokens).logits, policy.causal_lm.eval()(tokens).logits)
    for text in TEXTS:
        assert tokenizer(text).input_ids == policy.tokenizer(text).input_ids
    assert tokenizer.eos_token_id == policy.tokenizer.eos_token_id
    assert tokenizer.pad_token_id == policy.tokenizer.pad_token_id
    assert tokenizer.decode([5, 0]) == policy.tokenizer.decode([5, 0])


def test_generate_samples_from_the_whole_distribution_and_ends_at_the_end_of_text(policy, tmp_path):
    folder = exported(policy, tmp_path / "out")
    stock = AutoModelForCausalLM.from_pretrained(folder)
    assert stock.generation_config.to_diff_dict() == GenerationConfig.from_pretrained(folder).to_diff_dict()
    written = json.loads((folder / "generation_config.json").read_text())
    settings = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "eos_token_id": 0, "pad_token_id": 1}
    assert {name: written.get(name) for name in settings} == settings
    assert stock.config.eos_token_id == 0
    # The whole distribution: what was never cut away turns up, here the least likely of all first tokens.
    with torch.no_grad():
        weights = stock.get_output_embeddings().weight
        weights.zero_()  # every token is as likely as any other
    torch.manual_seed(0)
    prompts = torch.full((2000, 1), 5)
    sampled = stock.generate(prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=1)[:, 1]
    assert len(sampled.unique()) > 250  # of 300; top_k 50 would give 50


def test_our_own_commands_load_the_folder_back(policy, tmp_path):
    folder = exported(policy, tmp_path / "out")
    tokens = pack([PromptGroup(np.array([5, 6, 7]), (np.array([8, 9]), np.array([10])))])
    loaded = load_policy(folder)
    torch.testing.assert_close(loaded(tokens), policy(tokens), rtol=0, atol=0)
    assert load_tokenizer(folder)("the cat").input_ids == policy.tokenizer("the cat").input_ids


def test_nothing_of_ours_is_in_the_configuration(policy, tmp_path):
    assert "overopt" in policy.causal_lm.config._attn_implementation  # else there would be nothing to keep out
    folder = exported(policy, tmp_path / "out")
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        text = (folder / name).read_text()
        assert "overopt" not in text
        assert str(tmp_path) not in text
    assert AutoConfig.from_pretrained(folder)._attn_implementation is None
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        [MANIFEST, *json.loads((folder / MANIFEST).read_text())["files"]]
    )
    assert (folder / "model.safetensors").stat().st_mode == (folder / "config.json").stat().st_mode


def test_bfloat16_is_the_rounded_weights(tiny_policy, tmp_path):
    folder = exported(tiny_policy, tmp_path / "out", "bfloat16")
    stock = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert stock.dtype == torch.bfloat16
    for name, weight in tiny_policy.causal_lm.state_dict().items():
        assert torch.equal(stock.state_dict()[name], weight.bfloat16())
    assert load_policy(folder).causal_lm.dtype == torch.float32


@pytest.mark.parametrize("kind", ["gpt_neox", "llama"])
def test_a_reward_model_gives_the_same_rewards_as_a_sequence_classifier(kind, tiny_tokenizer, tmp_path):
    start = seeded_policy(2, tiny_tokenizer, 5.0) if kind == "gpt_neox" else llama_policy(tiny_tokenizer, tied=False)
    reward_model = reward_model_from_policy(start).eval()
    torch.nn.init.normal_(reward_model.head.weight, generator=torch.Generator().manual_seed(0))
    folder = exported(reward_model, tmp_path / "out")
    stock = AutoModelForSequenceClassification.from_pretrained(folder)
    groups = [
        PromptGroup(np.array([5, 6, 7]), (np.array([8, 9, 0]),)),
        PromptGroup(np.array([12]), (np.array([4, 0]),)),
    ]
    with torch.inference_mode():
        ours = reward_model(pack(groups))
        alone = [stock(torch.tensor([[*g.prompt_ids, *g.responses[0]]])).logits for g in groups]
        rows = torch.tensor([[5, 6, 7, 8, 9, 0], [12, 4, 0, 1, 1, 1]])
        padded = stock(rows, attention_mask=(rows != 1).long()).logits
    assert ours.std() > 0.01  # else equality would say little
    torch.testing.assert_close(torch.cat(alone).squeeze(1), ours, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(padded.squeeze(1), ours, rtol=1e-5, atol=1e-6)


def test_a_reward_model_is_read_at_the_end_of_text_where_that_was_the_pad_token(tiny_tokenizer, tmp_path):
    tokenizer = tokenizer_from_json(tokenizer_to_json(tiny_tokenizer))  # a copy
    tokenizer.pad_token = tokenizer.eos_token
    reward_model = reward_model_from_policy(seeded_policy(2, tokenizer, 5.0)).eval()
    torch.nn.init.normal_(reward_model.head.weight, generator=torch.Generator().manual_seed(0))
    folder = exported(reward_model, tmp_path / "out")
    stock = AutoModelForSequenceClassification.from_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder).pad_token_id == stock.config.pad_token_id != tokenizer.eos_token_id
    groups = [PromptGroup(np.array([5, 6, 7]), (np.array([8, 9, tokenizer.eos_token_id]),))]
    with torch.inference_mode():
        ours = reward_model(pack(groups))
        theirs = stock(torch.tensor([[5, 6, 7, 8, 9, tokenizer.eos_token_id]])).logits
    torch.testing.assert_close(theirs.squeeze(1), ours, rtol=1e-5, atol=1e-6)


def test_a_reward_model_without_a_class_in_transformers_is_refused(tiny_tokenizer, monkeypatch):
    reward_model = reward_model_from_policy(seeded_policy(2, tiny_tokenizer))
    checkpoint = checkpoint_of(reward_model)
    mapping = AutoModelForSequenceClassification._model_mapping
    monkeypatch.setattr(AutoModelForSequenceClassification, "_model_mapping", {GPT2Config: mapping[GPT2Config]})
    with pytest.raises(ValueError, match="no sequence classifier on gpt_neox"):
        stock_model(checkpoint)


def test_only_an_earlier_export_is_written_over(tiny_policy, tmp_path):
    (tmp_path / "empty").mkdir()
    exported(tiny_policy, tmp_path / "empty")
    exported(tiny_policy, tmp_path / "empty", "bfloat16")
    assert AutoConfig.from_pretrained(tmp_path / "empty").dtype == torch.bfloat16
    (tmp_path / "empty" / "notes.txt").write_text("mine")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.json").write_text("{}")
    (tmp_path / "file").write_text("mine")
    for name, named in {"empty": "notes.txt", "theirs": "config.json", "file": "is no folder"}.items():
        with pytest.raises(ValueError, match=named) as error:
            exported(tiny_policy, tmp_path / name)
        assert str(tmp_path / name) in str(error.value)
    assert (tmp_path / "empty" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "theirs" / "config.json").read_text() == "{}"
    require_ours(tmp_path / "new")


@pytest.mark.parametrize("room", [0, 2000, 20_000], ids=["none", "a little", "not enough for the weights"])
def test_a_full_disk_is_one_line_and_the_earlier_export_stays(room, tiny_policy, tmp_path):
    folder = exported(tiny_policy, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with no_file_larger_than(room), pytest.raises(ValueError, match="could not be written") as error:
        exported(tiny_policy, folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_tokenizer_without_padding_has_none_afterwards(tiny_tokenizer):
    tokenizer = tokenizer_from_json(tokenizer_to_json(tiny_tokenizer))  # a copy
    tokenizer.pad_token = None
    assert whole_distribution(tokenizer).pad_token_id is None
