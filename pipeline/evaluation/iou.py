"""How much detections overlap annotated objects of their class: the ground floor of AP and of what is found at one
threshold, computed once for both.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np
import pyarrow as pa

from pipeline.evaluation.detections import DetectionTable
from pipeline.evaluation.ground_truth import Truth
from pipeline.evaluation.input_check import OddInput, is_plain_truth

T = TypeVar("T")
_Where: TypeAlias = tuple[
    np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray
]  # rows, starts, first, end, truths
MOST_OF_A_CLASS = {"bbox": 100, "segm": 100, "keypoints": 20}
"""Detections of an image and class that COCO looks at."""
_OKS_SIGMAS = np.array([26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89]) / 1000


@dataclass(frozen=True)
class Overlaps:
    """Detections and annotations in groups, one for each class and image that has detections, and their IoU.

    Attributes:
        rows: int64 [N], the detections as rows of their table: group after group, within it best score first.
        rank: int64 [N], their places within their groups.
        starts: int64 [C + 1], where each group begins in `rows`.
        categories, images: int64 [C], the class and image of each group: places in `category_ids` and `image_ids`.
        truths: int64 [G], the annotations (places in the truth), by class, then image.
        first, end: int64 [C], each group's annotations in `truths`.
        pairs: int64 [C + 1], where the IoU of each group begin.
        ious: float64 [P], of all pairs of a group, detection after detection; with a crowd region, the intersection
            over the detection's area. Object keypoint similarity for keypoints.
        areas: float64 [N], of the detections: of their masks, boxes, or the boxes around their keypoints.
        ignored: bool [G], for each annotation of the truth whether it counts neither way (crowd regions; for keypoints
            also objects without any).
        category_ids, image_ids: int64, the truth's, sorted.
    """

    rows: np.ndarray
    rank: np.ndarray
    starts: np.ndarray
    categories: np.ndarray
    images: np.ndarray
    truths: np.ndarray
    first: np.ndarray
    end: np.ndarray
    pairs: np.ndarray
    ious: np.ndarray
    areas: np.ndarray
    ignored: np.ndarray
    category_ids: np.ndarray
    image_ids: np.ndarray

    def of_rows(self, of_group: np.ndarray) -> np.ndarray:
        """A value of each group, repeated for its detections: [N]."""
        return np.repeat(of_group, np.diff(self.starts))


def find_overlaps(truth: Truth, table: DetectionTable, iou_type: str, areas: np.ndarray | None = None) -> Overlaps:
    """The IoU of all detections with the annotations of their class, at most `MOST_OF_A_CLASS` of an image and class.

    Args:
        iou_type: bbox, segm or keypoints.
        areas: float64 [N], in place of those of the detections' own boxes or masks.

    Raises:
        OddInput: a truth, scores or masks that only pycocotools decides about.
        ValueError: detections without what the kind of IoU needs.
    """
    from pipeline.evaluation import kernel

    if not is_plain_truth(truth.content, iou_type):
        raise OddInput("the ground truth is not plain; backend auto or pycocotools takes it")
    if not np.isfinite(table.scores).all():
        raise OddInput("a score is not finite; backend auto or pycocotools takes it")
    category_ids = np.array(sorted(category["id"] for category in truth.categories), np.int64)
    image_ids = np.array(sorted(image["id"] for image in truth.images), np.int64)

    def number(images: np.ndarray, categories: np.ndarray) -> np.ndarray:
        """The group, by class, then image."""
        at_category, at_image = _places(category_ids, categories), _places(image_ids, images)
        return at_category * len(image_ids) + at_image

    truth_images = np.array([entry["image_id"] for entry in truth.annotations], np.int64)
    of_truth = number(truth_images, truth.category_ids)
    truths = np.argsort(of_truth, kind="stable")
    of_truth = of_truth[truths]
    of_row = number(table.image_ids, table.category_ids)
    rows = np.lexsort((-table.scores, of_row))  # stable: equal scores keep their order
    of_row = of_row[rows]
    begins = _begins(of_row)
    rank = np.arange(len(rows)) - np.repeat(begins, np.diff(begins, append=len(rows)))
    kept = rank < MOST_OF_A_CLASS[iou_type]
    rows, rank, of_row = rows[kept], rank[kept], of_row[kept]
    begins = _begins(of_row)
    of_group = of_row[begins]
    starts = np.append(begins, len(rows)).astype(np.int64)
    first, end = (np.searchsorted(of_truth, of_group, side) for side in ("left", "right"))
    pairs = np.concatenate([[0], np.cumsum(np.diff(starts) * (end - first))]).astype(np.int64)
    ious, own_areas = np.zeros(pairs[-1]), np.zeros(len(rows))
    ignored = truth.is_crowd
    where = (rows, starts, first, end, truths)
    if iou_type == "segm":
        _fill_masks(ious, own_areas, pairs, where, truth, table)
    elif iou_type == "bbox":
        boxes = np.array([entry["bbox"] for entry in truth.annotations], np.float64).reshape(-1, 4)
        kernel.fill_box_ious(ious, pairs, table.bboxes, *where, boxes, truth.is_crowd)
        own_areas = (table.bboxes[:, 2] * table.bboxes[:, 3])[rows]
    else:
        _fill_keypoints(ious, own_areas, pairs, where, truth, table)
        ignored = ignored | np.array([entry["num_keypoints"] == 0 for entry in truth.annotations], bool)
    num_images = max(len(image_ids), 1)
    return Overlaps(
        rows=rows,
        rank=rank,
        starts=starts,
        categories=of_group // num_images,
        images=of_group % num_images,
        truths=truths,
        first=first,
        end=end,
        pairs=pairs,
        ious=ious,
        areas=own_areas if areas is None else areas[rows],
        ignored=ignored,
        category_ids=category_ids,
        image_ids=image_ids,
    )


def _places(known: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where each number stands in the sorted ones."""
    places = np.searchsorted(known, wanted)
    if len(wanted) and (not len(known) or (known[np.minimum(places, len(known) - 1)] != wanted).any()):
        raise OddInput("detections on images or of categories that the truth does not have")
    return places


def _begins(sorted_numbers: np.ndarray) -> np.ndarray:
    """Where each new number begins."""
    return np.flatnonzero(np.diff(sorted_numbers, prepend=-1))


def in_threads(fill: Callable[[int, int], T], starts: np.ndarray) -> list[T]:
    """What `fill(begin, stop)` returns for runs of groups with about equally many detections, one for each core."""
    num = min(os.cpu_count() or 1, len(starts) - 1)
    if num < 1:
        return []
    cuts = np.searchsorted(starts, np.linspace(0, starts[-1], num + 1)).tolist()
    with ThreadPoolExecutor(num) as pool:
        return list(pool.map(fill, cuts[:-1], cuts[1:]))


def _fill_masks(
    ious: np.ndarray, areas: np.ndarray, pairs: np.ndarray, where: _Where, truth: Truth, table: DetectionTable
) -> None:
    from pipeline.evaluation import kernel

    if table.counts is None or table.sizes is None:
        raise ValueError("segm evaluation needs masks; load the instances with rle_counts")
    edges = _truth_edges(truth)
    masks = (*_buffers(table.counts), *(np.ascontiguousarray(table.sizes[:, axis]) for axis in (0, 1)))
    rows, starts, first, end, truths = where

    def fill(begin: int, stop: int) -> int:
        mine, more = slice(begin, stop), slice(begin, stop + 1)
        some = (rows, starts[more], first[mine], end[mine], truths)
        return kernel.fill_mask_ious(ious, areas, pairs[more], *masks, *some, *edges, truth.is_crowd)

    if (bad := max(in_threads(fill, starts), default=-1)) >= 0:
        raise OddInput(f"the mask of detection {bad} is not plain RLE; backend auto or pycocotools takes it")


def _truth_edges(truth: Truth) -> tuple[np.ndarray, ...]:
    from pipeline.evaluation import kernel

    text, offsets, sizes = truth.rle_text
    heights, widths = (np.ascontiguousarray(sizes[:, axis]) for axis in (0, 1))
    *edges, bad = kernel.fill_truth_edges(text, offsets, heights, widths)
    if bad >= 0:
        raise OddInput(f"the mask of annotation {truth.annotations[bad]['id']} is not plain RLE")
    return tuple(edges)


def _fill_keypoints(
    ious: np.ndarray, areas: np.ndarray, pairs: np.ndarray, where: _Where, truth: Truth, table: DetectionTable
) -> None:
    if table.keypoints is None:
        raise ValueError("keypoint evaluation needs keypoints; load the instances with keypoints")
    points = np.array([list(one) for one in table.keypoints], np.float64)
    points = points.reshape(len(table), -1) if len(table) else np.zeros((0, 51))
    if len(table) and points.shape[1] != 3 * len(_OKS_SIGMAS):
        raise OddInput("detections need 17 keypoints; backend auto or pycocotools takes others")
    rows, starts, first, end, truths = where
    points = points.reshape(len(table), len(_OKS_SIGMAS), 3)[rows]
    if len(rows):
        areas[:] = np.ptp(points[:, :, 0], axis=1) * np.ptp(points[:, :, 1], axis=1)
    _fill_oks(ious, pairs, points, starts, first, end, [truth.annotations[i] for i in truths.tolist()])


def _fill_oks(
    ious: np.ndarray,
    pairs: np.ndarray,
    points: np.ndarray,
    starts: np.ndarray,
    first: np.ndarray,
    end: np.ndarray,
    entries: Sequence[Mapping[str, Any]],
) -> None:
    """Object keypoint similarity of every pair, by numpy, in the order of pycocotools' sums."""
    variances = (_OKS_SIGMAS * 2) ** 2
    for group in np.flatnonzero(end > first).tolist():
        found = points[starts[group] : starts[group + 1]]
        table = ious[pairs[group] : pairs[group + 1]].reshape(len(found), -1)
        for column, entry in enumerate(entries[first[group] : end[group]]):
            x, y, seen = np.array(entry["keypoints"]).reshape(-1, 3).T
            dx, dy = found[:, :, 0] - x, found[:, :, 1] - y
            visible = seen > 0
            if not visible.any():
                left, top, width, height = entry["bbox"]
                dx, dy = (
                    np.maximum(0, low - found[:, :, axis]) + np.maximum(0, found[:, :, axis] - high)
                    for axis, low, high in (
                        (0, left - width, left + width * 2),
                        (1, top - height, top + height * 2),
                    )
                )
                visible[:] = True
            error = (dx**2 + dy**2) / variances / (entry["area"] + np.spacing(1)) / 2
            table[:, column] = np.exp(-np.ascontiguousarray(error[:, visible])).sum(axis=1) / visible.sum()


def _buffers(text: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The characters, uint8, and where each string begins, int64 [N + 1]."""
    if not len(text):
        return np.zeros(0, np.uint8), np.zeros(1, np.int64)
    _, offsets, characters = text.buffers()
    places = np.frombuffer(offsets, np.int64)[text.offset : text.offset + len(text) + 1]
    return np.frombuffer(characters, np.uint8) if characters is not None else np.zeros(0, np.uint8), places
