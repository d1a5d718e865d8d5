"""What an actor asks of the system's malloc, where that is glibc's.

A network's maps come and go by the hundred megabytes for each image. malloc as it comes gives them back each time, and
faulting them in again, page by page, took a quarter of a prediction's time. Kept in the heap instead, they leave holes
that are seldom filled, because a hole left by an aligned block is too small for the next one of its size.
"""

from __future__ import annotations

import ctypes

_TUNABLES = {
    "arena_max": 1,  # one heap for all threads
    "hugetlb": 1,  # fresh memory in huge pages
    "mmap_threshold": 32 << 20,  # larger blocks go back at once
    "trim_threshold": 512 << 20,
}
ENVIRONMENT = {"GLIBC_TUNABLES": ":".join(f"glibc.malloc.{name}={value}" for name, value in _TUNABLES.items())}
"""Has to be there when a process starts."""

_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)


def give_back_holes() -> None:
    """Returns what is free in the middle of the heap to the system; some milliseconds. Nothing where malloc cannot."""
    if _trim is not None:
        _trim(0)
