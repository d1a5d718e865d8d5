"""Repairs of a sealed run: failed images are segmented again, and their shards are written anew beside the run.

    OUT/repairs/<n>/repair.json          which statuses are tried again, in which shards; put-if-absent
    OUT/repairs/<n>/commits/...          as in the run itself, for those shards only
    OUT/repairs/<n>/images, instances    the whole shard: the run's rows with the new ones in their places
    OUT/repairs/<n>/manifest.parquet     written when all of these shards are committed; readers see it from then on

The run's own files are never touched. A repair that was killed goes on when it is called again; a new one begins when
the last one is finished.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.bulk.commit import read_commits, sum_counts, write_manifest
from pipeline.bulk.encode import sort_instances
from pipeline.manifest import Run, RunError, ShardFiles, from_sealed_json, repair_prefix, to_sealed_json
from pipeline.schema import STATUSES
from pipeline.storage.base import Storage
from pipeline.storage.parquet import read_parquet
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

    def to_json(self) -> bytes:
        """repair.json, as sealed JSON."""
        document = {"statuses": self.statuses, "shards": self.shards, "num_images": self.num_images}
        return to_sealed_json(document)

    @classmethod
    def read(cls, run_storage: Storage, number: int) -> Repair:
        """The repair of this number of a run, as it was begun.

        Raises:
            FileNotFoundError: there is none.
            RunError: its description is unreadable.
        """
        storage = open_storage(run_storage.uri_of(repair_prefix(number).rstrip("/")), run_storage.settings)
        document = from_sealed_json(storage.read_bytes(REPAIR_KEY))
        try:
            statuses, shards = (tuple(document[name]) for name in ("statuses", "shards"))
            return cls(number, storage, statuses, shards, document["num_images"])
        except (TypeError, KeyError) as error:
            raise RunError(f"no repair: {error}") from error


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
    storage = open_storage(run.storage.uri_of(repair_prefix(number).rstrip("/")), run.storage.settings)
    if not storage.exists(REPAIR_KEY):
        counts = {each.shard: _num_images_with(run, each, statuses) for each in run.files}
        shards = tuple(shard for shard, count in counts.items() if count)
        if not shards:
            return None
        begun = Repair(number, storage, tuple(sorted(statuses)), shards, sum(counts.values()))
        storage.put_if_absent(REPAIR_KEY, begun.to_json())
    repair = Repair.read(run.storage, number)
    if repair.statuses != tuple(sorted(statuses)):
        raise RunError(
            f"repair {number} of {run.storage.uri} was begun for {', '.join(repair.statuses)}; "
            "finish it with those statuses first"
        )
    return repair


def read_shard_tables(run: Run, files: ShardFiles) -> tuple[pa.Table, pa.Table]:
    """The images and the instances of one shard as readers see them now; `files` is one of `run.files`."""
    images, instances = (read_parquet(run.storage.read_bytes(file.key)) for file in (files.images, files.instances))
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
    return images, sort_instances(instances)


def seal_repair(repair: Repair) -> dict[str, int]:
    """Writes the manifest of a repair whose shards are all committed; returns the shards' images by status.

    Readers see the repair from then on.

    Raises:
        RunError: a shard is not committed.
    """
    commits = list(read_commits(repair.storage, repair.shards))
    write_manifest(repair.storage, commits)
    return sum_counts(commit.statuses for commit in commits)


def _num_images_with(run: Run, files: ShardFiles, statuses: tuple[str, ...]) -> int:
    """How many images of a shard have one of the statuses."""
    data = run.storage.read_bytes(files.images.key)
    return sum(status in statuses for status in read_parquet(data, ["status"])["status"].to_pylist())


def _without_images(table: pa.Table, image_ids: pa.ChunkedArray) -> pa.Table:
    return _without_metadata(table.filter(pc.invert(pc.is_in(table["image_id"], value_set=image_ids.combine_chunks()))))


def _without_metadata(table: pa.Table) -> pa.Table:
    return table.replace_schema_metadata(None)
