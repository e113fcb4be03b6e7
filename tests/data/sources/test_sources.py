"""The table of sources."""

from pathlib import Path

import pytest

from overopt.data.sources import SOURCES, Source, make_source

NEEDS_PATH = sorted(SOURCES.keys() - {"docstrings"})


@pytest.mark.parametrize("name", SOURCES)
def test_each_source_goes_by_its_name_in_the_table(name, tmp_path):
    source = make_source(name, tmp_path if name in NEEDS_PATH else None, tmp_path)
    assert isinstance(source, Source)
    assert source.name == name


def test_gold_posts_are_kept_apart_only_where_the_gold_model_is_ours(tmp_path):
    fractions = {name: make_source(name, tmp_path, tmp_path).split_fractions for name in NEEDS_PATH}
    assert {(split.evaluation, split.gold) for split in fractions.values()} == {(0.1, 0.0)}
    embedded = make_source("docstrings", None, tmp_path).split_fractions
    assert (embedded.evaluation, embedded.gold) == (0.1, 0.25)


def test_an_unknown_source_is_an_error_that_lists_those_there_are():
    with pytest.raises(ValueError, match="no data source 'tldr'; there are docstrings, tldr_openai, hub, jsonl"):
        make_source("tldr", None, Path("cache"))


@pytest.mark.parametrize("name", NEEDS_PATH)
def test_a_source_of_files_needs_a_path(name):
    with pytest.raises(ValueError, match=f"'{name}' needs a path"):
        make_source(name, None, Path("cache"))


def test_the_embedded_default_takes_no_path():
    with pytest.raises(ValueError, match=r"'docstrings'.*takes no path, got data\.jsonl"):
        make_source("docstrings", Path("data.jsonl"), Path("cache"))
