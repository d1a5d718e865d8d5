"""Queue of the shards in a worker: one is segmented while the one before it is written, and no more are in memory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

SHARDS_AT_ONCE = 2  # one is segmented while the one before it is written

Segmented = TypeVar("Segmented")
Written = TypeVar("Written")


class ShardAborted(RuntimeError):
    """A shard was given up because another shard of the same worker failed."""


class ShardQueue:
    """Shards of a worker, each in a thread of its own: segmented one at a time, in the order they come, then written.

    At most SHARDS_AT_ONCE shards are segmented or written at any moment. All segmenting is done by one thread, because
    torch and CUDA keep buffers for each thread that computes. The first exception ends the queue: the shard that is
    segmented stops at its next `check`, the one that is written is still written, those that wait are given up.
    """

    def __init__(self) -> None:
        self._segmenting = ThreadPoolExecutor(1, thread_name_prefix="segment")
        self._changed = threading.Condition()
        self._num_writing = 0  # shards that are segmented and not written yet
        self._failure: BaseException | None = None

    def process(self, segment: Callable[[], Segmented], write: Callable[[Segmented], Written]) -> Written:
        """Segments a shard when those before it are segmented, and writes it; returns what `write` returns.

        Raises:
            ShardAborted: another shard failed.
            Exception: what `segment` or `write` raised.
        """
        segmented = self._segmenting.submit(self._segment, segment).result()
        try:
            return write(segmented)
        except BaseException as error:
            self._fail(error)
            raise
        finally:
            with self._changed:
                self._num_writing -= 1
                self._changed.notify_all()

    def check(self) -> None:
        """Raises ShardAborted when another shard has failed; a long `segment` calls it between two images."""
        if self._failure is not None:
            raise ShardAborted(f"another shard of this worker failed: {self._failure}") from self._failure

    def wait_until_written(self) -> None:
        """Waits, within `segment`, until every shard before this one is written. Raises ShardAborted as `check`."""
        self._wait(0)

    def _segment(self, segment: Callable[[], Segmented]) -> Segmented:
        self._wait(SHARDS_AT_ONCE - 1)
        try:
            segmented = segment()
        except BaseException as error:
            self._fail(error)
            raise
        with self._changed:
            self._num_writing += 1
        return segmented

    def _wait(self, num_writing: int) -> None:
        """Waits until no more than this many shards are being written."""
        with self._changed:
            self._changed.wait_for(lambda: self._failure is not None or self._num_writing <= num_writing)
            self.check()

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()
