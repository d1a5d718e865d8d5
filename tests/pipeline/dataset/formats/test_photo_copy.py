"""Photos that are copied into, or referred to from, the folders of an annotation format."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from pipeline.dataset.formats.photo_copy import copy_photo, flat_names, name_below, reference_to
from pipeline.dataset.shapes import SHAPE_CATEGORIES
from pipeline.dataset.types import AnnotatedImage, AnnotatedSet, AnnotationError


def photo(path: str, file_name: str = "a.png") -> AnnotatedImage:
    return AnnotatedImage(1, file_name, path, 5, 6)


def test_folders_become_part_of_the_name() -> None:
    images = (photo("x", "train/a.png"), photo("y", "val/a.png"), photo("z", "b.png"))
    assert flat_names(AnnotatedSet(images, SHAPE_CATEGORIES)) == {0: "train__a.png", 1: "val__a.png", 2: "b.png"}


def test_photos_that_would_differ_in_their_extension_only_are_refused() -> None:
    images = (photo("x", "a.png"), photo("y", "a.jpg"))
    with pytest.raises(AnnotationError, match="two photos are named a"):
        flat_names(AnnotatedSet(images, SHAPE_CATEGORIES))


@pytest.mark.parametrize(
    ("file_name", "expected"),
    [
        ("a.png", "a.png"),
        ("val/a.png", "val/a.png"),
        ("val/../a.png", "a.png"),
        ("../rgb/a.png", "..__rgb__a.png"),
        ("val/../../a.png", "val__..__..__a.png"),
        ("/data/a.png", "__data__a.png"),
        ("s3://bucket/a.png", "s3:____bucket__a.png"),
    ],
)
def test_names_of_copies_stay_below_their_folder(file_name: str, expected: str) -> None:
    assert name_below(photo("x", file_name)) == expected


def test_a_copy_has_the_same_bytes_and_an_absent_photo_is_counted(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"any bytes")
    losses: Counter[str] = Counter()
    copy_photo(photo(str(tmp_path / "a.png")), str(tmp_path / "new/folder/b.png"), losses)
    assert (tmp_path / "new/folder/b.png").read_bytes() == b"any bytes" and not losses
    copy_photo(photo(str(tmp_path / "absent.png")), str(tmp_path / "c.png"), losses)
    assert losses == {"photos that cannot be read": 1} and not (tmp_path / "c.png").exists()


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
    assert reference_to(photo(path), folder) == expected
