"""The devices that a plan is made for."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

GIB = 2**30


class Gpu(NamedTuple):
    """A kind of GPU, from its data sheet.

    Attributes:
        bfloat16: dense matrix products in bfloat16, without sparsity [TFLOP/s].
        float32: in float32 without tensor cores, as PyTorch computes unless told otherwise [TFLOP/s].
        memory: what the driver shows [GiB].
    """

    bfloat16: float
    float32: float
    memory: float


#: NVIDIA's data sheets; A100 with 80 GB, H100 and H200 as SXM.
GPUS = {
    "A40": Gpu(149.7, 37.4, 45.0),
    "A100": Gpu(312.0, 19.5, 80.0),
    "H100": Gpu(989.0, 67.0, 79.6),
    "H200": Gpu(989.0, 67.0, 140.4),
}

#: What a process holds on a GPU besides its tensors: CUDA's context with its kernels, workspaces of cuBLAS.
CONTEXT_BYTES = int(0.75 * GIB)
#: NCCL's buffers, where several GPUs work together.
COMMUNICATION_BYTES = GIB // 2
#: Of its tensors, what PyTorch's allocator holds and can't use: passes of unequal sizes leave holes.
FRAGMENTATION = 0.05


@dataclass(frozen=True)
class Hardware:
    """GPUs, and how well they are used.

    Attributes:
        gpu: a name in :data:`GPUS`.
        gpus: so many.
        gpu_memory: of each [GiB]; the named kind's by default.
        utilisation: share of the peak rate that training reaches.
        peak_tflops: of each in the precision that trains [TFLOP/s]; the named kind's by default.
        price_per_gpu_hour: in any currency.

    Raises:
        ValueError: an unknown kind, or a number that makes no sense.
    """

    gpu: str = "A100"
    gpus: int = 1
    gpu_memory: float | None = None
    utilisation: float = 0.35
    peak_tflops: float | None = None
    price_per_gpu_hour: float | None = None

    def __post_init__(self) -> None:
        if self.gpu not in GPUS:
            raise ValueError(
                f"no GPU {self.gpu!r} in the table; there are {', '.join(GPUS)}: for others give --gpu-memory and "
                "--peak-tflops beside the nearest of them"
            )
        if self.gpus < 1:
            raise ValueError(f"need at least one GPU, got --gpus {self.gpus}")
        if not 0 < self.memory_gib < math.inf:
            raise ValueError(f"need --gpu-memory > 0, in GiB for each GPU, got {self.gpu_memory}")
        if not 0 < self.utilisation <= 1:
            raise ValueError(f"need --utilisation in (0, 1], a share of the peak rate, got {self.utilisation}")
        if self.peak_tflops is not None and not 0 < self.peak_tflops < math.inf:
            raise ValueError(f"need --peak-tflops > 0, got {self.peak_tflops}")
        if self.price_per_gpu_hour is not None and not 0 <= self.price_per_gpu_hour < math.inf:
            raise ValueError(f"need --price-per-gpu-hour >= 0, got {self.price_per_gpu_hour}")

    @property
    def memory_gib(self) -> float:
        """Of each GPU [GiB]."""
        return GPUS[self.gpu].memory if self.gpu_memory is None else self.gpu_memory

    def training_rate(self, precision: str) -> float:
        """What each GPU computes while training in one of Lightning's precisions [FLOP/s]."""
        kind = GPUS[self.gpu]
        peak = kind.float32 if precision == "32-true" else kind.bfloat16
        return 1e12 * self.utilisation * (peak if self.peak_tflops is None else self.peak_tflops)

    @property
    def evaluation_rate(self) -> float:
        """What a GPU computes in evaluation, which samples and rescores in float32 [FLOP/s]."""
        return 1e12 * self.utilisation * GPUS[self.gpu].float32

    def runtime_bytes(self, tensors: int) -> int:
        """What a process holds on a GPU besides its tensors."""
        together = COMMUNICATION_BYTES if self.gpus > 1 else 0
        return CONTEXT_BYTES + together + int(FRAGMENTATION * tensors)


def resident_bytes() -> int:
    """What this process holds in the host's memory; 0 where the system does not tell.

    A plan has imported the libraries and read the data that training would: this is what training holds, too,
    besides its tensors.
    """
    status = Path("/proc/self/status")
    if not status.is_file():
        return 0
    fields = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines())
    return int(fields["VmRSS"].split()[0]) * 1024
