"""Pool of a bulk run's actors: spreads shards over workers by Ray Data; `ProgressBoard` counts what they report.

The rows of the Ray dataset are shard numbers; images, pixels and masks never enter the object store.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util import metrics
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline import malloc
from pipeline.bulk.corpus import Plan
from pipeline.bulk.progress import Progress, ShardReport, Tally
from pipeline.bulk.repair import Repair
from pipeline.bulk.shard_queue import SHARDS_AT_ONCE
from pipeline.bulk.worker import BulkCall, BulkJob, RepairWorker, ShardWorker
from pipeline.manifest import RunError

SILENT_S = 60.0  # once no worker has reported for so long, the nodes are asked whether workers start there
PROBE_S = 60.0  # within which a process of a node must have loaded what a worker loads
NUM_PROBES = 3  # in a row that fail on a node end the run
BOARD_S = 300.0  # within which the progress board must answer
GO_ON = ". The run has stopped; the same command goes on with it"


def start_call(job: BulkJob, run_id: str, plan: Plan, repair: Repair | None = None) -> BulkCall:
    """A call of `segment_corpus` or `repair_corpus`, with a name and a progress board of its own."""
    num_images = plan.num_images if repair is None else repair.num_images
    board_class: Any = ProgressBoard  # ray.remote adds `options` to it, which its types do not say
    board = board_class.options(scheduling_strategy=on_this_node()).remote(run_id, num_images)
    return BulkCall(job=job, run_id=run_id, plan=plan, board=board, driver=uuid.uuid4().hex[:12], repair=repair)


def on_this_node() -> NodeAffinitySchedulingStrategy:
    """Keeps an actor on the driver's node: any other node may be lost without the run being lost."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


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


def progress_of(call: BulkCall, num_resumed: int, elapsed_s: float) -> Progress:
    """The state of a call by its board; the numbers are those of `Tally.progress`.

    Raises:
        RunError: the board does not answer.
    """
    answer: ray.ObjectRef[Progress] = call.board.progress.remote(num_resumed, elapsed_s)
    try:
        return ray.get(answer, timeout=BOARD_S)
    except GetTimeoutError:
        raise RunError(f"no process of Ray's has started on this machine within {BOARD_S:.0f} s{GO_ON}") from None


def cause_of(error: BaseException) -> BaseException:
    """The error that was raised in a worker, from what Ray makes of it on its way here."""
    while isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        error = error.cause
    return error


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
        return f"a worker process cannot load what it needs: {cause_of(error)}"
    return "worker processes die as they start: they are killed, crash or run out of memory"


@ray.remote(num_cpus=0)
class ProgressBoard:
    """Actor that adds up the workers' reports for the driver and exports them as Ray metrics (Prometheus).

    Args:
        run_id: tag of all its metrics.
        num_images: images of the plan.
    """

    def __init__(self, run_id: str, num_images: int) -> None:
        self.tally = Tally()
        self.num_images = num_images
        self.num_starts: dict[str, int] = {}  # of each actor, since it was ready last
        self.planned = metrics.Gauge("maskfleet_planned_images", "Images of the run.", ("run_id",))
        self.images = metrics.Counter("maskfleet_images", "Images committed, by status.", ("run_id", "status"))
        self.instances = metrics.Counter("maskfleet_instances", "Instances committed.", ("run_id",))
        self.seconds = metrics.Counter("maskfleet_stage_seconds", "Time of the workers, by stage.", ("run_id", "stage"))
        for metric in (self.planned, self.images, self.instances, self.seconds):
            metric.set_default_tags({"run_id": run_id})
        self.planned.set(num_images)

    def begin_start(self, actor: str) -> int:
        """Counts a start of the actor with this id; returns how many there were in a row, none of which ended."""
        self.num_starts[actor] = self.num_starts.get(actor, 0) + 1
        return self.num_starts[actor]

    def end_start(self, actor: str) -> None:
        """Notes that the actor is ready."""
        del self.num_starts[actor]

    def take(self, report: ShardReport) -> None:
        """Takes a worker's report; a shard's counts go to the metrics once, when it is committed."""
        if not self.tally.take(report):
            return
        increments: list[tuple[metrics.Counter, dict[str, str], float]] = [(self.instances, {}, report.num_instances)]
        increments += [(self.images, {"status": status}, count) for status, count in report.statuses.items()]
        increments += [(self.seconds, {"stage": stage}, seconds) for stage, seconds in report.stages_s.items()]
        for counter, tags, value in increments:
            if value > 0:  # Ray refuses to increase a counter by 0
                counter.inc(value, tags)

    def progress(self, num_resumed: int, elapsed_s: float) -> Progress:
        """The run's state so far; the arguments are those of `Tally.progress`."""
        self.planned.set(self.num_images)  # Ray forgets a gauge that nobody sets for some time
        return self.tally.progress(self.num_images, num_resumed, elapsed_s)
