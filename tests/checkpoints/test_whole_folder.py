import pytest

from overopt.checkpoints.whole_folder import whole_folder


def content(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_new_folder_is_there_once_it_is_whole(tmp_path):
    with whole_folder(tmp_path / "some" / "folder") as unfinished:
        (unfinished / "a").write_text("1")
        assert not (tmp_path / "some" / "folder").exists()
    assert content(tmp_path / "some" / "folder") == {"a": "1"}
    assert [path.name for path in (tmp_path / "some").iterdir()] == ["folder"]


def test_what_was_there_is_replaced_as_a_whole(tmp_path):
    for name in ("old", "new"):
        with whole_folder(tmp_path / "folder") as unfinished:
            (unfinished / name).write_text(name)
    assert content(tmp_path / "folder") == {"new": "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_on_an_error_what_was_there_stays_and_nothing_else_is_left(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_text("1")

    def write_half() -> None:
        with whole_folder(tmp_path / "folder") as unfinished:
            (unfinished / "a").write_text("2")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_half()
    assert content(tmp_path / "folder") == {"a": "1"}
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_the_current_folder_can_be_named_by_a_dot(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with whole_folder(type(tmp_path)(".")) as unfinished:
        (unfinished / "a").write_text("1")
    assert content(tmp_path / "here") == {"a": "1"}
