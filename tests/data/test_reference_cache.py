from dataclasses import replace

import numpy as np
import pytest

from overopt.data.reference_cache import ReferenceKey, cached_reference_log_probs

KEY = ReferenceKey(weights="w", tokens="t", precision="32-true")
VALUES = np.array([[-1.5, -2.25], [-0.1, -3.0]], dtype=np.float32)


class Compute:
    """Counts how often it was asked."""

    def __init__(self, values: np.ndarray = VALUES) -> None:
        self.calls = 0
        self._values = values

    def __call__(self) -> np.ndarray:
        self.calls += 1
        return self._values


def test_a_hit_gives_the_values_without_computing_them(tmp_path):
    first, second = Compute(), Compute(VALUES + 1)
    np.testing.assert_array_equal(cached_reference_log_probs(tmp_path / "new", KEY, first), VALUES)
    hit = cached_reference_log_probs(tmp_path / "new", replace(KEY), second)
    np.testing.assert_array_equal(hit, VALUES)
    assert hit.dtype == np.float32
    assert (first.calls, second.calls) == (1, 0)


@pytest.mark.parametrize("other", [{"weights": "x"}, {"tokens": "x"}, {"precision": "bf16-mixed"}], ids=str)
def test_another_key_is_no_hit(other, tmp_path):
    cached_reference_log_probs(tmp_path, KEY, Compute())
    miss = Compute(VALUES - 1)
    np.testing.assert_array_equal(cached_reference_log_probs(tmp_path, replace(KEY, **other), miss), VALUES - 1)
    assert miss.calls == 1
    # and takes nothing from the first
    np.testing.assert_array_equal(cached_reference_log_probs(tmp_path, KEY, Compute(VALUES * 0)), VALUES)


def test_fields_of_a_key_do_not_run_together():
    assert ReferenceKey("ab", "c", "d").name != ReferenceKey("a", "bc", "d").name


def test_an_unfinished_file_is_never_read(tmp_path):
    cached_reference_log_probs(tmp_path, KEY, Compute())
    (entry,) = tmp_path.iterdir()
    whole = entry.read_bytes()
    entry.unlink()
    # What a process killed while writing leaves behind, under any process id.
    for name in (f".{entry.name}.1.tmp", f".{entry.name}.99999.tmp"):
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    again = Compute()
    np.testing.assert_array_equal(cached_reference_log_probs(tmp_path, KEY, again), VALUES)
    assert again.calls == 1


def test_a_computation_that_fails_leaves_no_entry(tmp_path):
    def fails() -> np.ndarray:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_reference_log_probs(tmp_path, KEY, fails)
    again = Compute()
    cached_reference_log_probs(tmp_path, KEY, again)
    assert again.calls == 1
