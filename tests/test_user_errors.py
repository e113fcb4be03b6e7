import subprocess
import sys

import pytest


def run(code: str, reader: str) -> tuple[int, str]:
    """A program under ``one_line_errors``, its output read by a shell command; its exit code and its errors."""
    program = f"from overopt.user_errors import one_line_errors\nwith one_line_errors():\n    {code}\n"
    shell = f'set -o pipefail; "{sys.executable}" -c "$PROGRAM" | {reader} > /dev/null; exit "${{PIPESTATUS[0]}}"'
    done = subprocess.run(
        ["bash", "-c", shell], env={"PROGRAM": program, "PATH": "/usr/bin:/bin"}, capture_output=True, text=True
    )
    return done.returncode, done.stderr


def test_a_reader_who_has_enough_is_no_error() -> None:
    code, errors = run("[print('a line of output', number) for number in range(100_000)]", "head -3")
    assert code == 141
    assert errors == ""


def test_a_broken_pipe_that_is_not_our_output_keeps_its_traceback() -> None:
    code, errors = run("raise BrokenPipeError('of a connection')", "cat")
    assert code == 1
    assert "of a connection" in errors


@pytest.mark.parametrize("code", ["print('all')", "pass"])
def test_output_that_is_read_to_its_end_ends_well(code: str) -> None:
    assert run(code, "cat") == (0, "")
