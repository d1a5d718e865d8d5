"""Files and folders by URI, on a disk or in a bucket (`Location`): read, write, list; JSON included."""

from __future__ import annotations

import codecs
import contextlib
import gc
import json
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from pipeline.storage.base import StorageSettings
from pipeline.storage.stores import open_file, open_storage
from pipeline.storage.uri import base_name, file_stem, is_local, join_uri, local_path, parent_uri, plain_uri

# Byte-order marks; UTF-32's begins with UTF-16's.
_ENCODINGS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True, slots=True)
class Location:
    """A file or folder: its URI, and the settings by which its store is reached. As text it is the URI.

    `folder / name` is what `name` is in the folder, see `storage.uri.join_uri`. A file:// URI becomes a path.

    Attributes:
        uri: a local path, file:// or s3://bucket/key.
        settings: see `open_storage`.
    """

    uri: str
    settings: StorageSettings | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "uri", plain_uri(self.uri))

    @classmethod
    def of(cls, place: str | os.PathLike[str] | Location) -> Location:
        """A location as it is; a path or URI as one whose store is reached as the environment says."""
        return place if isinstance(place, Location) else cls(os.fspath(place))

    def at(self, uri: str) -> Location:
        """Another URI, reached by the same settings."""
        return Location(uri, self.settings)

    def __str__(self) -> str:
        return self.uri

    def __truediv__(self, name: str) -> Location:
        return self.at(join_uri(self.uri, name))

    @property
    def parent(self) -> Location:
        """The folder that holds it; '.' for a bare name."""
        return self.at(parent_uri(self.uri))

    @property
    def name(self) -> str:
        """The last part of the URI."""
        return base_name(self.uri)

    @property
    def stem(self) -> str:
        """The last part of the URI without its extension."""
        return file_stem(self.uri)

    def read_bytes(self) -> bytes:
        """The content of the file. Raises FileNotFoundError when there is none, OSError when it cannot be read."""
        storage, key = open_file(self.uri, self.settings)
        return storage.read_bytes(key)

    def write_bytes(self, data: bytes) -> None:
        """Writes the file and makes its folders. Atomic: readers see the whole file or none.

        On a disk the file is not synced, because syncing thousands of small files takes long. A data set that is cut
        short by a crash of the machine has to be written again.
        """
        if is_local(self.uri):
            path = local_path(self.uri)
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.parent / f".{uuid.uuid4().hex}.tmp"
            try:
                temporary.write_bytes(data)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
            return
        storage, key = open_file(self.uri, self.settings)
        storage.write_bytes(key, data)

    def read_text(self) -> str:
        """The text of a file in UTF-8, or in UTF-16 or UTF-32 with a byte-order mark, which is left out.

        Raises:
            FileNotFoundError: no such file.
            ValueError: it is in another encoding; the message has the line.
        """
        return decode_text(self.read_bytes(), self.uri)

    def read_json(self) -> Any:
        """The parsed JSON file.

        Raises:
            FileNotFoundError: no such file.
            ValueError: it is not JSON; the message has the line and column.
        """
        return parse_json(self.read_bytes(), self.uri)

    def write_json(self, value: Any) -> None:
        """Writes JSON atomically. The same value gives the same bytes."""
        self.write_bytes(json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode())

    def is_file(self) -> bool:
        """Whether there is a file."""
        if is_local(self.uri):
            return os.path.isfile(local_path(self.uri))  # also False for a name that no file can have
        storage, key = open_file(self.uri, self.settings)
        return storage.exists(key)

    def is_folder(self) -> bool:
        """Whether there is a folder; in a bucket, whether there is any object below it."""
        if is_local(self.uri):
            return local_path(self.uri).is_dir()
        return next(open_storage(self.uri, self.settings).iter_objects(), None) is not None

    def iter_names(self, *, recursive: bool = False) -> Iterator[str]:
        """Names of the files directly in the folder, sorted; with `recursive`, keys of all files below it.

        A folder that does not exist has no names.
        """
        if is_local(self.uri) and not recursive:
            path = local_path(self.uri)
            if path.is_dir():
                yield from sorted(entry.name for entry in path.iterdir() if entry.is_file())
            return
        for info in open_storage(self.uri, self.settings).iter_objects():
            if recursive or "/" not in info.key:
                yield info.key


def decode_text(data: bytes, where: str) -> str:
    """The text of a file's content; otherwise as `Location.read_text`. `where` is what messages call the file."""
    encoding = next((name for mark, name in _ENCODINGS if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        raise ValueError(
            f"{where} is no text in {encoding.upper()}: byte 0x{data[error.start]:02x} in line {line}, column "
            f"{column}; if it is in Latin-1 or Windows-1252, save it as UTF-8"
        ) from None


def parse_json(data: bytes, where: str) -> Any:
    """The value of a JSON file's content; otherwise as `Location.read_json`. `where` is what messages call the file."""
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError), no_collection():
        return msgspec.json.decode(data)
    text = decode_text(data, where)
    try:
        value = json.loads(text)  # also takes NaN and integers of any length; its message has line and column
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()  # half a pair, such as "\\ud800", is no text
        return value
    except (ValueError, RecursionError) as error:  # also integers of thousands of digits
        raise ValueError(f"{where} is not valid JSON: {error}") from None


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
