"""Cityscapes folders, as the data set has them, are read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.dataset.formats.cityscapes import load_cityscapes, write_cityscapes
from pipeline.dataset.formats.reading import load_annotations
from pipeline.dataset.shapes import SHAPE_CATEGORIES
from pipeline.dataset.types import AnnotatedImage, AnnotatedSet, AnnotationError, mask_to_instance
from pipeline.storage.files import Location
from tests.pipeline.dataset.formats.junk import replaced


def make_cityscapes(root: Path, extra: int = 7) -> np.ndarray:
    ids = np.full((20, 30), 7)  # road
    ids[2:8, 2:8] = 26000
    ids[2:8, 10:14] = 26001
    ids[12:18, 2:12] = 24  # a group of persons
    ids[12:18, 20:28] = 29000  # a caravan
    ids[0, 0] = extra
    target = root / "gtFine/val/ulm/ulm_000001_000019_gtFine_instanceIds.png"
    target.parent.mkdir(parents=True)
    Image.fromarray(ids.astype(np.uint16)).save(target)
    (target.parent / "ulm_000001_000019_gtFine_labelIds.png").write_bytes(b"")
    photo = root / "leftImg8bit/val/ulm/ulm_000001_000019_leftImg8bit.png"
    photo.parent.mkdir(parents=True)
    Image.new("RGB", (30, 20)).save(photo)
    return ids


@pytest.mark.parametrize("part", ["", "gtFine", "gtFine/val", "gtFine/val/ulm"])
def test_cityscapes_objects_groups_and_ignored_classes_are_read(tmp_path: Path, part: str) -> None:
    ids = make_cityscapes(tmp_path)
    annotated = load_annotations(str(tmp_path / part))
    assert [c.id for c in annotated.categories] == [24, 25, 26, 27, 28, 31, 32, 33]
    (image,) = annotated.images
    assert image.image_id == "ulm_000001_000019" and image.path.is_file()
    by_area = {(i.label, i.iscrowd, i.area): i for i in image.instances}
    assert set(by_area) == {(3, False, 36.0), (3, False, 24.0), (1, True, 60.0), (0, True, 48.0)}
    assert np.array_equal(by_area[3, False, 24.0].mask(20, 30), ids == 26001)
    (note,) = annotated.notes
    assert note.startswith("objects of class 29, which is not declared, are ignore regions (")


def test_cityscapes_without_maps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"no \*_instanceIds\.png below"):
        load_cityscapes(str(tmp_path))


@pytest.mark.parametrize(
    ("value", "label", "iscrowd", "note"),
    [
        (0, None, False, None),
        (23, None, False, None),  # sky: no objects
        (24000, 1, False, None),
        (33, 8, True, None),
        (29, 0, True, 29),
        (34, 0, True, 34),
        (999, 0, True, 999),
        (1000, 0, True, 1),
        (50001, 0, True, 50),
        (65001, 0, True, None),  # an ignore region as it is written here
        (65535, 0, True, None),
    ],
)
def test_what_a_value_is(tmp_path: Path, value: int, label: int | None, iscrowd: bool, note: int | None) -> None:
    make_cityscapes(tmp_path, value)
    annotated = load_cityscapes(str(tmp_path))
    single = [i for i in annotated.images[0].instances if i.area == 1]
    assert [(i.label, i.iscrowd) for i in single] == ([] if label is None else [(label, iscrowd)])
    classes = {name.split(",")[0] for name in annotated.notes}
    assert classes == {"objects of class 29"} | ({f"objects of class {note}"} if note else set())


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("null", "is None; allowed is a list of one or more categories"),
        ("[]", r"is \[\]; allowed is a list of one or more"),
        ('{"a": 1}', r"is \{'a': 1\}; allowed is a list"),
        ('[{"id": 70, "name": "x"}]', "category 0 has id 70; allowed is a whole number up to 64"),
        ('[{"id": 0, "name": "x"}]', "category 0 has id 0; allowed is a whole number from 1"),
        ('[{"id": 24, "name": "x"}, {"id": "25", "name": "y"}]', "category 1 has id '25'; allowed is a whole number"),
        ('[{"id": true, "name": "x"}]', "category 0 has id True"),
        ('[{"id": 24, "name": ""}]', "category 0 has name ''; allowed is a text"),
        ('[{"id": 24}]', "category 0 has no name"),
        ('[{"id": 24, "name": "x"}, {"id": 24, "name": "y"}]', "the class 24 stands there twice"),
        ('[{"id": 24, "name": "x"}, {"id": 25, "name": "x"}]', "the class 'x' stands there twice"),
        ("[", "is not valid JSON: .* line 1 column 2"),
    ],
)
def test_wrong_categories_are_refused(tmp_path: Path, content: str, sentence: str) -> None:
    make_cityscapes(tmp_path)
    (tmp_path / "categories.json").write_text(content)
    with pytest.raises(ValueError, match=rf"categories\.json.* {sentence}"):
        load_cityscapes(str(tmp_path))


@pytest.mark.parametrize("name", ["a_gtCoarse.png", "a_gtFine.png", "a_leftImg8bit.png", "a.b.png", "noext"])
def test_names_that_look_like_cityscapes_own_are_read_back(tmp_path: Path, name: str) -> None:
    Image.new("RGB", (6, 5)).save(tmp_path / "a.png")
    image = AnnotatedImage(1, name, Location(str(tmp_path / "a.png")), 5, 6, (mask_to_instance(1, np.eye(5, 6)),))
    write_cityscapes(AnnotatedSet((image,), SHAPE_CATEGORIES), str(tmp_path / "out"))
    (again,) = load_cityscapes(str(tmp_path / "out")).images
    assert again.path.is_file() and np.array_equal(again.instances[0].mask(5, 6), np.eye(5, 6))


def test_joined_groups_are_counted_and_too_many_objects_refused(tmp_path: Path) -> None:
    masks = np.eye(1001).reshape(1001, 7, 143)
    objects = tuple(mask_to_instance(1, mask) for mask in masks)
    image = AnnotatedImage(1, "a.png", Location("a.png"), 7, 143, tuple(replace(i, iscrowd=True) for i in objects[:3]))
    losses = write_cityscapes(AnnotatedSet((image,), SHAPE_CATEGORIES), str(tmp_path))
    assert losses["crowd regions of one class joined"] == 2
    for instances in (objects, tuple(replace(i, label=0, iscrowd=True) for i in objects[:537])):
        with pytest.raises(AnnotationError, match="too many objects; Cityscapes holds 1000 of a class and 536 ignore"):
            write_cityscapes(AnnotatedSet((replace(image, instances=instances),), SHAPE_CATEGORIES), str(tmp_path))


def test_whatever_a_category_is_replaced_by_is_read_or_refused_by_name(tmp_path: Path) -> None:
    make_cityscapes(tmp_path)
    for content in replaced([{"id": 24, "name": "person"}, {"id": 26, "name": "car"}]):
        (tmp_path / "categories.json").write_text(json.dumps(content))
        try:
            categories = load_cityscapes(str(tmp_path)).categories
        except ValueError as error:
            assert "categories.json" in str(error)
        else:
            assert all(1 <= category.id <= 64 and category.name for category in categories)
