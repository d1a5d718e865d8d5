"""Opens the store behind a URI: a local folder or an S3 bucket."""

from __future__ import annotations

from urllib.parse import urlsplit

from pipeline.storage.base import Storage, StorageError, StorageSettings
from pipeline.storage.uri import local_path

_settings: StorageSettings | None = None


def use_settings(settings: StorageSettings | None) -> None:
    """Makes these settings those of every `open_storage` of this process that names none itself.

    A program has one way to its buckets; its jobs and each of their workers say so once, at their start.
    """
    global _settings
    _settings = settings


def open_storage(uri: str, settings: StorageSettings | None = None) -> Storage:
    """The store behind a URI: a local path, file://, or s3://bucket/prefix. Sends no request.

    Args:
        uri: where.
        settings: for buckets; None takes those of `use_settings`, else what the AWS tools take from the environment.

    Raises:
        StorageError: an empty URI, or a scheme there is no store for.
    """
    if not uri:
        raise StorageError("an empty URI names no place; give a folder or s3://bucket/prefix")
    scheme = urlsplit(uri).scheme if "://" in uri else ""
    if scheme in ("", "file"):
        from pipeline.storage.local import LocalStorage

        return LocalStorage(local_path(uri))
    if scheme == "s3":
        from pipeline.storage.s3 import S3Storage  # local folders need neither s3fs nor its second of import

        return S3Storage(uri, settings or _settings)
    raise StorageError(f"{uri}: no store for the scheme {scheme!r}; allowed are local paths, file:// and s3://")
