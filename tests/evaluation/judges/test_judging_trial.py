"""The trial of benchmarks/judging.py at a small size: that nothing is lost, repeated or made up."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
#: How soon a busy machine's event loop hears of a pause is for the trial at full size, on a machine of its own.
TIMING = "into a pause"


@pytest.mark.slow
def test_a_killed_judge_of_a_misbehaving_server_ends_with_one_true_verdict_each(tmp_path):
    trial = [str(ROOT / "benchmarks" / "judging.py"), "--comparisons", "200", "--kills", "2", "--faults-only"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, *trial, "--out", str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert (tmp_path / "judging.md").is_file(), done.stderr
    cells = [line.strip("| ").split(" | ") for line in (tmp_path / "judging.md").read_text().splitlines()]
    rows = {row[0]: row[1:] for row in cells if len(row) == 4}
    assert rows["SIGKILLs on the way"][0] == "2"
    assert rows["with the true verdict"][0] == "200"
    assert {what: row[-1] for what, row in rows.items() if row[-1] == "NO" and TIMING not in what} == {}
