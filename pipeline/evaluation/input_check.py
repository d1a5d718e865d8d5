"""Which input the compiled kernels may judge: that in which nothing is odd. pycocotools decides about the rest."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

_TRUTH_FIELDS = {"bbox": ("bbox",), "segm": ("segmentation",), "keypoints": ("bbox", "keypoints", "num_keypoints")}
_RESULT_FIELDS = {"bbox": ("bbox",), "segm": ("segmentation",), "keypoints": ("keypoints",)}


class OddInput(ValueError):
    """Input that pycocotools has to decide about."""


def is_plain_truth(content: Mapping[str, Any], iou_type: str) -> bool:
    """Whether a COCO object has nothing odd about it: every needed field of the usual type, whole and unique ids."""
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
    """Whether result entries have nothing odd about them beside a plain truth: all with the same fields of the usual
    type, of known images and categories, with finite scores."""
    sizes, category_ids = _sizes(content["images"]), {category["id"] for category in content["categories"]}
    kinds = {frozenset(entry) for entry in results}
    if len(kinds) > 1:  # pycocotools looks at the first entry alone to tell what all are
        return False
    needed = (*_RESULT_FIELDS[iou_type], "image_id", "category_id", "score")
    fields = next(iter(kinds), frozenset())
    if kinds and not set(needed) <= fields:
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
    return {image["id"]: [image.get("height"), image.get("width")] for image in images}


def _plain_geometry(entry: Mapping[str, Any], names: Sequence[str], size: list[Any]) -> bool:
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
            return False  # COCO's 17 sigmas are built into both
    return True


def _is_text_rle(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("counts"), str | bytes)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _unique_ids(entries: Sequence[Mapping[str, Any]]) -> set[int] | None:
    ids = {entry.get("id") for entry in entries}
    if len(ids) < len(entries) or not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        return None
    return ids  # type: ignore[return-value]
