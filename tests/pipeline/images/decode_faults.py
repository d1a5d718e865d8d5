"""Faulty decode functions for the tests of the decode pool, whose children import them by name."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time

from PIL import Image

from pipeline.images.decode_image import DecodeLimits, Outcome, decode_image

_kept: list[bytearray] = []
_spoiled: list[bool] = []


def obey(
    data: bytes, limits: DecodeLimits, resize_to: tuple[int, int] | None = None, num_bands: int | None = 3
) -> Outcome:
    """Commits the fault that the file names; decodes a file that names none."""
    if data == b"segfault" or _spoiled:
        ctypes.string_at(0)
    if data == b"abort":
        os.abort()
    if data == b"exit":
        os._exit(3)
    if data == b"killed by another":
        os.kill(os.getpid(), signal.SIGKILL)
    if data == b"sleep":
        time.sleep(3600)
    if data == b"spin":
        while True:
            pass
    if data == b"eat memory":
        while True:
            _kept.append(bytearray(1 << 24))
    if data == b"leak":  # stays below the limit alone, and goes over it in the third file of one child
        _kept.append(bytearray(limits.memory_bytes * 2 // 5))
    if data == b"spoil":  # damages its process so that only the next file crashes
        _spoiled.append(True)
    if data == b"senseless status":
        return Outcome("splendid")
    if data == b"raise":
        raise RuntimeError("a fault of the decode function itself")
    if data == b"print":
        print("to stdout", flush=True)
        print("to stderr", file=sys.stderr, flush=True)
        os.write(1, b"to descriptor 1\n")
        os.write(2, b"to descriptor 2\n")
    if data == b"modules":
        heavy = [name for name in ("tifffile", "imagecodecs", "torch", "ray", "pyarrow") if name in sys.modules]
        return Outcome("corrupt", " ".join(heavy))
    if data == b"pid":
        return Outcome("corrupt", str(os.getpid()))
    if data.startswith(b"grey "):
        return Outcome("ok", None, Image.new("RGB", (40, 30), (int(data[5:]),) * 3), 30, 40, None)
    return decode_image(data, limits, resize_to, num_bands)


def sleep_always(data: bytes, *_: object) -> Outcome:
    """Writes a file named after its process id into the folder `data`, and hangs."""
    with open(os.path.join(data.decode(), str(os.getpid())), "w"):
        time.sleep(3600)
    raise AssertionError("woke up")
