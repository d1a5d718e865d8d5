"""Storage interface: objects under keys in a folder or a bucket, with the settings, credentials and errors of stores.

A `Storage` is a root (`uri`) below which objects have keys with forward slashes. Everything a run reads or writes goes
through it. Writes are atomic: an object is there whole, or not at all. `put_if_absent` is the primitive that the commit
protocol needs: of any number of writers exactly one gets True.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from pipeline.settings import Settings, setting


class StorageError(ValueError):
    """A URI that cannot be used, or a store that lacks what a run needs. The message is for the user."""


class CredentialsError(PermissionError, StorageError):
    """The store takes no request of ours: there are no credentials, they are expired or wrong, or the clock is."""


class ObjectArchived(OSError):
    """The store holds the object in an archive, such as Glacier, and hands out no bytes until it is restored."""


@dataclass(frozen=True)
class ObjectInfo:
    """One object of a store.

    Attributes:
        key: below the root.
        size_bytes: -1 when unknown.
        etag: changes when the content does.
        archived: whether it must be restored before it can be read. Only `stat` tells; a listing says False.
    """

    key: str
    size_bytes: int
    etag: str
    archived: bool = False


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

    @classmethod
    def __get_pydantic_core_schema__(cls, source: type, handler: Callable[[type], Any]) -> Mapping[str, Any]:
        """What pydantic asks a type for: a configuration gives a credential as text, and shows it as stars."""
        hidden = {"type": "function-plain", "function": lambda secret: "*" * 10 if secret.reveal() else ""}
        made = {"type": "no-info", "function": cls}
        return {"type": "function-after", "schema": handler(str), "function": made, "serialization": hidden}


@dataclass(frozen=True, kw_only=True)
class StorageSettings(Settings):
    """How buckets are reached. Credentials are never printed or written; local folders use none of these settings.

    A request that got status 408, 409, 425, 429, 500, 502, 503 or 504, ran into a timeout or lost its connection is
    tried again. The waits between tries grow from 0.2 s to 20 s and are jittered. A credential given as a plain string
    becomes a `Secret`.

    Raises:
        StorageError: settings that contradict each other or are out of range.
    """

    endpoint_url: str | None = setting(None, "URL of an S3-compatible store; null is Amazon S3.")
    region: str | None = setting(None, "Region of the bucket; null takes it from the environment.")
    access_key: Secret | None = setting(None, "Access key id; null finds it as the AWS tools do.")
    secret_key: Secret | None = setting(None, "Secret access key; null finds it as the AWS tools do.")
    session_token: Secret | None = setting(None, "Session token; null finds it as the AWS tools do.")
    anonymous: bool = setting(False, "Send no credentials, for a public bucket.")
    num_retries: int = setting(10, "Further tries of a request that failed.", ge=0, le=100)
    connect_timeout_s: float = setting(10.0, "Longest wait for a connection, in seconds.", gt=0)
    read_timeout_s: float = setting(60.0, "Longest silence on a connection, in seconds.", gt=0)
    request_timeout_s: float = setting(600.0, "Longest time of one try of a request with its body, in seconds.", gt=0)
    max_parallel: int = setting(32, "Requests that one process makes at a time, at most.", ge=1, le=1024)
    conditional_put: bool = setting(
        True,
        "False accepts a store without conditional PUT; then never run two commands on one output at a time.",
    )

    def __post_init__(self) -> None:
        try:
            super().__post_init__()
        except ValueError as error:
            raise StorageError(f"storage setting {error}") from None
        for name in ("access_key", "secret_key", "session_token"):
            value = getattr(self, name)
            object.__setattr__(self, name, Secret(value) if isinstance(value, str) else value)
        if self.endpoint_url is not None and "@" in urlsplit(self.endpoint_url).netloc:
            raise StorageError("endpoint_url is a URL with credentials in it; give them as access_key and secret_key")
        if (self.access_key is None) != (self.secret_key is None):
            raise StorageError("storage settings have only one of access_key and secret_key; give both or neither")
        if self.anonymous and self.access_key:
            raise StorageError("storage settings are anonymous and have an access_key; give one of them")


class Storage(ABC):
    """A store's objects below one root. Instances are small, hold no open connection and can be pickled.

    Attributes:
        uri: the root.
        settings: how the store is reached; also for opening what lies in the same store below another root.
    """

    uri: str
    settings: StorageSettings = StorageSettings()

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
