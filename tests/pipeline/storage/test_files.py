"""Files by URI: whole writes, JSON, listings; on a disk and in a bucket."""

from __future__ import annotations

import gc
import math
from pathlib import Path

import pytest

from pipeline.storage.files import Location, no_collection
from pipeline.storage.local import LocalStorage


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    Location(str(tmp_path / "x")).write_bytes(b"before")
    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        Location(str(tmp_path / "x")).write_bytes(b"after")
    assert [path.name for path in tmp_path.iterdir()] == ["x"] and (tmp_path / "x").read_bytes() == b"before"


def test_listings_match_those_of_the_storage(tmp_path: Path) -> None:
    for name in ("b.json", "a.json", "deep/c.json"):
        Location(str(tmp_path / name)).write_bytes(b"{}")
    assert list(Location(str(tmp_path)).iter_names()) == ["a.json", "b.json"]
    assert list(Location(str(tmp_path)).iter_names(recursive=True)) == [
        info.key for info in LocalStorage(tmp_path).iter_objects()
    ]
    assert list(Location(str(tmp_path / "gone")).iter_names()) == []


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_what_is_written_is_found_and_read_back(place: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    root = f"{tmp_path}/root" if place == "disk" else request.getfixturevalue("bucket")
    assert not Location(f"{root}/deep/a.json").is_file() and not Location(f"{root}/deep").is_folder()
    Location(f"{root}/deep/a.json").write_json({"ü": [1, 2.5, None]})
    assert Location(f"{root}/deep/a.json").read_bytes() == '{"ü":[1,2.5,null]}'.encode()
    assert Location(f"{root}/deep/a.json").read_json() == {"ü": [1, 2.5, None]}
    assert Location(f"{root}/deep/a.json").is_file() and not Location(f"{root}/deep").is_file()
    assert Location(f"{root}/deep").is_folder() and not Location(f"{root}/de").is_folder()
    assert list(Location(root).iter_names()) == []
    assert list(Location(root).iter_names(recursive=True)) == ["deep/a.json"]
    with pytest.raises(FileNotFoundError):
        Location(f"{root}/deep/b.json").read_json()


def test_json_beyond_the_standard_is_read_and_broken_json_is_placed(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(f'{{"a": NaN, "b": {10**30}}}')
    content = Location(str(path)).read_json()
    assert math.isnan(content["a"]) and content["b"] == 10**30
    for broken in (b'{"a":\n 1,,}', b"\xff"):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"a\.json is (not valid JSON|no text in UTF-8)"):
            Location(str(path)).read_json()
    path.write_bytes(b'{"a":\n 1,,}')
    with pytest.raises(ValueError, match="line 2"):
        Location(str(path)).read_json()


def test_garbage_is_collected_again_afterwards() -> None:
    with pytest.raises(KeyError):
        with no_collection():
            assert not gc.isenabled()
            raise KeyError
    assert gc.isenabled()
    gc.disable()
    try:
        with no_collection():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_is_read_in_any_unicode_encoding(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes("Übergröße\r\n".encode(encoding))
    assert Location(str(tmp_path / "x.txt")).read_text() == "Übergröße\r\n"
    (tmp_path / "x.json").write_bytes('{"ü": [NaN, 1]}'.encode(encoding))
    assert Location(str(tmp_path / "x.json")).read_json()["ü"][1] == 1


def test_text_in_another_encoding_is_refused_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes("one\ncaf\xe9".encode("latin-1"))
    for read in (Location.read_text, Location.read_json):
        with pytest.raises(
            ValueError, match=r"x\.txt is no text in UTF-8: byte 0xe9 in line 2, column 4.*save it as UTF-8"
        ):
            read(Location(str(tmp_path / "x.txt")))
