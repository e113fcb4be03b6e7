import os
from pathlib import Path

import pytest

from overopt.checkpoints.whole_file import whole_file


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "file"
    with whole_file(path) as file:
        file.write(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    assert os.listdir(path.parent) == ["file"]


def half_written(path: Path, error: type[BaseException]) -> None:
    with whole_file(path) as file:
        file.write(b"half")
        raise error


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_leaves_the_file_before_and_nothing_else(error, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"before")
    with pytest.raises(error):
        half_written(path, error)
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["file"]


def test_the_name_is_taken_over_in_one_step(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"before")

    def killed(source: Path, target: Path) -> None:
        assert (Path(source).read_bytes(), target.read_bytes()) == (b"whole", b"before")
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt), whole_file(path) as file:
        file.write(b"whole")
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["file"]
