"""How far a run is, counted in images, at no cost to the work itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pipeline.bulk.commit import add_up
from pipeline.bulk.encode import ImageResult
from pipeline.schema import OK

REPORT_EVERY_S = 0.5


@dataclass(frozen=True)
class Progress:
    """Where a run stands: images planned, done before this call, and by status in this call; instances; seconds."""

    num_images: int
    num_resumed: int
    statuses: dict[str, int]
    num_instances: int
    elapsed_s: float

    @property
    def num_done(self) -> int:
        return self.num_resumed + sum(self.statuses.values())

    @property
    def num_failed(self) -> int:
        return sum(count for status, count in self.statuses.items() if status != OK)

    @property
    def images_per_s(self) -> float:
        return sum(self.statuses.values()) / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def eta_s(self) -> float | None:
        return (self.num_images - self.num_done) / self.images_per_s if self.images_per_s else None


class ShardCounter:
    """A worker's counts of the shard it is at, sent on at most twice a second, without waiting.

    Args:
        send: takes the shard and all its counts so far; a shard begun anew overwrites its own, so nothing counts twice.
    """

    def __init__(self, send: Callable[[int, dict[str, int]], object]) -> None:
        self.send = send
        self.shard = -1
        self.counts: dict[str, int] = {}
        self.sent_at = 0.0

    def add(self, shard: int, result: ImageResult) -> None:
        """Counts one image."""
        if shard != self.shard:
            self.shard, self.counts = shard, {}
        self.counts = add_up([self.counts, {result.status: 1, "instances": result.num_instances}])
        if time.monotonic() - self.sent_at > REPORT_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Sends what there is."""
        self.sent_at = time.monotonic()
        self.send(self.shard, dict(self.counts))


class StageClock:
    """Seconds spent in each stage of a shard."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
