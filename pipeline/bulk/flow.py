"""The whole bulk run on one page: claim, plan, segment the shards, seal.

`segment_corpus` runs on the driver, `ShardWorker` in the actors that Ray Data spreads over the cluster. The rows of
the Ray dataset are shard numbers; images, pixels and masks never enter the object store. Whatever is killed, wherever,
the same call again goes on with the shards that have no commit.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import ray
from ray.data import ActorPoolStrategy, DataContext

from pipeline.bulk.commit import (
    add_up,
    claim_run,
    commit_shard,
    committed_shards,
    read_commit,
    seal_run,
    vacuum,
    write_table,
)
from pipeline.bulk.corpus import Plan, PlannedImage, iter_corpus, read_plan, seal_plan
from pipeline.bulk.decode import DecodeLimits, DecodePool
from pipeline.bulk.encode import ImageResult, encode_instances, to_parquet, to_tables
from pipeline.bulk.fetch import load_image, map_ahead
from pipeline.bulk.predict import ImagePredictor
from pipeline.manifest import Commit, attempt_key, to_json
from pipeline.schema import OK
from pipeline.storage import open_storage

WAVE_SHARDS = 2_000  # shards a Ray dataset; keeps the driver's memory flat however many there are


@dataclass(frozen=True, kw_only=True)
class BulkJob:
    """What a run is (`spec`, hashed into its id) and how this machine goes about it (everything else).

    Attributes:
        spec: corpus, model, thresholds and limits, as they stand in run.json.
        checkpoint: folder of the model's checkpoint, the same on every node.
        shard_size: images a shard; None chooses by the size of the corpus. Ignored once the plan is sealed.
        num_workers: actors at least and at most.
        cpus_per_worker, gpus_per_worker: what an actor reserves.
        decode_children: decoding processes beside each actor.
        lookahead: images an actor holds ahead of its predictor, as a multiple of its batch.
        longest_shard_s: no shard takes longer; Ray gives a run up that shows no progress for this long.
    """

    input_uri: str
    output_uri: str
    spec: dict[str, Any]
    checkpoint: str
    metadata: dict[str, str]
    limits: DecodeLimits
    shard_size: int | None
    batch_size: int
    num_workers: tuple[int, int]
    cpus_per_worker: float
    gpus_per_worker: float
    decode_children: int
    lookahead: int = 4
    longest_shard_s: int = 3600


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


def segment_corpus(job: BulkJob, on_progress: Callable[[Progress], None] = lambda progress: None) -> dict[str, Any]:
    """Segments every image of a corpus, or what is left of it, and returns the run's totals (final.json).

    Needs an initialised Ray. Calling it again, after any kind of end, resumes; on a finished run it changes nothing.

    Raises:
        OtherRunError: the output belongs to a run with another specification.
        RunError: the run's own files contradict each other.
    """
    out = open_storage(job.output_uri)
    run_id = claim_run(out, job.spec)
    plan = read_plan(out) or seal_plan(
        out,
        iter_corpus(open_storage(job.input_uri), job.spec["input"]["pattern"]),
        shard_size=job.shard_size,
        num_workers=job.num_workers[1],
    )
    done = committed_shards(out)
    started = time.monotonic()
    board = ProgressBoard.remote()  # type: ignore[attr-defined]
    num_resumed = sum(plan.num_images_of(shard) for shard in done)

    def report() -> None:
        counts = ray.get(board.total.remote())
        num_instances = counts.pop("instances", 0)
        on_progress(Progress(plan.num_images, num_resumed, counts, num_instances, time.monotonic() - started))

    todo = (shard for shard in range(plan.num_shards) if shard not in done)
    while wave := list(islice(todo, WAVE_SHARDS)):
        segment_wave(job, run_id, plan, wave, board, report)
    report()
    totals = seal_run(out, plan, run_id, {"elapsed_s": round(time.monotonic() - started, 3)})
    vacuum(out, plan)
    return totals


def segment_wave(
    job: BulkJob, run_id: str, plan: Plan, shards: list[int], board: Any, report: Callable[[], None]
) -> None:
    """Spreads shards over a pool of actors and waits until each is committed, reporting twice a second."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_errored_blocks = 0  # any other value drops data in silence
    context.max_consecutive_actor_init_deaths = 5
    context.execution_no_progress_timeout_s = job.longest_shard_s
    smallest, largest = (min(size, len(shards)) for size in job.num_workers)
    dataset = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards)).map_batches(
        ShardWorker,
        fn_constructor_kwargs={"job": job, "run_id": run_id, "plan": plan, "board": board},
        batch_size=1,
        compute=ActorPoolStrategy(min_size=smallest, max_size=largest, max_tasks_in_flight_per_actor=2),
        num_cpus=job.cpus_per_worker,
        num_gpus=job.gpus_per_worker,
    )
    with ThreadPoolExecutor(1) as background:
        wave = background.submit(lambda: sum(1 for _ in dataset.iter_batches(batch_size=None)))
        while not wave.done():
            report()
            time.sleep(0.5)
        wave.result()


class ShardWorker:
    """One actor: takes shard numbers, leaves commits."""

    def __init__(self, job: BulkJob, run_id: str, plan: Plan, board: Any) -> None:
        self.job, self.run_id, self.plan = job, run_id, plan
        self.input, self.output = open_storage(job.input_uri), open_storage(job.output_uri)
        self.progress = ProgressReporter(board)
        self.pool = DecodePool(job.decode_children, job.limits)
        self.loaders = ThreadPoolExecutor(job.decode_children + 2, thread_name_prefix="load")
        self.predictor = ImagePredictor(
            job.checkpoint,
            sha256=job.spec["model"]["sha256"],
            score_threshold=job.spec["segment"]["score_threshold"],
            max_detections=job.spec["segment"]["max_detections"],
            batch_size=job.batch_size,
            device="cuda" if job.gpus_per_worker else "cpu",
            num_threads=None if job.gpus_per_worker else max(1, int(job.cpus_per_worker)),
        )

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        for shard in batch["shard"].tolist():
            if read_commit(self.output, shard) is None:
                self.segment_shard(shard)
        return {"shard": batch["shard"]}

    def segment_shard(self, shard: int) -> Commit:
        """Note the attempt, segment, write both tables, commit."""
        attempt = uuid.uuid4().hex[:12]
        self.output.write_bytes(attempt_key(shard, attempt), to_json({"run_id": self.run_id, "shard": shard}))
        clock = StageClock()
        results = []
        for result in self.segment_images(self.plan.read_shard(shard), clock):
            results.append(result)
            self.progress.add(shard, result)
        with clock("write"):
            tables = zip(("images", "instances"), to_tables(results, shard=shard, run_id=self.run_id))
            files = {
                name: write_table(
                    self.output, name, shard, attempt, to_parquet(table, self.job.metadata), table.num_rows
                )
                for name, table in tables
            }
        statuses = add_up({result.status: 1} for result in results)
        commit = Commit(self.run_id, shard, attempt, **files, statuses=statuses, timings_s=clock.seconds)
        self.progress.flush()
        return commit_shard(self.output, commit)

    def segment_images(self, images: list[PlannedImage], clock: StageClock) -> Iterator[ImageResult]:
        """The results of a shard's images, in order.

        They are predicted window by window; a window is a fixed run of the shard, so that how images are batched is
        a function of the shard alone.
        """
        window = self.job.batch_size * self.job.lookahead
        loaded = map_ahead(
            self.loaders,
            lambda image: (image, load_image(self.input, self.pool, self.job.limits, image)),
            images,
            lookahead=2 * window,
        )
        while True:
            with clock("wait_for_images"):
                taken = list(islice(loaded, window))
            if not taken:
                return
            usable = [decoded.image for _, decoded in taken if decoded.image is not None]
            with clock("predict"):
                predictions = iter(self.predictor.predict(usable))
            with clock("encode"):
                results = []
                for image, decoded in taken:
                    result = ImageResult(
                        image, decoded.status, decoded.error, decoded.height, decoded.width, decoded.exif_orientation
                    )
                    if decoded.image is not None:
                        detections = next(predictions)
                        if isinstance(detections, str):
                            result.status, result.error = "predict_failed", detections
                        else:
                            result.instances = encode_instances(
                                detections,
                                self.predictor.categories,
                                decoded.image.shape[:2],
                                self.job.spec["segment"]["mask_threshold"],
                            )
                    results.append(result)
            yield from results


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


@ray.remote(num_cpus=0)
class ProgressBoard:
    """Counts of each shard that is or was worked on; a shard begun anew overwrites its own, so nothing counts twice."""

    def __init__(self) -> None:
        self.shards: dict[int, dict[str, int]] = {}

    def put(self, shard: int, counts: dict[str, int]) -> None:
        self.shards[shard] = counts

    def total(self) -> dict[str, int]:
        return add_up(self.shards.values())


class ProgressReporter:
    """Tells the board how far a shard is, at most twice a second, without ever waiting for it."""

    def __init__(self, board: Any) -> None:
        self.board = board
        self.shard = -1
        self.counts: dict[str, int] = {}
        self.last = 0.0

    def add(self, shard: int, result: ImageResult) -> None:
        if shard != self.shard:
            self.shard, self.counts = shard, {}
        self.counts = add_up([self.counts, {result.status: 1, "instances": result.num_instances}])
        if time.monotonic() - self.last > 0.5:
            self.flush()

    def flush(self) -> None:
        self.last = time.monotonic()
        self.board.put.remote(self.shard, dict(self.counts))
