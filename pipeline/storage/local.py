"""Local storage: a folder on a disk or on a shared file system, with fsynced writes and put-if-absent by link()."""

from __future__ import annotations

import contextlib
import errno
import heapq
import json
import os
import re
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from pipeline.storage.base import ObjectInfo, Storage, StorageError

SORTED_IN_MEMORY = 100_000  # names of one folder
_ESCAPED = re.compile(rb"\\x([89a-f][0-9a-f])")  # a byte that is not UTF-8, as `_key_text` writes it


class LocalStorage(Storage):
    """Objects are files below a folder. Safe on shared file systems whose link() is atomic (NFS, Lustre, EFS)."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(os.path.abspath(root))
        self.uri = str(self.root)

    def path(self, key: str) -> Path:
        """The path of a key.

        File names that are not UTF-8 are listed with their undecodable bytes as `\\xNN`; this resolves such a key to
        its file.

        Raises:
            StorageError: the key is absolute, or has '..' or a NUL in it.
        """
        if key.startswith("/") or ".." in key.split("/") or "\0" in key:
            raise StorageError(f"{key!r} is no key below {self.uri}: it must be relative, without '..' and NUL")
        path = self.root / key
        if "\\x" in key and not os.path.lexists(path):
            name = _ESCAPED.sub(lambda escape: bytes([int(escape[1], 16)]), os.fsencode(key))
            return Path(os.fsdecode(os.path.join(os.fsencode(self.root), name)))
        return path

    def read_bytes(self, key: str) -> bytes:
        return self.read_object(key)[0]

    def read_object(self, key: str, start: int = 0, size: int | None = None) -> tuple[bytes, str]:
        path = self.path(key)
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe or a device would block for ever
            raise OSError(f"{path} is not a regular file")
        with open(path, "rb") as file:
            file.seek(start)
            return file.read(-1 if size is None else size), _etag(os.fstat(file.fileno()))

    def write_bytes(self, key: str, data: bytes) -> None:
        self._write(self.path(key), data, os.replace)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        path = self.path(key)
        if path.exists():
            return False
        try:
            self._write(path, data, os.link)  # fails when the name exists, on every POSIX file system
        except FileExistsError:
            return False
        return True

    def stat(self, key: str) -> ObjectInfo:
        info = os.stat(self.path(key))
        return ObjectInfo(key, info.st_size, _etag(info))

    def iter_objects(self, prefix: str = "", after: str = "") -> Iterator[ObjectInfo]:
        if prefix and not prefix.endswith("/"):
            raise ValueError(f"prefix must be empty or end in '/', not {prefix!r}")
        for key, path in self._walk(self.root / prefix, prefix, after, frozenset()):
            if not _is_temporary(path.name):
                try:
                    info = os.stat(path)
                    yield ObjectInfo(key, info.st_size, _etag(info))
                except OSError:  # a dangling link: listed, found missing when read
                    yield ObjectInfo(key, -1, "")

    def remove_unfinished(self) -> list[str]:
        walk = self._walk(self.root, "", "", frozenset())
        unfinished = [(key, path) for key, path in walk if _is_temporary(path.name)]
        for _, path in unfinished:
            path.unlink(missing_ok=True)
        return [key for key, _ in unfinished]

    def delete(self, key: str) -> None:
        self.path(key).unlink(missing_ok=True)

    def open_input(self, key: str) -> BinaryIO:
        return open(self.path(key), "rb")

    def _write(self, path: Path, data: bytes, publish: Callable[[Path, Path], None]) -> None:
        """Writes and syncs a temporary file beside `path`, then calls `publish(temporary, path)`.

        A temporary file that `remove_unfinished` takes away meanwhile is written again.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError:  # must not read as "the object exists"
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path.parent)) from None
        while True:
            temporary = path.parent / f".{path.name[:80]}.{uuid.uuid4().hex[:12]}.tmp"
            try:
                with open(temporary, "xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                publish(temporary, path)
            except FileNotFoundError:  # the temporary file was taken for a dead writer's and removed
                path.parent.stat()  # raises when it is the folder that is gone
                continue
            finally:
                temporary.unlink(missing_ok=True)
            return _sync_folder(path.parent)

    def _walk(
        self, folder: Path, prefix: str, after: str, above: frozenset[tuple[int, int]]
    ) -> Iterator[tuple[str, Path]]:
        """Every file below a folder as (key, path), in order of key, without keys up to `after`.

        `above` holds (device, inode) of the folders on the way here, to end cycles of symbolic links.
        """
        try:
            info = os.stat(folder)
            if (info.st_dev, info.st_ino) in above:  # a symbolic link back up
                return
            above |= {(info.st_dev, info.st_ino)}
            for text, name in _sorted_entries(folder):
                key, path = prefix + text, folder / name
                if not text.endswith("/"):
                    if key > after:
                        yield key, path
                elif key > after or after.startswith(key):
                    yield from self._walk(path, key, after, above)
        except FileNotFoundError:
            return


def _sorted_entries(folder: Path) -> Iterator[tuple[str, str]]:
    """A folder's entries as (text of the key, name), in order of key: a subfolder sorts as its name plus '/'.

    A folder of more than SORTED_IN_MEMORY entries is sorted in runs in temporary files, so that memory stays bounded.
    """
    with os.scandir(folder) as entries, contextlib.ExitStack() as scratch:
        texts = ((_key_text(entry.name) + "/" * entry.is_dir(), entry.name) for entry in entries)
        runs: list[Iterable[tuple[str, str]]] = []
        while run := sorted(islice(texts, SORTED_IN_MEMORY)):
            runs.append(_spill(run, scratch) if len(run) == SORTED_IN_MEMORY else run)
        yield from heapq.merge(*runs)


def _spill(run: list[tuple[str, str]], scratch: contextlib.ExitStack) -> Iterator[tuple[str, str]]:
    file = scratch.enter_context(tempfile.TemporaryFile("w+", encoding="ascii"))
    file.writelines(f"{json.dumps(pair)}\n" for pair in run)
    file.seek(0)
    return (tuple(json.loads(line)) for line in file)


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp")


def _etag(info: os.stat_result) -> str:
    return f"{info.st_mtime_ns:x}-{info.st_size:x}"


def _key_text(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
