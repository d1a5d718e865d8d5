"""Photos that are copied into the folders of an annotation format."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from pipeline.dataset.formats.photo_copy import copy_photo, flat_names, names_below
from pipeline.dataset.shapes import SHAPE_CATEGORIES
from pipeline.dataset.types import AnnotatedImage, AnnotatedSet, AnnotationError
from pipeline.storage.files import Location


def photo(path: str, file_name: str = "a.png") -> AnnotatedImage:
    return AnnotatedImage(1, file_name, Location(path), 5, 6)


def test_folders_become_part_of_the_name() -> None:
    images = (photo("x", "train/a.png"), photo("y", "val/a.png"), photo("z", "b.png"))
    assert flat_names(AnnotatedSet(images, SHAPE_CATEGORIES)) == ["train__a.png", "val__a.png", "b.png"]


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
    assert names_below(AnnotatedSet((photo("x", file_name),), SHAPE_CATEGORIES)) == [expected]


def test_two_photos_that_would_be_copied_to_one_name_are_refused() -> None:
    images = (photo("x", "../a.png"), photo("y", "..__a.png"))
    with pytest.raises(AnnotationError, match=r"'\.\./a\.png' and '\.\.__a\.png' would both"):
        names_below(AnnotatedSet(images, SHAPE_CATEGORIES))


@pytest.mark.parametrize("file_name", ["", "..", "a\0.png", "deep/" * 50 + "a.png", "ü" * 101])
def test_a_name_that_no_file_can_have_is_refused(file_name: str) -> None:
    with pytest.raises(AnnotationError, match="cannot be written; allowed are 1 to 200 bytes"):
        flat_names(AnnotatedSet((photo("x", file_name),), SHAPE_CATEGORIES))


def test_a_copy_that_cannot_be_written_is_an_error_and_no_unreadable_photo(tmp_path: Path) -> None:
    folder = Location(str(tmp_path))
    (folder / "a.png").write_bytes(b"any bytes")
    with pytest.raises(OSError, match=r"a\.png"):
        copy_photo(folder / "a.png", folder / "a.png/b.png", Counter())


def test_a_copy_has_the_same_bytes_and_an_absent_photo_is_counted(tmp_path: Path) -> None:
    folder = Location(str(tmp_path))
    (folder / "a.png").write_bytes(b"any bytes")
    losses: Counter[str] = Counter()
    copy_photo(folder / "a.png", folder / "new/folder/b.png", losses)
    assert (tmp_path / "new/folder/b.png").read_bytes() == b"any bytes" and not losses
    copy_photo(folder / "absent.png", folder / "c.png", losses)
    assert losses == {"photos that cannot be read": 1} and not (tmp_path / "c.png").exists()
