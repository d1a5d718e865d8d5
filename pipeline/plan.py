"""Sealed plan of a run: its images in order of id, each once, as Parquet parts that are cut into shards."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import accumulate

import pyarrow as pa

from pipeline.manifest import PLAN_KEY, DataFile, RunError, from_sealed_json, to_sealed_json
from pipeline.storage.base import Storage
from pipeline.storage.parquet import iter_parquet, open_parquet

GROUP_SIZE = 256  # images in a row group of a part

PLAN_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("etag", pa.string()),
        pa.field("size_bytes", pa.int64()),
        pa.field("offset", pa.int64()),
    ]
)


@dataclass(frozen=True, slots=True)
class PlannedImage:
    """One image of the plan.

    Attributes:
        image_id: its key below the corpus root; in a list the URI as listed; in tar files 'file.tar/member'.
        uri: the file or object that holds its bytes; for a tar member the tar file.
        etag: the object's ETag when listed, for a tar member that of the tar file; None where the listing has none.
        size_bytes: its size when listed; None where the listing has none.
        offset: for a tar member the offset in bytes of its data in the tar file, else None.
    """

    image_id: str
    uri: str
    etag: str | None = None
    size_bytes: int | None = None
    offset: int | None = None


@dataclass(frozen=True)
class Plan:
    """A sealed plan. Shard i holds the images [i * shard_size, (i + 1) * shard_size) of the concatenated parts."""

    storage: Storage
    parts: tuple[DataFile, ...]
    num_images: int
    shard_size: int

    @property
    def num_shards(self) -> int:
        """Number of shards; 0 without images."""
        return -(-self.num_images // self.shard_size)

    def num_images_of(self, shard: int) -> int:
        """Number of images of a shard: `shard_size`, fewer in the last one."""
        return min(self.shard_size, self.num_images - shard * self.shard_size)

    def read_shard(self, shard: int) -> list[PlannedImage]:
        """The images of one shard, reading only the groups it spans.

        Raises:
            IndexError: no such shard.
            RunError: a part of the plan does not hold what was sealed.
        """
        if not 0 <= shard < self.num_shards:
            raise IndexError(f"the plan has {self.num_shards} shards, no shard {shard}")
        start = shard * self.shard_size
        return self._read_rows(start, start + self.num_images_of(shard))

    def iter_images(self) -> Iterator[PlannedImage]:
        """Every image of the plan, in order, streaming."""
        for shard in range(self.num_shards):
            yield from self.read_shard(shard)

    def iter_columns(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """These columns of PLAN_SCHEMA of every image, in order, in batches of at least one and at most 10,000 rows."""
        for part in self.parts:
            with self.storage.open_input(part.key) as file:
                yield from (batch for batch in iter_parquet(file, columns) if batch.num_rows)

    def to_json(self) -> bytes:
        """plan.json: the plan as sealed JSON."""
        parts = [asdict(part) for part in self.parts]
        return to_sealed_json({"num_images": self.num_images, "shard_size": self.shard_size, "parts": parts})

    @classmethod
    def from_json(cls, storage: Storage, data: bytes) -> Plan:
        """The plan that `to_json` wrote. Raises RunError when the bytes are none."""
        sealed = from_sealed_json(data)
        try:
            parts = tuple(DataFile(**part) for part in sealed["parts"])
            return cls(storage, parts, sealed["num_images"], sealed["shard_size"])
        except (TypeError, KeyError) as error:
            raise RunError(f"no plan: {error}") from error

    @cached_property
    def _part_ends(self) -> list[int]:
        return list(accumulate(part.rows for part in self.parts))

    def _read_rows(self, start: int, stop: int) -> list[PlannedImage]:
        rows: list[PlannedImage] = []
        number = bisect.bisect_right(self._part_ends, start)
        while start + len(rows) < stop:
            part = self.parts[number]
            part_start = self._part_ends[number] - part.rows
            first = start + len(rows) - part_start
            last = min(stop - part_start, part.rows)  # exclusive
            with self.storage.open_input(part.key) as file:
                parquet = open_parquet(file, verify_pages=True)
                num_rows = parquet.metadata.num_rows
                if num_rows != part.rows:
                    raise RunError(f"{part.key} holds {num_rows} images, the plan was sealed with {part.rows}")
                groups = range(first // GROUP_SIZE, (last - 1) // GROUP_SIZE + 1)
                table = parquet.read_row_groups(list(groups), use_threads=False)
                table = table.slice(first - groups[0] * GROUP_SIZE, last - first)
            rows += from_table(table)
            number += 1
        return rows


def read_plan(storage: Storage) -> Plan | None:
    """The sealed plan of a run, or None while there is none.

    Raises:
        RunError: plan.json is there and unreadable.
    """
    try:
        return Plan.from_json(storage, storage.read_bytes(PLAN_KEY))
    except FileNotFoundError:
        return None
    except RunError as error:
        raise RunError(f"{storage.uri}: {PLAN_KEY} is unreadable: {error}") from error


def to_table(images: list[PlannedImage]) -> pa.Table:
    """Images as a table of PLAN_SCHEMA."""
    columns = {name: [getattr(image, name) for image in images] for name in PLAN_SCHEMA.names}
    return pa.table(columns, schema=PLAN_SCHEMA)


def from_table(table: pa.Table | pa.RecordBatch) -> Iterator[PlannedImage]:
    """The images of a table of PLAN_SCHEMA."""
    columns = [table[name].to_pylist() for name in PLAN_SCHEMA.names]
    return (PlannedImage(*values) for values in zip(*columns))
