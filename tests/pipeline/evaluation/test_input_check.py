"""Which COCO input the compiled evaluator may take: plain input, and nothing that is odd in any one way."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.evaluation.input_check import are_plain_results, is_plain_truth

FIELDS: dict[str, Any] = {
    "bbox": [1.0, 2, 3, 4],
    "segmentation": [[0.0, 0, 5, 0, 5, 5]],
    "keypoints": [1.0, 2.0, 2] * 17,
}
IOU_TYPES = ("bbox", "segm", "keypoints")


def truth() -> dict[str, Any]:
    entry = {"id": 1, "image_id": 4, "category_id": 9, "area": 12, "iscrowd": 0, "num_keypoints": 17, **FIELDS}
    return {
        "images": [{"id": 4, "height": 6, "width": 7}, {"id": 5, "height": 6, "width": 7}],
        "categories": [{"id": 9, "name": "x"}],
        "annotations": [entry, {**entry, "id": 2, "segmentation": {"size": [6, 7], "counts": "Z1"}}],
    }


def results(iou_type: str) -> list[dict[str, Any]]:
    name = {"segm": "segmentation"}.get(iou_type, iou_type)
    value = {"size": [6, 7], "counts": "Z1"} if iou_type == "segm" else FIELDS[name]
    return [{"image_id": image_id, "category_id": 9, "score": 0.5, name: value} for image_id in (4, 5)]


@pytest.mark.parametrize("iou_type", IOU_TYPES)
def test_plain_input_is_plain(iou_type):
    assert is_plain_truth(truth(), iou_type)
    assert are_plain_results(truth(), results(iou_type), iou_type)
    assert are_plain_results(truth(), [], iou_type)
    assert is_plain_truth({**truth(), "annotations": []}, iou_type)


def put(field: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda entry: entry.update({field: value})


def drop(field: str) -> Callable[[dict[str, Any]], None]:
    return lambda entry: entry.pop(field)


@pytest.mark.parametrize(
    ("iou_type", "change"),
    [
        *((kind, drop(name)) for kind in IOU_TYPES for name in ("id", "area", "iscrowd", "image_id", "category_id")),
        *((kind, put("ignore", 1)) for kind in IOU_TYPES),
        *(("bbox", put("id", value)) for value in (0, 1, -3, "2", [2], True, None)),
        *(("bbox", put(name, 77)) for name in ("image_id", "category_id")),
        ("bbox", put("iscrowd", 2)),
        ("bbox", put("area", "12")),
        *(("bbox", put("bbox", value)) for value in (None, [1, 2, 3], [1, 2, 3, "4"], (1, 2, 3, 4))),
        ("segm", drop("segmentation")),
        *(("segm", put("segmentation", value)) for value in (None, [], [[1, 2, 3, 4]], [[1, 2, 3, 4, 5, 6, 7]])),
        ("segm", put("segmentation", {"size": [7, 6], "counts": "Z1"})),
        ("segm", put("segmentation", {"size": [6, 7]})),
        ("keypoints", drop("num_keypoints")),
        ("keypoints", put("keypoints", [1, 2, 2] * 16)),
    ],
)
def test_one_odd_annotation_makes_a_truth_odd(iou_type, change):
    content = truth()
    change(content["annotations"][1])
    assert not is_plain_truth(content, iou_type)


@pytest.mark.parametrize(
    "change",
    [
        {"images": None},
        {"annotations": ()},
        {"categories": []},
        {"images": [{"id": 4}, {"id": 4}]},
        {"categories": [{"id": 9.0, "name": "x"}]},
    ],
)
def test_odd_lists_make_a_truth_odd(change):
    assert not is_plain_truth({**truth(), **change}, "bbox")


@pytest.mark.parametrize(
    ("iou_type", "change"),
    [
        *((kind, drop(name)) for kind in IOU_TYPES for name in ("score", "image_id", "category_id")),
        *(("bbox", put("score", value)) for value in (float("nan"), float("inf"), "0.5", None)),
        *(("bbox", put(name, 77)) for name in ("image_id", "category_id")),
        ("bbox", put("bbox", [1, 2, 3])),
        ("bbox", put("caption", "a cat")),
        ("segm", put("segmentation", {"size": [6, 7], "counts": [2, 40]})),
        ("segm", put("segmentation", [[0, 0, 5, 0, 5, 5]])),  # polygons without a box: pycocotools cannot read them
        ("segm", put("segmentation", {"size": [7, 6], "counts": "Z1"})),
        ("keypoints", put("keypoints", [1, 2, 2] * 16)),
    ],
)
@pytest.mark.parametrize("whole", [False, True], ids=["one entry", "all entries"])
def test_odd_results_are_not_plain(iou_type, change, whole):
    entries = copy.deepcopy(results(iou_type))
    for entry in entries if whole else entries[1:]:
        change(entry)
    assert not are_plain_results(truth(), entries, iou_type)


def test_polygons_with_a_box_are_plain_results():
    entries = [{**entry, "bbox": FIELDS["bbox"], "segmentation": FIELDS["segmentation"]} for entry in results("bbox")]
    assert are_plain_results(truth(), entries, "segm")
