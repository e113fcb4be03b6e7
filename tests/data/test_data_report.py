"""The data report, against counts done by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from overopt.data.data_report import (
    QUANTILES,
    PartSize,
    as_json,
    as_text,
    data_report,
    label_report,
    report_of_all_parts,
    token_report,
)
from overopt.data.datamodule import PreferenceDataModule
from overopt.data.schema import PreferenceExample, Prompt
from tiny import NUM_POSTS, sampled_pairs

SAMPLE = Path(__file__).parents[2].parent / "shared/data/tldr/comparisons_sample.jsonl"


def pair(post, chosen, rejected):
    return PreferenceExample("id", post, Prompt("P:"), chosen, rejected)


def test_labels_are_counted_by_pair_and_by_agreement():
    report = label_report(
        [
            pair("a", " long", " no"),
            pair("a", " no", " long"),  # the same pair, the other way
            pair("a", " long", " no"),
            pair("b", " long", " no"),  # of another post, twice alike
            pair("b", " long", " no"),
            pair("c", " same", " size"),
            pair("c", " x", " longer"),
        ]
    )
    assert (report.labels, report.pairs, report.pairs_labelled_again) == (7, 4, 2)
    assert report.unanimous_share == 0.5
    assert report.longer_chosen_share == 4 / 6
    assert report.longer_chosen_se == pytest.approx((4 / 6 * 2 / 6 / 6) ** 0.5)
    assert report.equal_lengths == 1


def test_what_nothing_is_known_of_has_no_number():
    report = label_report([pair("a", " x", " y")])
    assert (report.unanimous_share, report.longer_chosen_share, report.longer_chosen_se) == (None, None, None)


def test_parts_are_sized_whatever_is_trained_on(make_data):
    parts = [data_report(make_data(examples=kind), {}).parts for kind in ("demonstrations", "preferences")]
    assert parts[0] == parts[1]
    sizes = parts[0].values()
    assert sum(size.posts for size in sizes) == NUM_POSTS
    # Each post of the tiny preferences has one demonstration and one pair.
    assert all(size == PartSize(size.posts, size.posts, size.posts) for size in sizes)


def test_lengths_and_cuts_are_those_of_the_tokens(make_data):
    data = make_data(max_response_tokens=6)
    pairs = data.tokenize_preferences(data.part_of(data.read.preferences, "train"))
    report = token_report(pairs)
    texts = {p.id: p for p in sampled_pairs()}
    whole = [
        len(data.tokenizer(text, add_special_tokens=False).input_ids) + 1
        for example in pairs.examples
        for text in (texts[example.example_id].first, texts[example.example_id].second)
    ]
    assert 0 < sum(length > 6 for length in whole) < len(whole)
    assert report.truncated_response_share == np.mean([length > 6 for length in whole])
    assert report.cut_prompt_share == 0
    chosen = [min(length, 6) for length in whole[::2]]
    assert report.lengths["chosen"]["min"] == min(chosen)
    assert report.lengths["chosen"]["p50"] == np.median(chosen)
    assert report.lengths["rejected"]["max"] == 6
    assert report.examples == len(pairs.examples)


def test_cut_prompts_are_counted(tmp_path, make_data):
    row = {"subreddit": "a", "title": "t", "chosen": "x", "rejected": "y"}
    rows = [row | {"post": post} for post in ("one", "two", "three", "many words " * 200)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = make_data(path=str(path), examples="preferences", evaluation_fraction=0.0, gold_fraction=0.0)
    data.setup("fit")
    report = token_report(data.train_set)
    assert report.cut_prompt_share == 0.25
    assert 40 < report.lengths["prompt"]["max"] <= 48


def test_the_report_of_a_fit_tokenises_nothing_anew(make_data, monkeypatch):
    data = make_data(examples="preferences")
    data.setup("fit")
    for name in ("tokenize_preferences", "tokenize_demonstrations"):
        monkeypatch.setattr(data, name, None)
    report = data_report(data, {"trained on": data.train_set, "held out": data.evaluation_set})
    assert list(report.tokens) == ["trained on", "held out"]
    assert report.tokens["trained on"].examples == len(data.train_set)


def test_json_and_table_say_the_same(make_data):
    report = report_of_all_parts(make_data())
    read = json.loads(as_json(report))
    assert list(read["tokens"]) == [
        f"{part} {kind}" for part in ("train", "gold", "evaluation") for kind in ("demonstrations", "preferences")
    ]
    assert read["rows"] == 2 * NUM_POSTS
    assert read["published_splits"] == {
        "(none)": {"posts": NUM_POSTS, "demonstrations": NUM_POSTS, "preferences": NUM_POSTS}
    }
    assert list(read["tokens"]["train preferences"]["lengths"]["chosen"]) == list(QUANTILES)
    text = as_text(report)
    for value in (read["origin"], read["split"], f"{read['labels']['longer_chosen_share']:.1%}"):
        assert value in text


@pytest.mark.skipif(not SAMPLE.is_file(), reason="the sample of real comparisons is not part of the project")
def test_people_chose_the_longer_of_two_real_summaries_in_about_two_thirds(tmp_path):
    data = PreferenceDataModule("tldr_openai", str(SAMPLE), vocab_size=600, cache_dir=str(tmp_path / "cache"))
    report = report_of_all_parts(data)
    assert (report.rows, report.left_out, report.labels.labels) == (438, {}, 438)
    assert report.labels.longer_chosen_share == pytest.approx(0.65, abs=2 * report.labels.longer_chosen_se)
    assert {split: size.preferences for split, size in report.published_splits.items()} == {
        "valid1": 108,
        "valid2": 330,
    }
    assert sum(size.posts for size in report.parts.values()) == 356
