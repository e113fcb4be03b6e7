import ast
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import overopt
from overopt.checkpoints.format import load_tokenizer
from overopt.models.policy import load_policy

MARKER = "ran"


@pytest.fixture
def folder(tiny_policy, tmp_path) -> Path:
    """A good Hugging Face folder, for tests to spoil."""
    tiny_policy.causal_lm.save_pretrained(tmp_path / "model")
    tiny_policy.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def add_code(folder: Path) -> Path:
    """A Python file in the folder that leaves a mark when anything imports it."""
    marker = folder.parent / MARKER
    (folder / "evil.py").write_text(
        f"open({str(marker)!r}, 'w').close()\n"
        "from transformers import GPTNeoXConfig as Config, GPTNeoXForCausalLM as Model\n"
        "from transformers import PreTrainedTokenizerFast as Tokenizer\n"
    )
    return marker


AUTO_MAP = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}


def test_code_beside_a_known_architecture_is_left_alone(folder, tiny_policy):
    marker = add_code(folder)
    change_json(folder / "config.json", auto_map=AUTO_MAP)
    change_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]})
    loaded = load_policy(folder)
    assert type(loaded.causal_lm) is type(tiny_policy.causal_lm)
    assert loaded.tokenizer("the cat").input_ids == tiny_policy.tokenizer("the cat").input_ids
    assert not marker.exists()


def test_a_model_that_needs_code_of_its_own_is_refused_and_nobody_is_asked(folder, monkeypatch):
    marker = add_code(folder)
    change_json(folder / "config.json", auto_map=AUTO_MAP, model_type="evil_model")
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # what transformers would ask
    with pytest.raises(ValueError, match="needs Python code of its own, which is never run") as error:
        load_policy(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)
    assert not marker.exists()


def test_a_tokenizer_that_needs_code_of_its_own_is_refused(folder, monkeypatch):
    marker = add_code(folder)
    change_json(folder / "config.json", model_type="evil_model")
    change_json(
        folder / "tokenizer_config.json",
        tokenizer_class="EvilTokenizer",
        auto_map={"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]},
    )
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(ValueError, match="never run") as error:
        load_tokenizer(folder)
    assert str(folder) in str(error.value)
    assert not marker.exists()


def test_that_code_would_have_run(folder):
    marker = add_code(folder)
    change_json(folder / "config.json", auto_map=AUTO_MAP, model_type="evil_model")
    script = f"from transformers import AutoConfig; AutoConfig.from_pretrained({str(folder)!r}, trust_remote_code=True)"
    # In a process of its own: what it imports would stay in the registries of this one.
    subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, "HF_HOME": str(folder.parent)})
    assert marker.exists()


class Dangerous:
    """Unpickled, it makes a folder."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> object:
        return os.mkdir, (str(self._marker),)


def test_pickled_weights_are_read_as_data_and_nothing_in_them_runs(folder, tiny_policy):
    (folder / "model.safetensors").unlink()
    torch.save(tiny_policy.causal_lm.state_dict(), folder / "pytorch_model.bin")
    weights = load_policy(folder).causal_lm.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in tiny_policy.causal_lm.state_dict().items())

    marker = folder.parent / MARKER
    torch.save({"weight": Dangerous(marker)}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="can't be opened") as error:
        load_policy(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)
    assert not marker.exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert marker.is_dir()  # it would have


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights.pop("embed_out.weight", None)
    weights.pop(sorted(weights)[0])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


BROKEN = {
    "half-written weights": lambda folder: half(folder / "model.safetensors"),
    "empty weights": lambda folder: (folder / "model.safetensors").write_bytes(b""),
    "noise for weights": lambda folder: (folder / "model.safetensors").write_bytes(bytes(range(256)) * 8),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "a weight missing": without_a_weight,
    "weights of another shape": lambda folder: change_json(folder / "config.json", hidden_size=32),
    "half-written config": lambda folder: half(folder / "config.json"),
    "unknown architecture": lambda folder: change_json(folder / "config.json", model_type="unheard_of"),
    "plain pickle": lambda folder: (
        (folder / "model.safetensors").unlink(),
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}, protocol=2)),
    ),
    "half-written tokenizer": lambda folder: half(folder / "tokenizer.json"),
}


@pytest.mark.parametrize("spoil", BROKEN.values(), ids=BROKEN)
def test_a_folder_that_is_not_whole_is_one_line_that_names_it(spoil, folder):
    load_policy(folder)
    spoil(folder)
    with pytest.raises(ValueError, match=r"can't be opened|lacks|no tokenizer") as error:
        load_policy(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_no_implementation_of_attention_is_fetched_because_a_file_names_it(folder, tiny_policy):
    change_json(folder / "config.json", attn_implementation="somebody/kernel")
    tokens = torch.tensor([[5, 6, 7]])
    assert torch.equal(load_policy(folder).causal_lm(tokens).logits, tiny_policy.causal_lm(tokens).logits)


def test_no_call_in_the_project_trusts_the_code_of_a_model():
    calls = 0
    for path in Path(overopt.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            trusts = [keyword.value for keyword in node.keywords if keyword.arg == "trust_remote_code"]
            assert all(isinstance(value, ast.Constant) and value.value is False for value in trusts), path
            if ast.unparse(node.func).startswith("Auto") and ast.unparse(node.func).endswith(".from_pretrained"):
                # Left out, transformers asks on the terminal.
                assert trusts, f"{path}, line {node.lineno}: say trust_remote_code=False"
                calls += 1
    assert calls >= 3
