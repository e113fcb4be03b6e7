import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from overopt.cli import main
from overopt.evaluation.records import Completion, write_completions

BETAS = (0.02, 0.05, 0.1, 0.3, 1.0)
PROMPTS = 200
# KL and true win rate at the two checkpoints of each run: a hump at 6 nats.
MEANS = {0.02: [(8, 0.60), (40, 0.30)], 0.05: [(5, 0.62), (18, 0.50)], 0.1: [(3, 0.57), (7, 0.61)]}
MEANS |= {0.3: [(1.5, 0.50), (3, 0.57)], 1.0: [(0.5, 0.45), (0.9, 0.47)]}


def completions(kl: float, win_rate: float, seed: int) -> list[Completion]:
    luck = np.random.default_rng(9).normal(0, 0.1, PROMPTS)  # of the prompts, the same for all
    own = np.random.default_rng(seed).normal(0, 0.1, PROMPTS)
    wins = win_rate + luck - luck.mean() + own - own.mean()
    ratios = kl + (own - own.mean()) * kl
    return [
        Completion(f"p{i}", "a post", " a summary", [1, 2], True, float(-10 + ratio), -10.0, 0.0, " theirs", float(win))
        for i, (ratio, win) in enumerate(zip(ratios, wins, strict=True))
    ]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A store as training and evaluation leave it, and the folder of checkpoints, with the file of one of them."""
    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    client = MlflowClient(uri)
    experiment = client.create_experiment("overopt", artifact_location=(folder / "artifacts").as_uri())
    for number, (beta, checkpoints) in enumerate(MEANS.items()):
        tags = {"overopt.stage": "align", "overopt.checkpoints": str(folder / f"beta{beta:g}")}
        created = client.create_run(experiment, start_time=1000 + number, run_name=f"dpo-beta{beta:g}", tags=tags)
        run_id = created.info.run_id
        params = {"objective": "dpo", "beta": beta, "model": "tiny", "seed": 0, "num_parameters": 9}
        params |= {"reference": "outputs/sft/last.ckpt", "examples_per_epoch": 200}
        client.log_batch(run_id, params=[Param(name, str(value)) for name, value in params.items()])
        for place, (kl, win_rate) in enumerate([(0.0, 0.4), *checkpoints]):
            drawn = completions(kl, win_rate, 10 * number + place if place else 5)
            values = {"kl_nats": kl, "kl_se": 0.1, "win_rate": win_rate, "win_rate_se": 0.01}
            client.log_batch(run_id, metrics=[Metric(f"eval/{k}", v, 1, 100 * place) for k, v in values.items()])
            path = folder / f"examples-{100 * place:08d}.jsonl"
            write_completions(path, drawn)
            client.log_artifact(run_id, str(path), "completions")
        client.set_terminated(run_id)
    (folder / "beta0.05").mkdir()
    (folder / "beta0.05" / "examples-00000100.ckpt").touch()
    return uri, folder


def advised(uri: str, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    main(["advise", "--tracking-uri", uri, *options])
    return capsys.readouterr().out


def test_the_checkpoint_to_ship_is_named_with_its_run_and_its_file(store, capsys, tmp_path) -> None:  # type: ignore[no-untyped-def]
    uri, folder = store
    out = advised(uri, capsys, "--out", str(tmp_path / "advice.json"))
    read = json.loads((tmp_path / "advice.json").read_text())["advice"][0]
    assert (read["ship"]["beta"], read["ship"]["examples_seen"]) in [(0.05, 100), (0.1, 200)]
    run = MlflowClient(uri).get_run(read["ship"]["run_id"])
    assert f"ship         {run.info.run_name} ({run.info.run_id[:8]}), beta" in out
    assert f"run          {run.info.run_id}" in out
    file = folder / f"beta{read['ship']['beta']:g}" / f"examples-{read['ship']['examples_seen']:08d}.ckpt"
    assert f"file         {file}" in out
    assert (f"{file} (where it was trained; not on this machine)" in out) != file.is_file()
    assert "5 runs, 10 checkpoints, 200 prompts; the reference wins 0.400" in out
    # The newest run is the last one started, beta 1; the one that went furthest is beta 0.02.
    assert re.search(r"newest run +dpo-beta1 \(\w+\) \(beta 1\) is not past its peak", out)
    assert re.search(r"furthest run +dpo-beta0.02 \(\w+\) \(beta 0.02\) is past its peak", out)
    assert read["peak"]["kl_nats"]["low"] < 8  # the highest two are at 5 and 7 nats
    assert read["peak"]["kl_nats"]["high"] > 5


def test_a_budget_and_markdown(store, capsys, tmp_path) -> None:  # type: ignore[no-untyped-def]
    uri, _ = store
    out = advised(uri, capsys, "--kl-budget", "4", "--objectives", "dpo", "--out", str(tmp_path / "new" / "advice.md"))
    assert "budget 4 nats" in out
    text = (tmp_path / "new" / "advice.md").read_text()
    assert text.startswith("# Advice")
    [ship] = [line for line in text.splitlines() if line.startswith("- **ship**")]
    kl = float(re.search(r"KL ([\d.]+)", ship).group(1))  # type: ignore[union-attr]
    assert kl <= 4
    tight = advised(uri, capsys, "--kl-budget", "0.1")
    assert "the reference: no checkpoint is within the budget of 0.1 nats" in " ".join(tight.split())
    assert "file         outputs/sft/last.ckpt" in tight


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--objectives", "ppo"], "no evaluated run has the objective 'ppo'; there are dpo"),
        (["--models", "huge"], "no evaluated run has the model 'huge'; there are tiny"),
        (["--experiment", "typo"], "no experiment 'typo'"),
        (["--study", "0123"], "no align run in children of run 0123"),
    ],
)
def test_what_is_not_in_the_store_is_named(store, capsys, options, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SystemExit) as end:
        advised(store[0], capsys, *options)
    assert end.value.code == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_advice_loads_no_torch(store, capsys) -> None:  # type: ignore[no-untyped-def]
    code = f"import sys; from overopt.cli import main; main(['advise', '--tracking-uri', {store[0]!r}])"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; assert 'torch' not in sys.modules"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
