"""Verification of a run: reads every file again and yields each fault, by hash, schema, count, row and mask area."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from pipeline.bulk.corpus import Plan, read_plan
from pipeline.bulk.repair import Repair
from pipeline.manifest import (
    FINAL_KEY,
    MANIFEST_KEY,
    MODEL_FOLDER,
    PLAN_KEY,
    RUN_KEY,
    TABLES,
    Commit,
    DataFile,
    Run,
    RunError,
    commit_key,
    manifest_files,
    repair_prefix,
    sha256_of,
)
from pipeline.masks.rle import rle_areas
from pipeline.schema import IMAGES_SCHEMA, INSTANCES_SCHEMA, OK, STATUSES
from pipeline.storage.base import Storage
from pipeline.storage.parquet import read_parquet


@dataclass(frozen=True)
class Fault:
    """A fault of a run: the key of the file it was found in, and a sentence for the user."""

    key: str
    reason: str


def verify_run(run: Run) -> Iterator[Fault]:
    """Yields every fault of a run as it is found; an exact, sealed run has none.

    Checked are the plan's parts (hash, number of images), each commit (its run and shard, its counts by status), each
    table (hash, page checksums, schema, number of rows), the images table against the plan row by row, the instances
    against each image's num_instances, mask areas, statuses, finished repairs, the manifest and the totals against the
    commits, and files that nothing names. Reads one shard's tables at a time.
    """
    try:
        plan = read_plan(run.storage)
    except RunError as error:
        yield Fault(PLAN_KEY, str(error))
        return
    if plan is None:
        yield Fault(PLAN_KEY, "the run was never planned")
        return
    plan_faults = list(_verify_plan(plan))
    yield from plan_faults
    if plan_faults:  # without the plan there is nothing to compare the tables with
        return

    commits = []
    for shard in range(plan.num_shards):
        key = commit_key(shard)
        try:
            commit = Commit.from_json(run.storage.read_bytes(key))
        except FileNotFoundError:
            yield Fault(key, "the shard is not committed")
            continue
        except RunError as error:
            yield Fault(key, str(error))
            continue
        if (commit.run_id, commit.shard) != (run.run_id, shard):
            yield Fault(key, f"it is a commit of shard {commit.shard} of run {commit.run_id}")
            continue
        commits.append(commit)
        yield from _verify_shard(run, plan, commit)
    yield from _verify_seal(run, plan, commits)
    yield from _verify_repairs(run, plan)
    yield from _find_unnamed_files(run, plan, commits)


def _verify_plan(plan: Plan) -> Iterator[Fault]:
    for part in plan.parts:
        if isinstance(read := _read_committed(plan.storage, part), Fault):
            yield read
    if sum(part.rows for part in plan.parts) != plan.num_images:
        yield Fault(PLAN_KEY, "its parts do not add up to its number of images")


def _read_committed(storage: Storage, file: DataFile) -> bytes | Fault:
    """The content of a file, or how it differs from what was committed."""
    try:
        data = storage.read_bytes(file.key)
    except FileNotFoundError:
        return Fault(file.key, "the file is missing")
    if len(data) != file.bytes:
        return Fault(file.key, f"{len(data)} bytes, {file.bytes} were committed")
    if sha256_of(data) != file.sha256:
        return Fault(file.key, "its bytes are not those that were committed (sha256)")
    return data


def _verify_shard(run: Run, plan: Plan, commit: Commit) -> Iterator[Fault]:
    tables: dict[str, pa.Table] = {}
    for name, schema in zip(TABLES, (IMAGES_SCHEMA, INSTANCES_SCHEMA)):
        file: DataFile = getattr(commit, name)
        if isinstance(data := _read_committed(run.storage, file), Fault):
            yield data
            return
        try:
            table = read_parquet(data, verify_pages=True)
        except (OSError, pa.ArrowException) as error:
            yield Fault(file.key, f"unreadable: {error}")
            return
        if not table.schema.equals(schema):
            yield Fault(file.key, "its columns are not those of the schema")
            return
        if table.num_rows != file.rows:
            yield Fault(file.key, f"{table.num_rows} rows, {file.rows} were committed")
        tables[name] = table
    yield from _verify_rows(run, plan, commit, tables["images"], tables["instances"])


def _verify_rows(run: Run, plan: Plan, commit: Commit, images: pa.Table, instances: pa.Table) -> Iterator[Fault]:
    key = commit.images.key
    planned = [image.image_id for image in plan.read_shard(commit.shard)]
    if images["image_id"].to_pylist() != planned:
        yield Fault(key, "its images are not those of the plan")
    statuses = images["status"].to_pylist()
    if unknown := sorted(set(statuses) - set(STATUSES)):
        yield Fault(key, f"unknown status {unknown[0]!r}")
    counts = {status: statuses.count(status) for status in set(statuses)}
    if counts != commit.statuses:
        yield Fault(commit_key(commit.shard), f"it counts {commit.statuses}, the table holds {counts}")

    ranks_of: dict[str, list[int]] = {}
    for image_id, rank in zip(instances["image_id"].to_pylist(), instances["instance"].to_pylist()):
        ranks_of.setdefault(image_id, []).append(rank)
    for image_id, status, expected in zip(planned, statuses, images["num_instances"].to_pylist()):
        ranks = sorted(ranks_of.pop(image_id, []))
        if ranks != list(range(expected)):
            yield Fault(commit.instances.key, f"{image_id}: {len(ranks)} instances, the images table says {expected}")
        if expected and status != OK:
            yield Fault(key, f"{image_id}: status {status} with {expected} instances")
    if ranks_of:
        yield Fault(commit.instances.key, f"instances of {next(iter(ranks_of))!r}, which is not in the shard")
    if instances.num_rows:
        if instances["area_px"].to_pylist() != rle_areas(instances["rle_counts"].to_pylist()).tolist():
            yield Fault(commit.instances.key, "area_px is not the area of the masks")
        if set(instances["run_id"].unique().to_pylist()) != {run.run_id}:
            yield Fault(commit.instances.key, "rows of another run")


def _verify_repairs(run: Run, plan: Plan) -> Iterator[Fault]:
    """Each finished repair, checked as the run itself: the tables of a repaired shard hold all its images."""
    for number in range(1, run.num_repairs + 1):
        prefix = repair_prefix(number)
        faults: list[Fault] = []
        try:
            begun = Repair.read(run.storage, number)
            repair = Run(begun.storage, run.document)
            files = repair.read_manifest()
        except (OSError, RunError, pa.ArrowException) as error:
            yield Fault(prefix, f"unreadable: {error}")
            continue
        commits = []
        for shard in begun.shards:
            try:
                commits.append(Commit.from_json(repair.storage.read_bytes(commit_key(shard))))
            except (FileNotFoundError, RunError) as error:
                faults.append(Fault(commit_key(shard), str(error)))
        for commit in commits:
            faults += _verify_shard(repair, plan, commit)
        if files != [commit.files for commit in commits]:
            faults.append(Fault(MANIFEST_KEY, "it does not say what the commits say"))
        yield from (Fault(prefix + fault.key, fault.reason) for fault in faults)


def _verify_seal(run: Run, plan: Plan, commits: list[Commit]) -> Iterator[Fault]:
    if not run.sealed:
        yield Fault(MANIFEST_KEY, "the run is not sealed; run the same command again to finish it")
        return
    try:
        manifest = run.storage.read_bytes(MANIFEST_KEY)
        files = manifest_files(manifest)
    except (OSError, pa.ArrowException) as error:
        yield Fault(MANIFEST_KEY, f"unreadable: {error}")
        return
    if files != [commit.files for commit in commits]:
        yield Fault(MANIFEST_KEY, "it does not say what the commits say")
    try:
        final = run.final
    except RunError as error:
        yield Fault(FINAL_KEY, str(error))
        return
    if final is None:
        yield Fault(FINAL_KEY, "the run has a manifest but no totals; run the same command again to finish it")
        return
    if final.manifest_sha256 != sha256_of(manifest):
        yield Fault(MANIFEST_KEY, "its bytes are not those that were sealed (sha256)")
    expected = (run.run_id, plan.num_images, sum(commit.instances.rows for commit in commits))
    if (final.run_id, final.num_images, final.num_instances) != expected:
        yield Fault(FINAL_KEY, "its totals are not those of the commits")


def _find_unnamed_files(run: Run, plan: Plan, commits: list[Commit]) -> Iterator[Fault]:
    named = {getattr(commit, table).key for commit in commits for table in TABLES}
    named |= {part.key for part in plan.parts} | {commit_key(shard) for shard in range(plan.num_shards)}
    named |= {RUN_KEY, PLAN_KEY, MANIFEST_KEY, FINAL_KEY}
    for info in run.storage.iter_objects():
        if info.key not in named and not info.key.startswith(("attempts/", "repairs/", f"{MODEL_FOLDER}/")):
            yield Fault(info.key, "no commit names it")
