"""Objects under keys, on a disk or in a bucket: the one door through which every byte is read and written.

A `Storage` is a root (`uri`) below which objects have keys with forward slashes. Writes are whole or not at all, and
`put_if_absent` is the one primitive the commit protocol stands on: of any number of writers exactly one is told True.
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
    """One listed object: key below the root, size in bytes (-1 when unknown), etag (the store's version mark)."""

    key: str
    size_bytes: int
    etag: str


class Secret:
    """A credential. Only `reveal()` shows it: printed, logged, formatted or written as JSON it is `***` or an error."""

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
    """How buckets are reached. Local folders need none of it.

    Attributes:
        endpoint_url: address of an S3-compatible store, such as https://minio.lab:9000; None is Amazon's.
        region: name of the region; None takes it from the environment.
        access_key, secret_key, session_token: credentials; a plain string becomes a `Secret`. None takes them from
            where the AWS tools look: AWS_* variables, ~/.aws, the machine's role.
        anonymous: a public bucket, no credentials at all.
        num_retries: further tries of a request that met 408, 409, 429, 500, 502, 503, 504, a timeout or a cut
            connection; waits grow from 0.2 s to 20 s and are jittered.
        connect_timeout_s, read_timeout_s: longest silence before a connection and on it.
        request_timeout_s: longest time of one try, with its body.
        max_parallel: requests of this process at one time, under these settings.
        conditional_put: False accepts a store without `If-None-Match`. Two runs that write to one output at the
            same time may then both believe that they won.
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
    """What every store offers. Instances are small, hold no open connection and can be pickled to other processes."""

    uri: str

    @abstractmethod
    def read_bytes(self, key: str) -> bytes:
        """The whole object. Raises FileNotFoundError when there is none, OSError when it cannot be read."""

    @abstractmethod
    def read_object(self, key: str, start: int = 0, size: int | None = None) -> tuple[bytes, str]:
        """`size` bytes from `start` (None: to the end), and the etag of the very object they are from, in one request.

        Raises FileNotFoundError when there is none, OSError when it cannot be read. Fewer bytes come back where the
        object ends earlier.
        """

    @abstractmethod
    def write_bytes(self, key: str, data: bytes) -> None:
        """Writes the object, replacing one that is there. Atomic: readers see the old or the new, never a part."""

    @abstractmethod
    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Writes the object only if none is there. Atomic among all writers.

        Returns True when this call wrote it, False when there was one already (which stays as it is).
        """

    @abstractmethod
    def stat(self, key: str) -> ObjectInfo:
        """Size and etag of an object. Raises FileNotFoundError when there is none."""

    @abstractmethod
    def iter_objects(self, prefix: str = "", after: str = "") -> Iterator[ObjectInfo]:
        """Every object below `prefix` (a folder, ending in '/', or empty), in order of key, streaming.

        With `after`, only those whose key is greater; what lies before is not listed at all.
        """

    @abstractmethod
    def delete(self, key: str) -> None:
        """Removes the object; one that is not there is no error."""

    @abstractmethod
    def open_input(self, key: str) -> BinaryIO:
        """The object for random reading (Parquet footers). Raises FileNotFoundError when there is none."""

    def read_many(self, keys: Iterable[str]) -> Iterator[bytes]:
        """`read_bytes` of each key, in order; a store that answers from afar is asked for several at a time."""
        return map(self.read_bytes, keys)

    def remove_unfinished(self) -> list[str]:
        """Removes what writers that were killed left half written, where the store keeps such things; returns names.

        A writer that is alive writes again what is taken away from it.
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
        """Puts an object unless it is there, and proves by a second try that `put_if_absent` has one winner here.

        The object is one that is meant to stay: what a separate probe leaves when it is killed is nobody's. A store
        that ignores the condition writes the same bytes once more.

        Raises:
            StorageError: the store ignores the condition, or refuses it.
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
