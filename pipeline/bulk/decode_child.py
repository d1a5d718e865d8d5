"""The program of a decode child: reads images from a socket, leaves pixels in the shared block, answers in JSON.

Started by `pipeline.bulk.decode.DecodePool` as `python -P -m pipeline.bulk.decode_child SETTINGS`; imports Pillow and
nothing heavier. It is expected to die: whoever decodes hostile files in C sooner or later does, and the parent counts
on no last word. Everything the parent reads of it is JSON and pixels, never a pickle.
"""

from __future__ import annotations

import ctypes
import dataclasses
import importlib
import json
import os
import re
import resource
import signal
import socket
import struct
import sys
from collections.abc import Callable

from pipeline.bulk.decode_image import DecodeLimits, Outcome

REQUEST = struct.Struct("!QII")
"""Bytes of the file that follows; height and width of `target_size`, 0 for none."""

ANSWER_BYTES = 4096
"""An answer is JSON, padded with spaces to this many bytes."""

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
    try:
        module, _, function = settings["decode"].partition(":")
        decode = getattr(importlib.import_module(module), function)
    except Exception as error:
        _answer(connection, {"status": "failed", "error": f"{type(error).__name__}: {error}"})
        return
    _limit_memory(limits.memory_bytes)
    _answer(connection, {"status": "ready"})
    with connection.makefile("rb") as requests:
        while header := requests.read(REQUEST.size):
            if len(header) < REQUEST.size or not _serve(connection, requests, header, decode, limits, settings):
                return


def _serve(
    connection: socket.socket,
    requests: object,
    header: bytes,
    decode: Callable[..., Outcome],
    limits: DecodeLimits,
    settings: dict,
) -> bool:
    """Answers one request. False when this child has run out of memory once and should be replaced."""
    num_bytes, target_height, target_width = REQUEST.unpack(header)
    target_size = (target_height, target_width) if target_height else None
    try:
        data = requests.read(num_bytes)
        if len(data) < num_bytes:
            return False
        outcome = decode(data, limits, target_size)
        answer = {field.name: getattr(outcome, field.name) for field in dataclasses.fields(outcome)}
        picture = answer.pop("picture")
        if picture is not None:
            answer["picture_size"] = picture.size[::-1]
            answer["offset"] = _leave_pixels(picture, settings["block_fd"])
    except MemoryError:
        error = f"decoding needs more than {limits.memory_bytes} bytes of memory"
        _answer(connection, {"status": "too_large", "error": error, "out_of_memory": True})
        return False
    except Exception as error:  # a fault of the decode function, not of the file
        answer = {"status": "decoder_crashed", "error": f"{type(error).__name__}: {error}"}
    _answer(connection, answer)
    return True


def _leave_pixels(picture: object, block_fd: int) -> int:
    """Writes the RGB bytes to the shared block without a copy in between; returns where they start."""
    os.lseek(block_fd, 0, os.SEEK_SET)
    with open(block_fd, "wb", buffering=0, closefd=False) as block:
        picture.save(block, "PPM")
    width, height = picture.size
    return len(_PPM_HEADER % (width, height))


def _answer(connection: socket.socket, answer: dict) -> None:
    if answer.get("error"):
        answer["error"] = answer["error"][:_MAX_ERROR_CHARS]
    connection.sendall(json.dumps(answer).encode().ljust(ANSWER_BYTES))


def _die_with_parent(parent_pid: int) -> None:
    """SIGKILL when the parent goes, even in the middle of a hang. Elsewhere than on Linux: at the next request."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)


def _limit_memory(memory_bytes: int) -> None:
    """Allows `memory_bytes` of address space beyond what the interpreter has now; makes this the kernel's first victim."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        with open("/proc/self/status") as status:
            in_use = int(re.search(r"VmSize:\s+(\d+) kB", status.read())[1]) << 10
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = in_use + memory_bytes
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        with open("/proc/self/oom_score_adj", "w") as score:
            score.write("1000")
    except OSError:  # no /proc: not Linux, where address space cannot be limited either
        pass


if __name__ == "__main__":
    main()
