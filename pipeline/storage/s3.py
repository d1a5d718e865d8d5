"""S3 storage through s3fs: buckets of Amazon S3, Ceph, MinIO, Cloudflare R2 and other stores with S3's protocol.

s3fs sends the requests. This module adds what a bulk run needs:

* a put-if-absent that recognises its own write when the answer to it was lost,
* one policy of retries with jitter,
* a cap on parallel requests for the whole process,
* reads that are complete or an error,
* error messages without credentials.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import hashlib
import io
import os
import random
import threading
import time
import uuid
from base64 import b64encode
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO

from pipeline.storage.base import CredentialsError, ObjectArchived, ObjectInfo, Storage, StorageError, StorageSettings
from pipeline.storage.uri import bucket_and_key

_RETRIED_STATUSES = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_RETRIED_CODES = frozenset({"BadDigest", "IncompleteBody", "RequestTimeout", "SlowDown", "InternalError"})
# With these no request can succeed, whichever object it asks for.
_CREDENTIAL_CODES = frozenset(
    {
        *("NoCredentials", "ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken"),
        *("RequestTimeTooSkewed", "RequestExpired", "InvalidAccessKeyId", "SignatureDoesNotMatch"),
    }
)
_ARCHIVES = ("GLACIER", "DEEP_ARCHIVE")  # classes of storage; instant retrieval has one of its own
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.2, 20.0
_MARK = "maskfleet-put"
_READ_AHEAD_BYTES = 1 << 18
_PAGE_KEYS = 1000


class S3Storage(Storage):
    """A bucket, or the part of it below a prefix. Each object is written with one request (at most 5 GiB)."""

    def __init__(self, uri: str, settings: StorageSettings | None = None) -> None:
        """Opens no connection and sends no request.

        Args:
            uri: s3://bucket or s3://bucket/prefix.
            settings: endpoint, credentials, retries; None takes the defaults.

        Raises:
            StorageError: the URI names no bucket, or has credentials in it.
        """
        self.bucket, prefix = bucket_and_key(uri)
        prefix = prefix.rstrip("/")
        self.uri = f"s3://{self.bucket}/{prefix}" if prefix else f"s3://{self.bucket}"
        self.settings = settings or StorageSettings()
        self._prefix = f"{prefix}/" if prefix else ""

    def __repr__(self) -> str:
        return f"S3Storage({self.uri!r})"

    def read_bytes(self, key: str) -> bytes:
        return self._request("get_object", key).data

    def read_object(self, key: str, start: int = 0, size: int | None = None) -> tuple[bytes, str]:
        if size == 0:
            return b"", self.stat(key).etag
        last = "" if size is None else start + size - 1
        part = {} if start == 0 and size is None else {"Range": f"bytes={start}-{last}"}
        try:
            response = self._request("get_object", key, **part)
        except _RangeNotSatisfiable:
            return b"", self.stat(key).etag
        return response.data, response.headers.get("ETag", "").strip('"')

    def write_bytes(self, key: str, data: bytes) -> None:
        self._request("put_object", key, Body=data, ContentMD5=_md5(data))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        if not self.settings.conditional_put:
            if self.exists(key):
                return False
            self.write_bytes(key, data)
            return True
        # The answer may be lost after the store has written; the next try then finds the first one's object. The mark
        # in its metadata tells whose it is, whatever its bytes are, also where a proxy has sent the request twice.
        mark = uuid.uuid4().hex
        extra = {"IfNoneMatch": "*", "Metadata": {_MARK: mark}, "ContentMD5": _md5(data)}
        while True:
            try:
                self._request("put_object", key, Body=data, **extra)
                return True
            except _PreconditionFailed:
                try:
                    headers = self._request("head_object", key).headers
                except FileNotFoundError:  # removed in the meantime
                    continue
                return headers.get("Metadata", {}).get(_MARK) == mark

    def stat(self, key: str) -> ObjectInfo:
        headers = self._request("head_object", key).headers
        is_stored_away = headers.get("StorageClass") in _ARCHIVES or "ArchiveStatus" in headers
        is_restored = 'ongoing-request="false"' in headers.get("Restore", "")
        etag = headers.get("ETag", "").strip('"')
        return ObjectInfo(key, headers["ContentLength"], etag, is_stored_away and not is_restored)

    def iter_objects(self, prefix: str = "", after: str = "") -> Iterator[ObjectInfo]:
        if prefix and not prefix.endswith("/"):
            raise ValueError(f"prefix must be empty or end in '/', not {prefix!r}")
        token = {"StartAfter": self._prefix + after} if after else {}
        while True:
            query = {"Prefix": self._prefix + prefix, "MaxKeys": _PAGE_KEYS}
            page = self._request("list_objects_v2", None, **query, **token).headers
            for entry in page.get("Contents", ()):
                key = entry["Key"][len(self._prefix) :]
                is_folder = entry["Size"] == 0 and key.endswith("/")  # written by web consoles to show a folder
                if key and not is_folder:
                    yield ObjectInfo(key, entry["Size"], entry.get("ETag", "").strip('"'))
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def delete(self, key: str) -> None:
        self._request("delete_object", key)

    def open_input(self, key: str) -> BinaryIO:
        info = self.stat(key)
        return io.BufferedReader(_RangeReader(self, info), _READ_AHEAD_BYTES)

    def read_many(self, keys: Iterable[str]) -> Iterator[bytes]:
        parallel = self.settings.max_parallel
        with ThreadPoolExecutor(parallel) as threads:
            waiting, unread = deque[Future[bytes]](), iter(keys)
            while True:
                waiting.extend(threads.submit(self.read_bytes, key) for key in islice(unread, parallel - len(waiting)))
                if not waiting:
                    return
                yield waiting.popleft().result()

    def _request(self, method: str, key: str | None, **arguments: Any) -> _Response:
        """Sends one request, with retries while its failure may pass; `key` None asks for the bucket itself."""
        settings, started_s = self.settings, time.monotonic()
        if key is not None:
            arguments["Key"] = self._prefix + key
        for retry in range(settings.num_retries + 1):
            try:
                return _shared_client(settings).call(method, Bucket=self.bucket, **arguments)
            except Exception as error:
                failure = _Failure.of(error)
            if failure.status == 412:
                raise _PreconditionFailed
            if failure.status == 416:
                raise _RangeNotSatisfiable
            if not failure.may_pass:
                break
            if retry < settings.num_retries:
                longest_s = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0**retry)
                time.sleep(max(failure.retry_after_s, random.uniform(0.0, longest_s)))
        tries = f" after {retry + 1} tries in {time.monotonic() - started_s:.0f} s" if retry else ""
        # `from None`: the store's own error could show credentials, for instance in a traceback.
        raise self._error(failure, method.partition("_")[0], key, tries) from None

    def _error(self, failure: _Failure, verb: str, key: str | None, tries: str) -> Exception:
        uri = self.uri_of(key) if key is not None else self.uri
        words = failure.words
        for secret in (self.settings.secret_key, self.settings.session_token, self.settings.access_key):
            words = words.replace(secret.reveal(), "***") if secret else words
        if failure.code == "NoSuchBucket":
            return StorageError(f"{uri}: there is no bucket {self.bucket!r}")
        if failure.status == 404:
            return FileNotFoundError(errno.ENOENT, "no such object", uri)
        if failure.code in _CREDENTIAL_CODES:
            return CredentialsError(errno.EACCES, f"{verb} is not allowed: {words}", uri)
        if failure.code == "InvalidObjectState":
            return ObjectArchived(errno.EACCES, f"the object is archived and must be restored first: {words}", uri)
        if failure.status in (401, 403):
            return PermissionError(errno.EACCES, f"{verb} is not allowed ({words}); check the credentials", uri)
        if failure.is_ours:
            return StorageError(f"{uri}: {words}")
        return OSError(errno.EIO, f"{verb} failed{tries}: {words}", uri)


class _PreconditionFailed(Exception):
    """Status 412: there is an object under this key already."""


class _RangeNotSatisfiable(Exception):
    """Status 416: the object ends before the range starts."""


@dataclass(frozen=True)
class _Response:
    headers: dict[str, Any]
    data: bytes


@dataclass(frozen=True)
class _Failure:
    """Why one try of a request failed.

    Attributes:
        status: HTTP status, 0 when there was no answer.
        code: S3's error code, "" when there was none.
        words: the reason, for the user.
        may_pass: whether another try may succeed.
        is_ours: whether the fault lies in the settings or the request, not in the store.
        retry_after_s: wait that the store asks for.
    """

    status: int
    code: str
    words: str
    may_pass: bool
    is_ours: bool = False
    retry_after_s: float = 0.0

    @classmethod
    def of(cls, error: BaseException) -> _Failure:
        """The failure behind an error of s3fs or botocore. An error of any other kind is a bug and is raised again."""
        import aiohttp
        from botocore import exceptions as boto
        from botocore.parsers import ResponseParserError

        if isinstance(error, boto.ClientError):
            metadata, details = error.response.get("ResponseMetadata", {}), error.response.get("Error", {})
            status, code = metadata.get("HTTPStatusCode", 0), str(details.get("Code", ""))
            words = " ".join(filter(None, (str(status), code if code != str(status) else "", details.get("Message"))))
            retry_after = str(metadata.get("HTTPHeaders", {}).get("retry-after", ""))
            wait_s = min(float(retry_after), _LONGEST_WAIT_S) if retry_after.isdigit() else 0.0
            may_pass = status in _RETRIED_STATUSES or code in _RETRIED_CODES
            return cls(status, code, words, may_pass, retry_after_s=wait_s)
        if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError):
            words = "no credentials; set them in the storage settings, or anonymous for a public bucket"
            return cls(0, "NoCredentials", words, False)
        if isinstance(error, boto.CredentialRetrievalError | boto.TokenRetrievalError | boto.SSOError):
            return cls(0, "NoCredentials", f"no credentials could be had: {error}", False)
        if isinstance(error, boto.ParamValidationError | boto.UnknownRegionError | ValueError):
            return cls(0, "", str(error), False, is_ours=True)
        cut_off = (boto.ConnectionError, boto.HTTPClientError, boto.ResponseStreamingError, boto.IncompleteReadError)
        if isinstance(error, (*cut_off, ResponseParserError, aiohttp.ClientError, OSError)):
            return cls(0, "", f"{type(error).__name__}: {error}".rstrip(": "), True)
        raise error


class _Client:
    """The connections of one process under one set of settings, with the cap on parallel requests."""

    def __init__(self, settings: StorageSettings) -> None:
        import s3fs

        options: dict[str, Any] = {
            "connect_timeout": settings.connect_timeout_s,
            "read_timeout": settings.read_timeout_s,
            "max_pool_connections": settings.max_parallel,
            "retries": {"total_max_attempts": 1},  # S3Storage._request is the only place that retries
            "request_checksum_calculation": "when_required",  # older stores do not know the newer checksums
            "response_checksum_validation": "when_required",
        }
        if settings.endpoint_url:
            options["s3"] = {"addressing_style": "path"}
        region = settings.region or ("us-east-1" if settings.endpoint_url else None)
        self._fs = s3fs.S3FileSystem(
            anon=settings.anonymous,
            endpoint_url=settings.endpoint_url,
            key=settings.access_key.reveal() if settings.access_key else None,
            secret=settings.secret_key.reveal() if settings.secret_key else None,
            token=settings.session_token.reveal() if settings.session_token else None,
            client_kwargs={"region_name": region} if region else {},
            config_kwargs=options,
            use_listings_cache=False,
            skip_instance_cache=True,  # fsspec's cache would hand these credentials to other users of it
        )
        self._free = threading.BoundedSemaphore(settings.max_parallel)
        self._longest_s = settings.request_timeout_s

    def call(self, method: str, **arguments: Any) -> _Response:
        """One try of one request; waits for the whole body of the answer."""
        from fsspec.asyn import sync

        with self._free:
            return sync(self._fs.loop, self._call, method, arguments)

    async def _call(self, method: str, arguments: dict[str, Any]) -> _Response:
        async with asyncio.timeout(self._longest_s):
            client = await self._fs.set_session()  # aiobotocore's client, with s3fs's credentials and connections
            headers = await getattr(client, method)(**arguments)
            data = b""
            if "Body" in headers:
                async with headers["Body"] as body:
                    data = await body.read()
                if len(data) != headers["ContentLength"]:
                    raise ConnectionError(f"{len(data)} of {headers['ContentLength']} bytes came")
            return _Response(headers, data)


_client_lock = threading.Lock()


def _shared_client(settings: StorageSettings) -> _Client:
    """The client of this process for these settings, so that the cap on requests holds for all storages together."""
    # The client is keyed by the AWS variables, from which it reads what the settings leave open, and by the process id,
    # because connections do not survive a fork.
    environment = hash(frozenset((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))
    with _client_lock:
        return _client(settings, environment, os.getpid())


@functools.lru_cache(maxsize=16)
def _client(settings: StorageSettings, environment: int, pid: int) -> _Client:
    return _Client(settings)


class _RangeReader(io.RawIOBase):
    """An object as a seekable file. Each read is one ranged request; a change of the object is an error."""

    def __init__(self, storage: S3Storage, info: ObjectInfo) -> None:
        self._storage, self._info, self._position = storage, info, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._info.size_bytes}[whence]
        if start + offset < 0:
            raise ValueError(f"cannot seek to {start + offset}")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        stop = min(self._position + len(buffer), self._info.size_bytes)
        count = stop - self._position
        if count <= 0:
            return 0
        data, etag = self._storage.read_object(self._info.key, self._position, count)
        if etag != self._info.etag or len(data) != count:
            raise OSError(errno.ESTALE, "changed while it was read", self._storage.uri_of(self._info.key))
        buffer[:count] = data
        self._position = stop
        return count


def _md5(data: bytes) -> str:
    """The Content-MD5 header, which every S3 store checks before it stores the object; not for security."""
    return b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
