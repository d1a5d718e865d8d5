"""The cache: a file or folder of a bucket is fetched to a machine once, whole, and again when it has changed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.storage import cache
from pipeline.storage.base import StorageError
from pipeline.storage.cache import cached_folder, local_file, local_folder
from pipeline.storage.s3 import S3Storage
from pipeline.storage.stores import open_storage


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    yield tmp_path / "home" / "maskfleet"


def test_local_files_and_folders_are_not_copied(tmp_path: Path, root: Path) -> None:
    assert local_file(str(tmp_path / "w.pth")) == tmp_path / "w.pth"
    assert local_folder(f"file://{tmp_path}/a%20b", "m") == tmp_path / "a b"
    assert not root.exists()


def test_a_file_is_fetched_once_and_again_when_it_is_another(
    bucket: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_PART_BYTES", 1000)
    storage, content = open_storage(bucket), bytes(range(250)) * 10
    storage.write_bytes("weights/w.pth", content)
    path = local_file(f"{bucket}/weights/w.pth")
    assert path.name == "w.pth" and path.read_bytes() == content
    first = path.stat()
    assert local_file(f"{bucket}/weights/w.pth").stat() == first
    storage.write_bytes("weights/w.pth", b"other")
    other = local_file(f"{bucket}/weights/w.pth")
    assert other.read_bytes() == b"other" and path.read_bytes() == content
    assert len([entry for entry in root.iterdir() if entry.is_dir()]) == 2


def test_a_folder_is_known_by_its_marker(bucket: str, root: Path) -> None:
    storage = open_storage(f"{bucket}/one")
    for key, data in (("a.bin", b"a"), ("below/b.bin", b"b"), ("marker.json", b"{}")):
        storage.write_bytes(key, data)
    folder = local_folder(f"{bucket}/one", "marker.json")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"a.bin": b"a", "marker.json": b"{}"}
    # The same content elsewhere is the same folder.
    open_storage(f"{bucket}/two").write_bytes("marker.json", b"{}")
    assert local_folder(f"{bucket}/two", "marker.json") == folder


def test_many_at_once_fetch_it_once(bucket: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_storage(bucket).write_bytes("w.pth", b"x" * 100_000)
    fetched: list[str] = []
    read = S3Storage.read_object

    def counting(self: S3Storage, key: str, start: int = 0, size: int | None = None) -> tuple[bytes, str]:
        fetched.append(key)
        return read(self, key, start, size)

    monkeypatch.setattr(S3Storage, "read_object", counting)
    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(local_file(f"{bucket}/w.pth"))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fetched == ["w.pth"] and len(paths) == 6 and len(set(paths)) == 1


def test_what_cannot_be_fetched_is_an_error_and_leaves_nothing(
    bucket: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StorageError, match=r"no\.pth cannot be fetched: there is no such object"):
        local_file(f"{bucket}/no.pth")
    with pytest.raises(StorageError, match="no such object"):
        local_folder(f"{bucket}/no", "marker.json")
    open_storage(bucket).write_bytes("w.pth", b"xyz")
    monkeypatch.setattr(cache, "_PART_BYTES", 1)
    read = S3Storage.read_object

    def cut_off(self: S3Storage, key: str, start: int = 0, size: int | None = None) -> tuple[bytes, str]:
        if start > 0:
            raise OSError("the connection was cut")
        return read(self, key, start, size)

    monkeypatch.setattr(S3Storage, "read_object", cut_off)
    with pytest.raises(StorageError, match="the connection was cut"):
        local_file(f"{bucket}/w.pth")
    assert not [entry for entry in root.iterdir() if entry.is_dir()]


def test_a_folder_that_is_not_whole_any_more_is_filled_anew(root: Path) -> None:
    filled = []

    def fill(folder: Path) -> None:
        filled.append(folder)
        (folder / "data").write_text("whole")

    def is_whole(folder: Path) -> bool:
        return folder.is_dir() and (folder / "data").read_text() == "whole"

    folder = cached_folder("name", fill, is_whole)
    assert cached_folder("name", fill, is_whole) == folder and len(filled) == 1
    (folder / "data").write_text("wh")
    assert cached_folder("name", fill, is_whole) == folder and len(filled) == 2 and is_whole(folder)
