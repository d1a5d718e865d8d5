"""Storage interface: objects under keys in a folder or a bucket, with the settings, credentials and errors of stores.

A `Storage` is a root (`uri`) below which objects have keys with forward slashes. Everything a run reads or writes goes
through it. Writes are atomic: an object is there whole, or not at all. `put_if_absent` is the primitive that the commit
protocol needs: of any number of writers exactly one gets True.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO


class StorageError(ValueError):
    """A URI that cannot be used, or a store that lacks what a run needs. The message is for the user."""


@dataclass(frozen=True)
class ObjectInfo:
    """One object: key below the root, size in bytes (-1 when unknown), etag (changes when the content does)."""

    key: str
    size_bytes: int
    etag: str


class Secret:
    """A credential that only `reveal()` shows. Printed, logged or formatted it is `***`; as JSON it is an error."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The credential itself."""
        return self._value

    def __repr__(self) -> str:
        return "***"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)


@dataclass(frozen=True, kw_only=True)
class StorageSettings:
    """Settings for reaching buckets: endpoint, credentials, retries, timeouts. Local folders use none of them.

    Attributes:
        endpoint_url: address of an S3-compatible store, such as https://minio.lab:9000; None means Amazon S3.
        region: name of the region; None takes it from the environment.
        access_key, secret_key, session_token: credentials; a plain string becomes a `Secret`. None takes them from
            where the AWS tools look: AWS_* variables, ~/.aws, the machine's role.
        anonymous: sends no credentials at all, for public buckets.
        num_retries: further tries of a request that got status 408, 409, 425, 429, 500, 502, 503 or 504, ran into a
            timeout or lost its connection. The waits between tries grow from 0.2 s to 20 s and are jittered.
        connect_timeout_s: longest wait for a connection.
        read_timeout_s: longest silence on a connection.
        request_timeout_s: longest time of one try, including the body of its answer.
        max_parallel: requests that this process sends at one time under these settings.
        conditional_put: False accepts a store without `If-None-Match`. Two runs that write to one output at the
            same time may then both believe that they won.

    Raises:
        StorageError: settings that contradict each other or are out of range.
    """

    endpoint_url: str | None = None
    region: str | None = None
    access_key: Secret | None = None
    secret_key: Secret | None = None
    session_token: Secret | None = None
    anonymous: bool = False
    num_retries: int = 10
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 60.0
    request_timeout_s: float = 600.0
    max_parallel: int = 32
    conditional_put: bool = True

    def __post_init__(self) -> None:
        for name in ("access_key", "secret_key", "session_token"):
            value = getattr(self, name)
            object.__setattr__(self, name, Secret(value) if isinstance(value, str) else value)
        if (self.access_key is None) != (self.secret_key is None):
            raise StorageError("storage settings have only one of access_key and secret_key; give both or neither")
        if self.anonymous and self.access_key:
            raise StorageError("storage settings are anonymous and have an access_key; give one of them")
        if self.num_retries < 0:
            raise StorageError(f"storage setting num_retries is {self.num_retries}; it must be 0 or more")
        for name in ("connect_timeout_s", "read_timeout_s", "request_timeout_s", "max_parallel"):
            if not getattr(self, name) > 0:
                raise StorageError(f"storage setting {name} is {getattr(self, name)!r}; it must be greater than 0")


class Storage(ABC):
    """A store's objects below one root. Instances are small, hold no open connection and can be pickled."""

    uri: str

    @abstractmethod
    def read_bytes(self, key: str) -> bytes:
        """The content of the object. Raises FileNotFoundError when there is none, OSError when it cannot be read."""

    @abstractmethod
    def read_object(self, key: str, start: int = 0, size: int | None = None) -> tuple[bytes, str]:
        """A range of the object and the etag of the version it was read from, in one request.

        Args:
            key: the object.
            start: first byte.
            size: number of bytes; None reads to the end. Fewer come back where the object ends earlier.

        Raises:
            FileNotFoundError: there is no such object.
            OSError: it cannot be read.
        """

    @abstractmethod
    def write_bytes(self, key: str, data: bytes) -> None:
        """Writes the object, replacing an existing one. Atomic: readers see the old or the new, never a part."""

    @abstractmethod
    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Writes the object only if there is none under this key. Atomic among all writers.

        Returns:
            True when this call wrote it; False when there was one already, which stays as it is.
        """

    @abstractmethod
    def stat(self, key: str) -> ObjectInfo:
        """Size and etag of an object. Raises FileNotFoundError when there is none."""

    @abstractmethod
    def iter_objects(self, prefix: str = "", after: str = "") -> Iterator[ObjectInfo]:
        """Lists objects in order of key, without holding the list in memory.

        Args:
            prefix: a folder, ending in '/'; empty lists everything.
            after: lists only objects whose key is greater. Earlier ones are not asked for.
        """

    @abstractmethod
    def delete(self, key: str) -> None:
        """Removes the object. A missing one is no error."""

    @abstractmethod
    def open_input(self, key: str) -> BinaryIO:
        """The object as a seekable file, for Parquet readers. Raises FileNotFoundError when there is none."""

    def read_many(self, keys: Iterable[str]) -> Iterator[bytes]:
        """The contents of several objects, in the order of the keys. Buckets are asked for several at a time."""
        return map(self.read_bytes, keys)

    def remove_unfinished(self) -> list[str]:
        """Removes the partly written files of killed writers and returns their keys. Buckets keep none.

        A writer that is still alive notices that its file is gone and writes it again.
        """
        return []

    def exists(self, key: str) -> bool:
        """Whether there is an object under this key."""
        try:
            self.stat(key)
        except FileNotFoundError:
            return False
        return True

    def check_put_if_absent(self, key: str, data: bytes) -> None:
        """Puts an object if it is absent, and proves by a second try that `put_if_absent` has one winner here.

        The object is one that the run keeps: a separate probe object would be left behind by a process killed here. A
        store that ignores the condition writes the same bytes once more.

        Raises:
            StorageError: the store ignores the condition or refuses it, or the object cannot be written.
        """
        try:
            self.put_if_absent(key, data)
            won_twice = self.put_if_absent(key, data)
        except OSError as error:
            raise StorageError(f"{self.uri}: a first object cannot be written there: {error}") from None
        if won_twice:
            raise StorageError(
                f"{self.uri}: the store ignores If-None-Match, so of two writers both could win; use a store with "
                "conditional PUT, or set conditional_put=False and never run two at once on one output"
            )

    def uri_of(self, key: str) -> str:
        """The full URI of a key."""
        return f"{self.uri.rstrip('/')}/{key}" if key else self.uri
