"""Workers of a bulk run, Ray actors: `ShardWorker` segments shards and commits them, `RepairWorker` those of a repair.

`BulkJob` is what the driver (`pipeline.bulk.run`) and every actor are given: the run's specification and how this
machine goes about it.
"""

from __future__ import annotations

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
from ray.actor import ActorHandle

from pipeline import malloc
from pipeline.bulk.attempts import Attempt, begin_attempt
from pipeline.bulk.commit import commit_shard, read_commit, sum_counts, write_table
from pipeline.bulk.corpus import Plan
from pipeline.bulk.encode import ImageResult, encode_instances, to_parquet, to_tables, warm_up
from pipeline.bulk.fetch import ImageLoader, map_ahead
from pipeline.bulk.listing import PlannedImage
from pipeline.bulk.predict import ImagePredictor, Prediction
from pipeline.bulk.progress import ShardCounter, ShardReport, StageClock, report_of_commit
from pipeline.bulk.repair import Repair, merge_tables, read_shard_tables
from pipeline.bulk.shard_queue import ShardAborted, ShardQueue
from pipeline.images.decode_pool import DecodeChildError, Decoded, DecodeLimits, DecodePool
from pipeline.manifest import TABLES, Commit, open_run
from pipeline.run_spec import RunSpec
from pipeline.storage.base import StorageSettings
from pipeline.storage.stores import open_storage

MAX_STARTS = 5  # of one worker in a row, each of which its process died in; the run then ends
WINDOW_BATCHES = 4  # batches an actor decodes ahead of its predictor, and from which it picks images of one size


@dataclass(frozen=True, kw_only=True)
class BulkJob:
    """Settings of a bulk run: what the run is (`spec`, hashed into its id) and how it is computed (everything else).

    Attributes:
        output_uri: the folder or bucket prefix that holds the run.
        spec: corpus, model, thresholds and limits, as they stand in run.json.
        metadata: key-value metadata of every Parquet file.
        checkpoint: folder of the model's checkpoint, the same on every node, or its URI in a bucket.
        limits: limits of decoding: bytes, pixels, time and memory of one image.
        shard_size: images in a shard; None chooses by the size of the corpus. Ignored once the plan is sealed.
        batch_size: images in one network call, at most.
        num_workers: smallest and largest number of actors.
        cpus_per_worker, gpus_per_worker: what an actor reserves.
        decode_children: decoding processes beside each actor.
        storage: endpoint, credentials and retries for buckets; None takes the environment's.
        longest_shard_s: seconds; no shard takes longer. Ray ends a run that shows no progress for this long.
        predictor: builds an actor's predictor; called as `ImagePredictor` is.
    """

    output_uri: str
    spec: RunSpec
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


@dataclass(frozen=True)
class SegmentedShard:
    """A shard that is segmented and not written: the attempt at it, its counts, the results of its images."""

    attempt: Attempt
    counter: ShardCounter
    results: list[ImageResult]


@dataclass(frozen=True, kw_only=True)
class BulkCall:
    """One call of `segment_corpus` or `repair_corpus`, as each of its actors is given it.

    Attributes:
        job: the run's settings.
        run_id: the hash of `job.spec`.
        plan: the sealed plan.
        board: handle of the call's `ProgressBoard`.
        driver: name of the call, see `pipeline.bulk.attempts`.
        repair: the repair, whose folder takes tables, commits and notes; None segments the run itself.
    """

    job: BulkJob
    run_id: str
    plan: Plan
    board: ActorHandle[Any]
    driver: str
    repair: Repair | None = None


class WorkerError(RuntimeError):
    """Why a worker cannot go on, in words for the user.

    The first argument is a tuple of the reason: to a text Ray Data would add a paragraph about its retries.
    """

    def __str__(self) -> str:
        return str(self.args[0][0])


class ShardWorker:
    """Actor that segments shards, writes their two tables and commits them; Ray Data calls it with shard numbers.

    Ray starts an actor whose process dies again and again, without end. So a worker that died in each of its last
    MAX_STARTS starts sets nothing up, and ends the run with the first shard that it is given.
    """

    def __init__(self, call: BulkCall) -> None:
        self.call, self.job = call, call.job
        self.output = open_storage(call.job.output_uri, call.job.storage)
        actor = ray.get_runtime_context().get_actor_id()
        # Both calls wait, since a message that a dying process has not sent yet would be lost.
        num_starts: ray.ObjectRef[int] = call.board.begin_start.remote(actor)
        self.refusal: str | None = None  # why it computes nothing
        if ray.get(num_starts) > MAX_STARTS:
            self.refusal = (
                f"a worker died in {MAX_STARTS} starts in a row, before it was ready: its process was killed or "
                "crashed, or its machine ran out of memory"
            )
            return
        try:
            self.set_up()
        except ValueError as error:  # a checkpoint that cannot be read, an engine that this machine does not have
            self.refusal = str(error)
        ray.get(call.board.end_start.remote(actor))

    def set_up(self) -> None:
        """Starts the decoding processes and threads, and builds the predictor."""
        call, job = self.call, self.job
        self.name = uuid.uuid4().hex[:12]
        self.send: Callable[[ShardReport], object] = call.board.take.remote
        self.queue = ShardQueue()
        self.pool = DecodePool(job.decode_children, job.limits)
        self.loaders = ThreadPoolExecutor(job.decode_children + 2, thread_name_prefix="load")
        self.encoder = ThreadPoolExecutor(1, thread_name_prefix="encode")
        self.loader = ImageLoader.of_run(self.pool, job.limits, job.spec, self.output)
        warm_up()
        self.predictor = job.predictor(
            job.checkpoint,
            sha256=job.spec.model.sha256,
            segment=job.spec.segment,
            batch_size=job.batch_size,
            device="cuda" if job.gpus_per_worker else "cpu",
            num_threads=None if job.gpus_per_worker else max(1, int(job.cpus_per_worker)),
            storage=job.storage,
        )
        malloc.give_back_holes()  # left by the weights as they were read

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Segments and commits the shards of a Ray Data batch that have no commit yet; returns their numbers."""
        if self.refusal is not None:
            raise WorkerError((self.refusal,))
        for shard in batch["shard"].tolist():
            try:
                commit = read_commit(self.output, shard)
                if commit is None:
                    self.queue.process(partial(self.segment_shard, shard), self.write_shard)
                else:
                    self.send(report_of_commit(self.name, commit))
            except ShardAborted as error:
                raise WorkerError((str(error.__cause__),)) from error
            except (OSError, ValueError, DecodeChildError) as error:
                raise WorkerError((str(error),)) from error
        return {"shard": batch["shard"]}

    def segment_shard(self, shard: int) -> SegmentedShard:
        """Notes an attempt at a shard and segments it."""
        attempt = begin_attempt(self.output, shard, uuid.uuid4().hex[:12], self.call.driver)
        images, clock = self.images_of(shard), StageClock()
        results: list[ImageResult] = []
        counter = ShardCounter(self.name, self.send, shard, clock)
        segmented = self.segment_carefully(images, clock, attempt) if attempt.careful else self.segment(images, clock)
        for result in segmented:
            self.queue.check()
            results.append(result)
            counter.add(result)
        return SegmentedShard(attempt, counter, results)

    def write_shard(self, segmented: SegmentedShard) -> Commit:
        """Writes a shard's two tables, then its commit; returns the commit that holds."""
        attempt, counter = segmented.attempt, segmented.counter
        with counter.clock("write"):
            tables = dict(zip(TABLES, self.tables_of(attempt.shard, segmented.results)))
            files = {
                name: write_table(
                    self.output, name, attempt.shard, attempt.name, to_parquet(table, self.job.metadata), table.num_rows
                )
                for name, table in tables.items()
            }
        statuses = sum_counts({status: 1} for status in tables["images"]["status"].to_pylist())
        timings_s = counter.clock.seconds
        commit = commit_shard(
            self.output,
            Commit(self.call.run_id, attempt.shard, attempt.name, **files, statuses=statuses, timings_s=timings_s),
        )
        counter.flush(committed=True)
        return commit

    def images_of(self, shard: int) -> list[PlannedImage]:
        """The images to segment in a shard: all of them."""
        return self.call.plan.read_shard(shard)

    def tables_of(self, shard: int, results: list[ImageResult]) -> tuple[pa.Table, pa.Table]:
        """The images table and the instances table of a shard."""
        return to_tables(results, shard=shard, run_id=self.call.run_id)

    def segment(self, images: list[PlannedImage], clock: StageClock) -> Iterator[ImageResult]:
        """Loads, predicts and encodes images; yields their results in order.

        Images are predicted window by window. A window is a fixed stretch of the shard, so that how images are
        batched depends on the shard alone. A window's masks are encoded while the next window is predicted.
        """
        window = self.job.batch_size * WINDOW_BATCHES
        load, busy_s = partial(self.loader.load, clock=clock), self.pool.busy_s
        loaded = zip(images, map_ahead(self.loaders, load, images, lookahead=window))
        encoding: deque[Future[list[ImageResult]]] = deque()
        while True:
            with clock("wait_for_images"):
                images_loaded = list(islice(loaded, window))
            if images_loaded:
                with clock("predict"):
                    pixels = [decoded.image for _, decoded in images_loaded if decoded.image is not None]
                    sizes = [decoded.size for _, decoded in images_loaded if decoded.image is not None]
                    predictions = self.predictor.predict(pixels, sizes)
                encoding.append(self.encoder.submit(self.results, images_loaded, predictions, clock))
            while len(encoding) > (1 if images_loaded else 0):
                with clock("wait_for_encoding"):
                    results = encoding.popleft().result()
                yield from results
            if not images_loaded:
                clock.add("decode", self.pool.busy_s - busy_s)
                return

    def results(
        self, images_loaded: list[tuple[PlannedImage, Decoded]], predictions: list[Prediction], clock: StageClock
    ) -> list[ImageResult]:
        """The results of one window; `predictions` are those of its decoded images alone."""
        with clock("encode"):
            remaining = iter(predictions)
            return [
                self.result(image, decoded, None if decoded.image is None else next(remaining))
                for image, decoded in images_loaded
            ]

    def segment_carefully(
        self, images: list[PlannedImage], clock: StageClock, attempt: Attempt
    ) -> Iterator[ImageResult]:
        """As `segment`, one image at a time, each noted first; images that earlier actors died on get an error.

        Waits until the shard before it is committed, so that its death counts against no other shard.
        """
        self.queue.wait_until_written()
        for index, image in enumerate(images):
            if index in attempt.deadly:
                yield ImageResult(image, "predict_failed", "the worker that touched it died, more than once")
                continue
            attempt.note(index)
            yield from self.segment([image], clock)
        attempt.note()

    def result(self, image: PlannedImage, decoded: Decoded, prediction: Prediction | None) -> ImageResult:
        """The result of one image; `prediction` is None where it was not decoded, a reason where the network failed."""
        segment = self.job.spec.segment
        result = ImageResult(
            image, decoded.status, decoded.error, decoded.height, decoded.width, decoded.exif_orientation
        )
        if isinstance(prediction, str):
            result.status, result.error = "predict_failed", prediction
        elif prediction is not None:
            result.instances = encode_instances(
                prediction,
                self.predictor.categories,
                decoded.size,
                mask_threshold=segment.mask_threshold,
                merge_iou=1.0 if segment.slice is None else segment.slice.merge_iou,
            )
        return result


class RepairWorker(ShardWorker):
    """Actor of a repair: segments a shard's failed images again and commits the whole shard beside the run."""

    def __init__(self, call: BulkCall) -> None:
        super().__init__(call)
        assert call.repair is not None
        self.repair, self.run = call.repair, open_run(self.output)
        self.files = {files.shard: files for files in self.run.files if files.shard in call.repair.shards}
        self.output = call.repair.storage

    def images_of(self, shard: int) -> list[PlannedImage]:
        """The images of a shard that have one of the repair's statuses in the run."""
        images, _ = read_shard_tables(self.run, self.files[shard])
        statuses = dict(zip(images["image_id"].to_pylist(), images["status"].to_pylist()))
        return [image for image in super().images_of(shard) if statuses[image.image_id] in self.repair.statuses]

    def tables_of(self, shard: int, results: list[ImageResult]) -> tuple[pa.Table, pa.Table]:
        """The tables of the whole shard: the run's rows with the new ones in the place of the repaired images'."""
        return merge_tables(read_shard_tables(self.run, self.files[shard]), super().tables_of(shard, results))
