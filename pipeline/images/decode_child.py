"""Decode child: the program of one decoding process, which takes files from a socket and puts pixels in shared memory.

`pipeline.images.decode_pool.DecodePool` starts it as `python -P -c PROGRAM HOME SETTINGS`. It imports Pillow,
NumPy, simplejpeg and nothing heavier. Its decoders are written in C, so a hostile file may kill it at any time, and the
parent does not rely on a last answer. The parent reads only JSON and pixels from it, never a pickle.
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
    from numpy.typing import NDArray

REQUEST = struct.Struct("!QIII")
"""Header of a request: size in bytes of the file that follows; the two sides of `resize_to`, 0 for none; `num_bands`,
0 for all bands of the file."""

ANSWER_BYTES = 4096
"""Size of an answer: JSON, padded with spaces."""

Request = tuple[bytes, tuple[int, int] | None, int | None]
"""The content of a file, its `resize_to` and its `num_bands`, as `decode_image` takes them."""

_MAX_ERROR_CHARS = 500
_PR_SET_PDEATHSIG = 1
_PPM_HEADER = b"P6\n%d %d\n255\n"


def main() -> None:
    """Answers requests until the parent closes the socket or dies, or memory runs out."""
    settings = json.loads(sys.argv[1])
    _die_with_parent(settings["parent_pid"])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent ends its children
    connection = socket.socket(fileno=settings["socket_fd"])
    limits = DecodeLimits(**settings["limits"])
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # the cores are used by several children, not by threads of one
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
    """The next request; None when the parent has closed the socket."""
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
    """Decodes one file. When the answer's status is ok, the pixels are in the shared block."""
    data, resize_to, num_bands = request
    try:
        outcome = decode(data, limits, resize_to, num_bands)
        answer = {name: value for name, value in vars(outcome).items() if name not in ("picture", "bands")}
        if outcome.picture is not None:
            answer |= _write_picture(outcome.picture, block_fd)
        elif outcome.bands is not None:
            answer |= _write_bands(outcome.bands, block_fd)
        return answer
    except MemoryError:
        return {"status": "too_large", "error": out_of_memory_error(limits), "out_of_memory": True}
    except Exception as error:  # a fault of the decode function, not of the file
        words = f"{type(error).__name__}: {error}"
        return {"status": "decoder_crashed", "error": words, "out_of_memory": False}


def _write_picture(picture: Image.Image, block_fd: int) -> dict[str, object]:
    """Writes an RGB picture to the shared block, without a copy in between; returns its offset, shape and dtype."""
    os.lseek(block_fd, 0, os.SEEK_SET)
    with open(block_fd, "wb", buffering=0, closefd=False) as block:
        picture.save(block, "PPM")
    shape = (picture.height, picture.width, 3)
    return {"offset": len(_PPM_HEADER % picture.size), "shape": shape, "dtype": "uint8"}


def _write_bands(bands: NDArray[np.float32], block_fd: int) -> dict[str, object]:
    """Writes an array [H, W, C] to the shared block; returns its offset, shape and dtype."""
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
    """Ends this process with its parent: by SIGKILL at once on Linux; elsewhere only when it next reads the socket."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)


def _limit_memory(memory_bytes: int) -> None:
    """Limits further address space to `memory_bytes`, and makes this process the kernel's first choice to kill."""
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
    except OSError:  # no /proc: not Linux, and address space cannot be limited there either
        pass
