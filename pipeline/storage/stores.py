"""Opens the storage behind a URI: a local folder or an S3 bucket."""

from __future__ import annotations

from pipeline.storage.base import Storage, StorageError, StorageSettings
from pipeline.storage.local import LocalStorage
from pipeline.storage.uri import is_local, local_path, scheme_of, split_uri


def open_storage(uri: str, settings: StorageSettings | None = None) -> Storage:
    """The storage whose root is a URI. Sends no request.

    Args:
        uri: a local path, file:// or s3://bucket/prefix.
        settings: for buckets; None takes the defaults, and credentials as the AWS tools do, from the environment.

    Raises:
        StorageError: an empty URI, a scheme without a store, or an s3:// URI that names no bucket.
    """
    check_uri(uri)
    if is_local(uri):
        return LocalStorage(local_path(uri), settings)
    from pipeline.storage.s3 import S3Storage  # users of local folders need not import s3fs, which takes a second

    return S3Storage(uri, settings)


def check_uri(uri: str) -> None:
    """Checks that a URI names a place in a store that there is, whether anything lies there or not.

    Raises:
        StorageError: an empty URI, a scheme without a store, or a URI that can name nothing.
    """
    if not uri:
        raise StorageError("an empty URI names no place; give a folder or s3://bucket/prefix")
    scheme = scheme_of(uri)
    if scheme not in ("", "file", "s3"):
        raise StorageError(f"{uri}: no store for the scheme {scheme!r}; allowed are local paths, file:// and s3://")
    split_uri(uri)


def open_file(uri: str, settings: StorageSettings | None = None) -> tuple[Storage, str]:
    """The storage that holds a file, and the file's key in it. Sends no request; otherwise as `open_storage`."""
    root, key = split_uri(uri)
    return open_storage(root, settings), key
