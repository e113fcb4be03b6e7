"""The embedded default, read from a package written here and from small real ones."""

import importlib.metadata
import re
import shutil
import sys
import textwrap

import pytest
from packaging.requirements import Requirement

from overopt.data.sources import docstrings
from overopt.data.sources.docstrings import PACKAGES, DocstringSource, Package

FAKE = (Package("fakepkg", "fake-pkg"),)
BODY = "A body about {}, with prose enough to be worth a summary of its own."


def documented(name, summary, subject, *, kind="def"):
    body = BODY.format(subject)
    signature = f"class {name}:" if kind == "class" else f"def {name}():"
    return f'{signature}\n    """{summary}\n\n    {body}\n    """\n'


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder on the import path with one package, which fails when it is imported."""
    folder = tmp_path / "site"
    files = {
        "fakepkg/__init__.py": 'raise RuntimeError("imported")\n',
        "fakepkg/shapes.py": '"""Shapes in the plane.\n\n' + BODY.format("triangles") + '\n"""\n'
        + documented("area", "Return the area of a shape.", "areas"),
        "fake_pkg-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: fake-pkg\nVersion: 1.0\n",
    }  # fmt: skip
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    return folder


@pytest.fixture
def read(site, tmp_path):
    def read_with(source="", file="fakepkg/more.py"):
        (site / file).parent.mkdir(parents=True, exist_ok=True)
        (site / file).write_text(textwrap.dedent(source), encoding="utf-8")
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        return DocstringSource(tmp_path / "cache", FAKE).read()

    return read_with


def ids(result):
    return [demonstration.example_id for demonstration in result.demonstrations]


def test_summary_and_body_come_apart_and_the_name_goes_before(read):
    result = read()
    assert ids(result) == ["fakepkg.shapes:", "fakepkg.shapes:area"]
    module, function = result.demonstrations
    assert function.prompt.text == (
        "fakepkg.area\nA body about areas, with prose enough to be worth a summary of its own.\nSummary:"
    )
    assert function.response == " Return the area of a shape."
    assert module.prompt.prefix == "fakepkg.shapes\n"
    assert (result.rows, result.left_out, result.preferences) == (2, {}, [])


def test_the_package_is_not_imported(read):
    read()
    assert "fakepkg" not in sys.modules


def test_classes_and_their_methods_are_read_by_qualified_name(read):
    method = textwrap.indent(documented("turn", "Turn the wheel by an angle.", "turning"), "    ")
    result = read(documented("Wheel", "A wheel that turns.", "wheels", kind="class") + method)
    assert ids(result)[:2] == ["fakepkg.more:Wheel", "fakepkg.more:Wheel.turn"]
    assert result.demonstrations[1].prompt.prefix == "fakepkg.Wheel.turn\n"


def test_a_long_name_loses_its_beginning_and_one_too_long_is_left_out(read):
    method = textwrap.indent(documented("m" * 30, "Turn the wheel by an angle.", "turning"), "    ")
    source = documented("W" * 20, "A wheel that turns.", "wheels", kind="class") + method
    result = read(source + documented("f" * 47, "Open the window.", "windows"))
    assert [d.prompt.prefix for d in result.demonstrations[:2]] == [f"fakepkg.{'W' * 20}\n", f"{'m' * 30}\n"]
    assert result.left_out == {docstrings.LONG_NAME: 1}
    assert len(result.demonstrations) == 4


def test_objects_of_one_name_have_ids_of_their_own(read):
    result = read(documented("f", "Open the window.", "windows") + documented("f", "Close the door.", "doors"))
    assert ids(result)[:2] == ["fakepkg.more:f", "fakepkg.more:f#2"]


def test_a_summary_of_two_lines_is_joined_and_markup_is_plain(read):
    source = '''
        def f():
            """Open the window of a :class:`~fakepkg.House`
            with a ``key``.

            Uses :func:`turn the key <fakepkg.turn>` and   then

            ----------
            opens it, which takes a moment or two.
            """
    '''
    demonstration = read(source).demonstrations[0]
    assert demonstration.response == " Open the window of a `fakepkg.House` with a `key`."
    assert demonstration.prompt.post == ("Uses `turn the key` and then\nopens it, which takes a moment or two.")


@pytest.mark.parametrize(
    ("summary", "body", "reason"),
    [
        ("Open the window.", "", docstrings.NO_BODY),
        ("Open it.", BODY, docstrings.SUMMARY_LENGTH),
        ("Word " * 17, BODY, docstrings.SUMMARY_LENGTH),
        ("Args: x is a number.", BODY, docstrings.SUMMARY_NOT_PROSE),
        ("Deprecated since version two.", BODY, docstrings.SUMMARY_NOT_PROSE),
        ("`x` is opened here.", BODY, docstrings.SUMMARY_NOT_PROSE),
        ("See https://example.org for more.", BODY, docstrings.SUMMARY_NOT_PROSE),
        ("Open the window.", "Not much to say.", docstrings.THIN_BODY),
        ("Open the window.", ">>> open(window, with_some, more, words, than, eight)", docstrings.THIN_BODY),
        ("Return the AREA of a  shape!", BODY, docstrings.SAME_SUMMARY),
        ("Open the window.", "A body about areas, with prose enough to be worth a summary of its own.",
         docstrings.SAME_BODY),
    ],
)  # fmt: skip
def test_what_is_no_summary_with_a_body_is_left_out_and_counted(read, summary, body, reason):
    result = read(f'def f():\n    """{summary}\n\n    {body}\n    """\n', file="fakepkg/zzz.py")
    assert ids(result) == ["fakepkg.shapes:", "fakepkg.shapes:area"]
    if body:  # a file without any second paragraph is not even parsed
        assert result.left_out == {reason: 1}


def test_returns_the_area_is_a_summary_and_not_a_section(read):
    result = read(documented("f", "Returns the length of a side.", "sides"))
    assert result.demonstrations[0].response == " Returns the length of a side."


def test_bodies_that_differ_in_numbers_and_case_only_are_one(read):
    first, second = documented("f", "Open a door.", "door 1"), documented("g", "Close a gate.", "DOOR 2")
    result = read(first + second)
    assert ids(result)[0] == "fakepkg.more:f"
    assert result.left_out == {docstrings.SAME_BODY: 1}


@pytest.mark.parametrize("file", ["tests/a.py", "_vendor/b/c.py", "conftest.py", "test_a.py", "a_test.py"])
def test_tests_and_vendored_code_are_not_read(read, file):
    result = read(documented("f", "Open the window.", "windows"), file=f"fakepkg/{file}")
    assert ids(result) == ["fakepkg.shapes:", "fakepkg.shapes:area"]


def test_a_file_that_cannot_be_parsed_is_counted(read):
    result = read("def f(:\n" + '    """One\n\n    two"""\n')
    assert result.left_out == {docstrings.UNREADABLE: 1}
    assert len(result.demonstrations) == 2


def test_a_long_body_ends_with_a_whole_line(read):
    line = "words that fill a line up to its very end and then stop here"
    body = "\n".join(f"    {line}" for _ in range(100))
    demonstration = read(f'def f():\n    """Open the window.\n\n{body}\n    """\n').demonstrations[0]
    lines = demonstration.prompt.post.splitlines()
    assert set(lines) == {line}
    assert 1_900 < len(demonstration.prompt.post) <= docstrings.MAX_BODY_CHARACTERS


def test_a_body_of_one_endless_line_is_cut_within_it(read):
    demonstration = read(f'def f():\n    """Open the window.\n\n{"word " * 1000}"""\n').demonstrations[0]
    assert 0 < len(demonstration.prompt.post) <= docstrings.MAX_BODY_CHARACTERS


def test_the_second_reading_comes_from_the_cache(site, tmp_path):
    source = DocstringSource(tmp_path / "cache", FAKE)
    first = source.read()
    (site / "fakepkg/shapes.py").unlink()
    assert source.read() == first
    assert len(first.demonstrations) == 2
    assert [file.suffix for file in (tmp_path / "cache").iterdir()] == [".jsonl"]  # nothing half-written


@pytest.mark.parametrize("spoil", [lambda b: b[:-20], lambda b: b"", lambda b: b"[]\n", lambda b: b"\xff" + b,
                                   lambda b: b.replace(b"area", b"atea")])  # fmt: skip
def test_a_corrupt_cache_is_made_again(site, tmp_path, spoil):
    source = DocstringSource(tmp_path / "cache", FAKE)
    first = source.read()
    (cache,) = (tmp_path / "cache").iterdir()
    whole = cache.read_bytes()
    cache.write_bytes(spoil(whole))
    assert source.read() == first
    assert cache.read_bytes() == whole


def test_another_version_of_a_package_is_read_anew(site, tmp_path):
    source = DocstringSource(tmp_path / "cache", FAKE)
    source.read()
    (site / "fakepkg/shapes.py").write_text(documented("area", "Compute an area.", "areas"))
    shutil.move(site / "fake_pkg-1.0.dist-info", site / "fake_pkg-2.0.dist-info")
    metadata = site / "fake_pkg-2.0.dist-info/METADATA"
    metadata.write_text(metadata.read_text().replace("1.0", "2.0"))
    assert [d.response for d in source.read().demonstrations] == [" Compute an area."]


def test_a_package_that_is_not_installed_is_an_error_with_its_cure(tmp_path):
    with pytest.raises(ValueError, match=r"no-such-package.*not installed.*install overopt"):
        DocstringSource(tmp_path, (Package("no_such_package", "no-such-package"),)).read()


def test_packages_without_docstrings_are_an_error(site, tmp_path):
    (site / "fakepkg/shapes.py").unlink()
    with pytest.raises(ValueError, match=r"empty source.*fakepkg"):
        DocstringSource(tmp_path / "cache", FAKE).read()


def test_a_cache_that_cannot_be_written_is_an_error(site, tmp_path):
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.raises(ValueError, match=r"cannot write the docstring cache.*cache_dir"):
        DocstringSource(tmp_path / "cache", FAKE).read()


def test_real_packages_give_unique_clean_examples_in_a_stable_order(tmp_path):
    packages = (Package("optuna", "optuna"), Package("torchmetrics", "torchmetrics"))
    result = DocstringSource(tmp_path, packages).read()
    examples = result.demonstrations
    assert len(examples) > 500
    assert result.rows == len(examples) + result.left_out.total()
    assert ids(result) == sorted(set(ids(result)))
    assert len({example.post_id for example in examples}) == len(examples)
    assert len({example.response.lower() for example in examples}) == len(examples)
    for example in examples:
        assert re.fullmatch(r" \w\S*( \S+){2,15}", example.response)
        assert example.response.strip() not in example.prompt.text.splitlines()
        assert not re.search(r"\n\s*\n|  ", example.prompt.text)


def test_every_package_comes_with_the_project_whatever_its_extras():
    needed, waiting = set(), ["overopt"]
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in needed:
            continue
        needed.add(name)
        requirements = map(Requirement, importlib.metadata.requires(name) or ())
        waiting += [r.name for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    assert len(PACKAGES) > 20
    assert {re.sub(r"[-_.]+", "-", package.distribution).lower() for package in PACKAGES} <= needed
