"""URIs joined, taken apart and turned into paths."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.storage.uri import (
    aligned_uri,
    base_name,
    file_stem,
    is_local,
    join_uri,
    local_path,
    parent_uri,
    plain_uri,
)


@pytest.mark.parametrize(
    ("folder", "name", "expected"),
    [
        ("a/b", "c.png", "a/b/c.png"),
        ("a/b", "../c.png", "a/c.png"),
        ("/a", "/c.png", "/c.png"),
        ("/", "c.png", "/c.png"),
        (".", "c.png", "c.png"),
        ("s3://lab/a", "../b/c.png", "s3://lab/b/c.png"),
        ("s3://lab", "c.png", "s3://lab/c.png"),
        ("/a", "s3://lab/c.png", "s3://lab/c.png"),
        ("file:///a%20b", "c%20d.png", "/a b/c%20d.png"),
    ],
)
def test_names_are_joined_and_taken_apart(folder: str, name: str, expected: str) -> None:
    joined = join_uri(folder, name)
    assert joined == expected
    assert base_name(joined) == expected.rpartition("/")[2]
    assert parent_uri(joined) in (expected.rpartition("/")[0], "/", ".")


def test_stems_of_odd_names() -> None:
    assert [file_stem(name) for name in ("a/b.tar.gz", "a/.hidden", "a/b", "s3://x/y.png")] == [
        "b.tar",
        ".hidden",
        "b",
        "y",
    ]


def test_local_uris_are_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert [is_local(uri) for uri in ("a", "/a", "file:///a", "s3://a", "http://a")] == [True] * 3 + [False] * 2
    assert local_path("file:///a%20b/c%23d") == Path("/a b/c#d")
    assert local_path("/a%20b/../c") == Path("/c")
    assert local_path("a/b") == tmp_path / "a" / "b"
    assert local_path("~/a") == tmp_path / "home" / "a"


def test_plain_uris_have_no_dots_in_a_bucket() -> None:
    assert plain_uri("file:///a%20b") == "/a b"
    assert plain_uri("s3://lab/a/../b/./c.png") == "s3://lab/b/c.png"
    assert plain_uri("a/../b") == "a/../b"


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("{folder}/../depth/{stem}.png", "s3://lab/depth/photo.1.png"),
        ("/elsewhere/{stem}_ir.tif", "/elsewhere/photo.1_ir.tif"),
        ("s3://other/{stem}", "s3://other/photo.1"),
    ],
)
def test_an_aligned_file_is_named_after_its_photo(pattern: str, expected: str) -> None:
    assert aligned_uri(pattern, "s3://lab/rgb/photo.1.jpg") == expected


@pytest.mark.parametrize("pattern", ["", "{folder}/x.png", "{stem}/{name}", "{stem}{0}", "{stem", "{stem.x}"])
def test_a_pattern_of_anything_else_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="must have"):
        aligned_uri(pattern, "a/b.jpg")
