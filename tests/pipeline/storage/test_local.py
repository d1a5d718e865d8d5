"""Local storage: atomic writes, one winner of put-if-absent, listings in order of key."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.storage import local
from pipeline.storage.base import StorageError
from pipeline.storage.local import LocalStorage
from pipeline.storage.stores import open_storage


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "new" / "root"))
    storage.write_bytes("a/b.bin", b"one")
    storage.write_bytes("a/b.bin", b"two")
    assert storage.read_bytes("a/b.bin") == b"two"
    assert storage.exists("a/b.bin") and not storage.exists("a/c.bin")
    assert storage.stat("a/b.bin").size_bytes == 3
    storage.delete("a/b.bin")
    storage.delete("a/b.bin")
    with pytest.raises(FileNotFoundError):
        storage.read_bytes("a/b.bin")


def test_put_if_absent_keeps_the_first(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    assert storage.put_if_absent("x", b"first")
    assert not storage.put_if_absent("x", b"second")
    assert storage.read_bytes("x") == b"first"
    assert os.listdir(tmp_path) == ["x"], "no temporary file stays behind"


def _race(root: str, name: str, start, wins) -> None:
    storage = LocalStorage(root)
    start.wait()
    for i in range(50):
        if storage.put_if_absent(f"k/{i}", name.encode()):
            wins.put((i, name))


def test_one_winner_of_many_writers(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start, wins = context.Event(), context.Queue()
    writers = [context.Process(target=_race, args=(str(tmp_path), f"w{n}", start, wins)) for n in range(4)]
    for writer in writers:
        writer.start()
    start.set()
    won = dict(sorted(wins.get(timeout=60) for _ in range(50)))
    for writer in writers:
        writer.join()
    assert wins.empty() and len(won) == 50
    for i, name in won.items():
        assert LocalStorage(tmp_path).read_bytes(f"k/{i}") == name.encode()


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = LocalStorage(tmp_path)
    storage.write_bytes("x", b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        storage.write_bytes("x", b"new")
    monkeypatch.undo()
    assert storage.read_bytes("x") == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_listing_is_in_order_of_key_and_whole(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    keys = ["a-b", "a.jpg", "a/1", "a/2/3", "a0", "b", "é"]
    for key in reversed(keys):
        storage.write_bytes(key, key.encode())
    listed = [info.key for info in storage.iter_objects()]
    assert listed == sorted(keys)
    assert [info.key for info in storage.iter_objects("a/")] == ["a/1", "a/2/3"]
    assert list(storage.iter_objects("nothing/")) == []


def test_a_listing_can_begin_behind_any_key(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    keys = sorted(["a-b", "a.jpg", "a/1", "a/2/3", "a/2/4", "a0", "b", "é"])
    for key in keys:
        storage.write_bytes(key, b"")
    for after in (*keys, "", "a", "a/", "a/2", "a/20", "zz"):
        assert [info.key for info in storage.iter_objects(after=after)] == [key for key in keys if key > after]


def test_a_large_folder_is_sorted_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "SORTED_IN_MEMORY", 7)
    names = [f"{number}" for number in range(40)] + ["line\nbreak", "17-", "17.x", 'quo"te', "ü"]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "17+").mkdir()
    (tmp_path / "17+" / "deep").touch()
    (tmp_path / os.fsdecode(b"\xff")).touch()
    listed = [info.key for info in LocalStorage(tmp_path).iter_objects()]
    assert listed == sorted([*names, "17+/deep", "\\xff"])


def test_the_temporary_file_of_a_killed_writer_is_removed(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    storage.write_bytes("a/b", b"whole")
    (tmp_path / "a" / ".c.0123456789ab.tmp").write_bytes(b"ha")
    assert storage.remove_unfinished() == ["a/.c.0123456789ab.tmp"]
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "b"]


@pytest.mark.parametrize("write", [LocalStorage.write_bytes, LocalStorage.put_if_absent])
def test_a_writer_whose_temporary_file_is_removed_writes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write
) -> None:
    storage = LocalStorage(tmp_path)
    removed: list[str] = []
    sync = os.fsync

    def slow(descriptor: int) -> None:
        if not removed:
            removed.extend(storage.remove_unfinished())
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    write(storage, "x", b"data")
    assert len(removed) == 1 and storage.read_bytes("x") == b"data" and os.listdir(tmp_path) == ["x"]


def test_odd_names_are_listed_and_found(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/caf\xe9.jpg", "wb") as file:
        file.write(b"odd")
    os.symlink(tmp_path / "gone", tmp_path / "dangling")
    os.symlink(tmp_path, tmp_path / "loop")
    storage = LocalStorage(tmp_path)
    listed = {info.key: info.size_bytes for info in storage.iter_objects()}
    assert listed == {"caf\\xe9.jpg": 3, "dangling": -1}
    assert storage.read_bytes("caf\\xe9.jpg") == b"odd"


def test_what_cannot_be_followed_is_listed_and_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = LocalStorage(tmp_path)
    for key in ("a.jpg", "closed/secret.jpg", "d/b.jpg"):
        storage.write_bytes(key, b"x")
    (tmp_path / "d/up").symlink_to(tmp_path)
    (tmp_path / "itself").symlink_to("itself")
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    scandir = os.scandir

    def refuse(path: Path) -> Any:  # the tests may run as root, whom no permission stops
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    listed = {info.key: info.size_bytes for info in storage.iter_objects()}
    assert listed == {"a.jpg": 1, "closed/": -1, "d/b.jpg": 1, "itself": -1, "nowhere": -1}
    assert list(listed) == sorted(listed)
    with pytest.raises(PermissionError, match="Permission denied"):
        storage.read_bytes("closed/")
    assert [info.key for info in storage.iter_objects(after="closed/z")] == ["d/b.jpg", "itself", "nowhere"]
    with pytest.raises(PermissionError):
        list(LocalStorage(tmp_path / "closed").iter_objects())


def test_folders_may_be_nested_deeper_than_python_recurses(tmp_path: Path) -> None:
    folder, folders = tmp_path, list[Path]()
    for _ in range(1100):
        folder = folder / "d"
        folder.mkdir()
        folders.append(folder)
    (folder / "deep.jpg").write_bytes(b"x")
    assert [info.key for info in LocalStorage(tmp_path).iter_objects()] == ["d/" * 1100 + "deep.jpg"]
    (folder / "deep.jpg").unlink()
    for folder in reversed(folders):  # pytest's own removal would recurse
        folder.rmdir()


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        LocalStorage(tmp_path).read_bytes("pipe")


@pytest.mark.parametrize("key", ["../x", "a/../../x", "/etc/passwd"])
def test_keys_outside_the_root_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(StorageError, match="no key below"):
        LocalStorage(tmp_path / "root").read_bytes(key)


@pytest.mark.parametrize("key", ["x", "deep/x"])
def test_a_file_in_the_place_of_a_folder_is_an_error_not_a_lost_race(tmp_path: Path, key: str) -> None:
    (tmp_path / "file").touch()
    storage = LocalStorage(tmp_path / "file")
    for write in (storage.put_if_absent, storage.write_bytes):
        with pytest.raises(NotADirectoryError):
            write(key, b"data")
