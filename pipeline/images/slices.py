"""Slicing of huge images: cuts them into overlapping slices and merges the slices' detections by mask IoU.

Detections of two neighbouring slices are one instance where their masks agree inside the window that both slices show:
each slice cuts an object on the border, but not inside that window. Only neighbours are compared, so the work grows
linearly with the number of slices.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.masks.rle import encode_roi_masks_and_areas, rle_areas, rle_iou, rle_merge, runs_to_rle
from pipeline.run_spec import Slicing

if TYPE_CHECKING:
    from model.inference.predictor import Detections


@dataclass(frozen=True)
class Slice:
    """One slice: its row and column in the grid of slices, and its half-open window in pixels of the image."""

    row: int
    column: int
    top: int
    left: int
    bottom: int
    right: int


@dataclass(frozen=True)
class SlicedDetections:
    """The detections of each slice of one image; boxes and keypoints in pixels of the slice."""

    slices: list[Slice]
    detections: list[Detections]


def cut(height: int, width: int, slicing: Slicing) -> list[Slice]:
    """The slices of an image, row by row; one slice, the whole image, where it is no larger than a slice.

    All slices of an image have the same size: `slicing.size`, or the image's own along a shorter side. The last ones
    end at the image's border and overlap more.
    """
    rows, columns = (_starts(length, slicing) for length in (height, width))
    return [
        Slice(i, j, top, left, min(top + slicing.size, height), min(left + slicing.size, width))
        for i, top in enumerate(rows)
        for j, left in enumerate(columns)
    ]


def _starts(length: int, slicing: Slicing) -> list[int]:
    if length <= slicing.size:
        return [0]
    step = slicing.size - slicing.overlap
    count = math.ceil((length - slicing.overlap) / step)
    return [min(index * step, length - slicing.size) for index in range(count)]


@dataclass(frozen=True)
class MaskedInstances:
    """N instances of one image, with masks as COCO's compressed RLE.

    Attributes:
        labels: int64 [N].
        scores: float32 [N].
        boxes: float32 [N, 4], XYXY in pixels of the image.
        counts: N strings.
        areas: int64 [N], pixels of the masks.
        keypoints: float32 [N, P, 3], x and y in pixels of the image; or None.
    """

    labels: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    counts: list[str]
    areas: np.ndarray
    keypoints: np.ndarray | None


def merge(
    sliced: SlicedDetections, image_size: tuple[int, int], mask_threshold: float, merge_iou: float
) -> MaskedInstances:
    """The instances of a whole image from the detections of its slices, best first.

    Args:
        sliced: the detections of its slices.
        image_size: (height, width).
        mask_threshold: probability from which a pixel belongs to a mask.
        merge_iou: see `Slicing`.

    Returns:
        An instance made of several detections has the union of their masks, the box around their boxes, and the label,
        score and keypoints of the best of them.
    """
    parts = [
        _in_image(window, detections, image_size, mask_threshold)
        for window, detections in zip(sliced.slices, sliced.detections)
    ]
    firsts = [0, *itertools.accumulate(len(part.scores) for part in parts)]  # index of each part's first detection
    labels, scores, boxes, areas = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("labels", "scores", "boxes", "areas")
    )
    counts = [rle for part in parts for rle in part.counts]
    of_parts = [part.keypoints for part in parts if part.keypoints is not None]
    keypoints = np.concatenate(of_parts) if len(of_parts) == len(parts) else None

    leader = list(range(len(scores)))  # a union-find forest of detections

    def leader_of(index: int) -> int:
        while leader[index] != index:
            leader[index] = leader[leader[index]]
            index = leader[index]
        return index

    for a, b in neighbour_pairs(sliced.slices):
        window = _shared_window(sliced.slices[a], sliced.slices[b])
        in_a, in_b = (_reaching_into(boxes[firsts[k] : firsts[k + 1]], window) + firsts[k] for k in (a, b))
        for i, j in _same_instances(in_a, in_b, labels, counts, window, image_size, merge_iou):
            leader[leader_of(i)] = leader_of(j)

    groups_by_leader: dict[int, list[int]] = {}
    for index in np.argsort(-scores, kind="stable").tolist():
        groups_by_leader.setdefault(leader_of(index), []).append(index)
    groups = list(groups_by_leader.values())  # each with its best detection first; the groups by their best
    best = np.array([group[0] for group in groups], np.int64)
    merged_counts = [
        counts[group[0]] if len(group) == 1 else rle_merge([counts[i] for i in group], *image_size) for group in groups
    ]
    merged_boxes, merged_areas = boxes[best], areas[best]
    several = [k for k, group in enumerate(groups) if len(group) > 1]
    for k in several:
        group_boxes = boxes[groups[k]]
        merged_boxes[k] = [*group_boxes[:, :2].min(axis=0), *group_boxes[:, 2:].max(axis=0)]
    merged_areas[several] = rle_areas([merged_counts[k] for k in several])
    return MaskedInstances(
        labels[best],
        scores[best],
        merged_boxes,
        merged_counts,
        merged_areas,
        None if keypoints is None else keypoints[best],
    )


def _in_image(
    window: Slice, detections: Detections, image_size: tuple[int, int], mask_threshold: float
) -> MaskedInstances:
    """The detections of a slice in pixels of the image, with masks as RLE of the whole image."""
    boxes = detections.boxes + np.array([window.left, window.top] * 2, np.float32)
    counts, areas = encode_roi_masks_and_areas(detections.mask_probs, boxes, image_size, threshold=mask_threshold)
    keypoints = None
    if detections.keypoints is not None:
        keypoints = detections.keypoints + np.array([window.left, window.top, 0], np.float32)
    return MaskedInstances(detections.labels, detections.scores, boxes, counts, areas, keypoints)


def neighbour_pairs(slices: list[Slice]) -> list[tuple[int, int]]:
    """Pairs of indices of slices that touch in the grid, diagonally too, each pair once."""
    index_of = {(window.row, window.column): index for index, window in enumerate(slices)}
    steps = ((0, 1), (1, -1), (1, 0), (1, 1))
    return [
        (index, index_of[window.row + down, window.column + right])
        for index, window in enumerate(slices)
        for down, right in steps
        if (window.row + down, window.column + right) in index_of
    ]


def _shared_window(a: Slice, b: Slice) -> tuple[int, int, int, int]:
    """The window XYXY that both slices show."""
    return max(a.left, b.left), max(a.top, b.top), min(a.right, b.right), min(a.bottom, b.bottom)


def _reaching_into(boxes: np.ndarray, window: tuple[int, int, int, int]) -> np.ndarray:
    """Indices of the boxes (XYXY) that overlap a window (XYXY)."""
    left, top, right, bottom = window
    overlaps = (boxes[:, 0] < right) & (boxes[:, 2] > left) & (boxes[:, 1] < bottom) & (boxes[:, 3] > top)
    return np.flatnonzero(overlaps) if left < right and top < bottom else np.zeros(0, np.int64)


def _same_instances(
    in_a: np.ndarray,
    in_b: np.ndarray,
    labels: np.ndarray,
    counts: list[str],
    window: tuple[int, int, int, int],
    image_size: tuple[int, int],
    merge_iou: float,
) -> list[tuple[int, int]]:
    """Pairs of detections of two slices that are one instance: greedy, highest IoU first, each in at most one pair.

    Args:
        in_a, in_b: indices of the two slices' detections that reach into the window both slices show.
        labels, counts: of all detections.
        window: XYXY; masks are compared inside it.
    """
    if not len(in_a) or not len(in_b):
        return []
    height, width = image_size
    window_mask = _rectangle_rle(window, height, width)
    clipped = [
        [rle_merge([counts[i], window_mask], height, width, intersect=True) for i in side] for side in (in_a, in_b)
    ]
    iou = rle_iou(clipped[0], clipped[1], height, width)
    iou[labels[in_a][:, None] != labels[in_b]] = 0
    pairs: list[tuple[int, int]] = []
    paired_a: set[int] = set()
    paired_b: set[int] = set()
    for flat_index in np.argsort(-iou, axis=None, kind="stable").tolist():
        i, j = divmod(flat_index, len(in_b))
        if iou[i, j] < merge_iou or iou[i, j] == 0:
            break
        if i not in paired_a and j not in paired_b:
            paired_a.add(i)
            paired_b.add(j)
            pairs.append((int(in_a[i]), int(in_b[j])))
    return pairs


def _rectangle_rle(window: tuple[int, int, int, int], height: int, width: int) -> str:
    """A window XYXY as the RLE of a mask of the image."""
    left, top, right, bottom = window
    inside, outside = bottom - top, height - (bottom - top)
    runs = [left * height + top, *([inside, outside] * (right - left))]
    runs[-1] = (width - right) * height + height - bottom
    return runs_to_rle(runs, height, width)
