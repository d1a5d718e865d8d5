"""VOC, Cityscapes and LabelMe as other programs write them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.dataset.formats.cityscapes import load_cityscapes
from pipeline.dataset.formats.id_masks import id_map_to_instances, voc_palette
from pipeline.dataset.formats.labelme import load_labelme
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
    """Two objects with a seam of void around the first; the second is difficult."""
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


def test_voc_lists_choose_images_and_own_names_work(tmp_path: Path) -> None:
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


def test_voc_palette_is_the_known_one() -> None:
    colours = np.frombuffer(voc_palette(), dtype=np.uint8).reshape(256, 3)
    assert colours[[0, 1, 2, 3, 15, 255]].tolist() == [
        [0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [192, 128, 128], [224, 224, 192],
    ]  # fmt: skip


def make_cityscapes(root: Path) -> np.ndarray:
    ids = np.full((20, 30), 7)  # road
    ids[2:8, 2:8] = 26000
    ids[2:8, 10:14] = 26001
    ids[12:18, 2:12] = 24  # a group of persons
    ids[12:18, 20:28] = 29000  # a caravan
    target = root / "gtFine/val/ulm/ulm_000001_000019_gtFine_instanceIds.png"
    target.parent.mkdir(parents=True)
    Image.fromarray(ids.astype(np.uint16)).save(target)
    (target.parent / "ulm_000001_000019_gtFine_labelIds.png").write_bytes(b"")
    photo = root / "leftImg8bit/val/ulm/ulm_000001_000019_leftImg8bit.png"
    photo.parent.mkdir(parents=True)
    Image.new("RGB", (30, 20)).save(photo)
    return ids


@pytest.mark.parametrize("part", ["", "gtFine", "gtFine/val", "gtFine/val/ulm"])
def test_cityscapes_objects_groups_and_what_is_not_evaluated(tmp_path: Path, part: str) -> None:
    ids = make_cityscapes(tmp_path)
    annotated = load_annotations(str(tmp_path / part), format="auto")
    assert [c.id for c in annotated.categories] == [24, 25, 26, 27, 28, 31, 32, 33]
    (image,) = annotated.images
    assert image.image_id == "ulm_000001_000019" and Path(image.path).is_file()
    found = {(i.label, i.iscrowd, i.area): i for i in image.instances}
    assert set(found) == {(3, False, 36.0), (3, False, 24.0), (1, True, 60.0), (0, True, 48.0)}
    assert np.array_equal(found[3, False, 24.0].mask(20, 30), ids == 26001)


def test_cityscapes_without_maps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"no \*_instanceIds\.png below"):
        load_cityscapes(str(tmp_path))


def test_an_id_map_gives_exact_masks_in_one_pass() -> None:
    rng = np.random.default_rng(0)
    ids = np.kron(rng.integers(0, 9, (6, 7)), np.ones((3, 4), dtype=int))
    instances = id_map_to_instances(ids, {1: 1, 2: 1, 3: 2, 77: 5})
    assert set(instances) == {1, 2, 3}
    for value, instance in instances.items():
        assert np.array_equal(instance.mask(*ids.shape), ids == value)
        rows, columns = np.nonzero(ids == value)
        assert instance.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert instance.area == len(rows)
    assert id_map_to_instances(ids, {}) == {}


def labelme_file(folder: Path, shapes: list[dict], name: str = "a") -> None:
    Image.new("RGB", (30, 20)).save(folder / f"{name}.jpg")
    content = {"version": "5.0", "shapes": shapes, "imagePath": f"{name}.jpg", "imageHeight": 20, "imageWidth": 30}
    (folder / f"{name}.json").write_text(json.dumps(content))


def shape(label: str, points: list, kind: str = "polygon", group: int | None = None, **flags: bool) -> dict:
    return {"label": label, "points": points, "shape_type": kind, "group_id": group, "flags": flags}


def test_labelme_shapes_groups_and_flags(tmp_path: Path) -> None:
    labelme_file(
        tmp_path,
        [
            shape("dog", [[1, 1], [9, 1], [9, 5], [1, 5], [1, 1]], group=1),
            shape("dog", [[1, 10], [9, 10], [9, 12], [1, 12]], group=1),
            shape("cat", [[20, 3], [28, 9]], "rectangle", group=1),
            shape("dog", [[15, 15], [15, 18]], "circle"),
            shape("cat", [[3, 3]], "point"),
            shape("__ignore__", [[20, 15], [28, 19]], "rectangle"),
            shape("cat", [[10, 1], [14, 9]], "rectangle", iscrowd=True),
        ],
    )
    labelme_file(tmp_path, [], "b")
    annotated = load_annotations(str(tmp_path))
    assert [c.name for c in annotated.categories] == ["cat", "dog"]
    dog, cat, ball, ignored, crowd = annotated.images[0].instances
    assert dog.label == 2 and dog.mask(20, 30).sum() == 8 * 4 + 8 * 2 and dog.box == (1, 1, 9, 12)
    assert cat.box == (20, 3, 28, 9) and cat.mask(20, 30).sum() == 48
    assert abs(ball.mask(20, 30).sum() - np.pi * 9) < 4
    assert (ignored.label, ignored.iscrowd) == (0, True) and (crowd.label, crowd.iscrowd) == (1, True)
    assert annotated.images[1].instances == () and annotated.notes == {"points and lines left out": 1}


def test_labelme_labels_file_gives_the_order(tmp_path: Path) -> None:
    labelme_file(tmp_path, [shape("dog", [[1, 1], [9, 1], [9, 5]])])
    (tmp_path / "labels.txt").write_text("__ignore__\n_background_\nzebra\ndog\n")
    assert [c.name for c in load_labelme(str(tmp_path)).categories] == ["zebra", "dog"]
    (tmp_path / "labels.txt").write_text("zebra\n")
    with pytest.raises(AnnotationError, match=r"label 'dog' is not in labels\.txt: zebra"):
        load_labelme(str(tmp_path))


def test_labelme_faults_are_named(tmp_path: Path) -> None:
    labelme_file(tmp_path, [shape("dog", [[1, 1], [2, 2]], "spiral")])
    with pytest.raises(AnnotationError, match="type 'spiral'"):
        load_labelme(str(tmp_path))
    with pytest.raises(AnnotationError, match="holds no LabelMe annotations"):
        load_labelme(str(tmp_path / "nowhere"))
