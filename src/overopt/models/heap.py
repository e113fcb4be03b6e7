"""The C library's heap, which CPU tensors live in."""

import ctypes
import sys

from torch import nn

# 16 M float32 parameters. At 70 M the page faults that trimming brings cost no measurable time; at 0.7 M, where little
# is computed for each byte, they cost more than half, to save some hundred megabytes.
WORTH_TRIMMING_BYTES = 64 * 2**20


def return_freed_memory(model: nn.Module) -> None:
    """Give the system back what tensors have freed, if the model is on the CPU and large enough for it to matter.

    Batches differ in shape, so that freed tensors leave holes which the next batch's do not fit: over tens of steps
    glibc's heap grows well past what any step needs. Under another C library, nothing is done.
    """
    if _TRIM is None:
        return
    weights = list(model.parameters())
    if weights[0].device.type == "cpu" and sum(weight.nbytes for weight in weights) >= WORTH_TRIMMING_BYTES:
        _TRIM(0)


_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
