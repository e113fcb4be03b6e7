import pytest
from torch import nn

from overopt.models import heap


@pytest.mark.parametrize(
    ("model", "trimmed"),
    [
        (nn.Linear(4096, 4096), [0]),
        (nn.Linear(64, 64), []),
        (nn.Linear(4096, 4096, device="meta"), []),
    ],
    ids=["large", "small", "not on the CPU"],
)
def test_only_large_models_on_the_cpu_pay_for_returning_memory(model, trimmed, monkeypatch):
    calls = []
    monkeypatch.setattr(heap, "_TRIM", calls.append)
    heap.return_freed_memory(model)
    assert calls == trimmed


def test_without_glibc_nothing_is_done(monkeypatch):
    monkeypatch.setattr(heap, "_TRIM", None)
    heap.return_freed_memory(nn.Linear(4096, 4096))
