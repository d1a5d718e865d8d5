"""Progress of a bulk run, counted in images: shard counters in the workers, their sum and rates for the driver.

Workers send what they have counted without waiting, at most twice a second, so that counting costs the work nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from pipeline.bulk.commit import sum_counts
from pipeline.bulk.encode import ImageResult
from pipeline.manifest import Commit
from pipeline.schema import OK

REPORT_EVERY_S = 0.5
BACKGROUND = ("fetch", "decode", "encode", "write")  # stages that run beside the worker's own thread
SILENT_AFTER_S = 60.0  # a worker that has not reported for so long is not counted


@dataclass(frozen=True)
class Progress:
    """State of a run.

    Attributes:
        num_images: images of the plan.
        num_resumed: images that earlier calls of `segment_corpus` had committed.
        statuses: images of this call, by status.
        num_instances: instances of this call.
        elapsed_s: seconds since this call began.
        num_workers: workers that reported within the last SILENT_AFTER_S.
        busy_share: share of the workers' own time in which their predictors, GPU or CPU, were at work; 0..1.
        stages_s: the workers' seconds by stage; those of BACKGROUND run beside the others.
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
        """Images with a status, those of earlier calls included."""
        return self.num_resumed + sum(self.statuses.values())

    @property
    def num_failed(self) -> int:
        """Images of this call whose status is not ok."""
        return sum(count for status, count in self.statuses.items() if status != OK)

    @property
    def images_per_s(self) -> float:
        """Images of this call per second; 0 before the first."""
        return sum(self.statuses.values()) / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def eta_s(self) -> float | None:
        """Seconds to the end at the mean speed so far; None before the first image."""
        return (self.num_images - self.num_done) / self.images_per_s if self.images_per_s else None


@dataclass(frozen=True)
class ShardReport:
    """A worker's counts of one shard so far: images by status, instances, seconds by stage, whether it is committed."""

    worker: str
    shard: int
    statuses: dict[str, int]
    num_instances: int
    stages_s: dict[str, float]
    committed: bool


class ShardCounter:
    """A worker's counts of one attempt at a shard; sends them at most twice a second, without waiting.

    Args:
        worker: the worker's name.
        send: takes a report and returns at once.
        shard: the shard's number.
        clock: seconds of the shard's stages.
    """

    def __init__(self, worker: str, send: Callable[[ShardReport], object], shard: int, clock: StageClock) -> None:
        self.worker, self.send, self.shard, self.clock = worker, send, shard, clock
        self.statuses: dict[str, int] = {}
        self.num_instances = 0
        self.sent_at = time.monotonic()

    def add(self, result: ImageResult) -> None:
        """Counts one image; sends the counts when the last report is older than REPORT_EVERY_S."""
        self.statuses[result.status] = self.statuses.get(result.status, 0) + 1
        self.num_instances += result.num_instances
        if time.monotonic() - self.sent_at > REPORT_EVERY_S:
            self.flush()

    def flush(self, committed: bool = False) -> None:
        """Sends the counts so far."""
        self.sent_at = time.monotonic()
        stages_s = dict(self.clock.seconds)
        self.send(ShardReport(self.worker, self.shard, dict(self.statuses), self.num_instances, stages_s, committed))


def report_of_commit(worker: str, commit: Commit) -> ShardReport:
    """The report of a shard that a worker finds committed: by another call, or by a worker that died afterwards."""
    num_instances = commit.instances.rows
    return ShardReport(worker, commit.shard, commit.statuses, num_instances, commit.timings_s, committed=True)


class Tally:
    """Sum of the reports of all workers of one call; each image counts once, whatever dies.

    A shard that another worker begins anew, because the first one died, replaces what the first one reported. Of a
    committed shard only one byte is kept, so memory hardly grows with the shards.
    """

    def __init__(self) -> None:
        # Of committed shards:
        self.statuses: dict[str, int] = {}
        self.stages_s: dict[str, float] = {}
        self.num_instances = 0
        self.is_committed = bytearray()  # 1 at the number of each committed shard
        self.uncommitted: dict[int, ShardReport] = {}  # the newest report of each shard that is being worked on
        self.reported_at: dict[str, float] = {}  # time.monotonic() of each worker's newest report

    def take(self, report: ShardReport) -> bool:
        """Takes a worker's newest report; returns whether it is the first that says that its shard is committed."""
        self.reported_at[report.worker] = time.monotonic()
        self.is_committed.extend(bytes(max(0, report.shard + 1 - len(self.is_committed))))
        if self.is_committed[report.shard]:
            return False
        self.uncommitted[report.shard] = report
        if report.committed:
            del self.uncommitted[report.shard]
            self.is_committed[report.shard] = 1
            self.statuses = sum_counts([self.statuses, report.statuses])
            self.stages_s = sum_counts([self.stages_s, report.stages_s])
            self.num_instances += report.num_instances
        return report.committed

    def progress(self, num_images: int, num_resumed: int, elapsed_s: float) -> Progress:
        """The run's state by the reports so far; the arguments are what the workers do not know."""
        now = time.monotonic()
        reports = list(self.uncommitted.values())
        stages_s = sum_counts([self.stages_s, *(report.stages_s for report in reports)])
        foreground_s = sum(seconds for stage, seconds in stages_s.items() if stage not in BACKGROUND)
        return Progress(
            num_images,
            num_resumed,
            statuses=sum_counts([self.statuses, *(report.statuses for report in reports)]),
            num_instances=self.num_instances + sum(report.num_instances for report in reports),
            elapsed_s=elapsed_s,
            num_workers=sum(now - reported_at < SILENT_AFTER_S for reported_at in self.reported_at.values()),
            busy_share=stages_s.get("predict", 0.0) / foreground_s if foreground_s else 0.0,
            stages_s=stages_s,
        )


class StageClock:
    """Seconds spent in each stage of a shard; thread-safe."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._lock = threading.Lock()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Counts the wall time of the `with` block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - start)

    def add(self, stage: str, seconds: float) -> None:
        """Adds seconds that were measured elsewhere."""
        with self._lock:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
