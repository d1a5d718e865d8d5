"""Folders of instance masks, as PennFudan has them, with a folder for each class, and as exports have them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.categories import Category
from pipeline.dataset.formats.instance_png import load_png, write_png
from pipeline.dataset.formats.reading import detect_format, load_annotations
from pipeline.dataset.types import AnnotatedImage, AnnotatedSet, AnnotationError, mask_to_instance
from pipeline.storage.files import Location

IDS = np.zeros((20, 30), dtype=np.uint8)
IDS[2:6, 3:9] = 1
IDS[10:15, 20:25] = 2


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def photo(path: Path, size: tuple[int, int] = (20, 30)) -> None:
    save(path, np.zeros((*size, 3), np.uint8))


def write_pennfudan(folder: Path, num_photos: int = 2) -> None:
    for number in range(1, num_photos + 1):
        photo(folder / f"PNGImages/FudanPed{number:05}.png")
        save(folder / f"PedMasks/FudanPed{number:05}_mask.png", IDS if number % 2 else IDS * 0)


def test_pennfudans_layout_is_one_class_and_numbered_people(tmp_path: Path) -> None:
    write_pennfudan(tmp_path)
    for place in (tmp_path, tmp_path / "PedMasks"):
        assert detect_format(str(place)) == "png"
        annotated = load_annotations(str(place), default_category="person")
        assert [(c.id, c.name) for c in annotated.categories] == [(1, "person")] and not annotated.notes
        first, second = annotated.images
        assert (
            first.file_name == "FudanPed00001.png" and first.path.is_file() and (first.height, first.width) == (20, 30)
        )
        assert [instance.box for instance in first.instances] == [(3, 2, 9, 6), (20, 10, 25, 15)]
        assert np.array_equal(first.instances[1].mask(20, 30), IDS == 2) and second.instances == ()


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    photo(tmp_path / "images/a.jpg")
    photo(tmp_path / "images/deep/b.png")
    save(tmp_path / "masks/dog/a.png", IDS)
    save(tmp_path / "masks/cat/a.png", (IDS == 0).astype(np.uint8))
    save(tmp_path / "masks/cat/deep/b_mask.png", IDS)
    save(tmp_path / "masks/__ignore__/deep/b.png", IDS)
    annotated = load_annotations(str(tmp_path))
    assert [c.name for c in annotated.categories] == ["cat", "dog"]
    assert [[(i.label, i.iscrowd) for i in image.instances] for image in annotated.images] == [
        [(1, False), (2, False), (2, False)],
        [(0, True), (0, True), (1, False), (1, False)],
    ]
    (tmp_path / "masks/classes.txt").write_text("dog\nzebra\ncat\n")
    assert [c.name for c in load_annotations(str(tmp_path)).categories] == ["dog", "zebra", "cat"]
    (tmp_path / "masks/classes.txt").write_text("dog\n")
    with pytest.raises(AnnotationError, match=r"masks/cat/a\.png is of class 'cat'; allowed are those of classes\.txt"):
        load_annotations(str(tmp_path))


def test_nested_masks_of_an_older_export_are_read_with_the_photos_folder(tmp_path: Path) -> None:
    photo(tmp_path / "photos/sub/a.jpg")
    save(tmp_path / "run.png/png/sub/a.png", (IDS.astype(np.uint16)) * 300)
    annotated = load_png(str(tmp_path / "run.png"), str(tmp_path / "photos"), default_category="cell")
    assert [c.name for c in annotated.categories] == ["cell"] and annotated.num_instances == 2
    assert annotated.images[0].file_name == "sub/a.jpg"


def test_what_is_left_out_or_decided_is_counted(tmp_path: Path) -> None:
    write_pennfudan(tmp_path)
    photo(tmp_path / "PNGImages/c.png")
    save(tmp_path / "PedMasks/d_mask.png", IDS)
    save(tmp_path / "PedMasks/FudanPed00002_mask.png", (IDS > 0).astype(np.uint8) * 255)
    notes = load_annotations(str(tmp_path)).notes
    assert notes == {
        "masks without a photo left out (d_mask.png)": 1,
        "photos without a mask left out (c.png)": 1,
        "masks of the only value 255, which are one object each (FudanPed00002_mask.png)": 1,
    }


def test_folders_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    write_pennfudan(tmp_path / "a", 1)
    save(tmp_path / "a/PedMasks/FudanPed00001_mask.png", np.zeros((20, 30, 3), np.uint8))
    with pytest.raises(AnnotationError, match=r"00001_mask\.png must be a palette, grey or 16-bit image, not .* RGB"):
        load_annotations(str(tmp_path / "a"))
    (tmp_path / "a/PedMasks/FudanPed00001_mask.png").write_text("no image")
    with pytest.raises(AnnotationError, match=r"00001_mask\.png cannot be read: it is no image"):
        load_annotations(str(tmp_path / "a"))
    save(tmp_path / "b/masks/a.png", IDS)
    with pytest.raises(AnnotationError, match=r"photos of the masks .* were not found: looked for .*PNGImages"):
        load_annotations(str(tmp_path / "b"))
    photo(tmp_path / "b/images/x.png")
    with pytest.raises(AnnotationError, match=r"none of the masks in .* is named like a photo in"):
        load_annotations(str(tmp_path / "b"))
    photo(tmp_path / "b/images/x.jpg")
    with pytest.raises(AnnotationError, match=r"has x\.jpg and x\.png; allowed is one photo of a name"):
        load_annotations(str(tmp_path / "b"))
    photo(tmp_path / "c/images/a.png")
    save(tmp_path / "c/masks/cat/a.png", IDS)
    save(tmp_path / "c/masks/dog/a.png", IDS[:10])
    with pytest.raises(AnnotationError, match=r"masks of a\.png are of the sizes \(20, 30\), \(10, 30\) \(H, W\)"):
        load_annotations(str(tmp_path / "c"))
    with pytest.raises(AnnotationError, match="holds no instance masks: looked for PedMasks, masks, png"):
        load_png(str(tmp_path / "c/images"))


@pytest.mark.parametrize("name", ["a/b", "a\\b", "..", ".hidden", "x" * 201, "two\nlines"])
def test_a_class_that_cannot_be_a_folder_is_refused(tmp_path: Path, name: str) -> None:
    mask = np.ones((5, 6), bool)
    image = AnnotatedImage(1, "a.png", Location(str(tmp_path / "a.png")), 5, 6, (mask_to_instance(1, mask),))
    with pytest.raises(AnnotationError, match="category 1 is named"):
        write_png(AnnotatedSet((image,), (Category(1, name),)), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
