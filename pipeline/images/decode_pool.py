"""Decoding that cannot be harmed: files to pixels in child processes with limits of memory and time.

    with DecodePool(num_children=4, limits=DecodeLimits()) as pool:
        decoded = pool.submit(data).result()   # pixels, or a status and a reason; bad data never raises

A decoder written in C may crash, hang or eat memory on a hostile file; that ends a child and costs one image.
The children are started as fresh programs (never forked from a process that holds torch, Ray or CUDA), import
only Pillow, and go with their parent. Pixels come back through one nameless block of shared memory for each
child: no file in /dev/shm, nothing left over whoever is killed.

A verdict that blames an image (`decoder_crashed`, `timeout`, out of memory) is given only by a child that has
decoded nothing else: a file that quietly damages a decoder cannot spoil the next one, and the same bytes get
the same answer every time.
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

import numpy as np

from pipeline import malloc
from pipeline.images.decode_child import ANSWER_BYTES, REQUEST, Request
from pipeline.images.decode_image import FORMATS, STATUSES, DecodeLimits, Outcome, decode_image

__all__ = ["FORMATS", "STATUSES", "DecodeLimits", "DecodePool", "Decoded"]

_START_S = 180.0
_PATIENCE = 4
"""How many times `timeout_s` may pass by the clock, on a machine too busy to give a child its share."""
_KEPT_BLOCK_BYTES = 64 << 20
_HOME = str(Path(__file__).resolve().parents[2])  # the folder that holds pipeline/
# With -P the current folder is not on the child's import path; the folder of this very package is.
_PROGRAM = (
    "import sys; home = sys.argv.pop(1); home in sys.path or sys.path.insert(0, home); "
    "from pipeline.images.decode_child import main; main()"
)
"""A child's block of shared memory, and its heap, keep about this much between images."""


@dataclass(frozen=True)
class Decoded:
    """What became of one file.

    Attributes:
        status: "ok", "too_large", "unsupported_format", "corrupt", "decoder_crashed" or "timeout".
        error: the reason in words, None when ok.
        image: upright (after the EXIF turn), the caller's own; uint8 [H, W, 3], RGB, 0..255, where three bands were
            asked for, else float32 [H, W, C] as `pipeline.images.pixels.to_unit` gives them. None unless ok.
        height, width: of the upright original in pixels; None where a failed file does not tell. They differ
            from the shape of `image` only when `resize_to` was given.
        exif_orientation: 1..8 as the file states it, None where it states none.
    """

    status: str
    error: str | None
    image: np.ndarray | None
    height: int | None
    width: int | None
    exif_orientation: int | None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the original of what is ok."""
        assert self.height is not None and self.width is not None, self.status
        return self.height, self.width


class DecodeChildError(RuntimeError):
    """Children cannot be started at all: a broken installation, not a broken image."""


class DecodePool:
    """`num_children` processes that decode. Thread-safe. The caller bounds what it has in flight."""

    def __init__(
        self,
        num_children: int,
        limits: DecodeLimits,
        *,
        decode: Callable[[bytes, DecodeLimits, tuple[int, int] | None, int | None], Outcome] = decode_image,
    ) -> None:
        """Returns at once; the children start beside it.

        Args:
            num_children: at least 1.
            limits: see `DecodeLimits`.
            decode: a function at the top of an importable module; the children import it by name.
        """
        if num_children < 1:
            raise ValueError(f"num_children is {num_children}; it must be at least 1")
        self._limits = limits
        self._decode = f"{decode.__module__}:{decode.__qualname__}"
        self._jobs: queue.SimpleQueue = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self.busy_s = 0.0  # seconds that the children have spent on files, added up
        self._children: set[_Child] = set()
        self._threads = [
            threading.Thread(target=self._serve, name=f"decode-{i}", daemon=True) for i in range(num_children)
        ]
        for thread in self._threads:
            thread.start()

    def submit(
        self, data: bytes, *, resize_to: tuple[int, int] | None = None, num_bands: int | None = 3
    ) -> Future[Decoded]:
        """The decoded image, some time later. Bad data is a status, never an exception.

        Args:
            data: the whole file; must stay unchanged until the result is there.
            resize_to: short and long side in pixels that the caller will resize the picture to, see `decode_image`: a
                JPEG may then come back at a half, a quarter or an eighth of its size, never smaller than that.
            num_bands: 3 is RGB of whatever there is; any other number are the file's own bands, which must be as
                many; None takes those there are.

        Raises:
            RuntimeError: the pool is closed.
        """
        future: Future[Decoded] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("the decode pool is closed")
            self._jobs.put((future, (data, resize_to, num_bands)))
        return future

    def close(self) -> None:
        """Ends the children now. Futures that are not done raise CancelledError. Closing twice is nothing."""
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
        """One thread for each child (on Linux it dies with this thread): start it, feed it, replace it."""
        child: _Child | None = None
        try:
            with contextlib.suppress(DecodeChildError, OSError):  # told to the first image instead
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
        """The verdict on one file, and the child to go on with (None when it has to be replaced)."""
        if len(request[0]) > self._limits.max_bytes:
            error = f"the file has {len(request[0])} bytes; at most {self._limits.max_bytes} are allowed"
            return Decoded("too_large", error, None, None, None, None), child
        while True:
            if child is not None and child.process.poll() is not None:  # ended while it had nothing to do
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


class _ChildFailed(Exception):
    """The child died or had to be killed over this image."""

    def __init__(self, status: str, error: str) -> None:
        super().__init__(error)
        self.status, self.error = status, error


class _Child:
    """One decode process, its socket and its block of shared memory."""

    def __init__(self, limits: DecodeLimits, decode: str) -> None:
        self.num_decoded = 0
        self._timeout_s, self._max_pixels = limits.timeout_s, limits.max_pixels
        self._block_fd = _anonymous_block()
        self._socket, theirs = socket.socketpair()
        settings = {
            "parent_pid": os.getpid(),
            "socket_fd": theirs.fileno(),
            "block_fd": self._block_fd,
            "limits": dataclasses.asdict(limits),
            "decode": decode,
        }
        environment = {
            **os.environ,
            # Each thread and each arena of malloc would take address space, more of it on machines with more cores.
            "OPENBLAS_NUM_THREADS": "1",
            # Memory is kept from image to image: to fault it in anew took as long as to decode a small JPEG (ran).
            **malloc.environment(arena_max=1, mmap_threshold=_KEPT_BLOCK_BYTES // 2, trim_threshold=_KEPT_BLOCK_BYTES),
        }
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM, _HOME, json.dumps(settings)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # C libraries print their warnings; the reasons come back as words
                pass_fds=(theirs.fileno(), self._block_fd),
                env=environment,
            )
        except BaseException:
            self._socket.close()
            os.close(self._block_fd)
            raise
        finally:
            theirs.close()

    def wait_until_ready(self) -> None:
        try:
            answer = self._receive(lambda: _START_S)
        except (_ChildFailed, TimeoutError) as failure:
            raise DecodeChildError(f"a decode child did not start: {failure}") from None
        if answer.get("status") != "ready":
            raise DecodeChildError(f"a decode child did not start: {answer.get('error')}")

    def decode(self, request: Request) -> tuple[Decoded, bool]:
        """The verdict and whether the child can go on. Raises _ChildFailed when it cannot even give one."""
        data, resize_to, num_bands = request
        cpu_before_s, started_s = self._cpu_s(), time.monotonic()

        def seconds_left() -> float:
            wall_s = time.monotonic() - started_s
            cpu_s = min(self._cpu_s() - cpu_before_s, wall_s)
            return min(self._timeout_s - cpu_s, _PATIENCE * self._timeout_s - wall_s)

        try:
            self._socket.settimeout(_PATIENCE * self._timeout_s)
            self._socket.sendall(REQUEST.pack(len(data), *(resize_to or (0, 0)), num_bands or 0))
            self._socket.sendall(data)
            answer = self._receive(seconds_left)
            self.num_decoded += 1
            return self._decoded(answer, num_bands), not answer.get("out_of_memory")
        except TimeoutError:
            raise _ChildFailed("timeout", f"not decoded in {self._timeout_s:g} s") from None
        except OSError:  # a broken pipe
            raise _ChildFailed("decoder_crashed", f"the decoder {self._cause_of_death()}") from None
        except (ValueError, KeyError, TypeError):
            raise _ChildFailed("decoder_crashed", "the decoder gave an answer without sense") from None

    def _receive(self, seconds_left: Callable[[], float]) -> dict:
        """The next answer. Raises TimeoutError, or _ChildFailed when the child is gone."""
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
        answer = json.loads(received)
        if not isinstance(answer, dict):
            raise ValueError("the answer is no object")
        return answer

    def _decoded(self, answer: dict, num_bands: int | None) -> Decoded:
        image = None
        if answer["status"] == "ok":
            height, width, count = map(int, answer["shape"])
            wanted = "uint8" if num_bands == 3 else "float32"
            if not 0 < height * width <= self._max_pixels or count != (num_bands or count) or answer["dtype"] != wanted:
                raise ValueError("no such picture")
            image = self._pixels((height, width, count), wanted, int(answer["offset"]))
        elif answer["status"] not in STATUSES:
            raise ValueError("no such status")
        return Decoded(
            answer["status"],
            answer.get("error"),
            image,
            answer.get("height"),
            answer.get("width"),
            answer.get("exif_orientation"),
        )

    def _pixels(self, shape: tuple[int, int, int], dtype: str, offset: int) -> np.ndarray:
        """A copy of the block's pixels, made by the kernel without holding Python's lock."""
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
        """Processor seconds the child has used; 0 where the system does not tell (ended, or not Linux)."""
        try:
            return time.clock_gettime((~self.process.pid << 3) | 2)  # the kernel's id of that clock
        except OSError:
            return 0.0

    def _cause_of_death(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self.process.wait(timeout=5.0)
            return f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return "closed its connection"

    def end(self) -> None:
        """Kills the child, takes away its zombie, frees its block. Twice is nothing."""
        self.process.kill()
        self.process.wait()
        self._socket.close()
        if self._block_fd >= 0:
            os.close(self._block_fd)
            self._block_fd = -1


def _anonymous_block() -> int:
    """A descriptor of memory without a name: the kernel frees it with its last holder, however that ends."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("maskfleet-decode")
    with tempfile.TemporaryFile() as unnamed:
        return os.dup(unnamed.fileno())
