import pytest

from overopt.planning.hardware import GIB, Hardware, resident_bytes


def test_a_kind_of_gpu_brings_its_rate_and_memory_and_both_can_be_given():
    a40 = Hardware("A40", utilisation=0.5)
    assert a40.training_rate("bf16-mixed") == pytest.approx(0.5 * 149.7e12)
    assert a40.training_rate("32-true") == pytest.approx(0.5 * 37.4e12)
    other = Hardware("A40", gpu_memory=24.0, peak_tflops=100.0, utilisation=0.5)
    assert other.training_rate("bf16-mixed") == pytest.approx(50e12)
    assert (a40.memory_gib, other.memory_gib) == (45, 24)


def test_what_a_process_holds_besides_its_tensors_grows_with_them_and_with_company():
    one, two = Hardware(), Hardware(gpus=2)
    assert one.runtime_bytes(20 * GIB) - one.runtime_bytes(0) == GIB
    assert two.runtime_bytes(0) > one.runtime_bytes(0) > GIB / 2


def test_this_process_holds_more_than_nothing():
    before = resident_bytes()
    held = bytearray(64 * 2**20)
    held[::4096] = b"x" * len(held[::4096])  # touched, so that it is there
    assert resident_bytes() - before > 32 * 2**20


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gpu": "V1000"}, "'V1000' in the table; there are A40, A100, H100, H200"),
        ({"gpus": 0}, "at least one GPU, got --gpus 0"),
        ({"gpu_memory": -1.0}, "--gpu-memory > 0"),
        ({"gpu_memory": float("nan")}, "--gpu-memory > 0"),
        ({"gpu_memory": float("inf")}, "--gpu-memory > 0"),
        ({"utilisation": 40.0}, "--utilisation in"),
        ({"peak_tflops": 0.0}, "--peak-tflops > 0"),
        ({"price_per_gpu_hour": -2.0}, "--price-per-gpu-hour >= 0"),
    ],
)
def test_hardware_that_makes_no_sense_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Hardware(**settings)
