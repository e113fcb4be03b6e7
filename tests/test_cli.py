import json
import logging
import subprocess
import sys
import time

import pytest

from overopt.cli import LIGHTNING_COMMANDS, main, normalise_options
from overopt.stages import STAGES
from overopt.user_errors import is_user_error


def overopt(*arguments, cwd, timeout=120):
    return subprocess.run(
        [sys.executable, "-m", "overopt", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def test_help_lists_every_command_without_importing_torch(tmp_path):
    script = "import sys; from overopt.cli import main; main(['--help']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=True)
    for name in [*LIGHTNING_COMMANDS, *STAGES]:
        assert f"  {name} " in done.stdout


def test_help_answers_in_under_a_second(tmp_path):
    # The best of three: the machine may be busy, the command may not be slow.
    durations = []
    for _ in range(3):
        start = time.perf_counter()
        overopt("--help", cwd=tmp_path)
        durations.append(time.perf_counter() - start)
    assert min(durations) < 1


@pytest.mark.parametrize("stage", STAGES)
def test_a_stages_help_shows_its_defaults_with_hyphens_and_loads_no_torch(stage, tmp_path):
    script = (
        f"import sys; from overopt.cli import main\n"
        f"try: main([{stage!r}, '--help'])\n"
        "except SystemExit as end: assert not end.code, end\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert "default:" in done.stdout
    assert "--tracking-uri" in done.stdout or stage in ("data-report", "sample-pairs", "label-pairs", "plan")
    assert "_uri" not in done.stdout.split("options:")[0]


def test_a_configuration_file_gives_a_stages_options_and_the_command_line_wins(tmp_path):
    (tmp_path / "options.yaml").write_text("out: from_file\ntracking_uri: sqlite:///none.db\n")
    done = overopt("report", "--config", "options.yaml", "--tracking-uri", "sqlite:///other.db", cwd=tmp_path)
    assert done.returncode == 2
    assert "other.db" in done.stderr
    assert not (tmp_path / "other.db").exists()


@pytest.mark.parametrize(
    ("arguments", "lists", "expected"),
    [
        (["--betas", "0.01", "0.1"], ["betas"], ["--betas", "[0.01, 0.1]"]),
        (["--betas", "0.1"], ["betas"], ["--betas", "[0.1]"]),
        (["--betas=[0.1, 0.2]"], ["betas"], ["--betas", "[0.1, 0.2]"]),
        (["--num-prompts", "8", "FILE"], [], ["--num_prompts", "8", "FILE"]),
        (["--trainer.max-steps=4", "--trainer.devices", "0", "1"], None, ["--trainer.max_steps", "4"]),
        (["--out", "a-b_c"], [], ["--out", "a-b_c"]),
        (["--model.beta", "-1"], None, ["--model.beta", "-1"]),
    ],
)
def test_options_are_taken_as_people_write_them(arguments, lists, expected):
    assert normalise_options(arguments, lists)[: len(expected)] == expected


def test_our_own_bugs_keep_their_traceback():
    assert not is_user_error(AssertionError())
    assert not is_user_error(KeyError("x"))


PAIR = {"prompt": "a question\nSummary:", "chosen": " yes it is", "rejected": " no"}
FIT_PAIRS = ["fit", "--data.source", "jsonl", "--data.path", "pairs.jsonl"]
DPO = ["fit", "--model", "overopt.modules.direct_alignment.DirectAlignmentModule"]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pairs.jsonl").write_text(
        "".join(json.dumps(PAIR | {"id": i, "post_id": f"post {i}"}) + "\n" for i in range(40))
    )
    (tmp_path / "malformed.jsonl").write_text(json.dumps(PAIR) + '\n{"prompt": \n')
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "no_answer.jsonl").write_text(json.dumps(PAIR | {"chosen": "  "}) + "\n")
    (tmp_path / "long.jsonl").write_text(json.dumps(PAIR | {"prompt": "word " * 2000}) + "\n")
    (tmp_path / "half.ckpt").write_bytes(b"PK\x03\x04 half a checkpoint")
    return tmp_path


BAD_INPUT = {
    "half-written reference": (
        [*DPO, "--model.reference", "half.ckpt", "--data.source", "jsonl", "--data.path", "pairs.jsonl"],
        "half.ckpt",
    ),
    "unknown command": (["frobnicate"], "frobnicate"),
    "unknown objective": (["quickstart", "--objectives", "dpp"], "'dpp'; one of dpo, ipo"),
    "unknown objective in fit": ([*DPO, "--model.reference", "x", "--model.objective", "dpp"], "'dpp'; one of dpo"),
    "beta of zero": (["quickstart", "--betas", "0"], "beta > 0"),
    "negative beta in fit": ([*DPO, "--model.reference", "x", "--model.beta", "-1"], "beta > 0"),
    "unknown size": (["quickstart", "--sizes", "7B"], "'7B'"),
    "option that is no number": (["fit", "--trainer.max_epochs", "many"], "many"),
    "missing file": (["fit", "--data.source", "jsonl", "--data.path", "gone.jsonl"], "gone.jsonl"),
    "no such dataset": (["fit", "--data.source", "hub", "--data.path", "no/such/folder"], "FOLDER"),
    "no published splits": ([*FIT_PAIRS, "--data.splits", "published"], "published splits"),
    "report on a missing file": (["data-report", "--source", "jsonl", "--path", "gone.jsonl"], "gone.jsonl"),
    "malformed line": (["fit", "--data.source", "jsonl", "--data.path", "malformed.jsonl"], "malformed.jsonl, line 2"),
    "empty source": (["fit", "--data.source", "jsonl", "--data.path", "empty.jsonl"], "empty"),
    "empty response": (["fit", "--data.source", "jsonl", "--data.path", "no_answer.jsonl"], "empty"),
    "prompt without a post too long": (["fit", "--data.source", "jsonl", "--data.path", "long.jsonl"], "tokens"),
    "half-written checkpoint": (["evaluate", "half.ckpt"], "half.ckpt"),
    "no checkpoint": (["evaluate", "gone"], "gone"),
    "store out of reach": (["report", "--tracking-uri", "http://127.0.0.1:9"], "127.0.0.1:9"),
    "store that is not there": (["report"], "mlflow.db"),
    "advice without a store": (["advise"], "mlflow.db"),
    "advice with a budget of less than nothing": (["advise", "--kl-budget", "-3"], "positive number of nats, got -3"),
    "advice with a target in percent": (["advise", "--target", "55"], "between 0 and 1"),
    "advice to a file of another kind": (["advise", "--out", "advice.pdf"], ".json or as .md"),
    "a budget for SFT": (
        [*FIT_PAIRS, "--data.vocab_size", "300", "--stop_at_kl.budget", "3"],
        "SFTModule has none of",
    ),
    "nothing to stop at": ([*FIT_PAIRS, "--stop_at_kl.action", "stop"], "needs a budget of KL"),
    "judge that is none": ([*FIT_PAIRS, "--stop_at_kl.judge", "nobody"], "no judge 'nobody'"),
    "unknown GPU": (["plan", "--gpu", "V1000"], "'V1000'"),
    "no GPU": (["plan", "--gpus", "0"], "--gpus 0"),
    "GPU without memory": (["plan", "--gpu-memory", "-80"], "--gpu-memory > 0"),
    "memory that is no number": (["plan", "--gpu-memory", "80GB"], "80GB"),
    "plan of a policy that is nowhere": (["plan", *DPO[1:], "--model.reference", "gone.ckpt"], "--architecture"),
    "plan with an option that fit has not": (["plan", "--model.betta", "1"], "betta"),
    "training with a store out of reach": (
        [*FIT_PAIRS, "--trainer.logger.tracking_uri", "http://127.0.0.1:9"],
        "127.0.0.1:9",
    ),
}


@pytest.fixture(autouse=True)
def closed_streams(monkeypatch):
    # Lightning's log handler keeps the stderr of an earlier test, which pytest has closed.
    monkeypatch.setattr(logging, "raiseExceptions", False)


@pytest.fixture
def refused(capfd, monkeypatch):
    """Runs a command line that must be refused, in this process; its last line."""

    def run(arguments, folder):
        monkeypatch.chdir(folder)
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        with pytest.raises(SystemExit) as end:
            main(arguments)
        errors = capfd.readouterr().err
        assert end.value.code == 2, errors
        assert "Traceback" not in errors
        last = errors.strip().splitlines()[-1]
        assert last.startswith("error: ")
        return last

    return run


@pytest.mark.parametrize(("arguments", "named"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_ends_with_one_line_and_leaves_nothing(arguments, named, folder, refused):
    before = set(folder.iterdir())
    assert named in refused(arguments, folder)
    assert [p for p in folder.rglob("*") if p.is_file() and p not in before and "mlruns" not in p.parts] == []


def test_a_checkpoint_of_another_architecture_is_refused(folder, refused, monkeypatch):
    fit = ["fit", "--data.source", "jsonl", "--data.path", "pairs.jsonl", "--data.vocab_size", "300"]
    fit += ["--trainer.max_steps", "1", "--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]
    small = ["--model.architecture.hidden_size", "16", "--model.architecture.num_heads", "2"]
    monkeypatch.chdir(folder)
    main([*fit, *small, "--checkpoints.folder", "small"])
    other = ["--model.architecture.hidden_size", "32", "--ckpt_path", "small/last.ckpt"]
    last = refused([*fit, *other, "--checkpoints.folder", "other"], folder)
    assert "hidden size 16" in last
    assert "hidden size 32" in last
    assert not (folder / "other").exists()


def test_the_data_report_is_printed_and_written(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    main(
        ["data-report", "--source", "jsonl", "--path", "pairs.jsonl", "--vocab-size", "300", "--out", "out/report.json"]
    )
    printed = capsys.readouterr().out
    report = json.loads((folder / "out/report.json").read_text())
    assert report["rows"] == 40
    assert "40 of 40 pairs" in printed
    assert "jsonl: pairs.jsonl" in printed
