"""IoU of detections with the annotations of their class and image (`Overlaps`), computed once for AP and matching."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np
import pyarrow as pa

from pipeline.evaluation.detections import DetectionTable, to_text
from pipeline.evaluation.ground_truth import Truth
from pipeline.evaluation.input_check import OddInput, is_plain_truth

T = TypeVar("T")
# `Overlaps.rows`, `starts`, `first`, `end`, `truths`
_Groups: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]
MOST_OF_A_CLASS = {"bbox": 100, "segm": 100, "keypoints": 20}
"""How many detections of an image and class COCO evaluates at most: those with the best scores."""
_OKS_SIGMAS = np.array([26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89]) / 1000


@dataclass(frozen=True)
class Overlaps:
    """Detections and annotations in groups, and the IoU of each pair within a group.

    A group is one class on one image; there is one for each class and image that has detections.

    Attributes:
        rows: int64 [N], the detections as rows of their table: group after group, best score first within a group.
        rank: int64 [N], 0 for the best detection of a group, 1 for the next.
        starts: int64 [C + 1], where each group begins in `rows`.
        categories, images: int64 [C], the class and image of each group: indices into `category_ids` and `image_ids`.
        truths: int64 [G], the annotations (indices into `Truth.annotations`), by class, then image.
        first, end: int64 [C], where each group's annotations begin and end in `truths`.
        pairs: int64 [C + 1], where the IoU of each group begin in `ious`.
        ious: float64 [P], of all pairs of a group, detection after detection. With a crowd region it is the
            intersection over the detection's area. For keypoints it is the object keypoint similarity.
        areas: float64 [N], of the detections' masks, boxes, or boxes around their keypoints.
        ignored: bool [G], for each annotation of the truth whether it counts neither as found nor as missed (crowd
            regions; for keypoints also objects without any).
        category_ids, image_ids: int64, those of the truth, sorted.
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
        areas: float64 [N], to be used instead of the areas of the detections' own boxes or masks.

    Raises:
        OddInput: a truth, scores or masks that are left to pycocotools.
        ValueError: detections without what the kind of IoU needs.
    """
    from pipeline.evaluation import kernel

    if not is_plain_truth(truth.content, iou_type):
        raise OddInput("the ground truth is not plain; backend auto or pycocotools takes it")
    if not np.isfinite(table.scores).all():
        raise OddInput("a score is not finite; backend auto or pycocotools takes it")
    category_ids = np.array(sorted(category["id"] for category in truth.categories), np.int64)
    image_ids = np.array(sorted(image["id"] for image in truth.images), np.int64)

    def group_of(images: np.ndarray, categories: np.ndarray) -> np.ndarray:
        """The number of the group, counted by class, then image."""
        return _indices(category_ids, categories) * len(image_ids) + _indices(image_ids, images)

    truth_images = np.array([entry["image_id"] for entry in truth.annotations], np.int64)
    truth_groups = group_of(truth_images, truth.category_ids)
    truths = np.argsort(truth_groups, kind="stable")
    truth_groups = truth_groups[truths]
    row_groups = group_of(table.image_ids, table.category_ids)
    rows = np.lexsort((-table.scores, row_groups))  # stable: equal scores keep their order
    row_groups = row_groups[rows]
    begins = _begins(row_groups)
    rank = np.arange(len(rows)) - np.repeat(begins, np.diff(begins, append=len(rows)))
    kept = rank < MOST_OF_A_CLASS[iou_type]
    rows, rank, row_groups = rows[kept], rank[kept], row_groups[kept]
    begins = _begins(row_groups)
    groups = row_groups[begins]
    starts = np.append(begins, len(rows)).astype(np.int64)
    first, end = (np.searchsorted(truth_groups, groups, side) for side in ("left", "right"))
    pairs = np.concatenate([[0], np.cumsum(np.diff(starts) * (end - first))]).astype(np.int64)
    ious, own_areas = np.zeros(pairs[-1]), np.zeros(len(rows))
    ignored = truth.is_crowd
    layout = (rows, starts, first, end, truths)
    if iou_type == "segm":
        _fill_mask_ious(ious, own_areas, pairs, layout, truth, table)
    elif iou_type == "bbox":
        boxes = np.array([entry["bbox"] for entry in truth.annotations], np.float64).reshape(-1, 4)
        kernel.fill_box_ious(ious, pairs, table.bboxes, *layout, boxes, truth.is_crowd)
        own_areas = (table.bboxes[:, 2] * table.bboxes[:, 3])[rows]
    else:
        _fill_keypoint_similarities(ious, own_areas, pairs, layout, truth, table)
        ignored = ignored | np.array([entry["num_keypoints"] == 0 for entry in truth.annotations], bool)
    num_images = max(len(image_ids), 1)
    return Overlaps(
        rows=rows,
        rank=rank,
        starts=starts,
        categories=groups // num_images,
        images=groups % num_images,
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


def _indices(sorted_ids: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The index of each id in the sorted ones.

    Raises:
        OddInput: an id is not among them.
    """
    indices = np.searchsorted(sorted_ids, ids)
    if len(ids) and (not len(sorted_ids) or (sorted_ids[np.minimum(indices, len(sorted_ids) - 1)] != ids).any()):
        raise OddInput("detections on images or of categories that the truth does not have")
    return indices


def _begins(sorted_numbers: np.ndarray) -> np.ndarray:
    """The index of the first of each run of equal numbers."""
    return np.flatnonzero(np.diff(sorted_numbers, prepend=-1))


def in_threads(fill: Callable[[int, int], T], starts: np.ndarray) -> list[T]:
    """Calls `fill(begin, stop)` on ranges of groups in threads, one for each core, and returns the results.

    Args:
        starts: int64 [C + 1], where each group's detections begin; the ranges hold about equally many detections.
    """
    num = min(os.cpu_count() or 1, len(starts) - 1)
    if num < 1:
        return []
    cuts = np.searchsorted(starts, np.linspace(0, starts[-1], num + 1)).tolist()
    with ThreadPoolExecutor(num) as pool:
        return list(pool.map(fill, cuts[:-1], cuts[1:]))


def _fill_mask_ious(
    ious: np.ndarray, areas: np.ndarray, pairs: np.ndarray, layout: _Groups, truth: Truth, table: DetectionTable
) -> None:
    """Writes the IoU of masks into `ious` and their areas into `areas`.

    Raises:
        OddInput: a mask is no plain RLE.
        ValueError: the table has no masks.
    """
    from pipeline.evaluation import kernel

    if table.counts is None or table.sizes is None:
        raise ValueError("segm evaluation needs masks; load the instances with rle_counts")
    edges = _truth_edges(truth)
    masks = (*_buffers(to_text(table.counts)), *(np.ascontiguousarray(table.sizes[:, axis]) for axis in (0, 1)))
    rows, starts, first, end, truths = layout

    def fill(begin: int, stop: int) -> int:
        groups, bounds = slice(begin, stop), slice(begin, stop + 1)
        part = (rows, starts[bounds], first[groups], end[groups], truths)
        return kernel.fill_mask_ious(ious, areas, pairs[bounds], *masks, *part, *edges, truth.is_crowd)

    if (bad := max(in_threads(fill, starts), default=-1)) >= 0:
        raise OddInput(f"the mask of detection {bad} is not plain RLE; backend auto or pycocotools takes it")


def _truth_edges(truth: Truth) -> tuple[np.ndarray, ...]:
    """The annotations' masks for the kernels: edges, starts, boxes and areas, see `kernel.fill_truth_edges`."""
    from pipeline.evaluation import kernel

    text, offsets, sizes = truth.rle_text
    heights, widths = (np.ascontiguousarray(sizes[:, axis]) for axis in (0, 1))
    *edges, bad = kernel.fill_truth_edges(text, offsets, heights, widths)
    if bad >= 0:
        raise OddInput(f"the mask of annotation {truth.annotations[bad]['id']} is not plain RLE")
    return tuple(edges)


def _fill_keypoint_similarities(
    ious: np.ndarray, areas: np.ndarray, pairs: np.ndarray, layout: _Groups, truth: Truth, table: DetectionTable
) -> None:
    """Writes object keypoint similarities into `ious`, and the areas of the boxes around the keypoints into `areas`.

    Raises:
        OddInput: detections with another number of keypoints than COCO's 17.
        ValueError: the table has no keypoints.
    """
    if table.keypoints is None:
        raise ValueError("keypoint evaluation needs keypoints; load the instances with keypoints")
    points = np.array([list(keypoints) for keypoints in table.keypoints], np.float64)
    points = points.reshape(len(table), -1) if len(table) else np.zeros((0, 51))
    if len(table) and points.shape[1] != 3 * len(_OKS_SIGMAS):
        raise OddInput("detections need 17 keypoints; backend auto or pycocotools takes others")
    rows, starts, first, end, truths = layout
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
    """Object keypoint similarity of every pair, by numpy, with sums in the order of pycocotools."""
    variances = (_OKS_SIGMAS * 2) ** 2
    for group in np.flatnonzero(end > first).tolist():
        detected = points[starts[group] : starts[group + 1]]
        table = ious[pairs[group] : pairs[group + 1]].reshape(len(detected), -1)
        for column, entry in enumerate(entries[first[group] : end[group]]):
            x, y, seen = np.array(entry["keypoints"]).reshape(-1, 3).T
            dx, dy = detected[:, :, 0] - x, detected[:, :, 1] - y
            visible = seen > 0
            if not visible.any():
                left, top, width, height = entry["bbox"]
                dx, dy = (
                    np.maximum(0, low - detected[:, :, axis]) + np.maximum(0, detected[:, :, axis] - high)
                    for axis, low, high in (
                        (0, left - width, left + width * 2),
                        (1, top - height, top + height * 2),
                    )
                )
                visible[:] = True
            error = (dx**2 + dy**2) / variances / (entry["area"] + np.spacing(1)) / 2
            table[:, column] = np.exp(-np.ascontiguousarray(error[:, visible])).sum(axis=1) / visible.sum()


def _buffers(text: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The strings' characters, uint8, and where each string begins in them, int64 [N + 1]. Nothing is copied."""
    if not len(text):
        return np.zeros(0, np.uint8), np.zeros(1, np.int64)
    _, offsets, characters = text.buffers()
    starts = np.frombuffer(offsets, np.int64)[text.offset : text.offset + len(text) + 1]
    return np.frombuffer(characters, np.uint8) if characters is not None else np.zeros(0, np.uint8), starts
