"""Files by their URI, on a disk or in a bucket: names, reading, writing.

A plain path is a URI. A data set names each of its files by its full one; it is cut into a root and a key here.
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
