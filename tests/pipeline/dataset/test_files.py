"""Data sets are read and written by URI: a disk, file://, a bucket."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.dataset.channels import with_extra_channels
from pipeline.dataset.convert import convert_annotations
from pipeline.dataset.formats.coco import write_coco
from pipeline.dataset.formats.reading import load_annotations
from pipeline.dataset.loader import SampleSet
from pipeline.dataset.types import AnnotatedSet
from pipeline.storage import files
from pipeline.storage.local import LocalStorage
from pipeline.storage.uri import base_name, file_stem, join_uri, parent_uri


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


def test_file_uris_with_blanks(awkward_set: AnnotatedSet, tmp_path: Path) -> None:
    folder = tmp_path / "two words"
    write_coco(awkward_set, str(folder / "a b.json"))
    annotated = load_annotations("file://" + str(folder / "a b.json").replace(" ", "%20"))
    assert len(annotated) == 5 and SampleSet(annotated).load_sample(0, 0).skipped == {}


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


def test_a_bucket_serves_as_a_disk_does(awkward_set: AnnotatedSet, bucket: str, tmp_path: Path) -> None:
    write_coco(awkward_set, f"{bucket}/data/val.json")
    annotated = load_annotations(f"{bucket}/data/val.json")
    assert annotated.images[0].path == f"{bucket}/data/val/photo_0.png"
    mine, theirs = SampleSet(awkward_set)[0], SampleSet(annotated)[0]
    assert mine[0].equal(theirs[0]) and mine[1]["masks"].equal(theirs[1]["masks"])
    deep = with_extra_channels(annotated, "{folder}/../val/{stem}.png")
    assert SampleSet(deep, in_channels=6)[0][0].shape[0] == 6
    for target_format in ("via", "voc", "cityscapes", "labelme"):
        convert_annotations(f"{bucket}/data/val.json", f"{bucket}/{target_format}", target_format=target_format)
        again = load_annotations(f"{bucket}/{target_format}")
        assert again.num_instances == awkward_set.num_instances
        assert SampleSet(again).load_sample(0, 0).skipped == {}
