"""Plan of a run: the listing of its corpus, written as Parquet parts, sealed, and cut into shards.

The listing is written in groups of GROUP_SIZE keys as it streams by, so memory does not grow with the corpus. Sealing
(`plan.json`, put-if-absent) fixes the images, their order and the shard size for good. Images that appear in the corpus
afterwards belong to another run.
"""

from __future__ import annotations

import bisect
import heapq
import io
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from itertools import accumulate, groupby

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.bulk.listing import (
    PlannedImage,
    UnsortedListing,
    from_table,
    in_chunks,
    iter_corpus,
    new_or_changed,
    to_table,
)
from pipeline.manifest import (
    PLAN_KEY,
    DataFile,
    Run,
    RunError,
    from_sealed_json,
    open_run,
    plan_part_key,
    sha256_of,
    to_sealed_json,
)
from pipeline.notes import NoteList
from pipeline.run_spec import InputSpec
from pipeline.schema import ARCHIVED, RETRYABLE
from pipeline.storage.base import Storage, StorageSettings
from pipeline.storage.parquet import open_parquet, read_parquet
from pipeline.storage.stores import open_file

GROUP_SIZE = 256  # images in a row group of a part
MAX_GROUPS_PER_SHARD = 16
PART_ROWS = 65_536  # images in a part; the last part may have fewer
_ROWS_AT_ONCE, _REQUESTS_AT_ONCE = 1000, 32  # images of earlier runs that are looked at, and asked for, together
_AFTER = b"maskfleet.after"  # metadata key: the image id after which a part's listing began


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


def choose_shard_size(num_images: int, num_workers: int) -> int:
    """Images in a shard: 1 to MAX_GROUPS_PER_SHARD groups by the size of the corpus, less than a group for a small one.

    A shard is what a crash can cost and what a worker takes at a time. It is small enough that every worker has at
    least four, and large enough that a run of a hundred million images has no more than some 25,000 commits.
    """
    if num_images < GROUP_SIZE * num_workers * 4:
        return max(1, min(GROUP_SIZE, -(-num_images // (num_workers * 4))))
    groups = num_images // (GROUP_SIZE * max(num_workers * 4, 1000))
    return GROUP_SIZE * max(1, min(MAX_GROUPS_PER_SHARD, groups))


def seal_plan(
    storage: Storage,
    list_images: Callable[[str], Iterable[PlannedImage]],
    *,
    shard_size: int | None,
    num_workers: int,
    take_over: bool = True,
) -> Plan:
    """Lists the corpus, writes the plan and seals it; returns the sealed plan, which may be another planner's.

    Whole parts that an earlier, killed planner has written are taken over, and the listing goes on after them.

    Args:
        storage: the run's output.
        list_images: yields the images whose id is greater than the given one ('' for all), in order of id.
        shard_size: images in a shard; None chooses by `choose_shard_size`.
        num_workers: how many workers share the shards.
        take_over: whether to take over the parts of killed planners.

    Atomic: until `plan.json` is there, no part counts. Of several planners at once one wins; the others remove their
    own parts.
    """
    attempt = uuid.uuid4().hex[:8]
    parts, last_id = _earlier_parts(storage) if take_over else ([], "")
    own_parts = []
    try:
        for number, rows in enumerate(in_chunks(list_images(last_id), PART_ROWS), start=len(parts)):
            own_parts.append(_write_part(storage, plan_part_key(number, attempt), rows, last_id))
            last_id = rows[-1].image_id
    except UnsortedListing:
        for part in own_parts:
            storage.delete(part.key)
        raise
    parts += own_parts
    num_images = sum(part.rows for part in parts)
    sealed = Plan(storage, tuple(parts), num_images, shard_size or choose_shard_size(num_images, num_workers))
    if not storage.put_if_absent(PLAN_KEY, sealed.to_json()):
        winner = read_plan(storage)
        for part in own_parts:
            if winner is not None and part not in winner.parts:
                storage.delete(part.key)
    plan = read_plan(storage)
    if plan is None:
        raise RunError(f"{storage.uri}: {PLAN_KEY} vanished while the run was being planned")
    return plan


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


def plan_corpus(
    storage: Storage, source: InputSpec, *, shard_size: int | None, num_workers: int, notes: NoteList | None = None
) -> Plan:
    """Lists a run's input and seals the plan, see `seal_plan`; sorts what a store lists in no order.

    `notes` takes what the listing leaves out, see `list_corpus`.
    """
    try:
        images = partial(list_corpus, source, settings=storage.settings, notes=notes)
        return seal_plan(storage, images, shard_size=shard_size, num_workers=num_workers)
    except UnsortedListing:
        images = partial(list_corpus, source, settings=storage.settings, sort=True, notes=notes)
        return seal_plan(storage, images, shard_size=shard_size, num_workers=num_workers, take_over=False)


def list_corpus(
    source: InputSpec,
    after: str,
    *,
    sort: bool = False,
    settings: StorageSettings | None = None,
    notes: NoteList | None = None,
) -> Iterator[PlannedImage]:
    """The images of a run's input in order of id, without those that earlier runs have done unchanged.

    Args:
        source: where the images are; with `since_run` set, that run and the runs before it are the earlier ones.
        after: only images whose id is greater.
        sort, settings: see `iter_corpus`.
        notes: takes what is left out and has no row in an earlier run that says ok: rows of a list as `iter_corpus`
            says, and objects that an earlier run found in the store's archive and that are still there.

    Raises:
        CorpusError: the input cannot be listed.
        RunError: an earlier run is not there or is unreadable.
    """
    images = iter_corpus(
        source.uri,
        kind=source.kind,
        pattern=source.pattern,
        uri_column=source.uri_column,
        after=after,
        sort=sort,
        settings=settings,
        notes=notes,
    )
    if source.since_run is None:
        return images
    return new_or_changed(images, _planned_before(source.since_run, settings, NoteList() if notes is None else notes))


def _planned_before(uri: str | None, settings: StorageSettings | None, notes: NoteList) -> Iterator[PlannedImage]:
    """The images of a run and of its chain of `since_run` that need no other try, in order of id.

    Of each id the newest run tells: an image that failed there with a status that may pass is left out, unless the
    store says that the object is still in its archive, and a try would fail.
    """
    runs = []
    while uri is not None:
        run = open_run(uri, settings)
        plan = read_plan(run.storage)
        if plan is not None:
            runs.append(_with_status(run, plan))
        uri = run.spec.input.since_run
    merged = heapq.merge(*runs, key=lambda row: row[0].image_id)  # stable: of equal ids the newest run's comes first
    newest = (next(versions) for _, versions in groupby(merged, key=lambda row: row[0].image_id))
    with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as threads:
        for rows in in_chunks(newest, _ROWS_AT_ONCE):
            archived = [image for image, status in rows if status == ARCHIVED]
            answers = threads.map(partial(_is_archived, settings=settings), archived)
            still_archived = {image.image_id for image, answer in zip(archived, answers, strict=True) if answer}
            for image, status in rows:
                if image.image_id in still_archived:
                    notes.add("images that are still in the store's archive are left out", image.image_id)
                if image.image_id in still_archived or status not in RETRYABLE:
                    yield image


def _is_archived(image: PlannedImage, settings: StorageSettings | None) -> bool:
    """Whether the very object is still in the archive; False where the store cannot be asked: a try will tell why."""
    try:
        storage, key = open_file(image.uri, settings)
        info = storage.stat(key)
    except (OSError, ValueError):
        return False
    return info.archived and image.etag in (None, info.etag)


def _with_status(run: Run, plan: Plan) -> Iterator[tuple[PlannedImage, str | None]]:
    """The images of a plan, each with its status as readers see it now; None where its shard is not committed."""
    files = {each.shard: each.images for each in run.files}
    for shard in range(plan.num_shards):
        images, statuses = plan.read_shard(shard), dict[str, str]()
        if shard in files:
            table = read_parquet(run.storage.read_bytes(files[shard].key), ["image_id", "status"])
            statuses = dict(zip(table["image_id"].to_pylist(), table["status"].to_pylist()))
        yield from ((image, statuses.get(image.image_id)) for image in images)


def _earlier_parts(storage: Storage) -> tuple[list[DataFile], str]:
    """The whole parts that killed planners left, each beginning where the one before ends; and the last image id."""
    parts: list[DataFile] = []
    last_id = ""
    for info in storage.iter_objects("plan/"):
        if not info.key.startswith(plan_part_key(len(parts), "")[: -len(".parquet")]):
            continue
        try:
            data = storage.read_bytes(info.key)
            table = read_parquet(data, ["image_id"])
        except (FileNotFoundError, pa.ArrowException):  # removed by its planner, which lost the race; or half written
            continue
        if table.num_rows == PART_ROWS and table.schema.metadata[_AFTER] == last_id.encode():
            parts.append(DataFile(info.key, table.num_rows, len(data), sha256_of(data)))
            last_id = table["image_id"][-1].as_py()
    return parts, last_id


def _write_part(storage: Storage, key: str, rows: list[PlannedImage], after: str) -> DataFile:
    buffer = io.BytesIO()
    table = to_table(rows).replace_schema_metadata({_AFTER: after})
    pq.write_table(
        table, buffer, row_group_size=GROUP_SIZE, compression="zstd", write_page_checksum=True, use_dictionary=False
    )
    data = buffer.getvalue()
    storage.write_bytes(key, data)
    return DataFile(key, len(rows), len(data), sha256_of(data))
