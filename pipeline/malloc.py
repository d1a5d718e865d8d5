"""What an actor asks of the system's malloc, where that is glibc's.

A network's maps come and go by the hundred megabytes for each image. malloc as it comes gives them back each time, and
faulting them in again, page by page, took a quarter of a prediction's time. Kept in the heap instead, they leave holes
that are seldom filled, because a hole left by an aligned block is too small for the next one of its size.
"""

from __future__ import annotations

import ctypes
import time


def environment(**tunables: int) -> dict[str, str]:
    """What tells glibc's malloc, by its own names for numbers and bytes; has to be there when a process starts."""
    return {"GLIBC_TUNABLES": ":".join(f"glibc.malloc.{name}={value}" for name, value in tunables.items())}


# One heap for all threads, fresh memory in huge pages, blocks above 8 MiB go back at once; and MKL asks malloc for the
# workspace of each product, where it would keep one of each size for good.
ENVIRONMENT = {
    **environment(arena_max=1, hugetlb=1, mmap_threshold=8 << 20, trim_threshold=512 << 20),
    "MKL_DISABLE_FAST_MM": "1",
}

_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
_given_back_at = 0.0


def give_back_holes(*, every_s: float = 0.0) -> None:
    """Returns what is free in the middle of the heap to the system, unless it did so less than `every_s` ago.

    Milliseconds, and the time to fault in again what is needed again. Nothing where malloc cannot.
    """
    global _given_back_at
    now = time.monotonic()
    if _trim is not None and now - _given_back_at >= every_s:
        _trim(0)
        _given_back_at = now
