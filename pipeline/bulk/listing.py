"""Listing of a corpus (folder, list of URIs, bucket inventory or tar files) as one sorted stream of planned images.

Streams are in order of image id and name each image once. No more than a chunk of names is in memory at a time.
"""

from __future__ import annotations

import csv
import fnmatch
import functools
import gzip
import heapq
import io
import itertools
import json
import os
import posixpath
import tarfile
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.csv

from pipeline.notes import NoteList
from pipeline.storage.base import ObjectInfo, Storage, StorageError, StorageSettings
from pipeline.storage.parquet import iter_parquet, open_parquet
from pipeline.storage.stores import open_storage
from pipeline.storage.uri import base_name, file_place, is_local, join_uri, parent_uri

KINDS = ("folder", "list", "inventory", "tars")
SORT_CHUNK = 250_000  # images that are sorted in memory at a time
_SORT_ROWS = 10_000  # images that are Python objects at a time while a chunk is read
_MERGE_BATCH = 250  # images of each sorted chunk that are in memory while the chunks are merged
# What readers raise on files that are cut short, damaged or of another format.
_UNREADABLE = (
    pa.ArrowException,
    csv.Error,
    gzip.BadGzipFile,
    EOFError,
    zlib.error,
)
_CSV_END = "\0end\0"
_COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")

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


class UnsortedListing(CorpusError):
    """A store lists a folder in another order than that of its keys."""


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
    name = base_name(uri).lower()
    if name == "manifest.json":
        return "inventory"
    if name.endswith((".parquet", ".csv", ".csv.gz", ".jsonl", ".jsonl.gz")):
        return "list"
    return "tars" if name.endswith((".tar", *_COMPRESSED_TARS)) else "folder"


def iter_corpus(
    uri: str,
    *,
    kind: str = "folder",
    pattern: str = "*",
    uri_column: str = "uri",
    after: str = "",
    sort: bool = False,
    settings: StorageSettings | None = None,
    notes: NoteList | None = None,
) -> Iterator[PlannedImage]:
    """Yields every image of a corpus whose id matches a shell pattern, once, in order of id.

    An entry that names no image, such as an empty row of a list, a link in a tar file to a member that is not there, or
    a folder that cannot be read, is yielded, too: its URI leads nowhere, and its row will say so.

    Args:
        uri: the folder or prefix; the list; the inventory's manifest.json; the tar file or the folder of tar files.
        kind: one of KINDS.
        pattern: as in `fnmatch`, against the whole image id ('*' also crosses '/').
        uri_column: the column of a list that holds the URIs.
        after: only images whose id is greater; the listing of a bucket starts there.
        sort: sorts the listing of a folder, too, which is not begun before all of it is known.
        settings: for buckets, see `open_storage`.
        notes: takes the rows of a list that name the file of another row in another spelling; they are left out.

    Raises:
        CorpusError: the list, inventory or tar file is not readable as one, to its very end.
        UnsortedListing: the store lists a folder in another order; `sort` reads it.
    """
    listed = _iter_unsorted(uri, kind, uri_column, "" if sort else after, settings)
    matching = (image for image in listed if fnmatch.fnmatchcase(image.image_id, pattern))
    if kind == "list":
        images = _once_for_each_place(matching, NoteList() if notes is None else notes)
    else:
        images = _in_order(matching) if kind == "folder" and not sort else sort_images(matching)
    return (image for image in images if image.image_id > after)


def count_images(
    uri: str, *, kind: str, pattern: str, uri_column: str, limit: int, settings: StorageSettings | None = None
) -> int:
    """The number of images of a corpus, at most `limit`; no more of it is read. Else as `iter_corpus`."""
    images = _iter_unsorted(uri, kind, uri_column, "", settings)
    matching = (image.image_id for image in images if fnmatch.fnmatchcase(image.image_id, pattern))
    return len(set(itertools.islice(matching, limit)))


def _iter_unsorted(
    uri: str, kind: str, uri_column: str, after: str, settings: StorageSettings | None
) -> Iterator[PlannedImage]:
    if kind == "folder":
        return _iter_folder(open_storage(uri, settings), after)
    if kind == "list":
        return _iter_list(uri, uri_column, settings)
    if kind == "inventory":
        return _iter_inventory(uri, settings)
    if kind == "tars":
        return _iter_tars(uri, settings)
    raise CorpusError(f"input.kind is {kind!r}; allowed are {', '.join(KINDS)}")


def _in_order(images: Iterable[PlannedImage]) -> Iterator[PlannedImage]:
    """The images of a store that lists in order of key; a key that comes twice in a row is taken once."""
    last_id = ""
    for image in images:
        if image.image_id < last_id:
            raise UnsortedListing(f"the store lists {image.image_id!r} after {last_id!r}")
        if image.image_id != last_id:
            yield image
        last_id = image.image_id


def _once_for_each_place(images: Iterable[PlannedImage], notes: NoteList) -> Iterator[PlannedImage]:
    """The images of a list in order of id, each file or object once: of its spellings the first in this order."""
    real_folder = functools.lru_cache(1024)(os.path.realpath)
    prefixes: set[str | None] = set()  # of places that end as they are listed

    def place_of(image: PlannedImage) -> str:
        try:
            return file_place(image.uri, real_folder)
        except StorageError:  # it names nothing
            return image.uri

    def noted() -> Iterator[PlannedImage]:
        for image in images:
            place = place_of(image)
            prefixes.add(place.removesuffix(image.image_id) if place.endswith(image.image_id) else None)
            yield image

    def once() -> Iterator[PlannedImage]:
        # Sorted by place: a list gives no ETags, so that column is free for the text.
        with_place_as_id = (PlannedImage(place_of(image), image.uri, image.image_id) for image in by_id)
        place = None
        for image in sort_images(with_place_as_id, unique=False):
            if image.image_id != place:
                yield PlannedImage(str(image.etag), image.uri)
            else:
                notes.add("rows of the list that name a file again, spelled differently, are left out", str(image.etag))
            place = image.image_id

    by_id = sort_images(noted())
    by_id = itertools.chain(list(itertools.islice(by_id, 1)), by_id)  # now all prefixes are known
    # Behind one prefix no two texts lead to one place.
    return iter(by_id) if len(prefixes) < 2 and None not in prefixes else sort_images(once())


def sort_images(
    images: Iterable[PlannedImage], chunk: int = SORT_CHUNK, *, unique: bool = True
) -> Iterator[PlannedImage]:
    """The images in order of id, each id once (the first one listed): an external merge sort in a scratch folder.

    Where `unique` is False, all images of an id come, as they are listed.

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
            if not unique or image.image_id != last_id:
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
        size_bytes = info.size_bytes if info.size_bytes >= 0 else None
        yield PlannedImage(_as_text(info.key), storage.uri_of(info.key), info.etag or None, size_bytes)


def _iter_list(uri: str, column: str, settings: StorageSettings | None) -> Iterator[PlannedImage]:
    storage, key = _parent(uri, settings)
    for number, value in enumerate(_iter_values(storage, key, column), start=1):
        text = _as_text(value) if isinstance(value, str | bytes) else ""
        if text:
            yield PlannedImage(text, _place(storage.uri, text))
        else:
            yield _nameless(uri, number)


def _nameless(uri: str, number: int) -> PlannedImage:
    """A row (from 1) of a list or inventory that names no image: a row of the run whose URI leads nowhere."""
    return PlannedImage(f"{base_name(uri)}/row {number}", f"{uri}/row {number}, which names no image")


def _place(folder: str, name: str) -> str:
    """The URI of a name, which is relative to the list's own folder; one that no file can have stays as it is."""
    try:
        return join_uri(folder, name)
    except StorageError:
        return name


def _iter_values(storage: Storage, key: str, column: str) -> Iterator[Any]:
    """The values of one column of a Parquet, CSV or JSON Lines file; None where a row has none."""
    list_uri, num_rows = storage.uri_of(key), 0
    with storage.open_input(key) as file:
        try:
            for value in _values_of(file, key, list_uri, column):
                yield value
                num_rows += 1
        except _UNREADABLE as error:
            where = f"{list_uri}: after {num_rows:,} rows"
            raise CorpusError(f"{where}: not readable as a list of images: {error}") from error


def _values_of(file: BinaryIO, key: str, list_uri: str, column: str) -> Iterator[Any]:
    if key.endswith(".parquet"):
        schema = open_parquet(file).schema_arrow
        _need_column(list_uri, column, schema.names)
        if not _holds_text(schema.field(column).type):
            held = schema.field(column).type
            raise CorpusError(f"{list_uri}: column {column!r} holds {held}; allowed are URIs and paths")
        for batch in iter_parquet(file, [column]):
            yield from batch[column].to_pylist()
        return
    text = io.TextIOWrapper(gzip.open(file) if key.endswith(".gz") else file, "utf-8-sig", "backslashreplace", "")
    if key.removesuffix(".gz").endswith(".csv"):
        rows = _csv_rows(text)
        names = next(rows, [])
        _need_column(list_uri, column, names)
        index = names.index(column)
        yield from (row[index] if index < len(row) else None for row in rows)
        return
    lines = (_json_object(line) for line in text if line.strip())
    first = next(lines, None)
    if first is not None:
        _need_column(list_uri, column, first)
        yield from (row.get(column) for row in itertools.chain([first], lines))


def _holds_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(kind) for test in (*tests, pa.types.is_binary, pa.types.is_large_binary, pa.types.is_null))


def _csv_rows(text: Iterable[str]) -> Iterator[list[str]]:
    """The rows of a CSV file that are not blank. Raises csv.Error at a quote that is never closed."""
    # A last row of our own: an open quote would take it, like all the rows before it, for a part of a field.
    reader = csv.reader(itertools.chain(text, [_CSV_END]))
    for row in reader:
        if row == [_CSV_END]:
            return
        if row and _CSV_END in row[-1]:
            break
        if row:
            yield row
    raise csv.Error(f"a quote is open from row to end (line {reader.line_num - 1:,})")


def _json_object(line: str) -> dict[str, Any]:
    """The object in a line of JSON; {} where it holds none."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _need_column(list_uri: str, column: str, names: Iterable[str], setting: str = "input.uri_column") -> None:
    if column not in names:
        raise CorpusError(f"{list_uri}: has no column {column!r} ({setting}); it has {', '.join(names) or 'none'}")


def _iter_inventory(uri: str, settings: StorageSettings | None) -> Iterator[PlannedImage]:
    """The images of an Amazon S3 Inventory: a manifest.json that names data files of CSV or Parquet."""
    storage, key = _parent(uri, settings)
    try:
        manifest = json.loads(storage.read_bytes(key))
        bucket, file_format = manifest["sourceBucket"], manifest["fileFormat"].upper()
        columns = [name.strip() for name in manifest.get("fileSchema", "").split(",")]
        data_keys = [entry["key"] for entry in manifest["files"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorpusError(f"{uri}: no inventory manifest (sourceBucket, fileFormat, files): {error!r}") from error
    root = _inventory_root(manifest, storage)
    for data_key in data_keys:
        data_uri = root.uri_of(data_key)
        try:
            data = root.read_bytes(data_key)
        except FileNotFoundError as error:
            raise CorpusError(f"{data_uri}: the inventory names this file and it is not there") from error
        try:
            for number, row in enumerate(_inventory_rows(data, data_uri, file_format, columns), start=1):
                if row.get("islatest") in ("false", False) or row.get("isdeletemarker") in ("true", True):
                    continue
                name, size, etag = row.get("key"), row.get("size"), row.get("etag") or row.get("e_tag")
                if name:
                    size_bytes = int(str(size)) if str(size).isdecimal() else None
                    yield PlannedImage(_as_text(name), f"s3://{bucket}/{name}", etag or None, size_bytes)
                else:
                    yield _nameless(data_uri, number)
        except _UNREADABLE as error:
            raise CorpusError(f"{data_uri}: not readable as a file of an inventory: {error}") from error


def _inventory_root(manifest: dict[str, Any], storage: Storage) -> Storage:
    """The storage that holds the manifest's data keys: its destination bucket, or on a disk its own folder."""
    if is_local(storage.uri):
        return storage
    bucket = manifest.get("destinationBucket", "").removeprefix("arn:aws:s3:::")
    return open_storage(f"s3://{bucket}", storage.settings)


def _inventory_rows(data: bytes, data_uri: str, file_format: str, columns: list[str]) -> Iterator[dict[str, Any]]:
    if file_format == "PARQUET":
        names = [name.lower() for name in open_parquet(data).schema_arrow.names]
        _need_column(data_uri, "key", names, "a field")
        for batch in iter_parquet(data):
            for row in batch.to_pylist():
                yield {name.lower(): value for name, value in row.items()}
    elif file_format == "CSV":
        text = io.TextIOWrapper(gzip.open(io.BytesIO(data)), "utf-8", "backslashreplace", "")
        names = [name.lower().replace(" ", "") for name in columns]
        _need_column(data_uri, "key", names, "a field")
        for values in _csv_rows(text):
            row = dict(zip(names, values))
            yield row | {"key": unquote_plus(row.get("key", ""))}  # CSV inventories hold URL-encoded keys
    else:
        raise CorpusError(
            f"{data_uri}: an inventory of format {file_format!r} is not read; allowed are CSV and Parquet"
        )


def _iter_tars(uri: str, settings: StorageSettings | None) -> Iterator[PlannedImage]:
    """The members of one tar file, or of every tar file below a folder (WebDataset's shards)."""
    if tell_kind(uri) == "tars":
        storage, key = _parent(uri, settings)
        infos = iter([storage.stat(key)])
    else:
        storage = open_storage(uri, settings)
        infos = storage.iter_objects()
    for info in infos:
        name = info.key.lower()
        if name.endswith(_COMPRESSED_TARS):
            raise CorpusError(f"{storage.uri_of(info.key)}: members of a compressed tar cannot be read; decompress it")
        if name.endswith(".tar"):
            yield from _iter_members(storage, info)


def _iter_members(storage: Storage, tar: ObjectInfo) -> Iterator[PlannedImage]:
    """The files and links in a tar file, and in those that follow it in the same file, to the end mark of the last."""
    uri = storage.uri_of(tar.key)
    start: int | None = 0
    archive: tarfile.TarFile | None = None
    places: dict[str, tuple[int, int]] = {}  # offset and size by name, of all members, for the links between them
    links: list[tuple[str, str]] = []
    try:
        with storage.open_input(tar.key) as file:
            while start is not None:
                file.seek(start)
                with tarfile.open(fileobj=file, mode="r:") as archive:
                    for member in archive:
                        if member.size < 0 or archive.offset <= member.offset:
                            raise tarfile.ReadError("a header gives a size below 0")
                        name = posixpath.normpath(member.name)
                        if member.islnk() or member.issym():
                            folder = posixpath.dirname(name) if member.issym() else ""
                            links.append((name, posixpath.normpath(posixpath.join(folder, member.linkname))))
                        elif member.isfile():
                            # Of two members of one name both are taken; extracting would keep the second.
                            shown = f"{name}#{member.offset_data}" if name in places else name
                            places[name] = member.offset_data, member.size
                            yield _member(tar, uri, shown, None if member.issparse() else places[name])
                        archive.members = []  # type: ignore[attr-defined]  # otherwise every header stays in memory
                start = _after_end_mark(file, archive.offset)
    except (tarfile.TarError, ValueError, OverflowError) as error:
        where = "" if archive is None else f" at byte {archive.offset:,}"
        raise CorpusError(f"{uri}: not readable as an uncompressed tar file{where}: {error}") from error
    target_of = dict(links)
    for name, target in links:
        for _ in links:  # a link to a link, and so on; never round in a circle
            target = target_of.get(target, target)
        yield _member(tar, uri, name, places.get(target))


def _member(tar: ObjectInfo, uri: str, name: str, place: tuple[int, int] | None) -> PlannedImage:
    """A member by its offset and size; None for one without data of its own, whose URI leads nowhere."""
    image_id = f"{tar.key}/{_as_text(name)}"
    if place is None:
        return PlannedImage(image_id, f"{uri}/{_as_text(name)}")
    return PlannedImage(image_id, uri, tar.etag or None, place[1], place[0])


def _after_end_mark(file: BinaryIO, offset: int) -> int | None:
    """Where another tar begins behind the end mark that is due at this offset; None where nothing follows.

    Raises:
        ReadError: there is no end mark: the tar is cut short, or a header in its middle is damaged.
    """
    file.seek(offset)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("it ends there without an end mark, as if it were cut short")
    if any(block):
        raise tarfile.ReadError("the header is damaged")
    while block := file.read(tarfile.BLOCKSIZE):
        offset += tarfile.BLOCKSIZE
        if any(block):
            return offset
    return None


def _as_text(name: str | bytes) -> str:
    """A name as valid text: bytes that are no UTF-8 become escapes, as in listings of local folders."""
    if isinstance(name, bytes):
        return name.decode("utf-8", "backslashreplace")
    if name.isascii():
        return name
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a lone half of a UTF-16 pair
        return name.encode("utf-8", "backslashreplace").decode()


def _parent(uri: str, settings: StorageSettings | None) -> tuple[Storage, str]:
    """The storage of a file's folder, and the file's name in it."""
    return open_storage(parent_uri(uri), settings), base_name(uri)
