"""Repairs of a sealed run: failed images are segmented again, and their shards are written anew beside the run.

    OUT/repairs/<n>/repair.json          which statuses are tried again, in which shards; put-if-absent
    OUT/repairs/<n>/commits/...          as in the run itself, for those shards only
    OUT/repairs/<n>/images, instances    the whole shard: the run's rows with the new ones in their places
    OUT/repairs/<n>/manifest.parquet     written when all of these shards are committed; readers see it from then on

The run's own files are never touched. A repair that was killed goes on when it is called again; a new one begins when
the last one is finished.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.bulk.commit import read_commits, sum_counts, write_manifest
from pipeline.bulk.encode import INSTANCES_ORDER
from pipeline.manifest import Run, RunError, from_sealed_json, repair_prefix, to_sealed_json
from pipeline.schema import STATUSES
from pipeline.storage.base import Storage
from pipeline.storage.stores import open_storage

REPAIR_KEY = "repair.json"


@dataclass(frozen=True)
class Repair:
    """One repair of a run.

    Attributes:
        number: counted from 1.
        storage: its folder, laid out as a run's.
        statuses: images with one of these statuses are tried again.
        shards: the shards that hold such images, in ascending order.
        num_images: how many such images there are.
    """

    number: int
    storage: Storage
    statuses: tuple[str, ...]
    shards: tuple[int, ...]
    num_images: int


def begin_repair(run: Run, statuses: tuple[str, ...]) -> Repair | None:
    """The unfinished repair of a run, or a new one; None when no image has one of the statuses.

    A new one is written put-if-absent, so that several callers at once get the same repair.

    Raises:
        RunError: the run is not sealed, a status is unknown, or an unfinished repair is of other statuses.
    """
    if not run.sealed:
        raise RunError(f"{run.storage.uri} is not finished; run its segment command again first")
    if unknown := sorted(set(statuses) - set(STATUSES)):
        raise RunError(f"{unknown[0]!r} is no status; there are {', '.join(STATUSES)}")
    number = run.num_repairs + 1
    storage = open_storage(run.storage.uri_of(repair_prefix(number).rstrip("/")))
    if not storage.exists(REPAIR_KEY):
        counts = {row["shard"]: _num_images_with(run, row, statuses) for row in run.files}
        shards = [shard for shard, count in counts.items() if count]
        if not shards:
            return None
        description = {"statuses": sorted(statuses), "shards": shards, "num_images": sum(counts.values())}
        storage.put_if_absent(REPAIR_KEY, to_sealed_json(description))
    stored = from_sealed_json(storage.read_bytes(REPAIR_KEY))
    if stored["statuses"] != sorted(statuses):
        raise RunError(
            f"repair {number} of {run.storage.uri} was begun for {', '.join(stored['statuses'])}; "
            "finish it with those statuses first"
        )
    return Repair(
        number,
        storage,
        statuses=tuple(stored["statuses"]),
        shards=tuple(stored["shards"]),
        num_images=stored["num_images"],
    )


def read_shard_tables(run: Run, row: dict[str, Any]) -> tuple[pa.Table, pa.Table]:
    """The images and the instances of one shard as readers see them now; `row` is one of `run.files`."""
    images, instances = (
        pq.read_table(io.BytesIO(run.storage.read_bytes(row[f"{table}_key"]))) for table in ("images", "instances")
    )
    return images, instances


def merge_tables(old: tuple[pa.Table, pa.Table], new: tuple[pa.Table, pa.Table]) -> tuple[pa.Table, pa.Table]:
    """A shard's images and instances tables in which the rows of the images in `new` replace the old ones.

    Images keep the plan's order; instances are sorted as in `pipeline.bulk.encode.to_tables`.
    """
    old_images, old_instances = old
    new_images, new_instances = new
    redone_ids = new_images["image_id"]
    plan_index = {image_id: index for index, image_id in enumerate(old_images["image_id"].to_pylist())}
    images = pa.concat_tables([_without_images(old_images, redone_ids), _without_metadata(new_images)])
    indices = [plan_index[image_id] for image_id in images["image_id"].to_pylist()]
    images = images.take(pc.sort_indices(pa.array(indices, pa.int64())))
    instances = pa.concat_tables([_without_images(old_instances, redone_ids), _without_metadata(new_instances)])
    return images, instances.sort_by(INSTANCES_ORDER)


def seal_repair(repair: Repair) -> dict[str, int]:
    """Writes the manifest of a repair whose shards are all committed; returns the shards' images by status.

    Readers see the repair from then on.

    Raises:
        RunError: a shard is not committed.
    """
    commits = list(read_commits(repair.storage, repair.shards))
    write_manifest(repair.storage, commits)
    return sum_counts(commit.statuses for commit in commits)


def _num_images_with(run: Run, row: dict[str, Any], statuses: tuple[str, ...]) -> int:
    """How many images of the shard of a manifest row have one of the statuses."""
    data = io.BytesIO(run.storage.read_bytes(row["images_key"]))
    return sum(status in statuses for status in pq.read_table(data, columns=["status"])["status"].to_pylist())


def _without_images(table: pa.Table, image_ids: pa.ChunkedArray) -> pa.Table:
    return _without_metadata(table.filter(pc.invert(pc.is_in(table["image_id"], value_set=image_ids.combine_chunks()))))


def _without_metadata(table: pa.Table) -> pa.Table:
    return table.replace_schema_metadata(None)
