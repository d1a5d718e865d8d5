"""Folders: local disks, and shared file systems whose link() is atomic (NFS, Lustre, EFS)."""

from __future__ import annotations

import os
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pipeline.storage import ObjectInfo, Storage, StorageError


class LocalStorage(Storage):
    """A folder. Also right on shared file systems that have atomic link() (NFS, Lustre, EFS)."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(os.path.abspath(root))
        self.uri = str(self.root)

    def path(self, key: str) -> Path:
        """The file of a key.

        Names that are no UTF-8 are listed with their odd bytes as `\\xNN`; such a key finds its file again.

        Raises:
            StorageError: a key that would climb out of the root.
        """
        if key.startswith("/") or ".." in key.split("/"):
            raise StorageError(f"{key!r} is no key below {self.uri}: it must be relative, without '..'")
        path = self.root / key
        if "\\x" in key and not os.path.lexists(path):
            odd = key.encode().decode("unicode_escape").encode("latin-1")
            return Path(os.fsdecode(os.path.join(os.fsencode(self.root), odd)))
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
        path = self.path(key)
        temporary = self._write_temporary(path, data)
        os.replace(temporary, path)
        _sync_folder(path.parent)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        path = self.path(key)
        if path.exists():
            return False
        temporary = self._write_temporary(path, data)
        try:
            os.link(temporary, path)  # fails when the name exists, on every POSIX file system
        except FileExistsError:
            return False
        finally:
            os.unlink(temporary)
        _sync_folder(path.parent)
        return True

    def stat(self, key: str) -> ObjectInfo:
        info = os.stat(self.path(key))
        return ObjectInfo(key, info.st_size, _etag(info))

    def iter_objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        if prefix and not prefix.endswith("/"):
            raise ValueError(f"prefix must be empty or end in '/', not {prefix!r}")
        yield from self._walk(self.root / prefix, prefix, frozenset())

    def delete(self, key: str) -> None:
        self.path(key).unlink(missing_ok=True)

    def open_input(self, key: str) -> BinaryIO:
        return open(self.path(key), "rb")

    def _write_temporary(self, path: Path, data: bytes) -> Path:
        """Writes and syncs a file beside `path`; its name starts with a dot, so that no listing shows it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / f".{path.name[:80]}.{uuid.uuid4().hex[:12]}.tmp"
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return temporary

    def _walk(self, folder: Path, prefix: str, above: frozenset[tuple[int, int]]) -> Iterator[ObjectInfo]:
        try:
            info = os.stat(folder)
            entries = list(os.scandir(folder))
        except FileNotFoundError:
            return
        if (info.st_dev, info.st_ino) in above:  # a symbolic link back up
            return
        above |= {(info.st_dev, info.st_ino)}
        # A folder sorts as its name plus '/', as its keys do in a bucket.
        folders = {entry.name: entry.is_dir() for entry in entries}
        for entry in sorted(entries, key=lambda e: _key_text(e.name) + "/" * folders[e.name]):
            key = prefix + _key_text(entry.name)
            if folders[entry.name]:
                yield from self._walk(folder / entry.name, key + "/", above)
            elif not (entry.name.startswith(".") and entry.name.endswith(".tmp")):
                try:
                    info = entry.stat()
                    yield ObjectInfo(key, info.st_size, _etag(info))
                except OSError:  # a dangling link: listed, found missing when read
                    yield ObjectInfo(key, -1, "")


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
