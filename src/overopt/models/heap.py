"""The C library's heap, which CPU tensors live in."""

import ctypes
import sys


def return_freed_memory() -> None:
    """Give the system back what tensors have freed.

    Batches differ in shape, so that freed tensors leave holes which the next batch's do not fit: over tens of steps
    glibc's heap grows well past what any step needs. Under another C library, nothing is done.
    """
    if _TRIM is not None:
        _TRIM(0)


_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
