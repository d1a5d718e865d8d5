"""URIs joined, taken apart and turned into paths."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.storage.base import StorageError
from pipeline.storage.uri import (
    absolute_uri,
    aligned_uri,
    base_name,
    canonical_uri,
    file_place,
    file_stem,
    is_local,
    is_within,
    join_uri,
    local_path,
    parent_uri,
    plain_uri,
    relative_uri,
    split_uri,
)

# Names that are easily taken for something else.
NAMES = ["a#b", "a?b=c", "100%", "%41", "a%20b", "a b", "a\\b", "C:", "café", "a\nb", "[x", "~a", "-a", "a:b", "a{b}"]


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
    local = ["a", "/a", "file:///a", "FILE:///a", "C:/a", "a://", "/x/s3://a"]
    assert [is_local(uri) for uri in local] == [True, True, True, True, True, False, True]
    assert not any(is_local(uri) for uri in ("s3://a", "S3://a", "http://a", "s3+x.1-2://a"))
    assert local_path("file:///a%20b/c%23d") == Path("/a b/c#d")
    assert local_path("/a%20b/../c") == Path("/c")
    assert local_path("a/b") == tmp_path / "a" / "b"
    assert local_path("~/a") == tmp_path / "home" / "a"


@pytest.mark.parametrize("name", [*NAMES, "caf\udce9.jpg"])
def test_every_name_comes_back_from_its_file_uri(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    assert local_path(path.as_uri()) == local_path(str(path)) == path
    assert local_path(path.as_uri().replace("file:///", "FILE://localhost/")) == path


@pytest.mark.parametrize("name", NAMES)
def test_a_name_means_that_very_object(name: str, tmp_path: Path) -> None:
    """In a bucket, in a plain path, and in annotations that lie in either."""
    assert split_uri(f"s3://lab/{name}") == ("s3://lab", name)
    assert split_uri(f"{tmp_path}/{name}") == ("/", f"{tmp_path}/{name}"[1:])
    for folder in ("s3://lab/set", "s3://lab/set/", str(tmp_path)):
        assert join_uri(folder, name) == f"{folder.rstrip('/')}/{name}"
        assert aligned_uri("{folder}/{stem}.tif", f"{folder.rstrip('/')}/{name}.png") == (
            f"{folder.rstrip('/')}/{name}.tif"
        )
    assert plain_uri(f"s3://lab/{name}") == f"s3://lab/{name}"


def test_slashes_in_a_key_are_part_of_it() -> None:
    assert split_uri("s3://lab//a//b/") == ("s3://lab", "/a//b/")
    assert absolute_uri("s3://lab//a//b/") == "s3://lab//a//b"
    assert join_uri("s3://lab/a//b", "c//d.png") == "s3://lab/a//b/c//d.png"
    assert join_uri("s3://lab/a", "./../b/.././c.png") == "s3://lab/c.png"
    assert join_uri("s3://lab/a", "../../../c.png") == "s3://lab/c.png"  # not in another bucket
    assert (parent_uri("s3://lab/a//b.png"), base_name("s3://lab/a//b.png")) == ("s3://lab/a/", "b.png")
    assert aligned_uri("{folder}/{stem}.tif", "s3://lab/a//b.png") == "s3://lab/a//b.tif"


def test_no_name_in_annotations_leads_to_a_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (".", "", "sub"):
        assert local_path(join_uri(folder, "~/a.png")) == tmp_path / folder / "~" / "a.png"


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("file://data/x", "names no path of this machine"),
        ("file://data", "names no path of this machine"),
        ("file:///a%00b", "names no path of this machine"),
        ("/a\0b", "NUL"),
        ("s3://lab/a\0b", "NUL"),
        ("s3://", "names no bucket"),
        ("s3:///key", "names no bucket"),
        ("s3://[x/", "names no bucket"),
        ("s3://a b/c", "names no bucket"),
        ("s3://lab?x=1", "names no bucket"),
        ("s3://lab#a/b", "names no bucket"),
        ("s3://lab\\a", "names no bucket"),
        ("s3://key:word@lab/x", "credentials"),
    ],
)
def test_what_names_nothing_is_refused(uri: str, words: str) -> None:
    with pytest.raises(StorageError, match=words) as caught:
        split_uri(uri)
    assert "word@" not in str(caught.value)


def test_two_spellings_of_one_place_are_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    here = ("real", "./real/", "real/.", "x/../real", f"{tmp_path}//real", f"FILE://{tmp_path}/real", "link", "link/")
    assert {canonical_uri(uri) for uri in here} == {str(tmp_path / "real")}
    assert {canonical_uri(uri) for uri in ("s3://lab/a", "S3://lab/a", "s3://lab/a/")} == {"s3://lab/a"}
    assert {file_place(uri) for uri in here} == {str(tmp_path / "real")}
    assert file_place("S3://lab/a//b/./c/") == "s3://lab/a//b/./c/", "the key of an object is its own"
    different = (
        "s3://lab/a",
        "s3://lab/A",
        "s3://Lab/a",
        "s3://lab//a",
        "s3://lab/./a",
        "s3://lab/a//b",
        "s3://lab/a/b",
    )
    assert len({canonical_uri(uri) for uri in different}) == len(different)


def test_what_lies_within_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "link").symlink_to("photos")
    assert is_within("link/run", "photos") and is_within("photos", "link/") and is_within("photos/a", "/")
    assert is_within("S3://lab/photos/run", "s3://lab/photos/") and is_within("s3://lab/x", "s3://lab")
    assert not is_within("photos2", "photos") and not is_within("s3://lab/photos2", "s3://lab/photos")
    assert not is_within("s3://lab2", "s3://lab")


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


@pytest.mark.parametrize(
    ("path", "folder", "expected"),
    [
        ("/data/photos/a.png", "/data/labels", "../photos/a.png"),
        ("/data/a.png", "file:///data", "a.png"),
        ("s3://bucket/a.png", "/data/labels", "s3://bucket/a.png"),
        ("s3://bucket/a.png", "s3://bucket/labels", "s3://bucket/a.png"),
    ],
)
def test_references_are_relative_on_one_disk_and_full_uris_elsewhere(path: str, folder: str, expected: str) -> None:
    assert relative_uri(path, folder) == expected
