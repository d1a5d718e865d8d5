"""Commit protocol: claims the output, writes a shard's tables, commits it put-if-absent, seals the finished run.

The protocol is an order of writes. A shard's two tables are written under this attempt's own names, then its commit,
only if there is none. A writer that lost the race reads the winner's commit and removes only its own files. There are
no locks, leases or clocks, so a writer may die or sleep at any line.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.bulk.corpus import Plan
from pipeline.bulk.listing import in_chunks
from pipeline.differences import differences, to_table
from pipeline.manifest import (
    FINAL_KEY,
    MANIFEST_KEY,
    MANIFEST_SCHEMA,
    RUN_KEY,
    TABLES,
    Commit,
    DataFile,
    RunError,
    RunTotals,
    commit_key,
    run_id_of,
    sha256_of,
    table_key,
    to_json,
)
from pipeline.storage.base import Storage
from pipeline.storage.parquet import read_parquet

Number = TypeVar("Number", int, float)

_CHUNK_ROWS = 2_000  # rows held as Python objects at a time; a row group of the manifest


class OtherRunError(RunError):
    """The output belongs to a run with another specification; the message lists what differs."""


def claim_run(storage: Storage, spec: Mapping[str, object]) -> str:
    """Writes run.json put-if-absent, or finds there the same specification; returns the run id.

    Raises:
        OtherRunError: the output belongs to another run or holds something else; nothing was written.
        StorageError: the store has no working put-if-absent.
    """
    check_run(storage, spec)
    storage.check_put_if_absent(RUN_KEY, to_json(spec))
    check_run(storage, spec)  # someone else may have been first
    return run_id_of(spec)


def check_run(storage: Storage, spec: Mapping[str, object]) -> None:
    """Raises OtherRunError when the output belongs to another run or holds something else. Writes nothing."""
    try:
        existing = json.loads(storage.read_bytes(RUN_KEY))
    except FileNotFoundError:
        first_object = next(iter(storage.iter_objects()), None)
        if first_object is not None:
            raise OtherRunError(
                f"{storage.uri} is not empty (it holds {first_object.key}) and is no run; choose an empty or new place"
            ) from None
        return
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise OtherRunError(f"{storage.uri}: {RUN_KEY} is unreadable: {error}") from error
    except NotADirectoryError:
        raise OtherRunError(f"{storage.uri} is a file; a run needs a folder") from None
    if rows := list(differences(existing, spec)):
        raise OtherRunError(
            f"{storage.uri} belongs to run {run_id_of(existing)}, which was started with other settings:\n"
            f"{to_table(rows, 'in the run')}\n"
            "give another output.uri for a run of its own, or the settings of that run to resume it"
        )


def read_commit(storage: Storage, shard: int) -> Commit | None:
    """The commit of a shard, or None while there is none."""
    key = commit_key(shard)
    try:
        return Commit.from_json(storage.read_bytes(key))
    except FileNotFoundError:
        return None
    except RunError as error:
        raise RunError(f"{storage.uri_of(key)}: {error}") from error


def read_commits(storage: Storage, shards: Iterable[int]) -> Iterator[Commit]:
    """The commits of shards that are all committed, in the order of `shards`.

    Raises:
        RunError: a shard has no commit, or an unreadable one.
    """
    shards = list(shards)
    contents = storage.read_many(map(commit_key, shards))
    for shard in shards:
        try:
            yield Commit.from_json(next(contents))
        except FileNotFoundError:
            raise RunError(f"shard {shard} is not committed; run the same command again to finish the run") from None
        except RunError as error:
            raise RunError(f"{storage.uri_of(commit_key(shard))}: {error}") from error


def write_table(storage: Storage, table: str, shard: int, attempt: str, data: bytes, rows: int) -> DataFile:
    """Writes one table of a shard under this attempt's own name; returns what the commit says of the file."""
    key = table_key(table, shard, attempt)
    storage.write_bytes(key, data)
    return DataFile(key, rows, len(data), sha256_of(data))


def commit_shard(storage: Storage, commit: Commit) -> Commit:
    """Commits a shard whose tables are written, unless it is committed; returns the commit that holds.

    When that is another attempt's, this attempt's own tables are removed. Atomic, and safe to repeat: after a lost
    acknowledgement the repeated call finds this attempt's own commit.

    Raises:
        RunError: there is no readable commit after the write.
    """
    storage.put_if_absent(commit_key(commit.shard), commit.to_json())
    winner = read_commit(storage, commit.shard)
    if winner is None:
        raise RunError(f"{storage.uri}: the commit of shard {commit.shard} vanished after it was written")
    if winner.attempt != commit.attempt:
        for table in TABLES:
            storage.delete(getattr(commit, table).key)
    return winner


def committed_shards(storage: Storage) -> set[int]:
    """The numbers of the shards that have a commit, by one listing."""
    names = (info.key.rsplit("/", 1)[-1] for info in storage.iter_objects("commits/"))
    return {int(name.removesuffix(".json")) for name in names}


def seal_run(storage: Storage, plan: Plan, run_id: str, elapsed_s: float = 0.0) -> RunTotals:
    """Writes the manifest and the totals of a run whose shards are all committed; returns the totals that hold.

    Both are written put-if-absent, so a second call changes nothing and returns the totals of the first.

    Raises:
        RunError: a shard is not committed, or a commit counts other images than the plan.
    """
    num_instances, statuses, worker_seconds = 0, dict[str, int](), dict[str, float]()

    def counted_commits() -> Iterator[Commit]:
        nonlocal num_instances, statuses, worker_seconds
        for shard, commit in enumerate(read_commits(storage, range(plan.num_shards))):
            if commit.images.rows != plan.num_images_of(shard) or commit.run_id != run_id:
                raise RunError(f"the commit of shard {shard} does not fit the plan; `maskfleet verify` says more")
            num_instances += commit.instances.rows
            statuses = sum_counts([statuses, commit.statuses])
            worker_seconds = sum_counts([worker_seconds, commit.timings_s])
            yield commit

    write_manifest(storage, counted_commits())
    totals = RunTotals(
        run_id=run_id,
        num_images=plan.num_images,
        num_shards=plan.num_shards,
        num_instances=num_instances,
        statuses=statuses,
        worker_seconds={stage: round(seconds, 3) for stage, seconds in worker_seconds.items()},
        manifest_sha256=sha256_of(storage.read_bytes(MANIFEST_KEY)),
        plan=plan.parts,
        elapsed_s=elapsed_s,
    )
    storage.put_if_absent(FINAL_KEY, totals.to_json())
    return RunTotals.from_json(storage.read_bytes(FINAL_KEY))


def write_manifest(storage: Storage, commits: Iterable[Commit]) -> None:
    """Writes manifest.parquet put-if-absent; equal commits give equal bytes, so every writer's manifest is the same."""
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, MANIFEST_SCHEMA, compression="zstd", write_page_checksum=True) as writer:
        for rows in in_chunks((commit.files.to_row() for commit in commits), _CHUNK_ROWS):
            writer.write_table(pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA))
    storage.put_if_absent(MANIFEST_KEY, buffer.getvalue())


def vacuum(storage: Storage, plan: Plan) -> list[str]:
    """Removes the tables and plan parts of a sealed run that nothing names, and half-written files; returns their keys.

    Raises:
        RunError: the run is not sealed, so a file without a commit may still be committed.
    """
    if not storage.exists(FINAL_KEY):
        raise RunError(f"{storage.uri} is not sealed; files without a commit may still be committed")
    manifest = read_parquet(storage.read_bytes(MANIFEST_KEY), [f"{table}_key" for table in TABLES])
    named_keys = {table: manifest[f"{table}_key"] for table in TABLES}
    named_keys["plan"] = pa.array([part.key for part in plan.parts], pa.string())
    unnamed: list[str] = []
    for folder in named_keys:
        for keys in in_chunks((info.key for info in storage.iter_objects(f"{folder}/")), _CHUNK_ROWS):
            is_named = pc.is_in(pa.array(keys, pa.string()), value_set=named_keys[folder])
            unnamed += [key for key, is_known in zip(keys, is_named.to_pylist(), strict=True) if not is_known]
    for key in unnamed:
        storage.delete(key)
    return unnamed + storage.remove_unfinished()


def sum_counts(counts: Iterable[Mapping[str, Number]]) -> dict[str, Number]:
    """The sum of several mappings to numbers, key by key; {} of none."""
    total: dict[str, Number] = {}
    for count in counts:
        for key, value in count.items():
            total[key] = total.get(key, 0) + value
    return total
