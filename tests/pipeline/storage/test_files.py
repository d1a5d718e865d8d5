"""Files by URI: whole writes, JSON, listings; on a disk and in a bucket."""

from __future__ import annotations

import gc
import math
from pathlib import Path

import pytest

from pipeline.storage import files
from pipeline.storage.local import LocalStorage


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    files.write_bytes(str(tmp_path / "x"), b"before")
    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        files.write_bytes(str(tmp_path / "x"), b"after")
    assert [path.name for path in tmp_path.iterdir()] == ["x"] and (tmp_path / "x").read_bytes() == b"before"


def test_listings_match_those_of_the_storage(tmp_path: Path) -> None:
    for name in ("b.json", "a.json", "deep/c.json"):
        files.write_bytes(str(tmp_path / name), b"{}")
    assert list(files.iter_names(str(tmp_path))) == ["a.json", "b.json"]
    assert list(files.iter_names(str(tmp_path), recursive=True)) == [
        info.key for info in LocalStorage(tmp_path).iter_objects()
    ]
    assert list(files.iter_names(str(tmp_path / "gone"))) == []


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_what_is_written_is_found_and_read_back(place: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    root = f"{tmp_path}/root" if place == "disk" else request.getfixturevalue("bucket")
    assert not files.is_file(f"{root}/deep/a.json") and not files.is_folder(f"{root}/deep")
    files.write_json(f"{root}/deep/a.json", {"ü": [1, 2.5, None]})
    assert files.read_bytes(f"{root}/deep/a.json") == '{"ü":[1,2.5,null]}'.encode()
    assert files.read_json(f"{root}/deep/a.json") == {"ü": [1, 2.5, None]}
    assert files.is_file(f"{root}/deep/a.json") and not files.is_file(f"{root}/deep")
    assert files.is_folder(f"{root}/deep") and not files.is_folder(f"{root}/de")
    assert list(files.iter_names(root)) == [] and list(files.iter_names(root, recursive=True)) == ["deep/a.json"]
    with pytest.raises(FileNotFoundError):
        files.read_json(f"{root}/deep/b.json")


def test_json_beyond_the_standard_is_read_and_broken_json_is_placed(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(f'{{"a": NaN, "b": {10**30}}}')
    content = files.read_json(str(path))
    assert math.isnan(content["a"]) and content["b"] == 10**30
    for broken in (b'{"a":\n 1,,}', b"\xff"):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"a\.json is (not valid JSON|no text in UTF-8)"):
            files.read_json(str(path))
    path.write_bytes(b'{"a":\n 1,,}')
    with pytest.raises(ValueError, match="line 2"):
        files.read_json(str(path))


def test_garbage_is_collected_again_afterwards() -> None:
    with pytest.raises(KeyError):
        with files.no_collection():
            assert not gc.isenabled()
            raise KeyError
    assert gc.isenabled()
    gc.disable()
    try:
        with files.no_collection():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_is_read_in_any_unicode_encoding(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes("Übergröße\r\n".encode(encoding))
    assert files.read_text(str(tmp_path / "x.txt")) == "Übergröße\r\n"
    (tmp_path / "x.json").write_bytes('{"ü": [NaN, 1]}'.encode(encoding))
    assert files.read_json(str(tmp_path / "x.json"))["ü"][1] == 1


def test_text_in_another_encoding_is_refused_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes("one\ncaf\xe9".encode("latin-1"))
    for read in (files.read_text, files.read_json):
        with pytest.raises(
            ValueError, match=r"x\.txt is no text in UTF-8: byte 0xe9 in line 2, column 4.*save it as UTF-8"
        ):
            read(str(tmp_path / "x.txt"))
