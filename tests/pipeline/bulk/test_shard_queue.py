"""The queue of a worker's shards: their order, how many are held at a time, and how a failure ends them all."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from pipeline.bulk.shard_queue import SHARDS_AT_ONCE, ShardAborted, ShardQueue

PATIENCE_S = 20.0


@pytest.fixture
def callers() -> Iterator[ThreadPoolExecutor]:
    """Threads that bring shards, as Ray's do."""
    with ThreadPoolExecutor(6) as executor:
        yield executor


class Held:
    """Counts the shards that are segmented or being written; the most at any moment is `most`."""

    def __init__(self) -> None:
        self.lock, self.count, self.most = threading.Lock(), 0, 0

    def add(self, change: int) -> None:
        with self.lock:
            self.count += change
            self.most = max(self.most, self.count)


def wait_until_begun(began: threading.Event) -> None:
    assert began.wait(PATIENCE_S)


def test_shards_are_segmented_in_the_order_they_come_and_all_are_written(callers: ThreadPoolExecutor) -> None:
    queue, segmented, held = ShardQueue(), list[int](), Held()

    def segment(shard: int) -> int:
        held.add(1)
        segmented.append(shard)
        time.sleep(0.002)
        return shard

    def write(shard: int) -> int:
        time.sleep(0.005 * (shard % 3))
        held.add(-1)
        return 10 * shard

    futures: list[Future[int]] = []
    for shard in range(20):
        futures.append(callers.submit(queue.process, lambda shard=shard: segment(shard), write))
        time.sleep(0.001)
    assert [future.result(PATIENCE_S) for future in futures] == [10 * shard for shard in range(20)]
    assert segmented == list(range(20))
    assert held.most <= SHARDS_AT_ONCE, "the results of more than two shards in memory"


def test_a_shard_is_segmented_while_the_one_before_it_is_written(callers: ThreadPoolExecutor) -> None:
    queue, second_began, first_was_written = ShardQueue(), threading.Event(), threading.Event()

    def write_first(_: object) -> None:
        wait_until_begun(second_began)
        first_was_written.set()

    first = callers.submit(queue.process, lambda: None, write_first)
    second = callers.submit(queue.process, second_began.set, lambda _: None)
    first.result(PATIENCE_S), second.result(PATIENCE_S)
    assert first_was_written.is_set()


def test_a_third_shard_waits_while_two_are_written(callers: ThreadPoolExecutor) -> None:
    queue, release, third_began = ShardQueue(), threading.Event(), threading.Event()
    writing = [callers.submit(queue.process, lambda: None, lambda _: release.wait(PATIENCE_S)) for _ in range(2)]
    third = callers.submit(queue.process, third_began.set, lambda _: None)
    assert not third_began.wait(0.2)
    release.set()
    for future in writing:
        assert future.result(PATIENCE_S)
    third.result(PATIENCE_S)
    assert third_began.is_set()


def test_a_careful_shard_waits_until_those_before_it_are_written(callers: ThreadPoolExecutor) -> None:
    queue, order = ShardQueue(), list[str]()

    def write_slowly(_: object) -> None:
        time.sleep(0.1)
        order.append("written")

    def segment_carefully() -> None:
        queue.wait_until_written()
        order.append("careful")

    first = callers.submit(queue.process, lambda: None, write_slowly)
    time.sleep(0.02)
    second = callers.submit(queue.process, segment_carefully, lambda _: None)
    first.result(PATIENCE_S), second.result(PATIENCE_S)
    assert order == ["written", "careful"]


def test_a_failure_of_segmenting_lets_the_write_end_and_gives_up_what_waits(callers: ThreadPoolExecutor) -> None:
    queue, second_failed, written = ShardQueue(), threading.Event(), list[int]()

    def write_first(_: object) -> None:
        wait_until_begun(second_failed)
        written.append(1)

    def fail() -> int:
        second_failed.set()
        raise OSError("the store is gone")

    first = callers.submit(queue.process, lambda: None, write_first)
    second = callers.submit(queue.process, fail, written.append)
    with pytest.raises(OSError, match="the store is gone"):
        second.result(PATIENCE_S)
    third = callers.submit(queue.process, lambda: 3, written.append)
    with pytest.raises(ShardAborted, match="the store is gone"):
        third.result(PATIENCE_S)
    first.result(PATIENCE_S)
    assert written == [1]


def test_a_failure_of_writing_stops_the_shard_that_is_segmented(callers: ThreadPoolExecutor) -> None:
    queue, second_began = ShardQueue(), threading.Event()

    def fail(_: object) -> None:
        wait_until_begun(second_began)
        raise OSError("no space left")

    def segment_for_ever() -> None:
        second_began.set()
        while True:
            queue.check()
            time.sleep(0.001)

    first = callers.submit(queue.process, lambda: None, fail)
    second = callers.submit(queue.process, segment_for_ever, lambda _: None)
    with pytest.raises(OSError, match="no space left"):
        first.result(PATIENCE_S)
    with pytest.raises(ShardAborted, match="no space left"):
        second.result(PATIENCE_S)
