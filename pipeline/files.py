"""Files by their URI, on a disk or in a bucket: names, reading, writing.

A plain path is a URI. A data set names each of its files by its full one; it is cut into a root and a key here.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import posixpath
import uuid
from collections.abc import Iterator
from typing import Any

import orjson

from pipeline.storage import Storage, is_local, local_path, open_storage
from pipeline.storage_local import LocalStorage


def plain_uri(uri: str) -> str:
    """A file:// URI as a path; in a bucket, `..` resolved, since a key may not hold it."""
    if uri.startswith("file://"):
        return str(local_path(uri))
    scheme, mark, path = uri.rpartition("://")
    return f"{scheme}{mark}{posixpath.normpath(path)}" if mark else uri


def join_uri(folder: str, name: str) -> str:
    """`name` below `folder`; a name that is itself absolute or a URI stays as it is, and `..` goes up."""
    if "://" in name or name.startswith("/"):
        return plain_uri(name)
    scheme, mark, path = plain_uri(folder).rpartition("://")
    joined = posixpath.normpath(f"{path.rstrip('/')}/{name}") if path else name
    return f"{scheme}{mark}{joined}"


def parent_uri(uri: str) -> str:
    """The folder a file lies in ('.' for a bare name)."""
    uri = plain_uri(uri)
    return uri.rstrip("/").rpartition("/")[0] or ("/" if uri.startswith("/") else ".")


def base_name(uri: str) -> str:
    """The last part of a URI."""
    return plain_uri(uri).rstrip("/").rpartition("/")[2]


def stem(uri: str) -> str:
    """The last part of a URI without its extension."""
    name = base_name(uri)
    return name.rpartition(".")[0] or name


def aligned_uri(pattern: str, uri: str) -> str:
    """The file that belongs to a photo: depth, infrared.

    Args:
        pattern: where it lies: a URI in which `{stem}` stands for the photo's name without its extension and `{folder}`
            for the photo's folder, such as `{folder}/../depth/{stem}.png`.
        uri: the photo.

    Raises:
        ValueError: a pattern without `{stem}`, or in which something else stands in braces.
    """
    try:
        filled = pattern.format(stem=stem(uri), folder=parent_uri(uri))
    except (KeyError, IndexError, ValueError, AttributeError):
        filled = ""
    if not filled or "{stem}" not in pattern:
        raise ValueError(f"the pattern {pattern!r} must have {{stem}}, may have {{folder}}, and nothing else in {{}}")
    return plain_uri(filled)


def read_bytes(uri: str) -> bytes:
    """The whole file. Raises FileNotFoundError when there is none, OSError when it cannot be read."""
    storage, key = _place_of(uri)
    return storage.read_bytes(key)


def write_bytes(uri: str, data: bytes) -> None:
    """Writes the file, making its folders; readers see it whole or not at all.

    On a disk it is not synced, which thousands of small files would have to wait for: a data set that a crash of the
    machine cut short is made again.
    """
    if is_local(uri):
        path = local_path(uri)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / f".{uuid.uuid4().hex}.tmp"
        try:
            temporary.write_bytes(data)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return
    storage, key = _place_of(uri)
    storage.write_bytes(key, data)


def read_json(uri: str) -> Any:
    """The parsed JSON file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no JSON.
    """
    data = read_bytes(uri)
    with contextlib.suppress(orjson.JSONDecodeError), no_collection():
        return orjson.loads(data)
    try:
        return json.loads(data)  # takes NaN and whole numbers of any length, too; its message names line and column
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{uri} is not valid JSON: {error}") from None


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Keeps the garbage collector from walking, again and again, many objects of which none is garbage: two thirds of
    the time of reading a large annotation file."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def write_json(uri: str, value: Any) -> None:
    """Writes JSON, whole or not at all; the same value gives the same bytes."""
    write_bytes(uri, json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode())


def is_file(uri: str) -> bool:
    """Whether there is a file of this name."""
    if is_local(uri):
        return local_path(uri).is_file()
    storage, key = _place_of(uri)
    return storage.exists(key)


def is_folder(uri: str) -> bool:
    """Whether there is a folder of this name (in a bucket: any object below it)."""
    if is_local(uri):
        return local_path(uri).is_dir()
    return next(open_storage(uri).iter_objects(), None) is not None


def iter_names(folder: str, *, recursive: bool = False) -> Iterator[str]:
    """Names of the files in a folder, in order; with `recursive`, keys of all files below it. Nothing if it
    is absent.
    """
    if is_local(folder) and not recursive:
        path = local_path(folder)
        if path.is_dir():
            yield from sorted(entry.name for entry in path.iterdir() if entry.is_file())
        return
    for info in open_storage(folder).iter_objects():
        if recursive or "/" not in info.key:
            yield info.key


def _place_of(uri: str) -> tuple[Storage, str]:
    if is_local(uri):
        path = local_path(uri)
        return LocalStorage(path.parent), path.name
    return open_storage(parent_uri(uri)), base_name(uri)
