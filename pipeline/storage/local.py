"""Local storage: a folder on a disk or on a shared file system, with fsynced writes and put-if-absent by link()."""

from __future__ import annotations

import errno
import heapq
import json
import os
import re
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from pipeline.storage.base import ObjectInfo, Storage, StorageError, StorageSettings

SORTED_IN_MEMORY = 100_000  # names of one folder
_ESCAPED = re.compile(rb"\\x([89a-f][0-9a-f]|5c)")  # a byte that is not UTF-8, as `_key_text` writes it


class LocalStorage(Storage):
    """Objects are files below a folder. Safe on shared file systems whose link() is atomic (NFS, Lustre, EFS)."""

    def __init__(self, root: Path | str, settings: StorageSettings | None = None) -> None:
        self.root = Path(os.path.abspath(root))
        self.uri = str(self.root)
        self.settings = settings or StorageSettings()  # for what a run in this folder reads from buckets

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
        if "\\x" in key:
            name = _ESCAPED.sub(lambda escape: bytes([int(escape[1], 16)]), os.fsencode(key))
            escaped = Path(os.fsdecode(os.path.join(os.fsencode(self.root), name)))
            return escaped if os.path.lexists(escaped) or not os.path.lexists(path) else path
        return path

    def read_bytes(self, key: str) -> bytes:
        return self.read_object(key)[0]

    def read_object(self, key: str, start: int = 0, size: int | None = None) -> tuple[bytes, str]:
        path = self.path(key)
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe or a device would block for ever
            if path.is_dir():
                os.scandir(path).close()  # says why a folder cannot be read
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
        for key, path in self._walk(self.root / prefix, prefix, after):
            if key.endswith("/"):  # a folder that cannot be read: listed, found unreadable when read
                yield ObjectInfo(key, -1, "")
            elif not _is_temporary(path.name):
                try:
                    info = os.stat(path)
                    yield ObjectInfo(key, info.st_size, _etag(info))
                except OSError:  # a dangling link: listed, found missing when read
                    yield ObjectInfo(key, -1, "")

    def remove_unfinished(self) -> list[str]:
        walk = self._walk(self.root, "", "")
        unfinished = [(key, path) for key, path in walk if _is_temporary(path.name) and not key.endswith("/")]
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

    def _walk(self, root: Path, prefix: str, after: str) -> Iterator[tuple[str, Path]]:
        """Every file below a folder as (key, path), in order of key, without keys up to `after`.

        A subfolder that cannot be read is given itself, with the key that its files begin with, which ends in '/'. The
        root itself must be readable, if it is there.
        """
        try:
            walks = [_Walk.of(root, prefix, frozenset())]
        except FileNotFoundError:
            return
        while walks:
            walk = walks[-1]
            for text, name in walk.entries:
                key, path = walk.prefix + text, walk.folder / name
                if not text.endswith("/"):
                    if key > after:
                        yield key, path
                elif key > after or after.startswith(key):
                    try:
                        walks.append(_Walk.of(path, key, walk.above))
                    except FileNotFoundError:
                        continue
                    except OSError:
                        if key > after:
                            yield key, path
                        continue
                    break
            else:
                walks.pop()


@dataclass(frozen=True)
class _Walk:
    """A folder that is being listed: what is left of its entries, and (device, inode) of it and all folders above."""

    folder: Path
    prefix: str
    entries: Iterator[tuple[str, str]]
    above: frozenset[tuple[int, int]]

    @classmethod
    def of(cls, folder: Path, prefix: str, above: frozenset[tuple[int, int]]) -> _Walk:
        info = os.stat(folder)
        here = (info.st_dev, info.st_ino)
        entries: Iterator[tuple[str, str]] = (
            iter(()) if here in above else _sorted_entries(folder)
        )  # a symbolic link back up has no entries
        return cls(folder, prefix, entries, above | {here})


def _sorted_entries(folder: Path) -> Iterator[tuple[str, str]]:
    """A folder's entries as (text of the key, name), in order of key: a subfolder sorts as its name plus '/'.

    A folder of more than SORTED_IN_MEMORY entries is sorted in runs in temporary files, so that memory stays bounded.
    """
    runs: list[Iterable[tuple[str, str]]] = []
    with os.scandir(folder) as entries:
        texts = ((_key_text(entry.name) + "/" * _is_folder(entry), entry.name) for entry in entries)
        while run := sorted(islice(texts, SORTED_IN_MEMORY)):
            runs.append(_spill(run) if len(run) == SORTED_IN_MEMORY else run)
    return iter(heapq.merge(*runs))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself, or to where we may not look
        return False


def _spill(run: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    file = tempfile.TemporaryFile("w+", encoding="ascii")  # closed with the last reference to its lines
    file.writelines(f"{json.dumps(pair)}\n" for pair in run)
    file.seek(0)
    return (tuple(json.loads(line)) for line in file)


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp")


def _etag(info: os.stat_result) -> str:
    return f"{info.st_mtime_ns:x}-{info.st_size:x}"


def _key_text(name: str) -> str:
    """A file's name as a key: bytes that are no UTF-8 are escaped, and the backslash of what looks like an escape."""
    data = os.fsencode(name)
    data = _ESCAPED.sub(rb"\\x5cx\1", data) if b"\\x" in data else data
    return data.decode("utf-8", "backslashreplace")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
