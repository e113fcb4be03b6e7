import os
import pickle
from pathlib import Path

import pytest
import torch

from overopt.checkpoints.atomic_io import AtomicCheckpointIO
from overopt.checkpoints.format import (
    POLICY_PREFIX,
    ModelDescription,
    load_tokenizer,
    read_checkpoint,
    read_model_checkpoint,
)
from overopt.models.policy import load_policy
from overopt.models.reward_model import load_reward_model

OPENERS = {
    "read_checkpoint": read_checkpoint,
    "read_model_checkpoint": read_model_checkpoint,
    "load_policy": load_policy,
    "load_reward_model": load_reward_model,
    "load_tokenizer": load_tokenizer,
    "resume": AtomicCheckpointIO().load_checkpoint,
}


class Dangerous:
    """Unpickled, it makes a folder."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> object:
        return os.mkdir, (str(self._trace),)


def half_written(path: Path, sft_checkpoint: Path) -> None:
    content = sft_checkpoint.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def with_code(path: Path, _: Path) -> None:
    torch.save({"overopt": Dangerous(path.with_suffix(".trace"))}, path)


BROKEN = {
    "empty": lambda path, _: path.write_bytes(b""),
    "half-written": half_written,
    "text": lambda path, _: path.write_text("model: sft\n"),
    "noise": lambda path, _: path.write_bytes(bytes(range(256)) * 16),
    "pickle": lambda path, _: path.write_bytes(pickle.dumps({"a": 1}, protocol=2)),
    "with code": with_code,
    "another project's": lambda path, _: torch.save({"state_dict": {"weight": torch.zeros(2)}}, path),
    "a tensor": lambda path, _: torch.save(torch.zeros(3), path),
}


@pytest.mark.parametrize("opener", OPENERS.values(), ids=OPENERS)
@pytest.mark.parametrize("breaks", BROKEN.values(), ids=BROKEN)
def test_a_file_that_is_no_checkpoint_is_one_line_that_names_it(breaks, opener, sft_checkpoint, tmp_path):
    path = tmp_path / "broken.ckpt"
    breaks(path, sft_checkpoint)
    with pytest.raises(ValueError, match=r"no readable checkpoint|not a checkpoint of overopt") as error:
        opener(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert not path.with_suffix(".trace").exists()


def test_the_code_in_that_file_would_have_run(tmp_path):
    with_code(tmp_path / "broken.ckpt", tmp_path)
    torch.load(tmp_path / "broken.ckpt", weights_only=False)
    assert (tmp_path / "broken.trace").is_dir()


@pytest.mark.parametrize("opener", OPENERS.values(), ids=OPENERS)
def test_a_missing_file_is_one_line_that_names_it(opener, tmp_path):
    with pytest.raises(ValueError, match=r"^no [a-z ]+ at ") as error:
        opener(tmp_path / "none.ckpt")
    assert str(tmp_path / "none.ckpt") in str(error.value)
    assert "\n" not in str(error.value)


def test_a_checkpoint_says_what_trained_it_and_on_what(sft_checkpoint):
    checkpoint = read_model_checkpoint(sft_checkpoint, POLICY_PREFIX)
    assert checkpoint.training["stage"] == "sft"
    assert checkpoint.training["examples_seen"] > 30  # a real run's
    assert checkpoint.training["run_id"] is None
    assert checkpoint.data["source"] == "jsonl"
    assert checkpoint.data["evaluation_fraction"] == 0.3
    assert checkpoint.description.shape == "gpt_neox of hidden size 16, 2 layers, 2 heads, vocabulary 300"


def test_a_description_opens_as_the_model_it_was_made_of(tiny_policy):
    description = ModelDescription.of(tiny_policy.causal_lm.config, tiny_policy.tokenizer)
    assert description.config().to_dict() == tiny_policy.causal_lm.config.to_dict()
    assert description.tokenizer().get_vocab() == tiny_policy.tokenizer.get_vocab()


def test_the_tokenizer_of_a_policy_opens_alone(sft_checkpoint, tiny_policy, tmp_path):
    tiny_policy.tokenizer.save_pretrained(tmp_path)
    text = "the cat sees a tree."
    of_checkpoint, of_folder = load_tokenizer(sft_checkpoint), load_tokenizer(tmp_path)
    assert of_checkpoint(text).input_ids == load_policy(sft_checkpoint).tokenizer(text).input_ids
    assert of_folder(text).input_ids == tiny_policy.tokenizer(text).input_ids
