"""The C library's allocator, told to reuse the memory of freed tensors.

By default glibc returns what is freed at the top of its heap to the system, and takes tensors of
more than some 100 kB from there at once. A forward pass frees and takes the same megabytes at every
layer, and each page that comes back is a page fault: half of the vision tower's time on a CPU
(docs/log.md, 2026-11-27).
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
MOST = 2**31 - 1  # that these parameters can be


def keep_freed_memory(*, up_to: int = 16 << 20, spare: int = 64 << 20) -> None:
    """For this process, from now on. With another C library nothing happens, only more slowly.

    Args:
        up_to: bytes of one object; larger ones, like decoded photographs, are returned at once.
        spare: bytes that may lie unused at the top of a heap.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, up_to)
    mallopt(_M_TRIM_THRESHOLD, spare)
