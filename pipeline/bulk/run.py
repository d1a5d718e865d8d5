"""Driver of a bulk run: claims the output, plans the corpus, has its shards segmented in waves, seals the run.

`segment_corpus` runs on the driver, the workers of `pipeline.bulk.pool` anywhere in the cluster. Any process may be
killed at any time: the same call again goes on with the shards that have no commit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import ray

from pipeline.bulk.commit import claim_run, committed_shards, seal_run, vacuum
from pipeline.bulk.corpus import plan_corpus, read_plan
from pipeline.bulk.listing import in_chunks
from pipeline.bulk.pool import GO_ON, StartCheck, cause_of, on_this_node, progress_of, segment_wave, start_call
from pipeline.bulk.progress import REPORT_EVERY_S, Progress
from pipeline.bulk.repair import begin_repair, seal_repair
from pipeline.bulk.worker import BulkCall, BulkJob, WorkerError
from pipeline.manifest import RunError, RunTotals, open_run
from pipeline.notes import NoteList
from pipeline.storage.stores import open_storage

WAVE_SHARDS = 2_000  # shards in one Ray dataset; bounds what Ray Data holds at a time


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
    todo = (shard for shard in range(plan.num_shards) if shard not in done)
    num_resumed = sum(plan.num_images_of(shard) for shard in done)
    elapsed_s = segment_shards(start_call(job, run_id, plan), todo, num_resumed, on_progress)
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
    segment_shards(start_call(job, run.run_id, plan, repair), todo, 0, on_progress)
    return seal_repair(repair)


def segment_shards(
    call: BulkCall, shards: Iterator[int], num_resumed: int, on_progress: Callable[[Progress], None]
) -> float:
    """Has every shard committed by a pool of workers, wave by wave; returns the seconds it took.

    Args:
        num_resumed: images to report as done before this call.
    """
    started, starts = time.monotonic(), StartCheck(call.job)

    def report() -> None:
        progress = progress_of(call, num_resumed, time.monotonic() - started)
        on_progress(progress)
        starts.look(progress)

    # Ray Data leaves some megabytes behind per dataset: the waves after the first have a process of their own.
    remote_wave = ray.remote(num_cpus=0, max_calls=1, max_retries=0)(segment_wave)
    wave_apart = remote_wave.options(scheduling_strategy=on_this_node())
    background = ThreadPoolExecutor(1)
    try:
        for number, wave in enumerate(in_chunks(shards, WAVE_SHARDS)):
            if number == 0:
                running = background.submit(segment_wave, call, wave)
            else:
                running = background.submit(ray.get, wave_apart.remote(call, wave))
            while not running.done():
                report()
                time.sleep(REPORT_EVERY_S)
            try:
                running.result()
            except WorkerError as error:
                raise RunError(f"{cause_of(error)}{GO_ON}") from None
    finally:  # of an interrupted call, the wave goes on until its caller ends Ray: it must not be waited for
        background.shutdown(wait=False, cancel_futures=True)
    report()
    return time.monotonic() - started
