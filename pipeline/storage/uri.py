"""URIs of files and folders: tells local ones, joins them, takes them apart, compares them. A plain path is a URI.

No other module takes a URI apart. In a bucket a key is any text: `#`, `?`, `%`, `//` and a leading slash stand for
themselves, and so they do in a plain path. In file:// a `%` with two hexadecimal digits is a byte (RFC 8089, as
`Path.as_uri()` writes it); `#` and `?` stand for themselves.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote_to_bytes

from pipeline.storage.base import StorageError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_FILE = re.compile(r"file://(?:localhost)?(/.*)", re.IGNORECASE | re.DOTALL)
_BUCKET = re.compile(r"[A-Za-z0-9._-]{1,255}|arn:[A-Za-z0-9:._-]+")


@dataclass(frozen=True)
class Place:
    """Marks the type of a setting whose value is a place: a file or folder, which other machines may not have."""


Uri = Annotated[str, Place()]
"""The type of a setting that names a file or folder: a path, file:// or a bucket's URI, or a pattern of one."""


def scheme_of(uri: str) -> str:
    """The scheme of a URI, in lower case; "" for a plain path."""
    match = _SCHEME.match(uri)
    return match[1].lower() if match else ""


def is_local(uri: str) -> bool:
    """Whether a URI is a path or file://, so on this machine's file system."""
    return scheme_of(uri) in ("", "file")


def is_full(uri: str) -> bool:
    """Whether a URI or path says by itself where it is: it has a scheme, or is an absolute path."""
    return bool(scheme_of(uri)) or uri.startswith("/")


def local_path(uri: str) -> Path:
    """The absolute path of a local URI: a plain path, where `~` is the home folder, or file://.

    Raises:
        StorageError: no path can be of this name (a NUL), or it is file:// of another host.
    """
    if "\0" in uri:
        raise StorageError(f"{uri!r} has a NUL character, which no path has")
    if scheme_of(uri) != "file":
        return Path(os.path.abspath(os.path.expanduser(uri)))
    match = _FILE.fullmatch(uri)
    path = os.fsdecode(unquote_to_bytes(os.fsencode(match[1]))) if match else "\0"
    if "\0" in path:
        raise StorageError(f"{uri!r} names no path of this machine; allowed is file:/// and an absolute path")
    return Path(os.path.abspath(path))


def bucket_and_key(uri: str) -> tuple[str, str]:
    """The bucket of a bucket's URI, and the key, as it is written; "" for the bucket itself.

    Raises:
        StorageError: the URI names no bucket, or has credentials or a NUL in it.
    """
    scheme = scheme_of(uri)
    bucket, _, key = uri[len(scheme) + 3 :].partition("/")
    if "@" in bucket:
        raise StorageError(f"a URI of {scheme}:// with credentials in it; give them in the storage settings")
    if not scheme or not _BUCKET.fullmatch(bucket):
        raise StorageError(f"{uri!r} names no bucket; give s3://bucket or s3://bucket/prefix")
    if "\0" in key:
        raise StorageError(f"{uri!r} has a NUL character, which no key has")
    return bucket, key


def split_uri(uri: str) -> tuple[str, str]:
    """The root of a file's store ('/' or 's3://bucket'), and the file's key below it.

    Raises:
        StorageError: as `local_path` and `bucket_and_key`.
    """
    if is_local(uri):
        return "/", str(local_path(uri)).lstrip("/")
    bucket, key = bucket_and_key(uri)
    return f"{scheme_of(uri)}://{bucket}", key


def absolute_uri(uri: str) -> str:
    """The absolute path of a local URI; a bucket's with its scheme in lower case and no slash at its end.

    Raises:
        StorageError: as `local_path`.
    """
    if is_local(uri):
        return str(local_path(uri))
    scheme = scheme_of(uri)
    return scheme + uri[len(scheme) :].rstrip("/")


def canonical_uri(uri: str) -> str:
    """The one spelling of a folder or file: `absolute_uri`, for a local one also without symbolic links."""
    absolute = absolute_uri(uri)
    return os.path.realpath(absolute) if is_local(absolute) else absolute


def file_place(uri: str, real_folder: Callable[[str], str] = os.path.realpath) -> str:
    """The one spelling of the place of a file or object: a bucket's key as it is, a path without symbolic links.

    Args:
        uri: of a file or object. In a bucket `a//b`, `a/./b` and `a/` are other objects than `a/b` and `a`.
        real_folder: `os.path.realpath`, or that with a memory, for many files of a folder.

    Raises:
        StorageError: as `split_uri`.
    """
    if uri.startswith("s3://"):
        return uri
    root, key = split_uri(uri)
    if root != "/":
        return f"{root}/{key}"
    folder, _, name = key.rpartition("/")
    path = os.path.join(real_folder("/" + folder), name)
    return os.path.realpath(path) if os.path.islink(path) else path


def is_within(uri: str, folder: str) -> bool:
    """Whether a place is a folder itself or lies below it, however the two are spelled."""
    inner, outer = canonical_uri(uri), canonical_uri(folder)
    return inner == outer or inner.startswith(outer.rstrip("/") + "/")


def plain_uri(uri: str) -> str:
    """A file:// URI as a path; others unchanged."""
    return str(local_path(uri)) if scheme_of(uri) == "file" else uri


def join_uri(folder: str, name: str) -> str:
    """The URI of `name` in `folder`, with the `.` and `..` of the name resolved.

    A name that is absolute or a URI does not use the folder.
    """
    scheme = scheme_of(name)
    if scheme or name.startswith("/"):
        return plain_uri(name) if scheme == "file" else name
    folder = plain_uri(folder)
    if not is_local(folder):
        return _resolve(folder.rstrip("/"), name)
    path = posixpath.normpath(f"{folder.rstrip('/')}/{name}" if folder else name)
    return f"./{path}" if name.startswith("~") and path == name else path  # a file, not somebody's home folder


def relative_uri(uri: str, folder: str) -> str:
    """The name of a file for use in `folder`: a relative path if both are on the local disk, else its URI."""
    if is_local(uri) and is_local(folder):
        return os.path.relpath(local_path(uri), local_path(folder)).replace(os.sep, "/")
    return uri


def parent_uri(uri: str) -> str:
    """The URI of the folder that holds a file; '.' for a bare name."""
    uri = plain_uri(uri)
    return uri.rstrip("/").rpartition("/")[0] or ("/" if uri.startswith("/") else ".")


def base_name(uri: str) -> str:
    """The last part of a URI."""
    return plain_uri(uri).rstrip("/").rpartition("/")[2]


def file_stem(uri: str) -> str:
    """The last part of a URI without its extension."""
    name = base_name(uri)
    return name.rpartition(".")[0] or name


def folder_before(uri: str, name: str) -> str | None:
    """The URI of the folder in which the folder `name` lies on the way to a place; None where none is of that name."""
    parts = plain_uri(uri).split("/")
    if name not in parts:
        return None
    return "/".join(parts[: parts.index(name)]) or ("/" if uri.startswith("/") else ".")


def aligned_uri(pattern: str, uri: str) -> str:
    """The URI of the file that holds more channels of a photo, such as depth or infrared.

    Args:
        pattern: a URI in which `{stem}` stands for the photo's name without its extension and `{folder}` for the
            photo's folder, such as `{folder}/../depth/{stem}.png`.
        uri: the photo.

    Raises:
        ValueError: the pattern lacks `{stem}`, or has anything else in braces.
    """
    folder = parent_uri(uri)
    try:
        filled = pattern.format(stem=file_stem(uri), folder=folder)
    except (KeyError, IndexError, ValueError, AttributeError):
        filled = ""
    if not filled or "{stem}" not in pattern:
        raise ValueError(f"the pattern {pattern!r} must have {{stem}}, may have {{folder}}, and nothing else in {{}}")
    if pattern.startswith("{folder}/") and not is_local(folder):
        return _resolve(folder, filled[len(folder) + 1 :])
    return plain_uri(filled)


def _resolve(folder: str, name: str) -> str:
    """The URI of a name in a bucket's folder, with its `.` and `..` resolved; `..` stops at the bucket."""
    parts = folder.split("/")  # s3:, nothing, the bucket, ...
    for part in name.split("/"):
        if part == "..":
            parts = parts[:-1] if len(parts) > 3 else parts
        elif part != ".":
            parts.append(part)
    return "/".join(parts)
