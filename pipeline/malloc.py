"""glibc malloc settings for CPU actors and decode children: keep memory between images, return it when told to.

For each image, a network allocates and frees feature maps of some hundred megabytes. By default malloc returns them to
the system each time, and the page faults for new ones took a quarter of a prediction's time. With the settings here
they stay in the heap. There they leave holes that are seldom filled, because the hole of an aligned block is too small
for the next aligned block of its size; so an actor calls `give_back_holes` from time to time. With another C library
the settings have no effect.
"""

from __future__ import annotations

import ctypes
import time


def environment(**tunables: int) -> dict[str, str]:
    """Environment variables that set glibc's malloc tunables, by glibc's names; read only when a process starts."""
    return {"GLIBC_TUNABLES": ":".join(f"glibc.malloc.{name}={value}" for name, value in tunables.items())}


# One heap for all threads, new memory in huge pages, blocks above 8 MiB returned at once. MKL takes the workspace of
# each matrix product from malloc; by default it would keep one of each size for ever.
ENVIRONMENT = {
    **environment(arena_max=1, hugetlb=1, mmap_threshold=8 << 20, trim_threshold=512 << 20),
    "MKL_DISABLE_FAST_MM": "1",
}

_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
_given_back_at = 0.0


def give_back_holes(*, every_s: float = 0.0) -> None:
    """Returns free memory within the heap to the system, unless that was done less than `every_s` seconds ago.

    Takes milliseconds, and later the page faults for memory that is needed again. Does nothing where the C library has
    no `malloc_trim`.
    """
    global _given_back_at
    now = time.monotonic()
    if _trim is not None and now - _given_back_at >= every_s:
        _trim(0)
        _given_back_at = now
