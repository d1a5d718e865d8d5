"""Local cache of weights and checkpoints in buckets: each is fetched once to a machine, then used as a local file.

    ~/.cache/maskfleet/<sha256>/   (or $XDG_CACHE_HOME/maskfleet)

A folder gets its name only when it is complete. The name stands for the content, so the files in it never change. Any
folder that is not in use may be deleted.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from pipeline.manifest import sha256_of
from pipeline.storage.base import Storage, StorageError, StorageSettings
from pipeline.storage.stores import open_file, open_storage
from pipeline.storage.uri import base_name, is_local, local_path

_PART_BYTES = 64 << 20


def local_file(uri: str, settings: StorageSettings | None = None) -> Path:
    """The path of a file on this machine: its own path for a local URI, else that of a copy of the object as it is now.

    Raises:
        StorageError: there is no such object, it cannot be read, or it changed while it was read.
    """
    if is_local(uri):
        return local_path(uri)
    (storage, key), name = open_file(uri, settings), base_name(uri)
    try:
        info = storage.stat(key)
        # The etag differs when the content does; another endpoint's object of the same name is another one.
        folder = cached_folder(
            sha256_of(f"{storage.settings.endpoint_url}\n{uri}\n{info.etag}\n{info.size_bytes}".encode()),
            lambda temporary: _fetch(storage, key, info.etag, temporary / name),
        )
    except OSError as error:
        raise StorageError(f"{uri} cannot be fetched: {_words(error)}") from error
    return folder / name


def local_folder(uri: str, marker: str, settings: StorageSettings | None = None) -> Path:
    """The path of a folder on this machine: its own path for a local URI, else that of a copy of its direct objects.

    Args:
        uri: a folder or prefix. Objects in its subfolders are not copied.
        marker: the file in it that is written last and holds the hashes of the others. Its own hash names the copy.
        settings: for buckets, see `open_storage`.

    Raises:
        StorageError: there is no such folder with a marker, or it cannot be read.
    """
    if is_local(uri):
        return local_path(uri)
    storage = open_storage(uri, settings)

    def fetch_all(temporary: Path) -> None:
        for info in storage.iter_objects():
            if "/" not in info.key:
                _fetch(storage, info.key, info.etag, temporary / info.key)

    try:
        return cached_folder(sha256_of(storage.read_bytes(marker)), fetch_all)
    except OSError as error:
        raise StorageError(f"{uri} cannot be fetched: {_words(error)}") from error


def folder_in_cache(name: str) -> Path:
    """The path of the cache folder `name`, whether it is there or not."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "maskfleet" / name


def cached_folder(
    name: str, fill: Callable[[Path], None], is_whole: Callable[[Path], bool] = lambda folder: folder.is_dir()
) -> Path:
    """The cache folder `name`. The first process fills it; others on this machine wait for that.

    Args:
        name: a hash that stands for the folder's content.
        fill: writes the content into the empty folder it is given.
        is_whole: whether a folder is there as it was filled; one that is not is filled anew.
    """
    folder = folder_in_cache(name)
    root = folder.parent
    if is_whole(folder):
        return folder
    root.mkdir(parents=True, exist_ok=True)
    with open(root / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_whole(folder):
            shutil.rmtree(folder, ignore_errors=True)
            temporary = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=root))
            try:
                fill(temporary)
                os.rename(temporary, folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _fetch(storage: Storage, key: str, etag: str, path: Path) -> None:
    with open(path, "wb") as file:
        while True:
            part, part_etag = storage.read_object(key, file.tell(), _PART_BYTES)
            if part_etag != etag:
                raise OSError(f"{key} changed while it was read")
            file.write(part)
            if len(part) < _PART_BYTES:
                break
        file.flush()
        os.fsync(file.fileno())  # after a power cut, no folder may have its name without its content


def _words(error: OSError) -> str:
    return "there is no such object" if isinstance(error, FileNotFoundError) else str(error)
