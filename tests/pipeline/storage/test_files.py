"""Files by URI: whole writes, JSON, listings; on a disk and in a bucket."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.storage import files
from pipeline.storage.local import LocalStorage


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    files.write_bytes(str(tmp_path / "x"), b"before")
    monkeypatch.setattr(files.os, "replace", fail)
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
