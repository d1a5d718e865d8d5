"""Decode functions that misbehave on request; the tests hand them to the pool, whose children import them by name."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time

from PIL import Image

from pipeline.bulk.decode_image import DecodeLimits, Outcome, decode_image

_kept: list[bytearray] = []


def obey(data: bytes, limits: DecodeLimits, target_size: tuple[int, int] | None = None) -> Outcome:
    """Does what the file says; decodes it when it says nothing."""
    if data == b"segfault":
        ctypes.string_at(0)
    if data == b"abort":
        os.abort()
    if data == b"exit":
        os._exit(3)
    if data == b"stopped by another":
        os.kill(os.getpid(), signal.SIGKILL)
    if data == b"sleep":
        time.sleep(3600)
    if data == b"spin":
        while True:
            pass
    if data == b"eat memory":
        while True:
            _kept.append(bytearray(1 << 24))
    if data == b"leak":  # stays under the limit alone; the third in one child does not
        _kept.append(bytearray(limits.memory_bytes * 2 // 5))
    if data == b"bad answer":
        return Outcome("splendid", None, Image.new("RGB", (2, 2)))
    if data == b"raise":
        raise RuntimeError("a fault of the decode function itself")
    if data == b"print":
        print("to stdout")
        print("to stderr", file=sys.stderr)
        os.write(1, b"to descriptor 1\n")
        os.write(2, b"to descriptor 2\n")
    if data == b"modules":
        return Outcome("corrupt", ",".join(sorted(m for m in sys.modules if "." not in m)))
    if data == b"pid":
        return Outcome("corrupt", str(os.getpid()))
    if data.startswith(b"grey "):
        return Outcome("ok", None, Image.new("RGB", (40, 30), (int(data[5:]),) * 3), 30, 40, None)
    return decode_image(data, limits, target_size)
