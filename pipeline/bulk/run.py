"""Driver of a bulk run: claims the output, plans the corpus, has its shards segmented in waves, seals the run.

`segment_corpus` runs on the driver, `ShardWorker` in the actors that Ray Data spreads over the cluster. The rows of
the Ray dataset are shard numbers; images, pixels and masks never enter the object store. Any process may be killed at
any time: the same call again goes on with the shards that have no commit.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
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
from pipeline.notes import NoteList
from pipeline.storage.stores import open_storage

WAVE_SHARDS = 2_000  # shards in one Ray dataset; bounds what Ray Data holds at a time
SILENT_S = 60.0  # once no worker has reported for so long, the nodes are asked whether workers start there
PROBE_S = 60.0  # within which a process of a node must have loaded what a worker loads
NUM_PROBES = 3  # in a row that fail on a node end the run
BOARD_S = 300.0  # within which the progress board must answer
GO_ON = ". The run has stopped; the same command goes on with it"


def segment_corpus(
    job: BulkJob,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_note: Callable[[str], None] = lambda note: None,
) -> RunTotals:
    """Segments every image of a corpus that has no row yet and returns the run's totals.

    Needs an initialised Ray. Calling it again resumes, whatever ended the call before; on a finished run it changes
    nothing.

    Args:
        job: the run and how its actors are set up.
        on_progress: called about every REPORT_EVERY_S with the state of the run, and once at the end.
        on_note: called with a sentence for each kind of entry that the plan leaves out, once it is sealed.

    Raises:
        OtherRunError: the output belongs to a run with another specification.
        RunError: the run's own files contradict each other.
        CorpusError: the input cannot be listed.
    """
    output = open_storage(job.output_uri, job.storage)
    run_id = claim_run(output, job.spec.to_json())
    notes = NoteList()
    plan = read_plan(output) or plan_corpus(
        output, job.spec.input, shard_size=job.shard_size, num_workers=job.num_workers[1], notes=notes
    )
    for note, count in notes.to_dict().items():
        on_note(f"note: {note}: {count:,}")
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
    started, starts = time.monotonic(), StartCheck(call.job)

    def report() -> None:
        answer: ray.ObjectRef[Progress] = call.board.progress.remote(num_resumed, time.monotonic() - started)
        try:
            progress = ray.get(answer, timeout=BOARD_S)
        except GetTimeoutError:
            raise RunError(f"no process of Ray's has started on this machine within {BOARD_S:.0f} s{GO_ON}") from None
        on_progress(progress)
        starts.look(progress)

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
                raise RunError(f"{_cause_of(error)}{GO_ON}") from None
    finally:  # of an interrupted call, the wave goes on until its caller ends Ray: it must not be waited for
        background.shutdown(wait=False, cancel_futures=True)
    report()
    return time.monotonic() - started


class StartCheck:
    """Ends a call whose workers die before they can say so: Ray starts such processes again without end.

    Asks nodes only while no worker reports. Workers may also be silent because the cluster is busy with something else,
    or has lost its nodes: then each node with room for a worker runs a task that loads what a worker loads, and all is
    well.
    """

    def __init__(self, job: BulkJob) -> None:
        self.job = job
        self.failures = Counter[str]()  # in a row, by node
        self.due_at = time.monotonic() + SILENT_S

    def look(self, progress: Progress) -> None:
        """Asks the nodes where it is time to.

        Raises:
            RunError: a node has failed NUM_PROBES times in a row.
        """
        if progress.num_workers:
            self.failures.clear()
            self.due_at = time.monotonic() + SILENT_S
        elif time.monotonic() > self.due_at:
            self.ask_nodes()
            self.due_at = time.monotonic() + SILENT_S * (0.25 if self.failures else 10)

    def ask_nodes(self) -> None:
        """Has each node with room for a worker run a task; counts those that fail. Raises RunError as `look`."""
        needs = {"CPU": self.job.cpus_per_worker, "GPU": self.job.gpus_per_worker}
        task = ray.remote(num_cpus=0, max_retries=0, runtime_env={"env_vars": malloc.ENVIRONMENT})(load_worker)
        probes = {
            (node["NodeID"], node["NodeManagerAddress"]): task.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote()
            for node in ray.nodes()
            if node["Alive"] and all(node["Resources"].get(name, 0) >= share for name, share in needs.items())
        }
        until = time.monotonic() + PROBE_S
        for (node_id, address), probe in probes.items():
            try:
                ray.get(probe, timeout=max(0.0, until - time.monotonic()))
                del self.failures[node_id]
            except RayError as error:
                ray.cancel(probe, force=True)
                self.failures[node_id] += 1
                if self.failures[node_id] == NUM_PROBES:
                    raise RunError(f"no worker reports, and on the node {address} {_why(error)}{GO_ON}") from None


def load_worker() -> None:
    """Task of a node that is asked: the process that runs it has loaded this module, as a worker does."""


def _why(error: RayError) -> str:
    if isinstance(error, GetTimeoutError):
        return f"no worker process has started within {PROBE_S:.0f} s"
    if isinstance(error, RayTaskError):
        return f"a worker process cannot load what it needs: {_cause_of(error)}"
    return "worker processes die as they start: they are killed, crash or run out of memory"


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
