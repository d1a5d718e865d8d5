"""The internal form, the recognition of formats, and class maps brought together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.categories import Category
from pipeline.dataset.class_map import align_categories
from pipeline.dataset.formats.reading import detect_format, load_annotations
from pipeline.dataset.types import (
    AnnotatedImage,
    AnnotatedSet,
    AnnotationError,
    Instance,
    mask_to_box,
    mask_to_instance,
    polygon_area,
    polygons_to_box,
    segmentation_to_mask,
)


def test_polygons_and_both_kinds_of_rle_give_the_same_mask() -> None:
    mask = np.zeros((7, 9), dtype=np.uint8)
    mask[2:5, 3:8] = 1
    polygons = [[3, 2, 8, 2, 8, 5, 3, 5]]
    instance = mask_to_instance(1, mask)
    flat = mask.T.ravel()
    edges = np.concatenate(([0], np.flatnonzero(np.diff(flat)) + 1, [len(flat)]))
    runs = {"size": [7, 9], "counts": np.diff(edges).tolist()}
    for segmentation in (polygons, [*polygons, [1, 1, 2, 2]], instance.segmentation, runs):
        decoded = segmentation_to_mask(segmentation, 7, 9)
        assert np.array_equal(decoded, mask) and decoded.dtype == np.uint8
    assert instance.box == (3, 2, 8, 5) and instance.bbox == (3, 2, 5, 3) and instance.area == 15
    assert polygon_area(polygons) == 15


def test_nothing_is_an_empty_mask() -> None:
    assert segmentation_to_mask([], 4, 5).shape == (4, 5) and not segmentation_to_mask([], 4, 5).any()
    assert mask_to_box(np.zeros((4, 5))) == polygons_to_box([], 4, 5) == (0, 0, 0, 0)
    assert mask_to_instance(1, np.zeros((4, 5), dtype=np.uint8)).mask(4, 5).sum() == 0


def test_wrong_masks_are_refused() -> None:
    rle = mask_to_instance(1, np.ones((4, 5), dtype=np.uint8)).segmentation
    with pytest.raises(AnnotationError, match=r"RLE of size \[4, 5\] on an image of \[5, 4\]"):
        segmentation_to_mask(rle, 5, 4)
    with pytest.raises(ValueError, match="sum to"):
        segmentation_to_mask({"size": [4, 5], "counts": [3, 4]}, 4, 5)


def test_polygon_boxes_are_cut_at_the_image() -> None:
    assert polygons_to_box([[-3.0, 2.0, 12.0, 2.0, 5.0, 30.5]], 20, 10) == (0.0, 2.0, 10.0, 20.0)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"images": [], "annotations": []}', "coco"),
        ('{"version": "5", "shapes": [], "imagePath": "x"}', "labelme"),
        ('{"a": {"filename": "a", "regions": {}}}', "via"),
        ('{"_via_img_metadata": {}}', "via"),
    ],
)
def test_the_format_of_a_file_is_told_from_its_content(tmp_path: Path, content: str, expected: str) -> None:
    (tmp_path / "x.json").write_text(content)
    assert detect_format(str(tmp_path / "x.json")) == expected


def test_what_is_not_understood_is_said(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"hello": 1}')
    with pytest.raises(AnnotationError, match="no annotation file that is understood"):
        load_annotations(str(tmp_path / "x.json"))
    with pytest.raises(AnnotationError, match=r"there is no annotation file or folder .*/gone"):
        load_annotations(str(tmp_path / "gone"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(AnnotationError, match=r"looked for via_region_data\.json"):
        load_annotations(str(tmp_path / "empty"))
    with pytest.raises(AnnotationError, match="no annotation format 'yolo'; allowed are auto, coco"):
        load_annotations(str(tmp_path), format="yolo")


def animals() -> AnnotatedSet:
    def image(*labels: int, labelled: tuple[int, ...] | None = None) -> AnnotatedImage:
        instances = tuple(Instance(label, (0, 0, 2, 2), [], iscrowd=label == 0) for label in labels)
        return AnnotatedImage(1, "a", "a", 5, 5, instances, labelled)

    names = (Category(5, "cat"), Category(7, "dog"), Category(9, "emu"))
    return AnnotatedSet((image(1, 2, 0), image(labelled=(1, 3))), names)


def labels_of(annotated: AnnotatedSet) -> list[tuple[int, bool]]:
    return [(i.label, i.iscrowd) for i in annotated.images[0].instances]


def test_a_set_is_brought_under_another_class_map_by_name() -> None:
    wanted = (Category(1, "dog"), Category(2, "emu"), Category(3, "cat"))
    aligned = align_categories(animals(), wanted)
    assert aligned.categories == wanted
    assert labels_of(aligned) == [(3, False), (1, False), (0, True)]
    assert aligned.images[0].labelled_classes is None
    assert aligned.images[1].labelled_classes == (2, 3)


def test_unknown_classes_are_refused_renamed_ignored_or_dropped() -> None:
    wanted = (Category(1, "cat"), Category(2, "fox"))
    with pytest.raises(AnnotationError, match="lacks: dog; the map has cat, fox"):
        align_categories(animals(), wanted)  # emu is not in use
    assert labels_of(align_categories(animals(), wanted, rename={"dog": "fox"})) == [(1, False), (2, False), (0, True)]
    ignored = align_categories(animals(), wanted, unknown="ignore")
    assert labels_of(ignored) == [(1, False), (0, True), (0, True)]
    assert labels_of(align_categories(animals(), wanted, unknown="drop")) == [(1, False), (0, True)]
    # Nobody looked for foxes here.
    assert ignored.images[0].labelled_classes == (1,)
    with pytest.raises(AnnotationError, match=r"renamed to \['wolf'\]"):
        align_categories(animals(), wanted, rename={"dog": "wolf"})
    with pytest.raises(AnnotationError, match="'keep' is no choice"):
        align_categories(animals(), wanted, unknown="keep")


def test_two_classes_may_become_one() -> None:
    merged = align_categories(
        animals(), (Category(1, "animal"),), rename=dict.fromkeys(("cat", "dog", "emu"), "animal")
    )
    assert labels_of(merged) == [(1, False), (1, False), (0, True)]
    assert replace(merged.images[1]).labelled_classes == (1,)
