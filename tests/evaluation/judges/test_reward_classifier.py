import json
import math
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from overopt.checkpoints.format import REWARD_PREFIX, ModelCheckpoint
from overopt.data.packing import Packing
from overopt.evaluation.judges.gold_reward import GoldRewardJudge
from overopt.evaluation.judges.reward_classifier import RewardClassifierJudge
from overopt.evaluation.records import Comparison, Verdict
from overopt.models.hf_export import stock_model, write_hf_folder
from overopt.models.reward_model import RewardModel, reward_model_from_policy
from tiny import WORDS, sampled_pairs, seeded_policy

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def comparisons() -> list[Comparison]:
    return [Comparison(p.id, p.prompt, sample=p.first, opponent=p.human) for p in sampled_pairs()[:11]]


def gold_model(tokenizer: PreTrainedTokenizerFast) -> RewardModel:
    reward_model = reward_model_from_policy(seeded_policy(0, tokenizer, scale=5.0))
    torch.nn.init.normal_(reward_model.head.weight, generator=torch.Generator().manual_seed(0))
    return reward_model


def exported(reward_model: RewardModel, folder: Path) -> str:
    weights = {REWARD_PREFIX + name: weight for name, weight in reward_model.state_dict().items()}
    checkpoint = ModelCheckpoint(reward_model.describe(), weights, {"stage": "reward"})
    tokenizer = checkpoint.description.tokenizer()
    write_hf_folder(folder, stock_model(checkpoint), tokenizer, dtype="float32", card="# A card\n", provenance={})
    return str(folder)


@pytest.fixture
def export(tiny_tokenizer: Any, tmp_path: Path) -> str:
    return exported(gold_model(tiny_tokenizer), tmp_path / "export")


@pytest.fixture
def bert(tmp_path: Path) -> str:
    """A tiny encoder with pairs of texts, as reward models on BERT's kin have them."""
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {token: i for i, token in enumerate([*marks, *WORDS, ".", ":", "Post", "TL", "DR", ";"])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=64,
    )
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(vocabulary), pad_token_id=0, num_labels=1, initializer_range=0.5, **shape)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    return str(tmp_path / "bert")


@pytest.fixture
def llama(tiny_tokenizer: Any, tmp_path: Path) -> str:
    """A tiny decoder with a chat template and, as many have it, no padding in its configuration."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer.backend_tokenizer, eos_token="<|endoftext|>", model_max_length=10**30
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHAT_TEMPLATE
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), num_labels=1, initializer_range=0.5, **shape)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "llama")
    tokenizer.save_pretrained(tmp_path / "llama")
    return str(tmp_path / "llama")


def change_config(folder: str, **changes: object) -> None:
    path = Path(folder) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("micro_batch_tokens", [1, 150, 4000])
def test_an_exported_reward_model_gives_the_gold_models_rewards(
    tiny_tokenizer, export, micro_batch_tokens, recwarn: pytest.WarningsRecorder
):
    gold = GoldRewardJudge(gold_model(tiny_tokenizer), max_response_tokens=60, packing=Packing(), temperature=0.5)
    judge = RewardClassifierJudge(export, "joined", micro_batch_tokens=micro_batch_tokens, temperature=0.5)
    told: dict[int, Verdict] = {}
    expected, verdicts = gold.judge(comparisons()), judge.judge(comparisons(), told.__setitem__)
    assert [v.sample_reward for v in verdicts] == pytest.approx([v.sample_reward for v in expected], abs=1e-4)
    assert [v.win_probability for v in verdicts] == pytest.approx([v.win_probability for v in expected], abs=1e-4)
    assert len({round(v.win_probability, 2) for v in verdicts}) > 3
    assert [told[place] for place in range(11)] == verdicts
    assert judge.settings["judge_input_format"] == "joined"
    assert (judge.cut_prompts, len(recwarn)) == (0, 0)


def test_an_end_of_text_that_is_the_padding_too_is_read(tiny_tokenizer, tmp_path):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer.backend_tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )
    reward_model = gold_model(tokenizer)
    expected = GoldRewardJudge(reward_model, max_response_tokens=60, packing=Packing()).judge(comparisons())
    verdicts = RewardClassifierJudge(exported(reward_model, tmp_path / "out")).judge(comparisons())
    assert [v.sample_reward for v in verdicts] == pytest.approx([v.sample_reward for v in expected], abs=1e-4)


def test_pairs_are_read_as_the_tokenizer_makes_them(bert):
    judge = RewardClassifierJudge(bert)
    assert judge.settings["judge_input_format"] == "pair"
    tokenizer, stock = AutoTokenizer.from_pretrained(bert), AutoModelForSequenceClassification.from_pretrained(bert)
    verdicts = judge.judge(comparisons())
    assert len({round(v.win_probability, 2) for v in verdicts}) > 3
    with torch.inference_mode():
        for comparison, verdict in zip(comparisons(), verdicts, strict=True):
            sample, opponent = (
                float(stock(**tokenizer(comparison.prompt, text, return_tensors="pt")).logits)
                for text in (comparison.sample, comparison.opponent)
            )
            assert verdict.sample_reward == pytest.approx(sample, abs=1e-5)
            assert verdict.win_probability == pytest.approx(1 / (1 + math.exp(opponent - sample)), abs=1e-5)


def test_chats_are_read_by_the_template_and_batched_without_a_padding_token(llama):
    judge = RewardClassifierJudge(llama)
    assert judge.settings["judge_input_format"] == "chat"
    tokenizer, stock = AutoTokenizer.from_pretrained(llama), AutoModelForSequenceClassification.from_pretrained(llama)
    assert stock.config.pad_token_id is None  # else nothing would be shown
    verdicts = judge.judge(comparisons())
    assert len({round(v.win_probability, 2) for v in verdicts}) > 3
    for comparison, verdict in zip(comparisons(), verdicts, strict=True):
        turns = [("user", comparison.prompt), ("assistant", comparison.sample.strip())]
        chat = tokenizer.apply_chat_template(
            [{"role": role, "content": text} for role, text in turns], return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            assert verdict.sample_reward == pytest.approx(float(stock(chat["input_ids"]).logits), abs=1e-5)


def test_a_model_that_reads_padding_by_its_own_id_keeps_it(llama):
    without = [v.sample_reward for v in RewardClassifierJudge(llama).judge(comparisons())]
    # The line feed that ends each turn of the template: its authors' rewards were read before it.
    change_config(llama, pad_token_id=AutoTokenizer.from_pretrained(llama).encode("\n")[0])
    rewards = [v.sample_reward for v in RewardClassifierJudge(llama).judge(comparisons())]
    assert rewards != pytest.approx(without, abs=1e-2)
    tokenizer, stock = AutoTokenizer.from_pretrained(llama), AutoModelForSequenceClassification.from_pretrained(llama)
    for comparison, reward in zip(comparisons(), rewards, strict=True):
        turns = [("user", comparison.prompt), ("assistant", comparison.sample.strip())]
        chat = tokenizer.apply_chat_template(
            [{"role": role, "content": text} for role, text in turns], return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            assert reward == pytest.approx(float(stock(chat["input_ids"]).logits), abs=1e-5)


def test_a_prompt_that_is_too_long_loses_its_beginning_and_that_is_said(export, tiny_tokenizer):
    comparison = Comparison("1", " the cat." * 40 + "\nTL;DR:", " a dog sleeps.", " a fish.")
    judge = RewardClassifierJudge(export, max_tokens=30)
    with pytest.warns(UserWarning, match="the beginning of 2 prompts was cut off.*30 tokens"):
        (verdict,) = judge.judge([comparison])
    ids = tiny_tokenizer(comparison.prompt).input_ids + tiny_tokenizer(comparison.sample).input_ids + [0]
    stock = AutoModelForSequenceClassification.from_pretrained(export)
    with torch.inference_mode():
        expected = float(stock(torch.tensor([ids[-30:]])).logits)
    assert verdict.sample_reward == pytest.approx(expected, abs=1e-4)
    assert judge.settings["judge_max_tokens"] == "30"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        judge.judge(comparisons()[:1])  # of another one nothing is said


def test_a_response_that_leaves_no_room_is_refused(export):
    long = Comparison("1", "Post:", " a cat" * 40, " a dog.")
    with pytest.raises(ValueError, match=r"begins 'a cat a cat.*no room for its prompt.*reads 30 tokens") as error:
        RewardClassifierJudge(export, max_tokens=30).judge([long])
    assert "\n" not in str(error.value)


def three_labels(folder: str) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3, ignore_mismatched_sizes=True)
    model.save_pretrained(folder)


BAD = {
    "more labels": (three_labels, "has 3 labels, a reward model has one"),
    "no head": (
        lambda folder: AutoModelForSequenceClassification.from_pretrained(folder).base_model.save_pretrained(folder),
        r"lacks \d+ of its model's weights|has 2 labels",
    ),
    "remote code": (
        lambda folder: change_config(folder, model_type="evil", auto_map={"AutoConfig": "evil.C"}),
        "never",
    ),
    "no weights": (lambda folder: (Path(folder) / "model.safetensors").unlink(), "can't be opened as a reward model"),
    "no tokenizer": (lambda folder: (Path(folder) / "tokenizer.json").unlink(), "tokenizer"),
}


class Dangerous:
    """Unpickled, it makes a folder."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> object:
        return os.mkdir, (str(self._marker),)


def test_pickled_weights_are_read_as_data_and_nothing_in_them_runs(export, tmp_path):
    plain = RewardClassifierJudge(export).judge(comparisons())
    weights = AutoModelForSequenceClassification.from_pretrained(export).state_dict()
    (Path(export) / "model.safetensors").unlink()
    torch.save(weights, Path(export) / "pytorch_model.bin")
    assert RewardClassifierJudge(export).judge(comparisons()) == plain
    torch.save({"score.weight": Dangerous(tmp_path / "ran")}, Path(export) / "pytorch_model.bin")
    with pytest.raises(ValueError, match="can't be opened as a reward model"):
        RewardClassifierJudge(export)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("spoil", "message"), BAD.values(), ids=BAD)
def test_what_is_no_reward_model_is_one_line_that_names_it(spoil, message, export):
    RewardClassifierJudge(export)
    spoil(export)
    with pytest.raises(ValueError, match=message) as error:
        RewardClassifierJudge(export)
    assert export in str(error.value)
    assert "\n" not in str(error.value)


def test_files_and_choices_that_cannot_be_are_refused_with_the_way_out(export, tmp_path):
    for location, message in {
        str(tmp_path / "last.ckpt"): "overopt export",
        "smollm2-135m": "has 2 labels|not installed",
        str(tmp_path / "gone"): "expected a folder with config.json",
    }.items():
        with pytest.raises(ValueError, match=message):
            RewardClassifierJudge(location)
    with pytest.raises(ValueError, match="no chat template"):
        RewardClassifierJudge(export, "chat")
    with pytest.raises(ValueError, match="temperature > 0"):
        RewardClassifierJudge(export, temperature=-1.0)


def test_settings_change_with_whatever_changes_a_verdict(export, bert):
    plain = RewardClassifierJudge(export).settings
    assert RewardClassifierJudge(export, micro_batch_tokens=100).settings == plain
    assert RewardClassifierJudge(export, "pair").settings != plain
    assert RewardClassifierJudge(export, max_tokens=30).settings != plain
    assert RewardClassifierJudge(export, temperature=2.0).settings != plain
    model = AutoModelForSequenceClassification.from_pretrained(export)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    model.save_pretrained(export)
    assert RewardClassifierJudge(export).settings != plain
