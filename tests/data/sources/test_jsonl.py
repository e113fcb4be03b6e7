"""Local JSON Lines and Parquet files of one's own."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from overopt.data.schema import Prompt
from overopt.data.sources import jsonl
from overopt.data.sources.jsonl import JsonlSource

PAIR = {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}
DEMONSTRATION = {"prompt": "Why?", "response": "Because."}
TLDR_PAIR = {"subreddit": "r/dogs", "title": "T", "post": "P.", "chosen": "a", "rejected": "b"}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def read(tmp_path):
    return lambda *rows: JsonlSource(write(tmp_path / "rows.jsonl", rows)).read()


def test_a_plain_prompt_cannot_be_cut(read):
    (pair,) = read(PAIR).preferences
    assert pair.prompt == Prompt("Why?")
    assert (pair.chosen, pair.rejected) == (" Because.", " No.")


def test_only_the_space_that_the_response_brings_is_taken_from_a_prompts_end(read):
    prompts = [pair.prompt.text for pair in read(PAIR | {"prompt": "A: "}, PAIR | {"prompt": "A:\n"}).preferences]
    assert prompts == ["A:", "A:\n"]


def test_a_prompt_may_say_which_part_of_it_may_be_cut(read):
    (pair,) = read(PAIR | {"prompt": "Read: a long text. Why?", "post": "a long text."}).preferences
    assert pair.prompt == Prompt("Read: ", "a long text.", " Why?")


def test_fields_of_a_post_are_put_into_the_tldr_template(read):
    (pair,) = read(TLDR_PAIR).preferences
    assert pair.prompt.text == "SUBREDDIT: r/dogs\n\nTITLE: T\n\nPOST: P.\n\nTL;DR:"
    assert pair.prompt.post == "P."


def test_chosen_responses_are_demonstrations_where_there_are_no_others(read):
    only_pairs = read(PAIR, PAIR | {"rejected": "Never."})
    assert [d.response for d in only_pairs.demonstrations] == [" Because."]
    both = read(PAIR, DEMONSTRATION | {"response": "So."})
    assert [d.response for d in both.demonstrations] == [" So."]
    assert len(both.preferences) == 1


def test_rows_with_one_prompt_stay_together_unless_they_say_otherwise(read):
    rows = [PAIR, PAIR | {"chosen": "So."}, PAIR | {"prompt": "How?"}, PAIR | {"prompt": "How?", "post_id": 7}]
    first, second, other, named = (pair.post_id for pair in read(*rows).preferences)
    assert first == second != other
    assert named == "7"


def test_given_ids_are_kept_and_made_ones_are_unique(read):
    rows = [PAIR, PAIR, PAIR | {"id": 3}, PAIR | {"id": "x"}]
    ids = [pair.example_id for pair in read(*rows).preferences]
    assert ids[2:] == ["3", "x"]
    assert len(set(ids)) == 4


def test_identical_responses_are_left_out_and_counted(read):
    result = read(PAIR, PAIR | {"chosen": " No. "})
    assert len(result.preferences) == 1
    assert result.left_out == {jsonl.IDENTICAL: 1}
    assert result.rows == 2


def test_parquet_is_read_as_json_lines_are(tmp_path, read):
    rows = [PAIR, PAIR | {"prompt": "How?", "id": "x"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=pyarrow.schema(
        [(name, pyarrow.string()) for name in ("prompt", "chosen", "rejected", "id", "response")]
    )), tmp_path / "rows.parquet")  # fmt: skip
    assert JsonlSource(tmp_path / "rows.parquet").read() == read(*rows)


def test_a_folder_may_hold_both_kinds(tmp_path):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([PAIR]), tmp_path / "a.parquet")
    write(tmp_path / "b.jsonl", [TLDR_PAIR])
    assert len(JsonlSource(tmp_path).read().preferences) == 2


def test_a_bad_parquet_row_is_named_by_its_number(tmp_path):
    rows = [PAIR, PAIR | {"chosen": None}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match=r"rows\.parquet, row 2: key 'chosen' is missing"):
        JsonlSource(tmp_path / "rows.parquet").read()


def test_a_file_that_only_calls_itself_parquet_is_an_error(tmp_path):
    (tmp_path / "rows.parquet").write_text("not parquet")
    with pytest.raises(ValueError, match=r"cannot read .*rows\.parquet as Parquet"):
        JsonlSource(tmp_path / "rows.parquet").read()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a"}, "'chosen' and 'rejected'.*'response'.*keys found: 'prompt'"),
        ({}, "key 'prompt' is missing; keys found: none"),
        ({"prompt": "a", "chosen": "b"}, "key 'rejected' is missing"),
        ({"prompt": "a", "rejected": "b"}, "key 'chosen' is missing"),
        ({"chosen": "a", "rejected": "b"}, "key 'prompt' is missing"),
        ({"post": "a", "chosen": "a", "rejected": "b"}, "key 'subreddit' is missing"),
        (PAIR | {"prompt": " "}, "the prompt is empty"),
        (PAIR | {"prompt": [{"role": "user", "content": "a"}]}, "'prompt' must be text, found a list"),
        (PAIR | {"chosen": 3}, "'chosen' must be text, found the number 3"),
        (PAIR | {"chosen": ""}, "chosen.*the response is empty"),
        (PAIR | {"rejected": " "}, "rejected.*the response is empty"),
        (DEMONSTRATION | {"response": "\n"}, "the response is empty"),
        (PAIR | {"post": "absent"}, "holds it 0 times"),
        (PAIR | {"prompt": "aXbXc", "post": "X"}, "holds it 2 times"),
        (PAIR | {"id": "taken"}, r"id 'taken' was used before: .*rows\.jsonl, line 1"),
        (PAIR | {"id": True}, "'id' must be text, found true or false"),
    ],
)
def test_a_bad_row_is_an_error_that_names_file_line_and_key(read, row, message):
    with pytest.raises(ValueError, match=rf"rows\.jsonl, line 2.*{message}"):
        read(PAIR | {"id": "taken"}, row)


@pytest.mark.parametrize("rows", [[], [PAIR | {"chosen": "No."}]])
def test_a_source_without_a_usable_row_is_an_error(read, rows):
    with pytest.raises(ValueError, match=f"empty source: none of the {len(rows)} rows"):
        read(*rows)
