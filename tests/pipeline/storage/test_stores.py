"""Which store a URI opens, and with which settings."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from pipeline.storage.base import StorageError, StorageSettings
from pipeline.storage.files import Location
from pipeline.storage.local import LocalStorage
from pipeline.storage.s3 import S3Storage
from pipeline.storage.stores import open_file, open_storage
from pipeline.storage.uri import base_name, join_uri, parent_uri
from tests.pipeline.storage.test_uri import NAMES

ODD_NAMES = [*NAMES, "x/a#b?c.jpg", "x y/100%.jpg", "s3:/a", "file:a"]


def test_a_path_and_a_file_uri_open_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    opened = {uri: open_storage(uri) for uri in ("a b", "./a b", f"{tmp_path}/a b", f"file://{tmp_path}/a%20b")}
    for uri, storage in opened.items():
        assert isinstance(storage, LocalStorage) and storage.root == tmp_path / "a b", uri
    assert open_storage("~/a").uri == str(tmp_path / "home" / "a")


def test_a_bucket_is_reached_with_the_settings_given() -> None:
    for given in (StorageSettings(num_retries=3), StorageSettings(num_retries=4), None):
        storage = open_storage("s3://bucket/prefix", given)
        assert isinstance(storage, S3Storage) and storage.uri == "s3://bucket/prefix"
        assert storage.settings == (given or StorageSettings())


@pytest.mark.parametrize("name", ODD_NAMES)
def test_an_object_is_reached_by_its_uri_whatever_its_name(name: str, bucket: str, tmp_path: Path) -> None:
    decoys = ("a", "b", "A", "100", "a b", "x", "x/y", "a/b", "y")
    for root in (str(tmp_path), *([] if "\n" in name else [bucket])):  # moto knows no key with a line break
        storage = open_storage(root)
        for decoy in decoys:
            if decoy != name and not name.startswith(f"{decoy}/") and not decoy.startswith(f"{name}/"):
                with contextlib.suppress(OSError):  # a file where the name's folder is to be
                    storage.write_bytes(decoy, b"another")
        storage.write_bytes(name, b"this")
        opened, key = open_file(f"{root}/{name}")
        assert opened.read_bytes(key) == b"this"
        assert Location(storage.uri_of(name)).read_bytes() == Location(join_uri(root, name)).read_bytes() == b"this"
        below, base = open_storage(parent_uri(f"{root}/{name}")), base_name(f"{root}/{name}")
        assert below.read_bytes(base) == b"this"


@pytest.mark.parametrize("name", ["/x", "x//y", "x/", "./x", "x/../y"])
def test_slashes_and_dots_of_a_key_are_part_of_it(name: str, bucket: str) -> None:
    storage = open_storage(bucket)
    for key in ("x", "y", "x/y"):
        storage.write_bytes(key, b"another")
    storage.write_bytes(name, b"this")
    opened, key = open_file(f"{bucket}/{name}")
    assert key == name and opened.read_bytes(key) == b"this"
    assert {info.key for info in storage.iter_objects()} >= {"x", "y"}


@pytest.mark.parametrize(
    "uri", ["", "ftp://host/x", "gopher://x", "s3://", "s3://[x/", "s3:///x", "file://host/x", "a\0"]
)
def test_unusable_uris_are_refused(uri: str) -> None:
    with pytest.raises(StorageError):
        open_storage(uri)
