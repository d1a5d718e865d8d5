"""A second try at what failed, beside a sealed run: the shards concerned are written anew, nothing sealed is touched.

    OUT/repairs/<n>/repair.json          which statuses are tried again, in which shards; put-if-absent
    OUT/repairs/<n>/commits/...          as in the run itself, for those shards only
    OUT/repairs/<n>/images, instances    the whole shard: what was right before, and what came out now
    OUT/repairs/<n>/manifest.parquet     written when every one of the shards is committed; readers see it from then on

A repair that was killed goes on when it is called again; a new one begins when the last is finished.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.bulk.commit import add_up, read_commits, write_manifest
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
        statuses: images that ended so are tried again.
        shards: the shards that hold such images.
        num_images: how many such images there are.
    """

    number: int
    storage: Storage
    statuses: tuple[str, ...]
    shards: tuple[int, ...]
    num_images: int


def begin_repair(run: Run, statuses: tuple[str, ...]) -> Repair | None:
    """The repair to be done next: the unfinished one there is, or a new one; None when no image ended so.

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
        counts = {row["shard"]: _count(run, row, statuses) for row in run.files}
        shards = [shard for shard, count in counts.items() if count]
        if not shards:
            return None
        begun = {"statuses": sorted(statuses), "shards": shards, "num_images": sum(counts.values())}
        storage.put_if_absent(REPAIR_KEY, to_sealed_json(begun))
    spec = from_sealed_json(storage.read_bytes(REPAIR_KEY))
    if spec["statuses"] != sorted(statuses):
        raise RunError(
            f"repair {number} of {run.storage.uri} was begun for {', '.join(spec['statuses'])}; "
            "finish it with those statuses first"
        )
    return Repair(number, storage, tuple(spec["statuses"]), tuple(spec["shards"]), spec["num_images"])


def read_shard_tables(run: Run, row: dict[str, Any]) -> tuple[pa.Table, pa.Table]:
    """The images and the instances of one shard as they count now; `row` is one of `run.files`."""
    images, instances = (
        pq.read_table(io.BytesIO(run.storage.read_bytes(row[f"{table}_key"]))) for table in ("images", "instances")
    )
    return images, instances


def merge_tables(old: tuple[pa.Table, pa.Table], new: tuple[pa.Table, pa.Table]) -> tuple[pa.Table, pa.Table]:
    """A shard's tables with the rows of the images in `new` in the place of their old ones; orders are kept."""
    old_images, old_instances = old
    new_images, new_instances = new
    redone = new_images["image_id"]
    order = {image_id: place for place, image_id in enumerate(old_images["image_id"].to_pylist())}
    images = pa.concat_tables([_less(old_images, redone), _plain(new_images)])
    places = [order[image_id] for image_id in images["image_id"].to_pylist()]
    images = images.take(pc.sort_indices(pa.array(places, pa.int64())))
    instances = pa.concat_tables([_less(old_instances, redone), _plain(new_instances)]).sort_by(
        [("category", "ascending"), ("score", "descending"), ("image_id", "ascending"), ("instance", "ascending")]
    )
    return images, instances


def seal_repair(repair: Repair) -> dict[str, int]:
    """Shows the repair to readers, once every shard is committed; returns its images by status.

    Raises:
        RunError: a shard is not committed.
    """
    commits = list(read_commits(repair.storage, repair.shards))
    write_manifest(repair.storage, commits)
    return add_up(commit.statuses for commit in commits)


def _count(run: Run, row: dict[str, Any], statuses: tuple[str, ...]) -> int:
    data = io.BytesIO(run.storage.read_bytes(row["images_key"]))
    return sum(status in statuses for status in pq.read_table(data, columns=["status"])["status"].to_pylist())


def _less(table: pa.Table, image_ids: pa.ChunkedArray) -> pa.Table:
    return _plain(table.filter(pc.invert(pc.is_in(table["image_id"], value_set=image_ids.combine_chunks()))))


def _plain(table: pa.Table) -> pa.Table:
    return table.replace_schema_metadata(None)
