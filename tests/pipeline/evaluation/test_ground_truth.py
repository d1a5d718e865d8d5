"""Ground truth from COCO JSON: columns, masks, the classes looked for, parts of it; and what of it cannot be used."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from pipeline.dataset.types import AnnotationError
from pipeline.evaluation.ground_truth import EvaluationError, Truth
from tests.pipeline.evaluation.random_cases import SIZE, polygon_of, random_case


def content_of(*annotations: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """One image of 40 x 50 and one class; annotations without a box have one, and a square."""
    square = {"bbox": [5, 5, 10, 10], "segmentation": [polygon_of(np.array([5, 5, 10, 10]))]}
    common = {"image_id": 1, "category_id": 1, **square}
    return {
        "images": [{"id": 1, "file_name": "a.png", "height": 40, "width": 50}],
        "annotations": [{"id": n + 1, **common, **entry} for n, entry in enumerate(annotations)],
        "categories": [{"id": 1, "name": "x"}],
        **changes,
    }


def test_polygons_are_filled_as_pycocotools_fills_them():
    from pycocotools import mask as coco_mask

    shapes: list[Any] = [
        [[3, 3, 30.5, 4, 12, 31]],
        [[3, 3, 30.5, 4, 12, 31], [20, 20, 40, 22, 41, 39]],  # parts that overlap
        [[-8, -3, 60, 4, 12, 70]],  # over the border
        {"size": list(SIZE), "counts": [7, 40 * 49, 40 - 7]},
    ]
    truth = Truth.from_coco(content_of(*({"segmentation": shape} for shape in shapes)))
    for shape, counts in zip(shapes, truth.rles, strict=True):
        want = coco_mask.frPyObjects(shape, *SIZE)
        assert counts == (coco_mask.merge(want) if isinstance(want, list) else want)["counts"]


def test_masks_in_one_piece_are_those_of_the_list():
    truth = random_case(3)[0]
    text, offsets, heights, widths = truth.masks
    for index, counts in enumerate(truth.rles):
        assert text[offsets[index] : offsets[index + 1]].tobytes() == counts
    assert len(offsets) == len(truth.annotations) + 1 and offsets[-1] == len(text)
    assert set(heights.tolist()) == {SIZE[0]} and set(widths.tolist()) == {SIZE[1]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": None}, "val.json has no list 'images', so it is no COCO annotation file"),
        (
            {"images": [{"id": i, "file_name": f"{n}", "height": 9, "width": 9} for n, i in enumerate([1, 2, 1])]},
            "id 1",
        ),
        ({"categories": [{"id": 7, "name": "a"}, {"id": 7, "name": "b"}]}, "category id 7"),
        ({"images": [{"id": i, "file_name": "a.png", "height": 9, "width": 9} for i in (4, 9)]}, "images 4 and 9"),
    ],
)
def test_what_breaks_the_schema_is_refused_by_name(change, message):
    with pytest.raises(AnnotationError, match=message):
        Truth.from_coco({**content_of(), **change}, "val.json")


@pytest.mark.parametrize(
    "segmentation",
    [
        None,
        [],
        [[]],
        [[5, 5]],
        [[5, 5, 15, 15]],
        [[5, 5, 15, 15, 3]],
        {"size": [40, 50], "counts": [7, 3]},
        {"size": [50, 40], "counts": [0, 2000]},
        {"size": [40, 50], "counts": "~~"},
        {"size": [40, 50], "counts": ""},
    ],
    ids=["null", "empty", "no point", "one", "two", "half", "short runs", "turned", "garbage", "no runs"],
)
def test_an_object_without_a_mask_is_a_region_of_masks_and_an_object_of_boxes(segmentation):
    truth = Truth.from_coco(content_of({}, {"segmentation": segmentation}))
    assert truth.annotations.has_mask.tolist() == [True, False] and truth.annotations.mask_faults[1]
    assert truth.is_region("segm").tolist() == truth.is_ignored("segm").tolist() == [False, True]
    assert truth.is_region("bbox").tolist() == [False, False]
    assert truth.rles[1] == truth.rles[0]  # the region is its box
    assert not truth.notes, "it is said once, by kind of IoU"


def test_an_area_that_is_not_stated_is_that_of_the_mask():
    truth = Truth.from_coco(content_of({"area": 12.5}, {}, {"area": None}))
    assert truth.areas.tolist() == [12.5, 100, 100]


def test_image_ids_that_are_no_numbers_are_counted():
    content = content_of({"image_id": "b"}, {"image_id": "a_1"})
    content["images"] = [{"id": i, "file_name": f"{i}.png", "height": 40, "width": 50} for i in ("a_1", "b")]
    truth = Truth.from_coco(content)
    assert truth.image_ids.tolist() == [1, 2] and truth.annotations.image_ids.tolist() == [2, 1]
    assert truth.file_names == ("a_1.png", "b.png")


def test_annotations_of_unlisted_images_and_undeclared_classes_are_noted():
    truth = Truth.from_coco(content_of({}, {"image_id": 7}, {"category_id": 9}))
    assert len(truth.annotations) == 1
    assert any(note.startswith("1 annotations of images that are not listed (annotation 2") for note in truth.notes)
    assert any(note.startswith("1 annotations of unknown categories dropped (annotation 3") for note in truth.notes)
    with pytest.raises(AnnotationError, match=r"no annotation is of an image that is listed.*image_id 7"):
        Truth.from_coco(content_of({"image_id": 7}))


def test_the_labelled_classes_of_lvis():
    content = content_of(*({"category_id": i} for i in (1, 2)))
    content["images"][0] |= {"neg_category_ids": [3], "not_exhaustive_category_ids": [2]}
    content["images"].append({"id": 2, "file_name": "b.png", "height": 9, "width": 9})
    content["categories"] = [{"id": i, "name": str(i)} for i in (1, 2, 3, 4)]
    truth = Truth.from_coco(content)
    assert truth.labelled == {1: {1, 3}}
    assert truth.annotations.category_ids.tolist() == [1] and truth.num_not_labelled == 1


def test_classes_take_the_ids_that_a_run_gives_their_names():
    content = content_of({"category_id": 2}, {"category_id": 1, "image_id": 2})
    content["images"][0]["labelled_category_ids"] = [2, 3]
    content["images"].append({"id": 2, "file_name": "b.png", "height": 40, "width": 50})
    content["categories"] = [{"id": i, "name": name} for i, name in ((1, "cat"), (2, "dog"), (3, "cow"))]
    truth = Truth.from_coco(content)
    got = truth.with_ids_of({2: "cat", 40: "dog", 41: "horse"})
    assert got.names == {2: "cat", 40: "dog", 42: "cow"}  # an id that neither side uses
    assert got.annotations.category_ids.tolist() == [40, 2]
    assert got.labelled == {1: {40, 42}}
    assert truth.names == {1: "cat", 2: "dog", 3: "cow"}


def test_parts_keep_what_is_theirs():
    truth = random_case(0)[0]
    part = truth.only(np.array([2, 9]))
    assert part.image_ids.tolist() == [9, 2] and part.file_names == ("9.png", "2.png")
    assert [part.annotations.labels[n] for n in range(3)] == [
        truth.annotations.labels[n] for n in part.annotations.positions[:3]
    ]
    assert part.rles == [truth.rles[n] for n in part.annotations.positions]
    one = truth.of_classes(["class 2"])
    assert one.names == {2: "class 2"} and set(one.annotations.category_ids.tolist()) == {2}
    assert truth.of_classes(None) is truth
    with pytest.raises(EvaluationError, match="classes has 'car'; the ground truth has class 3, class 1, class 2"):
        truth.of_classes(["class 1", "car"])


def test_reading_changes_no_content():
    content = content_of({}, {"segmentation": [[1, 1]]})
    before = copy.deepcopy(content)
    Truth.from_coco(content)
    assert content == before
