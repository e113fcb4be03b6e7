"""OpenAI's TL;DR files, with the irregularities that the real ones have."""

import json
from pathlib import Path

import pytest

from overopt.data.sources import tldr_openai
from overopt.data.sources.tldr_openai import TldrOpenaiSource
from overopt.data.splits import SplitFractions

SAMPLE = Path(__file__).parents[3].parent / "shared/data/tldr/comparisons_sample.jsonl"


def comparison(*, post_id="t3_a", post="My dog ate a sock.", texts=(" Dog.", " Sock."), choice=0, **fields):
    info = {"id": post_id, "post": post, "title": "A dog", "subreddit": "dogs"}
    if post_id is None:
        del info["id"]
    summaries = [{"text": text, "policy": "sup4", "note": ""} for text in texts]
    row = {"info": info, "split": "train", "summaries": summaries, "choice": choice, "worker": "w"}
    return row | {"batch": "batch3", "extra": {"confidence": 7}} | fields


def sft_row(*, post_id="t3_s", post="My cat sat.", summary="Cat sat."):
    return {"id": post_id, "subreddit": "r/cats", "title": "A cat", "post": post, "summary": summary}


def cnn_dm_row():
    info = {"id": "c1", "site": "cnn", "article": "(CNN) -- News.", "title": "News"}
    return comparison() | {"info": info}


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def read(tmp_path):
    return lambda *rows: TldrOpenaiSource(write(tmp_path / "batch3.json", rows)).read()


def test_a_comparison_becomes_a_pair_and_its_chosen_summary_a_demonstration(read):
    result = read(comparison(choice=1))
    (pair,), (demonstration,) = result.preferences, result.demonstrations
    assert pair.prompt.text == "SUBREDDIT: r/dogs\n\nTITLE: A dog\n\nPOST: My dog ate a sock.\n\nTL;DR:"
    assert pair.prompt.post == "My dog ate a sock."
    assert (pair.chosen, pair.rejected, pair.post_id) == (" Sock.", " Dog.", "t3_a")
    assert (demonstration.response, demonstration.post_id) == (" Sock.", "t3_a")
    assert demonstration.prompt == pair.prompt
    assert (result.rows, result.left_out, result.irregular) == (1, {}, {})


def test_sft_rows_are_the_demonstrations_where_there_are_any(read):
    result = read(comparison(), sft_row())
    (demonstration,) = result.demonstrations
    assert (demonstration.example_id, demonstration.post_id) == ("t3_s", "t3_s")
    assert demonstration.response == " Cat sat."
    assert demonstration.prompt.text.startswith("SUBREDDIT: r/cats\n")
    assert len(result.preferences) == 1


def test_a_chosen_summary_is_one_demonstration_however_often_it_won(read):
    result = read(
        comparison(texts=(" Dog.", " Sock.")),
        comparison(texts=(" Ate.", " Dog."), choice=1),
        comparison(texts=(" Dog.", " Ate."), choice=1),
        comparison(texts=(" Dog.", " Sock."), post_id="t3_b", post="Another post."),
    )
    assert [(d.post_id, d.response) for d in result.demonstrations] == [
        ("t3_a", " Dog."),
        ("t3_a", " Ate."),
        ("t3_b", " Dog."),
    ]
    assert len({d.example_id for d in result.demonstrations}) == 3


def test_labels_of_several_workers_are_all_kept_under_ids_of_their_own(read):
    result = read(
        comparison(choice=0, worker="1"),
        comparison(choice=0, worker="2"),
        comparison(choice=1, worker="3"),
        comparison(texts=(" Sock.", " Dog."), choice=1, worker="4"),  # shown the other way round
    )
    assert [pair.chosen for pair in result.preferences] == [" Dog.", " Dog.", " Sock.", " Dog."]
    assert len({pair.example_id for pair in result.preferences}) == 4
    assert result.irregular == {tldr_openai.LABELLED_AGAIN: 1, tldr_openai.LABELLED_OTHERWISE: 2}


def test_ids_do_not_depend_on_the_order_of_the_rows(read):
    rows = [comparison(), comparison(choice=1), comparison(post_id="t3_b", post="Other."), comparison()]
    ids = [{pair.example_id for pair in read(*order).preferences} for order in (rows, rows[::-1])]
    assert ids[0] == ids[1]


def test_cnn_dm_rows_are_left_out_and_counted(read):
    result = read(cnn_dm_row(), comparison(), cnn_dm_row())
    assert len(result.preferences) == 1
    assert result.left_out == {tldr_openai.CNN_DM: 2}
    assert result.rows == 3


def test_identical_summaries_are_left_out_and_counted(read):
    result = read(comparison(), comparison(texts=(" Same.", "Same. ")))
    assert len(result.preferences) == 1
    assert result.left_out == {tldr_openai.IDENTICAL: 1}


@pytest.mark.parametrize("post_id", [None, "null"])
def test_a_row_without_a_post_id_takes_that_of_the_same_post_elsewhere(read, post_id):
    row = comparison(post_id=None, post=" My dog  ate a sock.\n")
    if post_id == "null":
        row["info"]["id"] = None
    result = read(row, comparison(choice=1))  # the row that has the id comes later
    assert [pair.post_id for pair in result.preferences] == ["t3_a", "t3_a"]
    assert result.irregular[tldr_openai.NO_POST_ID] == 1


def test_rows_of_one_post_without_any_id_stay_together(read):
    result = read(
        comparison(post_id=None),
        comparison(post_id=None, choice=1),
        comparison(post_id=None, post="Another post."),
    )
    first, second, other = (pair.post_id for pair in result.preferences)
    assert first == second != other
    assert result.irregular[tldr_openai.NO_POST_ID] == 3


@pytest.mark.parametrize("extra", [{}, None])
def test_empty_extra_information_is_counted(read, extra):
    assert read(comparison(extra=extra)).irregular == {tldr_openai.NO_EXTRA: 1}


def test_a_folder_is_read_whole_in_the_order_of_its_names(tmp_path):
    write(tmp_path / "comparisons/batch2.json", [comparison(texts=(" second", " x"))])
    write(tmp_path / "comparisons/batch10.json", [comparison(texts=(" first", " x"))])
    write(tmp_path / "more/batch1.jsonl", [comparison(texts=(" third", " x"))])
    (tmp_path / "LICENSE.txt").write_text("not data")
    result = TldrOpenaiSource(tmp_path).read()
    assert [pair.chosen for pair in result.preferences] == [" first", " second", " third"]


def test_blank_lines_are_passed_over(tmp_path):
    path = tmp_path / "batch.json"
    path.write_text(f"\n{json.dumps(comparison())}\n\n")
    assert TldrOpenaiSource(path).read().rows == 1


def without(row, *keys):
    inner = row
    for key in keys[:-1]:
        inner = inner[key]
    del inner[keys[-1]]
    return row


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (without(comparison(), "summaries"), "'summaries'.*keys found: 'info', 'split'"),
        (without(comparison(), "info"), "key 'info' is missing"),
        (without(comparison(), "choice"), "key 'choice' is missing"),
        (without(comparison(), "info", "post"), "key 'info.post' is missing"),
        (without(comparison(), "info", "title"), "key 'info.title' is missing"),
        (without(comparison(), "info", "subreddit"), "key 'info.subreddit' is missing"),
        (without(comparison(), "summaries", 0, "text"), r"key 'summaries\[0\].text' is missing"),
        (without(comparison(), "summaries", 0), "'summaries' must be two, found 1"),
        (comparison(summaries="two"), "'summaries' must be a list, found text"),
        (comparison(summaries=["a", "b"]), r"'summaries\[0\]' must have keys, found text"),
        (comparison(choice=2), "'choice' must be 0 or 1, found 2"),
        (comparison(choice=True), "'choice' must be 0 or 1, found True"),
        (comparison(choice="0"), "'choice' must be 0 or 1, found '0'"),
        (comparison(texts=(" Dog.", "  ")), "the response is empty"),
        (comparison(post=["a"]), "'info.post' must be text, found a list"),
        (comparison(post="half \ud83d"), "'info.post' has half a surrogate pair at character 5"),
        (without(sft_row(), "title"), "key 'title' is missing"),
        (sft_row(summary=" "), "the response is empty"),
        (sft_row(summary={"text": "a"}), "'summary' must be text, found an object"),
        ([1, 2], "expected one JSON object a line, found a list"),
    ],
)
def test_a_bad_row_is_an_error_that_names_file_line_and_key(read, row, message):
    with pytest.raises(ValueError, match=rf"batch3\.json, line 2.*{message}"):
        read(comparison(), row)


@pytest.mark.parametrize("line", [b'{"info": ', b"not json", b"\xff\xfe"])
def test_a_line_that_is_not_json_is_an_error_that_names_file_and_line(tmp_path, line):
    path = tmp_path / "batch.json"
    path.write_bytes(json.dumps(comparison()).encode() + b"\n" + line + b"\n")
    with pytest.raises(ValueError, match=r"batch\.json, line 2: not JSON"):
        TldrOpenaiSource(path).read()


@pytest.mark.parametrize("rows", [[], [cnn_dm_row()], [comparison(texts=("a", "a"))]])
def test_a_source_without_a_usable_row_is_an_error_that_says_why(read, rows):
    with pytest.raises(ValueError, match=f"empty source: none of the {len(rows)} rows"):
        read(*rows)


def test_a_missing_path_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"no such file or folder: .*nothing\.jsonl"):
        TldrOpenaiSource(tmp_path / "nothing.jsonl").read()


def test_a_folder_without_data_is_an_error_that_says_what_was_looked_for(tmp_path):
    with pytest.raises(ValueError, match=r"no data file in the folder .*\*\.jsonl, \*\.json"):
        TldrOpenaiSource(tmp_path).read()


def test_a_file_of_another_kind_is_an_error(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("a,b\n")
    with pytest.raises(ValueError, match=r"cannot read .*rows\.csv"):
        TldrOpenaiSource(path).read()


@pytest.mark.skipif(not SAMPLE.is_file(), reason="the sample of real comparisons is not here")
def test_the_real_sample_is_read_whole_and_its_split_shares_no_post():
    result = TldrOpenaiSource(SAMPLE).read()
    assert (result.rows, len(result.preferences), result.left_out.total()) == (438, 438, 0)
    assert len({pair.post_id for pair in result.preferences}) == 356
    assert len({pair.example_id for pair in result.preferences}) == 438
    assert len({d.example_id for d in result.demonstrations}) == len(result.demonstrations) > 356
    fractions = SplitFractions(evaluation=0.3, gold=0.3)
    posts = {}
    for pair in result.preferences:
        posts.setdefault(fractions.part_of(pair.post_id), set()).add(pair.prompt.post)
    assert len(posts) == 3
    assert not set.intersection(*posts.values())
    assert sum(map(len, posts.values())) == 356
