"""Files by URI, on a disk or in a bucket: read, write, list; JSON included.

A plain path is a URI. Data sets name each of their files by a full URI; this module opens the storage it lies in.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import uuid
from collections.abc import Iterator
from typing import Any

import orjson

from pipeline.storage.base import Storage
from pipeline.storage.local import LocalStorage
from pipeline.storage.stores import open_storage
from pipeline.storage.uri import base_name, is_local, local_path, parent_uri


def read_bytes(uri: str) -> bytes:
    """The content of the file. Raises FileNotFoundError when there is none, OSError when it cannot be read."""
    storage, key = _storage_and_key(uri)
    return storage.read_bytes(key)


def write_bytes(uri: str, data: bytes) -> None:
    """Writes the file and makes its folders. Atomic: readers see the whole file or none.

    On a disk the file is not synced, because syncing thousands of small files takes long. A data set that is cut short
    by a crash of the machine has to be written again.
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
    storage, key = _storage_and_key(uri)
    storage.write_bytes(key, data)


def read_json(uri: str) -> Any:
    """The parsed JSON file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not JSON; the message has the line and column.
    """
    data = read_bytes(uri)
    with contextlib.suppress(orjson.JSONDecodeError), no_collection():
        return orjson.loads(data)
    try:
        return json.loads(data)  # also takes NaN and integers of any length; its message has line and column
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{uri} is not valid JSON: {error}") from None


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Switches the garbage collector off for a block that makes many objects and no garbage.

    The collector would walk all of them again and again: two thirds of the time of reading a large annotation file.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def write_json(uri: str, value: Any) -> None:
    """Writes JSON atomically. The same value gives the same bytes."""
    write_bytes(uri, json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode())


def is_file(uri: str) -> bool:
    """Whether there is a file at this URI."""
    if is_local(uri):
        return local_path(uri).is_file()
    storage, key = _storage_and_key(uri)
    return storage.exists(key)


def is_folder(uri: str) -> bool:
    """Whether there is a folder at this URI; in a bucket, whether there is any object below it."""
    if is_local(uri):
        return local_path(uri).is_dir()
    return next(open_storage(uri).iter_objects(), None) is not None


def iter_names(folder: str, *, recursive: bool = False) -> Iterator[str]:
    """Names of the files directly in a folder, sorted; with `recursive`, keys of all files below it.

    A folder that does not exist has no names.
    """
    if is_local(folder) and not recursive:
        path = local_path(folder)
        if path.is_dir():
            yield from sorted(entry.name for entry in path.iterdir() if entry.is_file())
        return
    for info in open_storage(folder).iter_objects():
        if recursive or "/" not in info.key:
            yield info.key


def _storage_and_key(uri: str) -> tuple[Storage, str]:
    if is_local(uri):
        path = local_path(uri)
        return LocalStorage(path.parent), path.name
    return open_storage(parent_uri(uri)), base_name(uri)
