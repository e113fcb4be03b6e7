import json
import os
from dataclasses import replace

import pytest

from overopt.evaluation.records import Completion, read_completions, write_completions, write_json_lines

COMPLETION = Completion(
    prompt_id="row 1",
    prompt='A "post"\nof two lines\u2028three\x85four',
    response=" naïve 猫 \U0001f600\t\x0c end\u2029.",
    token_ids=[5, 17, 0],
    finished=True,
    policy_log_prob=-3.25,
    reference_log_prob=-4.1,
    k3=0.125,
    opponent=" another",
)


def test_completions_read_back_are_those_written(tmp_path):
    judged = replace(COMPLETION, win_probability=0.75, verdict="graded", gold_reward=-0.5, finished=False)
    write_completions(tmp_path / "new" / "c.jsonl", [COMPLETION, judged])
    assert read_completions(tmp_path / "new" / "c.jsonl") == [COMPLETION, judged]


def test_a_line_says_all_that_a_re_analysis_needs(tmp_path):
    write_completions(tmp_path / "c.jsonl", [COMPLETION])
    (line,) = (tmp_path / "c.jsonl").read_bytes().splitlines()
    row = json.loads(line)
    assert row["response_tokens"] == 3
    assert row["policy_log_prob"] - row["reference_log_prob"] == pytest.approx(0.85)
    assert row["response"] == COMPLETION.response


def test_a_file_that_could_not_be_finished_leaves_the_one_before(tmp_path):
    path = tmp_path / "c.jsonl"
    write_completions(path, [COMPLETION])
    before = path.read_bytes()

    def rows():
        yield {"a": 1}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_json_lines(path, rows())
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["c.jsonl"]


@pytest.mark.parametrize("line", ["{", '{"prompt_id": "1"}', "[1]", "\udcff"], ids=repr)
def test_a_line_that_is_no_completion_is_named(line, tmp_path):
    path = tmp_path / "c.jsonl"
    write_completions(path, [COMPLETION])
    with path.open("a", encoding="utf-8", errors="surrogateescape") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=r"c.jsonl, line 2: no completion"):
        read_completions(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"no completions at {tmp_path}/none.jsonl"):
        read_completions(tmp_path / "none.jsonl")
