"""Input checks: whether COCO truth and results are plain, so that the compiled evaluator may take them (`OddInput`)."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

_TRUTH_FIELDS = {"bbox": ("bbox",), "segm": ("segmentation",), "keypoints": ("bbox", "keypoints", "num_keypoints")}
_RESULT_FIELDS = {"bbox": ("bbox",), "segm": ("segmentation",), "keypoints": ("keypoints",)}


class OddInput(ValueError):
    """Input that the compiled evaluator does not take. What it means is left to pycocotools, the reference."""


def is_plain_truth(content: Mapping[str, Any], iou_type: str) -> bool:
    """Whether a COCO JSON object is plain: it has every needed field in its usual type, and unique integer ids.

    Args:
        iou_type: bbox, segm or keypoints; decides which fields are needed.
    """
    images, annotations, categories = (content.get(key) for key in ("images", "annotations", "categories"))
    if not (isinstance(images, list) and isinstance(annotations, list) and isinstance(categories, list)):
        return False
    image_ids = _unique_ids(images)
    category_ids = _unique_ids(categories)
    if image_ids is None or category_ids is None or not categories or _unique_ids(annotations) is None:
        return False
    sizes = _sizes(images)
    needed = (*_TRUTH_FIELDS[iou_type], "area", "iscrowd")
    for entry in annotations:
        if not all(name in entry for name in needed) or "ignore" in entry:
            return False
        if entry.get("image_id") not in image_ids or entry.get("category_id") not in category_ids:
            return False
        if entry["id"] == 0 or not _plain_geometry(entry, _TRUTH_FIELDS[iou_type], sizes[entry["image_id"]]):
            return False  # id 0 is COCO's "not matched"
        if entry["iscrowd"] not in (0, 1) or not _is_number(entry["area"]):
            return False
    return True


def are_plain_results(content: Mapping[str, Any], results: Sequence[Mapping[str, Any]], iou_type: str) -> bool:
    """Whether COCO result entries are plain: all have the same fields in their usual type, known images and categories,
    and finite scores.

    Args:
        content: the COCO JSON object of the truth, itself plain.
        iou_type: bbox, segm or keypoints.
    """
    sizes, category_ids = _sizes(content["images"]), {category["id"] for category in content["categories"]}
    field_sets = {frozenset(entry) for entry in results}
    if len(field_sets) > 1:  # pycocotools tells from the first entry alone of which kind all are
        return False
    needed = (*_RESULT_FIELDS[iou_type], "image_id", "category_id", "score")
    fields = next(iter(field_sets), frozenset())
    if field_sets and not set(needed) <= fields:
        return False
    if "caption" in fields or (iou_type == "keypoints" and "segmentation" in fields and "bbox" not in fields):
        return False
    for entry in results:
        if iou_type == "segm":
            has_polygons = "bbox" in fields and isinstance(entry["segmentation"], list)
            if not has_polygons and not _is_text_rle(entry["segmentation"]):
                return False
        if "bbox" in entry and not _plain_geometry(entry, ("bbox",), []):
            return False
        if entry["image_id"] not in sizes or entry["category_id"] not in category_ids:
            return False
        score = entry["score"]
        if not _is_number(score) or not -sys.float_info.max <= score <= sys.float_info.max:
            return False
        if not _plain_geometry(entry, _RESULT_FIELDS[iou_type], sizes[entry["image_id"]]):
            return False
    return True


def _sizes(images: Sequence[Mapping[str, Any]]) -> dict[Any, list[Any]]:
    """[height, width] by image id."""
    return {image["id"]: [image.get("height"), image.get("width")] for image in images}


def _plain_geometry(entry: Mapping[str, Any], names: Sequence[str], size: list[Any]) -> bool:
    """Whether these fields of an entry have their usual form; `size` is [height, width] of its image."""
    for name in names:
        value = entry[name]
        if name == "bbox":
            if not isinstance(value, list) or len(value) != 4 or not all(map(_is_number, value)):
                return False
        elif name == "segmentation":
            if isinstance(value, Mapping):
                if value.get("size") != size or not isinstance(value.get("counts"), str | bytes | list):
                    return False
            elif not isinstance(value, list) or not value or any(len(p) < 6 or len(p) % 2 for p in value):
                return False
        elif name == "keypoints" and (not isinstance(value, list) or len(value) != 51):
            return False  # COCO's 17 sigmas are built into both evaluators
    return True


def _is_text_rle(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("counts"), str | bytes)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _unique_ids(entries: Sequence[Mapping[str, Any]]) -> set[int] | None:
    """The entries' ids, or None where one is no integer from 0 up, or occurs twice."""
    ids = [entry.get("id") for entry in entries]
    integers = {number for number in ids if isinstance(number, int) and not isinstance(number, bool) and number >= 0}
    return integers if len(integers) == len(entries) else None
