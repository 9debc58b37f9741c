"""Telling the C library's allocator to keep freed memory, which takes fresh pages out of the times.

By default glibc decides by what was freed before from which size on it fetches memory from the
kernel, and when it gives some back. So a call may pay for fresh pages, which can double the time
of a copy, or not.
"""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD = -1  # M_TRIM_THRESHOLD, malloc.h
_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD, malloc.h
_LARGEST_IN_HEAP = 32 << 20  # glibc allows no more; larger arrays are always fetched anew
_KEPT = 1 << 30


def keep_freed_memory() -> bool:
    """Have arrays of up to 32 MiB made from freed memory; tell whether this C library can."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST_IN_HEAP) and mallopt(_TRIM_THRESHOLD, _KEPT))
