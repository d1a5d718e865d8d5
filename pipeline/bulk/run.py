"""Driver of a bulk run: claims the output, plans the corpus, has its shards segmented in waves, seals the run.

`segment_corpus` runs on the driver, `ShardWorker` in the actors that Ray Data spreads over the cluster. The rows of
the Ray dataset are shard numbers; images, pixels and masks never enter the object store. Any process may be killed at
any time: the same call again goes on with the shards that have no commit.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline import malloc
from pipeline.bulk.commit import claim_run, committed_shards, seal_run, vacuum
from pipeline.bulk.corpus import Plan, plan_corpus, read_plan
from pipeline.bulk.listing import in_chunks
from pipeline.bulk.progress import REPORT_EVERY_S, Progress
from pipeline.bulk.repair import Repair, begin_repair, seal_repair
from pipeline.bulk.shard_queue import SHARDS_AT_ONCE
from pipeline.bulk.worker import BulkCall, BulkJob, ProgressBoard, RepairWorker, ShardWorker, WorkerError
from pipeline.manifest import RunError, RunTotals, open_run
from pipeline.storage.stores import open_storage

WAVE_SHARDS = 2_000  # shards in one Ray dataset; bounds what Ray Data holds at a time


def segment_corpus(job: BulkJob, on_progress: Callable[[Progress], None] = lambda progress: None) -> RunTotals:
    """Segments every image of a corpus that has no row yet and returns the run's totals.

    Needs an initialised Ray. Calling it again resumes, whatever ended the call before; on a finished run it changes
    nothing.

    Args:
        job: the run and how its actors are set up.
        on_progress: called about every REPORT_EVERY_S with the state of the run, and once at the end.

    Raises:
        OtherRunError: the output belongs to a run with another specification.
        RunError: the run's own files contradict each other.
        CorpusError: the input cannot be listed.
    """
    output = open_storage(job.output_uri, job.storage)
    run_id = claim_run(output, job.spec.to_json())
    plan = read_plan(output) or plan_corpus(
        output, job.spec.input, shard_size=job.shard_size, num_workers=job.num_workers[1]
    )
    done = committed_shards(output)
    num_resumed = sum(plan.num_images_of(shard) for shard in done)
    todo = (shard for shard in range(plan.num_shards) if shard not in done)
    call = new_call(job, run_id, plan)
    elapsed_s = segment_shards(call, todo, num_resumed, on_progress)
    totals = seal_run(output, plan, run_id, round(elapsed_s, 3))
    vacuum(output, plan)
    return totals


def repair_corpus(
    job: BulkJob, statuses: tuple[str, ...], on_progress: Callable[[Progress], None] = lambda progress: None
) -> dict[str, int]:
    """Segments again the images of a finished run that have one of these statuses.

    Readers that go through the manifest see the new rows once the repair is sealed; the run's own files stay as they
    are. `job.spec` is the run's own specification.

    Returns:
        How many images of the repaired shards have each status now; {} where no image has such a status.

    Raises:
        RunError: the run is not finished, or an unfinished repair is of other statuses.
    """
    run = open_run(job.output_uri, job.storage)
    plan = read_plan(run.storage)
    repair = begin_repair(run, statuses)
    if plan is None or repair is None:
        return {}
    done = committed_shards(repair.storage)
    todo = (shard for shard in repair.shards if shard not in done)
    segment_shards(new_call(job, run.run_id, plan, repair), todo, 0, on_progress)
    return seal_repair(repair)


def new_call(job: BulkJob, run_id: str, plan: Plan, repair: Repair | None = None) -> BulkCall:
    """A call with a name and a progress board of its own."""
    num_images = plan.num_images if repair is None else repair.num_images
    board_class: Any = ProgressBoard  # ray.remote adds `options` to it, which its types do not say
    board = board_class.options(scheduling_strategy=on_this_node()).remote(run_id, num_images)
    return BulkCall(job=job, run_id=run_id, plan=plan, board=board, driver=uuid.uuid4().hex[:12], repair=repair)


def on_this_node() -> NodeAffinitySchedulingStrategy:
    """Keeps an actor on the driver's node: any other node may be lost without the run being lost."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def segment_shards(
    call: BulkCall, shards: Iterator[int], num_resumed: int, on_progress: Callable[[Progress], None]
) -> float:
    """Has every shard committed by a pool of workers, wave by wave; returns the seconds it took.

    Args:
        num_resumed: images to report as done before this call.
    """
    started = time.monotonic()

    def report() -> None:
        progress: ray.ObjectRef[Progress] = call.board.progress.remote(num_resumed, time.monotonic() - started)
        on_progress(ray.get(progress))

    # Ray Data leaves some megabytes behind per dataset: the waves after the first have a process of their own.
    remote_wave = ray.remote(num_cpus=0, max_calls=1, max_retries=0)(segment_wave)
    background = ThreadPoolExecutor(1)
    try:
        for number, wave in enumerate(in_chunks(shards, WAVE_SHARDS)):
            if number == 0:
                running = background.submit(segment_wave, call, wave)
            else:
                result = remote_wave.options(scheduling_strategy=on_this_node()).remote(call, wave)
                running = background.submit(ray.get, result)
            while not running.done():
                report()
                time.sleep(REPORT_EVERY_S)
            try:
                running.result()
            except WorkerError as error:
                raise RunError(f"{_cause_of(error)}. The run has stopped; the same command goes on with it") from None
    finally:  # of an interrupted call, the wave goes on until its caller ends Ray: it must not be waited for
        background.shutdown(wait=False, cancel_futures=True)
    report()
    return time.monotonic() - started


def _cause_of(error: BaseException) -> BaseException:
    """The error that was raised in a worker, from what Ray makes of it on its way here."""
    while isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        error = error.cause
    return error


def segment_wave(call: BulkCall, shards: list[int]) -> None:
    """Spreads shards over a pool of actors and waits until each is committed."""
    job = call.job
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_errored_blocks = 0  # any other value drops data in silence
    context.raise_original_map_exception = True  # a worker's error is the driver's, not one of Ray Data's about it
    context.max_consecutive_actor_init_deaths = 5  # by an exception; processes that die: see ShardWorker
    context.execution_no_progress_timeout_s = job.longest_shard_s
    min_actors, max_actors = (min(size, len(shards)) for size in job.num_workers)
    rows = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards))
    dataset = rows.map_batches(
        ShardWorker if call.repair is None else RepairWorker,
        fn_constructor_args=(call,),
        batch_size=1,
        compute=ActorPoolStrategy(
            min_size=min_actors,
            max_size=max_actors,
            max_tasks_in_flight_per_actor=2 * SHARDS_AT_ONCE,
            max_concurrent_calls_per_actor=SHARDS_AT_ONCE,
            enable_true_multi_threading=True,
        ),
        num_cpus=job.cpus_per_worker,
        num_gpus=job.gpus_per_worker,
        runtime_env={"env_vars": malloc.ENVIRONMENT},
    )
    for _ in dataset.iter_batches(batch_size=None):
        pass
