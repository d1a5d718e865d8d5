"""Actors of a bulk run: `ShardWorker` segments shards and commits them, `ProgressBoard` counts what they report."""

from __future__ import annotations

import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.util.metrics import Counter, Gauge

from pipeline import malloc
from pipeline.bulk.attempts import Attempt, begin_attempt
from pipeline.bulk.commit import (
    add_up,
    commit_shard,
    read_commit,
    write_table,
)
from pipeline.bulk.corpus import Plan
from pipeline.bulk.encode import ImageResult, encode_instances, to_parquet, to_tables, warm_up
from pipeline.bulk.fetch import load_image, loading_of, map_ahead
from pipeline.bulk.listing import PlannedImage
from pipeline.bulk.predict import ImagePredictor
from pipeline.bulk.progress import ShardCounter, ShardReport, StageClock, Tally, report_of
from pipeline.bulk.repair import Repair, merge_tables, read_shard_tables
from pipeline.bulk.slices import Slicing
from pipeline.images.decode_pool import Decoded, DecodeLimits, DecodePool
from pipeline.manifest import TABLES, Commit, open_run
from pipeline.storage.base import StorageSettings
from pipeline.storage.stores import open_storage, use_settings

SHARDS_AT_ONCE = 2  # in an actor: one is segmented while the one before it is written


WINDOW_BATCHES = 4  # batches an actor decodes ahead of its predictor, and from which it picks images of one size


@dataclass(frozen=True, kw_only=True)
class BulkJob:
    """What a run is (`spec`, hashed into its id) and how this machine goes about it (everything else).

    Attributes:
        spec: corpus, model, thresholds and limits, as they stand in run.json.
        metadata: what every Parquet file says about itself.
        checkpoint: folder of the model's checkpoint, the same on every node, or its URI in a bucket.
        shard_size: images a shard; None chooses by the size of the corpus. Ignored once the plan is sealed.
        batch_size: images a network call, at most.
        num_workers: actors at least and at most.
        cpus_per_worker, gpus_per_worker: what an actor reserves.
        decode_children: decoding processes beside each actor.
        storage: how an actor reaches buckets.
        longest_shard_s: no shard takes longer; Ray gives a run up that shows no progress for this long.
        predictor: what makes an actor's predictor; called as ImagePredictor is.
    """

    output_uri: str
    spec: dict[str, Any]
    metadata: dict[str, str]
    checkpoint: str
    limits: DecodeLimits
    shard_size: int | None
    batch_size: int
    num_workers: tuple[int, int]
    cpus_per_worker: float
    gpus_per_worker: float
    decode_children: int
    storage: StorageSettings | None = None
    longest_shard_s: int = 3600
    predictor: Callable[..., ImagePredictor] = ImagePredictor


class ShardWorker:
    """One actor: takes shard numbers, leaves commits."""

    def __init__(self, job: BulkJob, run_id: str, plan: Plan, board: Any, driver: str) -> None:
        self.job, self.run_id, self.plan, self.driver = job, run_id, plan, driver
        use_settings(job.storage)
        self.output = open_storage(job.output_uri)
        self.name, self.send = uuid.uuid4().hex[:12], board.take.remote
        self.turns = ThreadPoolExecutor(1, thread_name_prefix="segment")
        self.num_writing, self.writing_changed = 0, threading.Condition()
        self.pool = DecodePool(job.decode_children, job.limits)
        self.loaders = ThreadPoolExecutor(job.decode_children + 2, thread_name_prefix="load")
        self.encoder = ThreadPoolExecutor(1, thread_name_prefix="encode")
        self.load = partial(load_image, self.pool, job.limits, **loading_of(job.spec))
        warm_up()
        slicing = job.spec["segment"]["slice"]
        self.slicing = None if slicing is None else Slicing(**slicing)
        self.predictor = job.predictor(
            job.checkpoint,
            sha256=job.spec["model"]["sha256"],
            score_threshold=job.spec["segment"]["score_threshold"],
            max_detections=job.spec["segment"]["max_detections"],
            batch_size=job.batch_size,
            precision=job.spec["segment"]["precision"],
            device="cuda" if job.gpus_per_worker else "cpu",
            num_threads=None if job.gpus_per_worker else max(1, int(job.cpus_per_worker)),
            slicing=self.slicing,
            mask_threshold=job.spec["segment"]["mask_threshold"],
        )
        malloc.give_back_holes()  # of the weights as they were read

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        for shard in batch["shard"].tolist():
            commit = read_commit(self.output, shard)
            if commit is None:
                self.segment_shard(shard)
            else:
                self.send(report_of(self.name, commit))
        return {"shard": batch["shard"]}

    def segment_shard(self, shard: int) -> Commit:
        """Segments in its turn, writes both tables, commits."""
        attempt, counter, results = self.turns.submit(self.attempt_shard, shard).result()
        try:
            return self.write_shard(shard, attempt, counter, results)
        finally:
            self.count_writing(-1)

    def write_shard(self, shard: int, attempt: Attempt, counter: ShardCounter, results: list[ImageResult]) -> Commit:
        """Both tables, then the commit."""
        clock = counter.clock
        with clock("write"):
            tables = dict(zip(TABLES, self.tables_of(shard, results)))
            files = {
                name: write_table(
                    self.output, name, shard, attempt.name, to_parquet(table, self.job.metadata), table.num_rows
                )
                for name, table in tables.items()
            }
        statuses = add_up({status: 1} for status in tables["images"]["status"].to_pylist())
        commit = commit_shard(
            self.output,
            Commit(self.run_id, shard, attempt.name, **files, statuses=statuses, timings_s=clock.seconds),
        )
        counter.flush(committed=True)
        return commit

    def attempt_shard(self, shard: int) -> tuple[Attempt, ShardCounter, list[ImageResult]]:
        """Notes the attempt and segments; of the shards that an actor has at once, one at a time.

        A careful one also waits until the shard before it is written: a death is then no other shard's.
        """
        attempt = begin_attempt(self.output, shard, uuid.uuid4().hex[:12], self.driver)
        images, clock, results = self.images_of(shard), StageClock(), []
        counter = ShardCounter(self.name, self.send, shard, clock)
        if attempt.careful:
            with self.writing_changed:
                self.writing_changed.wait_for(lambda: self.num_writing == 0)
        found = self.segment_carefully(images, clock, attempt) if attempt.careful else self.segment(images, clock)
        for result in found:
            results.append(result)
            counter.add(result)
        self.count_writing(1)
        return attempt, counter, results

    def count_writing(self, change: int) -> None:
        """Notes that so many shards more, or fewer, are between their turn and their commit."""
        with self.writing_changed:
            self.num_writing += change
            self.writing_changed.notify_all()

    def images_of(self, shard: int) -> list[PlannedImage]:
        """What is to be segmented of a shard: all of it."""
        return self.plan.read_shard(shard)

    def tables_of(self, shard: int, results: list[ImageResult]) -> tuple[pa.Table, pa.Table]:
        """The shard's two tables."""
        return to_tables(results, shard=shard, run_id=self.run_id)

    def segment(self, images: list[PlannedImage], clock: StageClock) -> Iterator[ImageResult]:
        """The results of a shard's images, in order.

        They are predicted window by window; a window is a fixed run of the shard, so that how images are batched is
        a function of the shard alone. A window's masks are encoded while the next one is predicted.
        """
        window = self.job.batch_size * WINDOW_BATCHES
        load, busy_s = partial(self.load, clock=clock), self.pool.busy_s
        loaded = zip(images, map_ahead(self.loaders, load, images, lookahead=window))
        encoding: deque[Future[list[ImageResult]]] = deque()
        while True:
            with clock("wait_for_images"):
                taken = list(islice(loaded, window))
            if taken:
                with clock("predict"):
                    pixels = [found.image for _, found in taken if found.image is not None]
                    sizes = [found.size for _, found in taken if found.image is not None]
                    predictions = self.predictor.predict(pixels, sizes)
                encoding.append(self.encoder.submit(self.results, taken, predictions, clock))
            while len(encoding) > (1 if taken else 0):
                with clock("wait_for_encoding"):
                    results = encoding.popleft().result()
                yield from results
            if not taken:
                clock.add("decode", self.pool.busy_s - busy_s)
                return

    def results(
        self, taken: list[tuple[PlannedImage, Decoded]], predictions: list[Any], clock: StageClock
    ) -> list[ImageResult]:
        """A window's results."""
        with clock("encode"):
            left = iter(predictions)
            return [self.result(image, found, None if found.image is None else next(left)) for image, found in taken]

    def segment_carefully(
        self, images: list[PlannedImage], clock: StageClock, attempt: Attempt
    ) -> Iterator[ImageResult]:
        """The same, one image at a time and each noted first: what kills this worker is known to the next."""
        for place, image in enumerate(images):
            if place in attempt.deadly:
                yield ImageResult(image, "predict_failed", "the worker that touched it died, more than once")
                continue
            attempt.note(place)
            yield from self.segment([image], clock)
        attempt.note()

    def result(self, image: PlannedImage, found: Decoded, prediction: Any) -> ImageResult:
        """One image's row, and its instances where there was something to predict on and the network was able to."""
        result = ImageResult(image, found.status, found.error, found.height, found.width, found.exif_orientation)
        if isinstance(prediction, str):
            result.status, result.error = "predict_failed", prediction
        elif prediction is not None and found.image is not None:
            result.instances = encode_instances(
                prediction,
                self.predictor.categories,
                found.size,
                mask_threshold=self.job.spec["segment"]["mask_threshold"],
                merge_iou=1.0 if self.slicing is None else self.slicing.merge_iou,
            )
        return result


class RepairWorker(ShardWorker):
    """An actor of a repair: segments what failed of a shard, and commits the shard anew beside the run."""

    def __init__(self, repair: Repair, files: dict[int, dict[str, Any]], **settings: Any) -> None:
        super().__init__(**settings)
        self.run = open_run(self.output)
        self.repair, self.files = repair, files
        self.output = repair.storage

    def images_of(self, shard: int) -> list[PlannedImage]:
        """The images of a shard that ended with one of the repair's statuses."""
        images, _ = read_shard_tables(self.run, self.files[shard])
        ended = dict(zip(images["image_id"].to_pylist(), images["status"].to_pylist()))
        return [image for image in super().images_of(shard) if ended[image.image_id] in self.repair.statuses]

    def tables_of(self, shard: int, results: list[ImageResult]) -> tuple[pa.Table, pa.Table]:
        """The whole shard: the rows that were right, and those that came out now."""
        return merge_tables(read_shard_tables(self.run, self.files[shard]), super().tables_of(shard, results))


@ray.remote(num_cpus=0)
class ProgressBoard:
    """Where workers say how far they are; also as metrics of Ray's, which Prometheus reads from every node."""

    def __init__(self, run_id: str, num_images: int) -> None:
        self.tally = Tally()
        run = {"run_id": run_id}
        self.num_images = num_images
        self.planned = Gauge("maskfleet_planned_images", "Images of the run.", ("run_id",))
        self.images = Counter("maskfleet_images", "Images committed, by status.", ("run_id", "status"))
        self.instances = Counter("maskfleet_instances", "Instances committed.", ("run_id",))
        self.seconds = Counter("maskfleet_stage_seconds", "Time of the workers, by stage.", ("run_id", "stage"))
        for metric in (self.planned, self.images, self.instances, self.seconds):
            metric.set_default_tags(run)
        self.planned.set(num_images)

    def take(self, report: ShardReport) -> None:
        """Counts a report of a worker, once."""
        if not self.tally.take(report):
            return
        counted: list[tuple[Counter, dict[str, str], float]]
        counted = [(self.images, {"status": status}, count) for status, count in report.statuses.items()]
        counted += [(self.seconds, {"stage": stage}, seconds) for stage, seconds in report.stages_s.items()]
        for counter, tags, value in [*counted, (self.instances, {}, report.num_instances)]:
            if value > 0:  # Ray refuses to count nothing
                counter.inc(value, tags)

    def counts(self) -> dict[str, Any]:
        """The counts so far, as `Progress` takes them."""
        self.planned.set(self.num_images)  # Ray forgets a gauge that nobody sets for some time
        return self.tally.counts()
