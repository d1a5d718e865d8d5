"""URIs of files and folders: tells local ones, joins them, takes them apart. A plain path is a URI."""

from __future__ import annotations

import os
import posixpath
from pathlib import Path
from urllib.parse import unquote, urlsplit


def is_local(uri: str) -> bool:
    """Whether a URI is a path or file://, so on this machine's file system."""
    return "://" not in uri or uri.startswith("file://")


def local_path(uri: str) -> Path:
    """The absolute path of a local URI (a plain path or file://, percent-decoded)."""
    path = unquote(urlsplit(uri).path) if uri.startswith("file://") else os.path.expanduser(uri)
    return Path(os.path.abspath(path))


def plain_uri(uri: str) -> str:
    """A file:// URI as a path; a bucket's URI with `..` resolved, since keys must not have it; others unchanged."""
    if uri.startswith("file://"):
        return str(local_path(uri))
    scheme, mark, path = uri.rpartition("://")
    return f"{scheme}{mark}{posixpath.normpath(path)}" if mark else uri


def join_uri(folder: str, name: str) -> str:
    """The URI of `name` in `folder`, with `..` resolved. A name that is absolute or a URI does not use the folder."""
    if "://" in name or name.startswith("/"):
        return plain_uri(name)
    scheme, mark, path = plain_uri(folder).rpartition("://")
    joined = posixpath.normpath(f"{path.rstrip('/')}/{name}") if path else name
    return f"{scheme}{mark}{joined}"


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


def aligned_uri(pattern: str, uri: str) -> str:
    """The URI of the file that holds more channels of a photo, such as depth or infrared.

    Args:
        pattern: a URI in which `{stem}` stands for the photo's name without its extension and `{folder}` for the
            photo's folder, such as `{folder}/../depth/{stem}.png`.
        uri: the photo.

    Raises:
        ValueError: the pattern lacks `{stem}`, or has anything else in braces.
    """
    try:
        filled = pattern.format(stem=file_stem(uri), folder=parent_uri(uri))
    except (KeyError, IndexError, ValueError, AttributeError):
        filled = ""
    if not filled or "{stem}" not in pattern:
        raise ValueError(f"the pattern {pattern!r} must have {{stem}}, may have {{folder}}, and nothing else in {{}}")
    return plain_uri(filled)
