"""Listing of a corpus (folder, list of URIs, bucket inventory or tar files) as one sorted stream of planned images.

Streams are in order of image id and name each image once. No more than a chunk of names is in memory at a time.
"""

from __future__ import annotations

import csv
import fnmatch
import gzip
import heapq
import io
import itertools
import json
import tarfile
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, unquote_plus

import pyarrow as pa
import pyarrow.csv

from pipeline.storage.base import ObjectInfo, Storage
from pipeline.storage.parquet import iter_parquet, open_parquet
from pipeline.storage.stores import open_storage
from pipeline.storage.uri import is_local

KINDS = ("folder", "list", "inventory", "tars")
SORT_CHUNK = 250_000  # images that are sorted in memory at a time
_SORT_ROWS = 10_000  # images that are Python objects at a time while a chunk is read
_MERGE_BATCH = 250  # images of each sorted chunk that are in memory while the chunks are merged
# What readers raise on files that are cut short, damaged or of another format.
_UNREADABLE = (
    pa.ArrowException,
    UnicodeDecodeError,
    csv.Error,
    gzip.BadGzipFile,
    EOFError,
    zlib.error,
    json.JSONDecodeError,
)

PLAN_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("etag", pa.string()),
        pa.field("size_bytes", pa.int64()),
        pa.field("offset", pa.int64()),
    ]
)

Item = TypeVar("Item")


class CorpusError(ValueError):
    """The input cannot be listed; the message says what was expected."""


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


def tell_kind(uri: str) -> str:
    """The kind of a corpus (one of KINDS) by its URI's ending: list, inventory or tar file; otherwise a folder."""
    name = uri.rstrip("/").rsplit("/", 1)[-1].lower()
    if name == "manifest.json":
        return "inventory"
    if name.endswith((".parquet", ".csv", ".csv.gz", ".jsonl", ".jsonl.gz")):
        return "list"
    return "tars" if name.endswith(".tar") else "folder"


def iter_corpus(
    uri: str, *, kind: str = "folder", pattern: str = "*", uri_column: str = "uri", after: str = ""
) -> Iterator[PlannedImage]:
    """Yields every image of a corpus whose id matches a shell pattern, once, in order of id.

    Args:
        uri: the folder or prefix; the list; the inventory's manifest.json; the tar file or the folder of tar files.
        kind: one of KINDS.
        pattern: as in `fnmatch`, against the whole image id ('*' also crosses '/').
        uri_column: the column of a list that holds the URIs.
        after: only images whose id is greater; the listing of a bucket starts there.

    Raises:
        CorpusError: the list, inventory or tar file is not readable as one.
    """
    if kind == "folder":
        images: Iterable[PlannedImage] = _iter_folder(open_storage(uri), after)
    elif kind == "list":
        images = sort_images(_iter_list(uri, uri_column))
    elif kind == "inventory":
        images = sort_images(_iter_inventory(uri))
    elif kind == "tars":
        images = sort_images(_iter_tars(uri))
    else:
        raise CorpusError(f"input.kind is {kind!r}; allowed are {', '.join(KINDS)}")
    return (image for image in images if image.image_id > after and fnmatch.fnmatchcase(image.image_id, pattern))


def sort_images(images: Iterable[PlannedImage], chunk: int = SORT_CHUNK) -> Iterator[PlannedImage]:
    """The images in order of id, each id once (the first one listed): an external merge sort in a scratch folder.

    A chunk is sorted as an Arrow table: as Python objects it would take five times the memory and fragment the heap.
    Arrow orders strings by their UTF-8 bytes, which is Python's order by code points.
    """
    tables = (to_table(rows) for rows in in_chunks(images, min(chunk, _SORT_ROWS)))
    with tempfile.TemporaryDirectory(prefix="maskfleet-sort-") as scratch:
        sorted_chunks: list[Iterator[PlannedImage]] = []
        for part in in_chunks(tables, max(1, chunk // _SORT_ROWS)):
            table = pa.concat_tables(part).sort_by("image_id")
            part.clear()
            sorted_chunks.append(_spill(table, Path(scratch) / f"{len(sorted_chunks)}.arrow"))
            del table  # before the next is read
        last_id = None
        for image in heapq.merge(*sorted_chunks, key=lambda image: image.image_id):
            if image.image_id != last_id:
                yield image
            last_id = image.image_id


def new_or_changed(images: Iterable[PlannedImage], earlier: Iterable[PlannedImage]) -> Iterator[PlannedImage]:
    """The images that are new or changed (ETag or size) since an earlier listing; both streams in order of id."""
    earlier = iter(earlier)
    old = next(earlier, None)
    for image in images:
        while old is not None and old.image_id < image.image_id:
            old = next(earlier, None)
        if old is None or (old.image_id, old.etag, old.size_bytes) != (image.image_id, image.etag, image.size_bytes):
            yield image


def to_table(images: list[PlannedImage]) -> pa.Table:
    """Images as a table of PLAN_SCHEMA."""
    columns = {name: [getattr(image, name) for image in images] for name in PLAN_SCHEMA.names}
    return pa.table(columns, schema=PLAN_SCHEMA)


def from_table(table: pa.Table | pa.RecordBatch) -> Iterator[PlannedImage]:
    """The images of a table of PLAN_SCHEMA."""
    columns = [table[name].to_pylist() for name in PLAN_SCHEMA.names]
    return (PlannedImage(*values) for values in zip(*columns))


def in_chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items, the last one shorter; a caller may empty a list to free its items."""
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


def _spill(table: pa.Table, path: Path) -> Iterator[PlannedImage]:
    """Writes a table to a file at once; returns its images, read in small batches."""
    with pa.ipc.new_stream(path, table.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        writer.write_table(table, max_chunksize=_MERGE_BATCH)
    batches = pa.ipc.open_stream(pa.OSFile(str(path)))
    return (image for batch in batches for image in from_table(batch))


def _iter_folder(storage: Storage, after: str) -> Iterator[PlannedImage]:
    for info in storage.iter_objects(after=after):
        known = info.size_bytes >= 0
        yield PlannedImage(
            info.key, storage.uri_of(info.key), info.etag if known else None, info.size_bytes if known else None
        )


def _iter_list(uri: str, column: str) -> Iterator[PlannedImage]:
    storage, key = _parent(uri)
    for value in _iter_values(storage, key, column):
        if not isinstance(value, str) or not value:
            raise CorpusError(f"{uri}: column {column!r} holds {value!r}; allowed are URIs and paths")
        # A relative path is relative to the list's own folder.
        image_uri = value if "://" in value or value.startswith("/") else storage.uri_of(value)
        yield PlannedImage(value, image_uri)


def _iter_values(storage: Storage, key: str, column: str) -> Iterator[Any]:
    """The values of one column of a Parquet, CSV or JSON Lines file."""
    list_uri = storage.uri_of(key)
    with storage.open_input(key) as file:
        try:
            if key.endswith(".parquet"):
                _need_column(list_uri, column, open_parquet(file).schema_arrow.names)
                for batch in iter_parquet(file, [column]):
                    yield from batch[column].to_pylist()
                return
            text = io.TextIOWrapper(gzip.open(file) if key.endswith(".gz") else file, encoding="utf-8-sig", newline="")
            if key.removesuffix(".gz").endswith(".csv"):
                reader = csv.DictReader(text)
                _need_column(list_uri, column, reader.fieldnames or [])
                for row in reader:
                    yield row[column]
                return
            for line in text:
                if line.strip():
                    row = json.loads(line)
                    _need_column(list_uri, column, row if isinstance(row, dict) else [])
                    yield row[column]
        except _UNREADABLE as error:
            raise CorpusError(f"{list_uri}: not readable as a list of images: {error}") from error


def _need_column(list_uri: str, column: str, names: Iterable[str]) -> None:
    if column not in names:
        raise CorpusError(
            f"{list_uri}: has no column {column!r} (input.uri_column); it has {', '.join(names) or 'none'}"
        )


def _iter_inventory(uri: str) -> Iterator[PlannedImage]:
    """The images of an Amazon S3 Inventory: a manifest.json that names data files of CSV or Parquet."""
    storage, key = _parent(uri)
    try:
        manifest = json.loads(storage.read_bytes(key))
        bucket, file_format = manifest["sourceBucket"], manifest["fileFormat"].upper()
        columns = [name.strip() for name in manifest.get("fileSchema", "").split(",")]
        data_keys = [entry["key"] for entry in manifest["files"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorpusError(f"{uri}: no inventory manifest (sourceBucket, fileFormat, files): {error!r}") from error
    root = _inventory_root(manifest, storage)
    for data_key in data_keys:
        try:
            data = root.read_bytes(data_key)
        except FileNotFoundError as error:
            raise CorpusError(f"{root.uri_of(data_key)}: the inventory names this file and it is not there") from error
        try:
            for row in _inventory_rows(data, file_format, columns):
                if row.get("islatest") in ("false", False) or row.get("isdeletemarker") in ("true", True):
                    continue
                name, size, etag = row["key"], row.get("size"), row.get("etag") or row.get("e_tag")
                size_bytes = None if size in (None, "") else int(size)
                yield PlannedImage(name, f"s3://{bucket}/{name}", etag or None, size_bytes)
        except KeyError as error:
            raise CorpusError(f"{root.uri_of(data_key)}: a row of the inventory has no column {error}") from error
        except (*_UNREADABLE, ValueError) as error:
            raise CorpusError(f"{root.uri_of(data_key)}: not readable as a file of an inventory: {error}") from error


def _inventory_root(manifest: dict[str, Any], storage: Storage) -> Storage:
    """The storage that holds the manifest's data keys: its destination bucket, or on a disk its own folder."""
    if is_local(storage.uri):
        return storage
    return open_storage("s3://" + manifest.get("destinationBucket", "").removeprefix("arn:aws:s3:::"))


def _inventory_rows(data: bytes, file_format: str, columns: list[str]) -> Iterator[dict[str, Any]]:
    if file_format == "PARQUET":
        for batch in iter_parquet(data):
            for row in batch.to_pylist():
                yield {name.lower(): value for name, value in row.items()}
    elif file_format == "CSV":
        text = io.TextIOWrapper(gzip.open(io.BytesIO(data)), encoding="utf-8", newline="")
        names = [name.lower().replace(" ", "") for name in columns]
        for values in csv.reader(text):
            row = dict(zip(names, values))
            row["key"] = unquote_plus(row["key"])  # CSV inventories hold URL-encoded keys
            yield row
    else:
        raise CorpusError(f"an inventory of format {file_format!r} is not read; allowed are CSV and Parquet")


def _iter_tars(uri: str) -> Iterator[PlannedImage]:
    """The members of one tar file, or of every tar file below a folder (WebDataset's shards)."""
    storage, keys = open_storage(uri), None
    if uri.lower().endswith(".tar"):
        storage, key = _parent(uri)
        keys = iter([storage.stat(key)])
    for info in keys or (info for info in storage.iter_objects() if info.key.lower().endswith(".tar")):
        yield from _iter_members(storage, info)


def _iter_members(storage: Storage, tar: ObjectInfo) -> Iterator[PlannedImage]:
    uri = storage.uri_of(tar.key)
    try:
        with storage.open_input(tar.key) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                if member.isfile():
                    name = f"{tar.key}/{_as_utf8(member.name.removeprefix('./'))}"
                    yield PlannedImage(name, uri, tar.etag, member.size, member.offset_data)
                archive.members = []  # type: ignore[attr-defined]  # otherwise every header stays in memory
    except tarfile.TarError as error:
        raise CorpusError(f"{uri}: not readable as an uncompressed tar file: {error}") from error


def _as_utf8(name: str) -> str:
    """A tar member's name with the bytes that are no UTF-8 written as escapes, as in listings of local folders."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _parent(uri: str) -> tuple[Storage, str]:
    """The storage of a file's folder, and the file's name in it."""
    if is_local(uri):
        path = Path(unquote(uri.removeprefix("file://"))) if uri.startswith("file://") else Path(uri)
        return open_storage(str(path.parent)), path.name
    folder, name = uri.rstrip("/").rsplit("/", 1)
    return open_storage(folder), name
