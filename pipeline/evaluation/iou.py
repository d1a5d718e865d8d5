"""IoU of detections with the annotations of their class and image (`Overlaps`), computed once for AP and matching."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.evaluation.detections import DetectionTable, to_text
from pipeline.evaluation.ground_truth import EvaluationError, Truth
from pipeline.evaluation.kernel_types import Groups, Rles

IOU_TYPES = ("bbox", "segm", "keypoints")
OKS_SIGMAS = np.array([26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89]) / 1000


@dataclass(frozen=True)
class Overlaps:
    """Detections and annotations in groups, and the IoU of each pair within a group.

    A group is one class on one image; there is one for each class and image that has detections.

    Attributes:
        iou_type: bbox, segm or keypoints.
        groups: the detections and annotations of each group.
        rank: int64 [N], 0 for the best detection of a group, 1 for the next.
        categories, images: int64 [C], the class and image of each group: indices into `category_ids` and `image_ids`.
        ious: float64 [P], of all pairs of a group, detection after detection. With a region it is the intersection
            over the detection's area. For keypoints it is the object keypoint similarity.
        areas: float64 [N], of the detections' masks, boxes, or boxes around their keypoints.
        regions, ignored: bool [G], see `Truth.is_region` and `Truth.is_ignored`.
        category_ids, image_ids: int64, those of the truth, sorted.
        num_unreadable: detections in no group, because their score, box, mask or keypoints cannot be read.
    """

    iou_type: str
    groups: Groups
    rank: np.ndarray
    categories: np.ndarray
    images: np.ndarray
    ious: np.ndarray
    areas: np.ndarray
    regions: np.ndarray
    ignored: np.ndarray
    category_ids: np.ndarray
    image_ids: np.ndarray
    num_unreadable: int

    def of_rows(self, of_group: np.ndarray) -> np.ndarray:
        """A value of each group, repeated for its detections: [N]."""
        return np.repeat(of_group, np.diff(self.groups.starts))

    def block(self, group: int) -> np.ndarray:
        """The IoU of a group, float64 [detections, annotations]."""
        begin, end = self.groups.pairs[group : group + 2]
        return self.ious[begin:end].reshape(self.groups.starts[group + 1] - self.groups.starts[group], -1)


def find_overlaps(truth: Truth, table: DetectionTable, iou_type: str, *, by_class: bool = True) -> Overlaps:
    """The IoU of all detections with the annotations of their image and class.

    Args:
        iou_type: bbox, segm or keypoints.
        by_class: False makes one group of each image, whatever the classes; `categories` are then 0.

    Raises:
        EvaluationError: annotations with another number of keypoints than COCO's 17.
        ValueError: an unknown iou_type, or detections without what it needs, or on images or of categories that the
            truth does not have.
    """
    if iou_type not in IOU_TYPES:
        raise ValueError(f"iou_type is {iou_type!r}; allowed are {', '.join(IOU_TYPES)}")
    measure = {"bbox": _box_ious, "segm": _mask_ious, "keypoints": _keypoint_similarities}[iou_type]
    category_ids = np.array(sorted(truth.names) if by_class else [0], np.int64)
    image_ids = np.sort(truth.image_ids)

    def group_of(images: np.ndarray, categories: np.ndarray) -> np.ndarray:
        """The number of the group, counted by class, then image."""
        of_class = _indices(category_ids, categories) if by_class else np.zeros(len(categories), np.int64)
        return of_class * len(image_ids) + _indices(image_ids, images)

    truth_groups = group_of(truth.annotations.image_ids, truth.annotations.category_ids)
    row_groups = group_of(table.image_ids, table.category_ids)
    is_readable = np.isfinite(table.scores) & np.isfinite(table.bboxes).all(axis=1)
    groups, numbers = _group(truth_groups, row_groups, table.scores, is_readable)
    regions = truth.is_region(iou_type)
    ious, areas = measure(truth, table, groups, regions)
    if (areas < 0).any():
        is_readable[groups.rows[areas < 0]] = False
        groups, numbers = _group(truth_groups, row_groups, table.scores, is_readable)
        ious, areas = measure(truth, table, groups, regions)
    num_images = max(len(image_ids), 1)
    return Overlaps(
        iou_type=iou_type,
        groups=groups,
        rank=np.arange(len(groups.rows)) - np.repeat(groups.starts[:-1], np.diff(groups.starts)),
        categories=numbers // num_images,
        images=numbers % num_images,
        ious=ious,
        areas=areas,
        regions=regions,
        ignored=truth.is_ignored(iou_type),
        category_ids=category_ids,
        image_ids=image_ids,
        num_unreadable=len(table) - len(groups.rows),
    )


def _group(
    truth_groups: np.ndarray, row_groups: np.ndarray, scores: np.ndarray, is_readable: np.ndarray
) -> tuple[Groups, np.ndarray]:
    """The groups of the readable detections, best score first, and the number of each group."""
    truths = np.argsort(truth_groups, kind="stable")
    rows = np.flatnonzero(is_readable)
    rows = rows[np.lexsort((-scores[rows], row_groups[rows]))]  # stable: equal scores keep their order
    begins = np.flatnonzero(np.diff(row_groups[rows], prepend=-1))
    numbers = row_groups[rows][begins]
    starts = np.append(begins, len(rows)).astype(np.int64)
    first, end = (np.searchsorted(truth_groups[truths], numbers, side) for side in ("left", "right"))
    pairs = np.append(0, np.cumsum(np.diff(starts) * (end - first))).astype(np.int64)
    return Groups(rows, starts, first, end, truths, pairs), numbers


def _indices(sorted_ids: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The index of each id in the sorted ones. Raises ValueError where an id is not among them."""
    indices = np.searchsorted(sorted_ids, ids)
    if len(ids) and (not len(sorted_ids) or (sorted_ids[np.minimum(indices, len(sorted_ids) - 1)] != ids).any()):
        raise ValueError("detections on images or of categories that the truth does not have")
    return indices


def in_threads(fill: Callable[[Groups], None], groups: Groups) -> None:
    """Calls `fill` on parts of the groups, of about equally many detections, in threads, one for each core."""
    num = min(os.cpu_count() or 1, len(groups.first))
    if num < 1:
        return
    cuts = np.searchsorted(groups.starts, np.linspace(0, groups.starts[-1], num + 1)).tolist()
    with ThreadPoolExecutor(num) as pool:
        list(pool.map(lambda begin, stop: fill(groups.part(begin, stop)), cuts[:-1], cuts[1:]))


def _mask_ious(
    truth: Truth, table: DetectionTable, groups: Groups, regions: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The IoU of all pairs, and the area of each mask, -1 where it cannot be read. Raises ValueError without masks."""
    from pipeline.evaluation import kernel

    if table.counts is None or table.sizes is None:
        raise ValueError("segm evaluation needs masks; load the instances with rle_counts")
    heights, widths = (np.ascontiguousarray(table.sizes[:, axis]) for axis in (0, 1))
    rles = Rles(*_buffers(to_text(table.counts)), heights, widths)
    edges = kernel.fill_truth_edges(truth.masks)
    ious, areas = np.zeros(groups.pairs[-1]), np.zeros(len(groups.rows))
    in_threads(lambda part: kernel.fill_mask_ious(ious, areas, rles, part, edges, regions), groups)
    return ious, areas


def _box_ious(
    truth: Truth, table: DetectionTable, groups: Groups, regions: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The IoU of all pairs, and the area of each detection's box."""
    from pipeline.evaluation import kernel

    ious = np.zeros(groups.pairs[-1])
    kernel.fill_box_ious(ious, table.bboxes, groups, truth.annotations.boxes, regions)
    return ious, (table.bboxes[:, 2] * table.bboxes[:, 3])[groups.rows]


def _keypoint_similarities(
    truth: Truth, table: DetectionTable, groups: Groups, regions: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Object keypoint similarities of all pairs by numpy, with sums in the order of pycocotools; and areas.

    An area is that of the box around a detection's keypoints, -1 where they cannot be read.

    Raises:
        EvaluationError: annotations with another number of keypoints than COCO's 17, or no detection with them.
        ValueError: the table has no keypoints.
    """
    if table.keypoints is None:
        raise ValueError("keypoint evaluation needs keypoints; load the instances with keypoints")
    num = len(OKS_SIGMAS)
    for label, keypoints in zip(truth.annotations.labels, truth.annotations.keypoints, strict=True):
        if keypoints is not None and len(keypoints) != 3 * num:
            raise EvaluationError(
                f"{label} has {len(keypoints) / 3:g} keypoints; AP of keypoints is that of COCO's {num}"
            )
    ious, areas = np.zeros(groups.pairs[-1]), np.full(len(groups.rows), -1.0)
    points = np.full((len(groups.rows), num, 3), np.nan)
    for at, row in enumerate(groups.rows.tolist()):
        if (detected := table.keypoints[row]) is not None and len(detected) == 3 * num:
            points[at] = np.reshape(np.asarray(detected, np.float64), (num, 3))
    is_readable = np.isfinite(points).all(axis=(1, 2))
    if len(points) and not is_readable.any():
        raise EvaluationError(f"no detection has {num} keypoints, which AP of keypoints needs")
    areas[is_readable] = np.prod([np.ptp(points[is_readable, :, axis], axis=1) for axis in (0, 1)], axis=0)
    for group in np.flatnonzero(groups.end > groups.first).tolist():
        of_group = points[groups.starts[group] : groups.starts[group + 1]]
        table_of_group = ious[groups.pairs[group] : groups.pairs[group + 1]].reshape(len(of_group), -1)
        for column, index in enumerate(groups.truths[groups.first[group] : groups.end[group]].tolist()):
            table_of_group[:, column] = _similarities(of_group, truth, index)
    return ious, areas


def _similarities(detected: np.ndarray, truth: Truth, index: int) -> np.ndarray:
    """Object keypoint similarity of detections (float64 [d, 17, 3]) with one annotation."""
    x, y, seen = np.array(truth.annotations.keypoints[index] or [0.0] * 3 * len(OKS_SIGMAS)).reshape(-1, 3).T
    dx, dy = detected[:, :, 0] - x, detected[:, :, 1] - y
    visible = seen > 0
    if not visible.any():
        left, top, width, height = truth.annotations.boxes[index].tolist()
        dx, dy = (
            np.maximum(0, low - detected[:, :, axis]) + np.maximum(0, detected[:, :, axis] - high)
            for axis, low, high in ((0, left - width, left + width * 2), (1, top - height, top + height * 2))
        )
        visible[:] = True
    error = (dx**2 + dy**2) / (OKS_SIGMAS * 2) ** 2 / (truth.areas[index] + np.spacing(1)) / 2
    return np.exp(-np.ascontiguousarray(error[:, visible])).sum(axis=1) / visible.sum()


def _buffers(text: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The strings' characters, uint8, and where each string begins in them, int64 [N + 1]. Nothing is copied."""
    if not len(text):
        return np.zeros(0, np.uint8), np.zeros(1, np.int64)
    _, offsets, characters = text.buffers()
    starts = np.frombuffer(offsets, np.int64)[text.offset : text.offset + len(text) + 1]
    return np.frombuffer(characters, np.uint8) if characters is not None else np.zeros(0, np.uint8), starts
