"""How far a run is, counted in images, at no cost to the work itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pipeline.bulk.commit import add_up
from pipeline.bulk.encode import ImageResult
from pipeline.manifest import Commit
from pipeline.schema import OK

REPORT_EVERY_S = 0.5
BACKGROUND = ("fetch", "decode", "encode", "write")  # stages that go on beside the worker's own thread
SILENT_AFTER_S = 60.0  # a worker not heard of for so long does not count as one


@dataclass(frozen=True)
class Progress:
    """Where a run stands: images planned, done before this call, and by status in this call; instances; seconds.

    `num_workers` is how many workers reported lately, `busy_share` the share of their time in which their predictors,
    GPU or CPU, were at work, `stages_s` the workers' seconds by stage (BACKGROUND ones beside the others).
    """

    num_images: int
    num_resumed: int
    statuses: dict[str, int]
    num_instances: int
    elapsed_s: float
    num_workers: int = 0
    busy_share: float = 0.0
    stages_s: dict[str, float] = field(default_factory=dict)

    @property
    def num_done(self) -> int:
        """Images with a row, those of earlier calls too."""
        return self.num_resumed + sum(self.statuses.values())

    @property
    def num_failed(self) -> int:
        """Images of this call whose status is not ok."""
        return sum(count for status, count in self.statuses.items() if status != OK)

    @property
    def images_per_s(self) -> float:
        """Images of this call a second; 0 before the first."""
        return sum(self.statuses.values()) / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def eta_s(self) -> float | None:
        """Seconds to the end at the speed so far; None before the first image."""
        return (self.num_images - self.num_done) / self.images_per_s if self.images_per_s else None


@dataclass(frozen=True)
class ShardReport:
    """What a worker says about the shard it is at: all its counts so far, seconds by stage, whether it is committed."""

    worker: str
    shard: int
    statuses: dict[str, int]
    num_instances: int
    stages_s: dict[str, float]
    committed: bool


class ShardCounter:
    """A worker's counts of a shard that it begins, or begins anew, sent on at most twice a second, without waiting.

    Args:
        worker: the worker's name.
        send: takes a report.
        shard, clock: the shard, and the time its stages take.
    """

    def __init__(self, worker: str, send: Callable[[ShardReport], object], shard: int, clock: StageClock) -> None:
        self.worker, self.send, self.shard, self.clock = worker, send, shard, clock
        self.statuses: dict[str, int] = {}
        self.num_instances = 0
        self.sent_at = time.monotonic()

    def add(self, result: ImageResult) -> None:
        """Counts one image."""
        self.statuses[result.status] = self.statuses.get(result.status, 0) + 1
        self.num_instances += result.num_instances
        if time.monotonic() - self.sent_at > REPORT_EVERY_S:
            self.flush()

    def flush(self, committed: bool = False) -> None:
        """Sends what there is."""
        self.sent_at = time.monotonic()
        stages_s = dict(self.clock.seconds)
        self.send(ShardReport(self.worker, self.shard, dict(self.statuses), self.num_instances, stages_s, committed))


def report_of(worker: str, commit: Commit) -> ShardReport:
    """Of a shard that was committed already: by another call, or by a worker that died on its way back."""
    rows = commit.instances.rows
    return ShardReport(worker, commit.shard, commit.statuses, rows, commit.timings_s, committed=True)


class Tally:
    """What all workers of a call have reported, added up; of a committed shard one byte is kept.

    A shard that is begun anew, because its worker died, reports anew and takes the place of what it had reported.
    """

    def __init__(self) -> None:
        self.committed: dict[str, int] = {}
        self.stages_s: dict[str, float] = {}
        self.num_instances = 0
        self.shards = bytearray()  # 1 at the number of each committed shard
        self.open: dict[int, ShardReport] = {}
        self.heard: dict[str, float] = {}

    def take(self, report: ShardReport) -> bool:
        """Takes one worker's newest words; returns whether they say for the first time that a shard is committed."""
        self.heard[report.worker] = time.monotonic()
        self.shards.extend(bytes(max(0, report.shard + 1 - len(self.shards))))
        if self.shards[report.shard]:
            return False
        self.open[report.shard] = report
        if report.committed:
            del self.open[report.shard]
            self.shards[report.shard] = 1
            self.committed = add_up([self.committed, report.statuses])
            self.stages_s = add_up([self.stages_s, report.stages_s])
            self.num_instances += report.num_instances
        return report.committed

    def counts(self) -> dict[str, Any]:
        """The fields of `Progress` that workers know."""
        now = time.monotonic()
        open_ = list(self.open.values())
        stages_s = add_up([self.stages_s, *(report.stages_s for report in open_)])
        spent_s = sum(seconds for stage, seconds in stages_s.items() if stage not in BACKGROUND)
        return {
            "statuses": add_up([self.committed, *(report.statuses for report in open_)]),
            "num_instances": self.num_instances + sum(report.num_instances for report in open_),
            "num_workers": sum(now - heard < SILENT_AFTER_S for heard in self.heard.values()),
            "busy_share": stages_s.get("predict", 0.0) / spent_s if spent_s else 0.0,
            "stages_s": stages_s,
        }


class StageClock:
    """Seconds spent in each stage of a shard; several threads may count at once."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._lock = threading.Lock()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - start)

    def add(self, stage: str, seconds: float) -> None:
        """Counts what was measured elsewhere."""
        with self._lock:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
