"""Crash-isolated image decoding in child processes with memory, time and pixel limits.

    with DecodePool(num_children=4, limits=DecodeLimits()) as pool:
        decoded = pool.submit(data).result()   # pixels, or a status and a reason; bad data never raises

A decoder written in C may crash, hang or use up memory on a hostile file. That ends a child process and costs one
image. The children are started as new programs (never forked from a process that holds torch, Ray or CUDA), import no
more than they need, and end with their parent. Pixels come back through one anonymous block of shared memory for each
child. So there is no file in /dev/shm, and nothing is left behind when a process is killed.

A status that blames an image (`decoder_crashed`, `timeout`, out of memory) is given only by a child that has decoded
nothing before. So a file that silently damages a decoder cannot spoil the next file, and the same bytes always get the
same answer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeline import malloc
from pipeline.images.decode_child import ANSWER_BYTES, REQUEST, Request
from pipeline.images.decode_image import FORMATS, STATUSES, DecodeLimits, Outcome, decode_image

__all__ = ["FORMATS", "STATUSES", "DecodeLimits", "DecodePool", "Decoded"]

_START_S = 180.0  # longest time for a child to start
_WALL_TIMEOUTS = 4  # times `timeout_s` by the clock, since a busy machine may give a child little processor time
_KEPT_BLOCK_BYTES = 64 << 20  # a child's block of shared memory, and its heap, keep about this much between images
_HOME = str(Path(__file__).resolve().parents[2])  # the folder that holds pipeline/
# With -P the current folder is not on the child's import path; the folder of this very package is.
_PROGRAM = (
    "import sys; home = sys.argv.pop(1); home in sys.path or sys.path.insert(0, home); "
    "from pipeline.images.decode_child import main; main()"
)


@dataclass(frozen=True)
class Decoded:
    """The result of decoding one file: pixels, or a status and a reason.

    Attributes:
        status: "ok", "too_large", "unsupported_format", "corrupt", "decoder_crashed" or "timeout".
        error: the reason in words, None when ok.
        image: the upright pixels (after the EXIF turn), which belong to the caller and may be written to; uint8
            [H, W, 3], RGB, 0..255, where three bands were asked for, else float32 [H, W, C] as
            `pipeline.images.pixels.to_unit` gives them. None unless ok.
        height, width: of the upright original in pixels; None where a failed file does not tell. They differ from the
            shape of `image` only when `resize_to` was given.
        exif_orientation: 1..8 as the file states it, None where it states none.
    """

    status: str
    error: str | None
    image: NDArray[Any] | None
    height: int | None
    width: int | None
    exif_orientation: int | None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the original; only for status ok."""
        assert self.height is not None and self.width is not None, self.status
        return self.height, self.width


class DecodeChildError(RuntimeError):
    """No child can be started: the installation is broken, not the image."""


class DecodePool:
    """Child processes that decode files. Thread-safe. The caller limits how many files it submits at a time."""

    def __init__(
        self,
        num_children: int,
        limits: DecodeLimits,
        *,
        decode: Callable[[bytes, DecodeLimits, tuple[int, int] | None, int | None], Outcome] = decode_image,
    ) -> None:
        """Returns at once; the children start in the background.

        Args:
            num_children: number of processes, at least 1.
            limits: see `DecodeLimits`.
            decode: the function that the children call: at the top level of a module, which they import by name.

        Raises:
            ValueError: `num_children` is less than 1.
        """
        if num_children < 1:
            raise ValueError(f"num_children is {num_children}; it must be at least 1")
        self._limits = limits
        self._decode = f"{decode.__module__}:{decode.__qualname__}"
        self._jobs: queue.SimpleQueue[tuple[Future[Decoded], Request] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self.busy_s = 0.0  # seconds that the children have spent on files, summed over children
        self._children: set[_Child] = set()
        self._threads = [
            threading.Thread(target=self._serve, name=f"decode-{i}", daemon=True) for i in range(num_children)
        ]
        for thread in self._threads:
            thread.start()

    def submit(
        self, data: bytes, *, resize_to: tuple[int, int] | None = None, num_bands: int | None = 3
    ) -> Future[Decoded]:
        """A future of the decoded image. Bad data is a status, never an exception.

        Args:
            data: the whole file; must stay unchanged until the result is there.
            resize_to: short and long side in pixels that the caller will scale the picture to; a JPEG may then come
                back smaller than it is stored. See `decode_image`.
            num_bands: 3 converts any picture to RGB; any other number takes the file's own bands, of which there must
                be as many; None takes all bands of the file. See `decode_image`.

        Raises:
            RuntimeError: the pool is closed.

        The future raises `DecodeChildError` where no child can be started, CancelledError after `close`.
        """
        future: Future[Decoded] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("the decode pool is closed")
            self._jobs.put((future, (data, resize_to, num_bands)))
        return future

    def close(self) -> None:
        """Kills the children now. Futures that are not done raise CancelledError. A second call does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for child in self._children:
                child.process.kill()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> DecodePool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _serve(self) -> None:
        """Runs in one thread for each child: starts it, gives it files, replaces it.

        On Linux a child ends with the thread that started it.
        """
        child: _Child | None = None
        try:
            with contextlib.suppress(DecodeChildError, OSError):  # the first file's future will raise it
                child = self._start()
            while (job := self._jobs.get()) is not None:
                future, request = job
                if self._closed:
                    future.cancel()
                if not future.set_running_or_notify_cancel():
                    continue
                try:
                    started_s = time.monotonic()
                    decoded, child = self._decode_one(child, request)
                    with self._lock:
                        self.busy_s += time.monotonic() - started_s
                    future.set_result(decoded)
                except BaseException as error:
                    if child is not None:
                        self._end(child)
                        child = None
                    future.set_exception(CancelledError() if self._closed else error)
        finally:
            if child is not None:
                self._end(child)

    def _decode_one(self, child: _Child | None, request: Request) -> tuple[Decoded, _Child | None]:
        """The result for one file, and the child to use for the next one (None when it has to be replaced)."""
        if len(request[0]) > self._limits.max_bytes:
            error = f"the file has {len(request[0])} bytes; at most {self._limits.max_bytes} are allowed"
            return Decoded("too_large", error, None, None, None, None), child
        while True:
            if child is not None and child.process.poll() is not None:  # it ended while it was idle
                self._end(child)
                child = None
            if child is None:
                child = self._start()
            fresh = child.num_decoded == 0
            try:
                decoded, healthy = child.decode(request)
                if healthy:
                    return decoded, child
            except _ChildFailed as failure:
                decoded = Decoded(failure.status, failure.error, None, None, None, None)
            self._end(child)
            child = None
            if self._closed:
                raise CancelledError
            if fresh:
                return decoded, None

    def _start(self) -> _Child:
        child = _Child(self._limits, self._decode)
        with self._lock:
            self._children.add(child)
            if self._closed:
                child.process.kill()
        try:
            child.wait_until_ready()
        except BaseException:
            self._end(child)
            raise
        return child

    def _end(self, child: _Child) -> None:
        with self._lock:
            self._children.discard(child)
        child.end()


class _Answer(msgspec.Struct):
    """A child's answer; `shape`, `dtype` and `offset` are of the pixels in its shared block."""

    status: str
    error: str | None = None
    height: int | None = None
    width: int | None = None
    exif_orientation: int | None = None
    out_of_memory: bool = False
    shape: tuple[int, int, int] = (0, 0, 0)
    dtype: str = ""
    offset: int = 0


class _ChildFailed(Exception):
    """The child died or has to be killed because of a file: the file's status, and the reason."""

    def __init__(self, status: str, error: str) -> None:
        super().__init__(error)
        self.status, self.error = status, error


class _Child:
    """One decode process, its socket and its block of shared memory."""

    def __init__(self, limits: DecodeLimits, decode: str) -> None:
        self.num_decoded = 0
        self._timeout_s, self._max_pixels = limits.timeout_s, limits.max_pixels
        self._block_fd = _anonymous_block()
        self._socket, child_socket = socket.socketpair()
        settings = {
            "parent_pid": os.getpid(),
            "socket_fd": child_socket.fileno(),
            "block_fd": self._block_fd,
            "limits": dataclasses.asdict(limits),
            "decode": decode,
        }
        environment = {
            **os.environ,
            # Each thread and each malloc arena takes address space, and machines with more cores have more of them.
            "OPENBLAS_NUM_THREADS": "1",
            # Memory is kept between images: page faults for fresh memory took as long as decoding a small JPEG (ran).
            **malloc.environment(arena_max=1, mmap_threshold=_KEPT_BLOCK_BYTES // 2, trim_threshold=_KEPT_BLOCK_BYTES),
        }
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM, _HOME, json.dumps(settings)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # C libraries print warnings; the answers have the reasons
                pass_fds=(child_socket.fileno(), self._block_fd),
                env=environment,
            )
        except BaseException:
            self._socket.close()
            os.close(self._block_fd)
            raise
        finally:
            child_socket.close()

    def wait_until_ready(self) -> None:
        """Waits for the child to start. Raises DecodeChildError when it does not."""
        try:
            answer = self._receive(lambda: _START_S)
        except (_ChildFailed, TimeoutError) as failure:
            raise DecodeChildError(f"a decode child did not start: {failure}") from None
        if answer.status != "ready":
            raise DecodeChildError(f"a decode child did not start: {answer.error}")

    def decode(self, request: Request) -> tuple[Decoded, bool]:
        """The result for one file, and whether the child may be used again. Raises _ChildFailed when none comes."""
        data, resize_to, num_bands = request
        cpu_before_s, started_s = self._cpu_s(), time.monotonic()

        def seconds_left() -> float:
            wall_s = time.monotonic() - started_s
            cpu_s = min(self._cpu_s() - cpu_before_s, wall_s)
            return min(self._timeout_s - cpu_s, _WALL_TIMEOUTS * self._timeout_s - wall_s)

        try:
            self._socket.settimeout(_WALL_TIMEOUTS * self._timeout_s)
            self._socket.sendall(REQUEST.pack(len(data), *(resize_to or (0, 0)), num_bands or 0))
            self._socket.sendall(data)
            answer = self._receive(seconds_left)
            self.num_decoded += 1
            return self._decoded(answer, num_bands), not answer.out_of_memory
        except TimeoutError:
            raise _ChildFailed("timeout", f"not decoded in {self._timeout_s:g} s") from None
        except OSError:  # the socket is broken
            raise _ChildFailed("decoder_crashed", f"the decoder {self._cause_of_death()}") from None
        except ValueError:
            raise _ChildFailed("decoder_crashed", "the decoder gave an answer without sense") from None

    def _receive(self, seconds_left: Callable[[], float]) -> _Answer:
        """The next answer. Raises TimeoutError, _ChildFailed when the child is gone, ValueError for nonsense."""
        received = b""
        while len(received) < ANSWER_BYTES:
            wait_s = seconds_left()
            if wait_s <= 0:
                raise TimeoutError
            self._socket.settimeout(wait_s)
            try:
                part = self._socket.recv(ANSWER_BYTES - len(received))
            except TimeoutError:
                continue
            except ConnectionError:
                part = b""
            if not part:
                raise _ChildFailed("decoder_crashed", f"the decoder {self._cause_of_death()}")
            received += part
        return msgspec.json.decode(received, type=_Answer)

    def _decoded(self, answer: _Answer, num_bands: int | None) -> Decoded:
        """An answer with its pixels. Raises ValueError when it makes no sense."""
        image = None
        if answer.status == "ok":
            height, width, count = answer.shape
            dtype = "uint8" if num_bands == 3 else "float32"
            if not 0 < height * width <= self._max_pixels or count != (num_bands or count) or answer.dtype != dtype:
                raise ValueError("no such picture")
            image = self._pixels(answer.shape, dtype, answer.offset)
        elif answer.status not in STATUSES:
            raise ValueError("no such status")
        return Decoded(answer.status, answer.error, image, answer.height, answer.width, answer.exif_orientation)

    def _pixels(self, shape: tuple[int, int, int], dtype: str, offset: int) -> NDArray[Any]:
        """A copy of the pixels in the shared block, read without holding the GIL."""
        if math.prod(shape) * np.dtype(dtype).itemsize + offset > os.fstat(self._block_fd).st_size:
            raise ValueError("fewer pixels than announced")
        image = np.empty(shape, dtype)
        unread = image.reshape(-1).view(np.uint8).data
        while unread:
            num_read = os.preadv(self._block_fd, [unread[: 1 << 30]], offset)
            if num_read == 0:
                raise ValueError("fewer pixels than announced")
            offset, unread = offset + num_read, unread[num_read:]
        if offset > _KEPT_BLOCK_BYTES:
            os.ftruncate(self._block_fd, 0)
        return image

    def _cpu_s(self) -> float:
        """Processor seconds that the child has used; 0 where the system does not tell (ended, or not Linux)."""
        try:
            return time.clock_gettime((~self.process.pid << 3) | 2)  # Linux's id of the process's CPU clock
        except OSError:
            return 0.0

    def _cause_of_death(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self.process.wait(timeout=5.0)
            return f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return "closed its connection"

    def end(self) -> None:
        """Kills the child, waits for its end and frees its shared block. A second call does nothing."""
        self.process.kill()
        self.process.wait()
        self._socket.close()
        if self._block_fd >= 0:
            os.close(self._block_fd)
            self._block_fd = -1


def _anonymous_block() -> int:
    """A descriptor of anonymous memory, which the kernel frees when the last process that holds it ends."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("maskfleet-decode")
    with tempfile.TemporaryFile() as unnamed:
        return os.dup(unnamed.fileno())
