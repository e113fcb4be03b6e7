"""Local JSON Lines and Parquet files of one's own."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from overopt.data.prompt_format import tldr_prompt
from overopt.data.schema import Prompt
from overopt.data.sources import jsonl
from overopt.data.sources.examples import CNN_DM
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


@pytest.mark.parametrize("gap", ["\n\n", "\n"])
@pytest.mark.parametrize("end", ["", " "])
def test_a_plain_prompt_in_the_tldr_template_is_recognised_and_may_be_cut(read, gap, end):
    text = gap.join(["SUBREDDIT: r/dogs", "TITLE: T", "POST: P.\n\nMore.", f"TL;DR:{end}"])
    (plain,) = read(PAIR | {"prompt": text}).preferences
    (fields,) = read(PAIR | TLDR_PAIR | {"prompt": None, "post": "P.\n\nMore."}).preferences
    assert plain.prompt == fields.prompt == tldr_prompt("dogs", "T", "P.\n\nMore.")
    assert plain.post_id == fields.post_id


def test_copies_of_a_post_with_other_line_breaks_stay_together(read):
    prompts = [
        "SUBREDDIT: r/a\n\nTITLE: T\n\nPOST: One.\n\nTwo.\n\nTL;DR:",
        "SUBREDDIT: r/a\nTITLE: T\nPOST: One.\nTwo.\nTL;DR:",
    ]
    one, two, other = read(
        *(PAIR | {"prompt": prompt} for prompt in prompts), PAIR | {"prompt": prompts[0].replace("Two", "2")}
    ).preferences
    assert one.post_id == two.post_id != other.post_id


@pytest.mark.parametrize("key", jsonl.RESPONSE_KEYS)
def test_a_response_goes_by_several_names(read, key):
    (demonstration,) = read({"prompt": "Why?", key: "Because."}).demonstrations
    assert demonstration.response == " Because."


def test_news_is_left_out_beside_posts_and_taken_by_itself(read):
    article = PAIR | {"prompt": "TITLE: News\n\n(CNN) -- Rain.\n\nTL;DR:"}
    assert read(article, TLDR_PAIR).left_out == {CNN_DM: 1}
    assert [pair.prompt.text for pair in read(article, PAIR).preferences] == [article["prompt"], "Why?"]


@pytest.mark.parametrize(
    ("file", "split"),
    [
        ("train.jsonl", "train"),
        ("valid.jsonl", "valid"),
        ("data/train-00000-of-00002.jsonl", "train"),
        ("comparisons/validation/0000.jsonl", "validation"),
        ("test_2.jsonl", "test"),
        ("training_notes.jsonl", None),
        ("batch3.jsonl", None),
    ],
)
def test_files_and_folders_name_published_splits_and_rows_know_better(tmp_path, file, split):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    write(tmp_path / file, [PAIR, PAIR | {"split": "valid2"}, DEMONSTRATION])
    read = JsonlSource(tmp_path).read()
    assert [pair.split for pair in read.preferences] == [split, "valid2"]
    assert [d.split for d in read.demonstrations] == [split]


def test_the_path_to_a_file_names_no_split(tmp_path):
    folder = tmp_path / "test"
    folder.mkdir()
    assert JsonlSource(write(folder / "rows.jsonl", [PAIR])).read().preferences[0].split is None


def test_chosen_responses_are_of_the_training_split_if_of_several(read):
    rows = [PAIR | {"split": split, "rejected": split} for split in ("valid", "train", "test")]
    (demonstration,) = read(*rows).demonstrations
    assert demonstration.split == "train"


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
        (DEMONSTRATION | {"label": True}, "one of the keys 'response', 'completion', 'label'"),
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
