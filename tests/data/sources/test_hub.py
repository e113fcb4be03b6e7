"""Datasets laid out as the hub has them, read by the real library, and downloads from a hub of our own."""

import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter

import datasets
import pytest

from hub_layout import (
    AXIS,
    COMPARISONS,
    comparison,
    info,
    news,
    rating,
    running_hub,
    tldr_text,
    write_feedback,
    write_parquet,
)
from overopt.data.prompt_format import tldr_prompt
from overopt.data.sources import make_source, tldr_openai
from overopt.data.sources.examples import CNN_DM
from overopt.data.sources.hub import HubSource

FEEDBACK = "openai/summarize_from_feedback"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Local folders must be read without a connection; tests with a hub run in processes of their own."""

    def refuse(*_):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def feedback(tmp_path):
    return write_feedback(tmp_path / "feedback")


def splits(examples):
    return Counter(example.split for example in examples)


@pytest.mark.parametrize("configuration", ["", ":comparisons"])
def test_comparisons_are_read_from_all_shards_with_their_splits(feedback, configuration):
    read = HubSource(f"{feedback}{configuration}").read()
    assert (read.rows, len(read.preferences)) == (35, 34)
    assert read.left_out == {CNN_DM: 1}
    assert read.irregular == {
        tldr_openai.NO_POST_ID: 1,
        tldr_openai.NO_EXTRA: 1,
        tldr_openai.LABELLED_OTHERWISE: 1,  # the post that both splits have
    }
    assert splits(read.preferences) == {"train": 30, "valid1": 2, "valid2": 2}
    assert read.origin == f"{feedback}{configuration}"
    second = read.preferences[1]
    assert (second.post_id, second.chosen, second.rejected) == ("t3_1", " A pet.", " t3_1 sleeps.")
    assert second.prompt == tldr_prompt("pets", "A pet", "My t3_1 sleeps.")
    assert {pair.prompt.prefix for pair in read.preferences} == {"SUBREDDIT: r/pets\n\nTITLE: A pet\n\nPOST: "}


def test_the_hubs_split_stands_in_where_rows_name_none(tmp_path):
    for split in ("train", "validation"):
        write_parquet(tmp_path / f"comparisons/{split}/0000.parquet", [comparison(split, None)], COMPARISONS)
    assert splits(HubSource(str(tmp_path)).read().preferences) == {"train": 1, "validation": 1}


def test_ratings_of_one_worker_become_pairs_of_better_and_worse(feedback):
    read = HubSource(f"{feedback}:axis").read()
    assert [(pair.post_id, pair.chosen, pair.rejected) for pair in read.preferences] == [
        ("t3_50", " Good.", " Bad."),
        ("t3_50", " Good.", " So so."),
    ]
    assert splits(read.preferences) == {"test": 2}
    assert read.left_out == {tldr_openai.EQUAL_RATINGS: 1, tldr_openai.LONE_RATING: 1}
    assert read.rows == 4


def test_ratings_are_compared_within_worker_and_post_only(tmp_path):
    rows = [
        rating("t3_1", " A.", 3),
        rating("t3_1", " B.", 5, worker="other"),
        rating("t3_2", " A.", 5),
        rating("t3_2", " C.", None),
        rating("t3_3", " D.", 2, worker="third"),
        rating("t3_3", "D. ", 6, worker="third"),
        rating("t3_4", " E.", 6, info=news("t3_4")),
    ]
    more = [rating("t3_5", " F.", 1), rating("t3_5", " G.", 2)]
    write_parquet(tmp_path / "axis/test/0000.parquet", rows + more, AXIS)
    read = HubSource(f"{tmp_path}:axis").read()
    assert [(pair.chosen, pair.rejected) for pair in read.preferences] == [(" G.", " F.")]
    assert read.left_out == {
        CNN_DM: 1,
        tldr_openai.NO_RATING: 1,
        tldr_openai.IDENTICAL: 1,
        tldr_openai.LONE_RATING: 3,
    }


def test_comparisons_and_ratings_are_not_mixed(tmp_path):
    path = tmp_path / "both.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (comparison("a", "train"), rating("b", " B.", 3))))
    with pytest.raises(ValueError, match="comparisons and ratings"):
        make_source("tldr_openai", path, tmp_path).read()


def test_sharded_demonstrations_in_trls_layout_are_read_as_posts_that_may_be_cut(tmp_path):
    shards = {"train": 2, "validation": 1, "test": 1}
    number = 0
    for split, count in shards.items():
        for shard in range(count):
            rows = [{"prompt": tldr_text(number + i), "completion": f" Summary {number + i}."} for i in range(3)]
            number += 3
            file = tmp_path / f"data/{split}-{shard:05d}-of-{count:05d}.parquet"
            file.parent.mkdir(exist_ok=True)
            datasets.Dataset.from_list(rows).to_parquet(file)
    read = HubSource(str(tmp_path)).read()
    assert splits(read.demonstrations) == {"train": 6, "validation": 3, "test": 3}
    assert read.preferences == []
    first = read.demonstrations[0]
    assert first.prompt == tldr_prompt("pets", "Title 0", "Post 0.\nIt goes on.")
    assert first.response == " Summary 0."


def test_carpers_layout_gives_the_same_prompts_and_ids(tmp_path):
    """Its own split names, single line breaks, and the response under ``label`` without its space."""
    rows = {
        "carper": [{"prompt": tldr_text(i, gap="\n", end=" "), "label": f"Summary {i}."} for i in range(4)],
        "trl": [{"prompt": tldr_text(i), "completion": f" Summary {i}."} for i in range(4)],
    }
    examples = {}
    for name, of_name in rows.items():
        for split, part in (("train", of_name[:2]), ("valid", of_name[2:3]), ("test", of_name[3:])):
            write_parquet(tmp_path / name / f"data/{split}-00000-of-00001-abc.parquet", part)
        read = HubSource(str(tmp_path / name)).read()
        examples[name] = read.demonstrations
    assert examples["carper"] == examples["trl"]
    assert splits(examples["carper"]) == {"train": 2, "valid": 1, "test": 1}
    assert len({d.post_id for d in examples["carper"]}) == 4


def test_pairs_in_trls_layout_leave_news_out(tmp_path):
    pairs = [{"prompt": tldr_text(i), "chosen": " Yes.", "rejected": " No."} for i in range(2)]
    article = {"prompt": "TITLE: News\n\n(CNN) -- Rain.\n\nTL;DR:", "chosen": " Rain.", "rejected": " Sun."}
    write_parquet(tmp_path / "data/train-00000-of-00001.parquet", pairs)
    write_parquet(tmp_path / "data/validation-00000-of-00001.parquet", [article, pairs[0]])
    read = HubSource(str(tmp_path)).read()
    assert (read.rows, read.left_out) == (4, {CNN_DM: 1})
    assert splits(read.preferences) == {"train": 2, "validation": 1}


def test_a_card_says_which_files_make_up_which_configuration_and_split(tmp_path):
    for name in ("good", "other"):
        write_parquet(tmp_path / f"files/{name}-a.parquet", [{"prompt": f"{name}?", "response": "Yes."}])
        write_parquet(tmp_path / f"files/{name}-b.parquet", [{"prompt": f"{name} b?", "response": "No."}])
    configurations = "\n".join(
        f"- config_name: {name}\n  data_files:\n  - split: train\n    path: files/{name}-a.parquet\n"
        f"  - split: held_out\n    path: files/{name}-b.parquet"
        for name in ("good", "other")
    )
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configurations}\n---\n# Ours\n")
    read = HubSource(f"{tmp_path}:other").read()
    assert [(d.prompt.text, d.split) for d in read.demonstrations] == [("other?", "train"), ("other b?", "held_out")]
    with pytest.raises(ValueError, match=r"cannot read the dataset .*good.*other.*FOLDER") as refused:
        HubSource(str(tmp_path)).read()  # which of the two?
    assert "\n" not in str(refused.value)


def test_json_lines_are_read_too(tmp_path):
    for split in ("train", "test"):
        rows = [{"prompt": f"{split} {i}?", "chosen": "Yes.", "rejected": "No."} for i in range(2)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert splits(HubSource(str(tmp_path)).read().preferences) == {"train": 2, "test": 2}


def test_a_local_folder_is_read_where_it_is(feedback, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    HubSource(str(feedback)).read()
    assert [path for path in cache.rglob("*") if path.suffix in (".arrow", ".parquet")] == []


def test_a_bad_row_is_named_by_its_split_and_number(tmp_path):
    rows = [comparison("a", "train"), comparison("b", "train", choice=2)]
    write_parquet(tmp_path / "comparisons/train/0000.parquet", rows, COMPARISONS)
    with pytest.raises(ValueError, match="split train, row 2: 'choice' must be 0 or 1, found 2"):
        HubSource(str(tmp_path)).read()
    write_parquet(tmp_path / "comparisons/train/0000.parquet", [comparison("a", "train", info=info("a", title=None))])
    with pytest.raises(ValueError, match=r"split train, row 1: key 'info\.title' is missing"):
        HubSource(str(tmp_path)).read()


def test_a_file_that_only_calls_itself_parquet_is_an_error_of_one_line(tmp_path):
    (tmp_path / "train.parquet").write_text("not parquet")
    with pytest.raises(ValueError, match=r"cannot read the dataset .*FOLDER") as refused:
        HubSource(str(tmp_path)).read()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("{feedback}:nothing", "no configuration 'nothing'; there are .*axis"),
        ("{feedback}/gone/deeper/still", "no such folder, and it is no name that the hub could have"),
        ("{feedback}/comparisons/train/0000.parquet", "is a file: give its folder"),
    ],
)
def test_a_path_that_cannot_be_read_is_an_error_with_its_cure(feedback, path, message):
    with pytest.raises(ValueError, match=message):
        HubSource(path.format(feedback=feedback)).read()


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="cannot read the dataset"):
        HubSource(str(tmp_path)).read()


def test_without_the_package_the_error_says_what_to_install(feedback, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"'hub' needs the package datasets.*pip install"):
        HubSource(str(feedback)).read()


READ_ALL = """
import json, sys
from overopt.data.sources.hub import HubSource
for name in sys.argv[1:]:
    try:
        read = HubSource(name).read()
        print(json.dumps([len(read.preferences), read.origin]))
    except ValueError as error:
        print(json.dumps(str(error)))
"""


@pytest.fixture
def read_elsewhere(tmp_path):
    """Reads datasets in a process of its own, with this hub and nothing but it; one line for each."""

    def read(*names, **environment):
        home = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        command = [sys.executable, "-c", READ_ALL, *names]
        environment = inherited | home | environment
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=tmp_path)
        return [json.loads(line) for line in done.stdout.splitlines()]

    return read


def test_a_dataset_is_downloaded_once_and_then_read_without_its_hub(tmp_path, read_elsewhere):
    hub = tmp_path / "hub"
    write_feedback(hub / FEEDBACK / COMMIT)
    (hub / FEEDBACK / COMMIT / ".revision").write_text("refs/convert/parquet")
    with running_hub(hub) as (address, requests):
        names = [f"{FEEDBACK}:nothing", FEEDBACK, "no/such", f"{FEEDBACK}@v7"]
        nothing, known, unknown, no_revision = read_elsewhere(*names, HF_ENDPOINT=address)
    assert "it has no file nothing/*" in nothing
    assert known == [34, f"{FEEDBACK} (commit {COMMIT})"]
    assert "cannot read the dataset no/such: the hub has no such dataset" in unknown
    assert "it has no revision 'v7'" in no_revision
    assert any("comparisons/train/0001.parquet" in request for request in requests)
    assert not any("axis" in request for request in requests)  # the other configuration
    again, never = read_elsewhere(FEEDBACK, f"{FEEDBACK}:axis", HF_HUB_OFFLINE="1")
    assert again == known
    assert "out of reach (HF_HUB_OFFLINE is set) and the cache has no whole copy" in never


def test_a_hub_out_of_reach_is_one_line_and_takes_no_minutes(read_elsewhere):
    start = time.monotonic()
    (error,) = read_elsewhere("trl-lib/tldr", HF_ENDPOINT="http://127.0.0.1:9")
    assert time.monotonic() - start < 60
    assert error.startswith("cannot read the dataset trl-lib/tldr: the hub is out of reach (")
    assert "a local copy laid out as the hub has it: --data.path FOLDER" in error
    assert "\n" not in error
