"""PASCAL VOC folders, as other programs write them, are read; what VOC cannot hold is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.dataset.formats.id_masks import voc_palette
from pipeline.dataset.formats.reading import load_annotations
from pipeline.dataset.formats.voc import load_voc, write_voc
from pipeline.dataset.shapes import SHAPE_CATEGORIES
from pipeline.dataset.types import AnnotatedImage, AnnotatedSet, AnnotationError, mask_to_instance

XML = "<annotation><filename>p.jpg</filename>{}</annotation>"


OBJECT = "<object><name>{}</name><difficult>{}</difficult><bndbox></bndbox></object>"


def save_palette(path: Path, ids: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(ids.astype(np.uint8))
    image.putpalette(voc_palette())
    image.save(path)


def make_voc(folder: Path, *, class_map: bool, names: tuple[str, str] = ("dog", "person")) -> np.ndarray:
    """Writes a VOC folder of one photo with two objects, void around the first one, and gives its object numbers."""
    ids = np.zeros((20, 30))
    ids[4:12, 4:12] = 255
    ids[5:11, 5:11] = 1
    ids[10:18, 20:28] = 2
    save_palette(folder / "SegmentationObject/p.png", ids)
    if class_map:
        classes = np.choose(np.where(ids == 255, 3, ids).astype(int), [0, 12, 15, 255])
        save_palette(folder / "SegmentationClass/p.png", classes)
    (folder / "Annotations").mkdir()
    objects = OBJECT.format(names[0], 0) + OBJECT.format(names[1], 1)
    (folder / "Annotations/p.xml").write_text(XML.format(objects))
    (folder / "JPEGImages").mkdir()
    Image.new("RGB", (30, 20)).save(folder / "JPEGImages/p.jpg")
    return ids


@pytest.mark.parametrize("class_map", [False, True])
def test_voc_classes_come_from_the_class_map_or_the_xml(tmp_path: Path, class_map: bool) -> None:
    ids = make_voc(tmp_path, class_map=class_map)
    annotated = load_annotations(str(tmp_path))
    assert len(annotated.categories) == 20
    dog, person = annotated.images[0].instances
    assert [annotated.categories[i.label - 1].name for i in (dog, person)] == ["dog", "person"]
    assert (dog.iscrowd, person.iscrowd) == (False, True)
    assert np.array_equal(dog.mask(20, 30), ids == 1) and np.array_equal(person.mask(20, 30), ids == 2)
    assert annotated.images[0].path.endswith("JPEGImages/p.jpg")


def test_voc_lists_choose_images_and_other_class_names_are_taken_from_the_xml(tmp_path: Path) -> None:
    make_voc(tmp_path, class_map=False, names=("zebra", "ant"))
    (tmp_path / "ImageSets/Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("p\nabsent\n")
    annotated = load_annotations(str(tmp_path / "ImageSets/Segmentation/val.txt"))
    assert [c.name for c in annotated.categories] == ["ant", "zebra"]
    assert annotated.notes == {"images without an instance mask left out": 1}


def test_voc_faults_are_named(tmp_path: Path) -> None:
    make_voc(tmp_path, class_map=False)
    (tmp_path / "Annotations/p.xml").write_text(XML.format(OBJECT.format("dog", 0)))
    with pytest.raises(AnnotationError, match=r"object 2 has no class.*lists 1 objects"):
        load_voc(str(tmp_path))
    (tmp_path / "Annotations/p.xml").write_text("<annotation>")
    with pytest.raises(AnnotationError, match="not valid XML"):
        load_voc(str(tmp_path))
    Image.new("RGB", (30, 20)).save(tmp_path / "SegmentationObject/p.png")
    (tmp_path / "Annotations/p.xml").unlink()
    with pytest.raises(AnnotationError, match="palette, grey or 16-bit image, not of mode RGB"):
        load_voc(str(tmp_path))
    with pytest.raises(AnnotationError, match="no VOC folder with instance masks"):
        load_voc(str(tmp_path / "nowhere"))


def test_voc_holds_254_objects(tmp_path: Path) -> None:
    mask = np.zeros((20, 30), dtype=bool)
    mask[3, 3] = True
    image = AnnotatedImage(1, "a.png", "a.png", 20, 30, (mask_to_instance(1, mask),) * 255)
    with pytest.raises(AnnotationError, match="has 255 objects; VOC holds at most 254"):
        write_voc(AnnotatedSet((image,), SHAPE_CATEGORIES), str(tmp_path))
