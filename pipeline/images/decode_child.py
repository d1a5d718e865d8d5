"""The program of a decode child: files come by a socket, pixels go to a shared block, answers are JSON.

Started by `pipeline.images.decode_pool.DecodePool` as `python -P -c PROGRAM HOME SETTINGS`; imports
Pillow and nothing heavier. It is expected to die: whoever decodes hostile files in C sooner or later does,
and the parent counts on no last word. All that the parent reads of it is JSON and pixels, never a pickle.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import resource
import signal
import socket
import struct
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO

from PIL import AvifImagePlugin, Image

from pipeline.images.decode_image import DecodeLimits, Outcome, out_of_memory_error

if TYPE_CHECKING:
    import numpy as np

REQUEST = struct.Struct("!QIII")
"""Bytes of the file that follows; the two sides of `resize_to`, 0 for none; bands wanted, 0 for all there are."""

ANSWER_BYTES = 4096
"""An answer is JSON, padded with spaces to this many bytes."""

Request = tuple[bytes, tuple[int, int] | None, int | None]
"""A file, its `resize_to` and its `num_bands`."""

_MAX_ERROR_CHARS = 500
_PR_SET_PDEATHSIG = 1
_PPM_HEADER = b"P6\n%d %d\n255\n"


def main() -> None:
    """Serves until the parent closes the socket or dies."""
    settings = json.loads(sys.argv[1])
    _die_with_parent(settings["parent_pid"])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    connection = socket.socket(fileno=settings["socket_fd"])
    limits = DecodeLimits(**settings["limits"])
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # as many children decode as there are cores for it
    try:
        module, _, function = settings["decode"].partition(":")
        decode = getattr(importlib.import_module(module), function)
    except Exception as error:
        _send(connection, {"status": "failed", "error": f"{type(error).__name__}: {error}"})
        return
    _limit_memory(limits.memory_bytes)
    _send(connection, {"status": "ready"})
    with connection.makefile("rb") as requests:
        healthy = True
        while healthy and (request := _receive(requests)) is not None:
            answer = _answer(request, decode, limits, settings["block_fd"])
            _send(connection, answer)
            healthy = not answer["out_of_memory"]


def _receive(requests: BinaryIO) -> Request | None:
    """The next file and what is wanted of it; None when the parent has gone."""
    header = requests.read(REQUEST.size)
    if len(header) < REQUEST.size:
        return None
    num_bytes, short_side, long_side, num_bands = REQUEST.unpack(header)
    data = requests.read(num_bytes)
    if len(data) < num_bytes:
        return None
    return data, (short_side, long_side) if short_side else None, num_bands or None


def _answer(
    request: Request,
    decode: Callable[[bytes, DecodeLimits, tuple[int, int] | None, int | None], Outcome],
    limits: DecodeLimits,
    block_fd: int,
) -> dict[str, object]:
    """Decodes one file; its pixels are in the block when the answer says ok."""
    data, resize_to, num_bands = request
    try:
        outcome = decode(data, limits, resize_to, num_bands)
        answer = {name: value for name, value in vars(outcome).items() if name not in ("picture", "bands")}
        if outcome.picture is not None:
            answer |= _leave_picture(outcome.picture, block_fd)
        elif outcome.bands is not None:
            answer |= _leave_bands(outcome.bands, block_fd)
        return answer
    except MemoryError:
        return {"status": "too_large", "error": out_of_memory_error(limits), "out_of_memory": True}
    except Exception as error:  # a fault of the decode function, not of the file
        words = f"{type(error).__name__}: {error}"
        return {"status": "decoder_crashed", "error": words, "out_of_memory": False}


def _leave_picture(picture: Image.Image, block_fd: int) -> dict[str, object]:
    """Writes the RGB bytes to the shared block without a copy in between; says where they start and what they are."""
    os.lseek(block_fd, 0, os.SEEK_SET)
    with open(block_fd, "wb", buffering=0, closefd=False) as block:
        picture.save(block, "PPM")
    shape = (picture.height, picture.width, 3)
    return {"offset": len(_PPM_HEADER % picture.size), "shape": shape, "dtype": "uint8"}


def _leave_bands(bands: np.ndarray, block_fd: int) -> dict[str, object]:
    """The same for an array."""
    unwritten, offset = (bands if bands.flags.c_contiguous else bands.copy()).data.cast("B"), 0
    while unwritten:
        num_written = os.pwrite(block_fd, unwritten[: 1 << 30], offset)
        unwritten, offset = unwritten[num_written:], offset + num_written
    return {"offset": 0, "shape": bands.shape, "dtype": bands.dtype.name}


def _send(connection: socket.socket, answer: dict[str, object]) -> None:
    if answer["status"] != "ready" and answer["error"] is not None:
        answer["error"] = str(answer["error"])[:_MAX_ERROR_CHARS]
    connection.sendall(json.dumps(answer).encode().ljust(ANSWER_BYTES))


def _die_with_parent(parent_pid: int) -> None:
    """SIGKILL when the parent goes, even in the middle of a hang; where not Linux, only between images."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)


def _limit_memory(memory_bytes: int) -> None:
    """Allows `memory_bytes` of address space from here on; short of memory, the kernel ends it first."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        with open("/proc/self/status") as status:
            in_use = int(status.read().partition("VmSize:")[2].split()[0]) << 10
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = in_use + memory_bytes
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        with open("/proc/self/oom_score_adj", "w") as score:
            score.write("1000")
    except OSError:  # no /proc: not Linux, where address space cannot be limited either
        pass

