"""Huge images: cut into overlapping slices, predicted one by one, put together again by their masks.

Two detections of neighbouring slices are one instance where, inside the strip that both slices show, their masks
agree: an object on the border is cut by each of the slices, but not within the strip. Only neighbours are compared, so
the work grows with the number of slices.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.masks.rle import encode_roi_masks_and_areas, rle_areas, rle_iou, rle_merge, runs_to_rle

if TYPE_CHECKING:
    from model.inference.predictor import Detections


@dataclass(frozen=True)
class Slicing:
    """How huge images are cut.

    Attributes:
        size: side of a slice, in pixels of the original; an image with a longer side is cut.
        overlap: pixels that neighbouring slices share at least, at most half of `size`.
        merge_iou: mask IoU within what both slices show from which two detections are one instance.
    """

    size: int
    overlap: int
    merge_iou: float

    def __post_init__(self) -> None:
        if not 0 <= self.overlap <= self.size // 2:
            raise ValueError(f"overlap is {self.overlap}; allowed is 0 to half of size={self.size}")


@dataclass(frozen=True)
class Slice:
    """One slice: its place in the grid of slices, and its half-open window in pixels of the image."""

    row: int
    column: int
    top: int
    left: int
    bottom: int
    right: int


@dataclass(frozen=True)
class SlicedDetections:
    """What was found in the slices of one image, boxes in pixels of their slice."""

    slices: list[Slice]
    found: list[Detections]


def cut(height: int, width: int, slicing: Slicing) -> list[Slice]:
    """The slices of an image, row by row; the image itself where it is no larger than a slice.

    All have the same size, save where the image is smaller than a slice; the last ones end at the border and overlap
    more.
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


def merge(
    sliced: SlicedDetections, image_size: tuple[int, int], mask_threshold: float, merge_iou: float
) -> dict[str, Any]:
    """The instances of the whole image, best first.

    Args:
        sliced: what was found in its slices.
        image_size: (height, width).
        mask_threshold: probability from which a pixel belongs to a mask.
        merge_iou: see `Slicing`.

    Returns:
        `labels` int64 [N], `scores` float32 [N], `boxes` float32 [N, 4] (XYXY, pixels of the image), `counts` (N
        strings), `areas` int64 [N], `keypoints` float32 [N, P, 3] or None. An instance of several detections has their
        masks' union, the box around theirs, and score and keypoints of the best of them.
    """
    parts = [_to_image(one, found, image_size, mask_threshold) for one, found in zip(sliced.slices, sliced.found)]
    firsts = [0, *itertools.accumulate(len(part["scores"]) for part in parts)]
    labels, scores, boxes = (np.concatenate([part[name] for part in parts]) for name in ("labels", "scores", "boxes"))
    counts = [one for part in parts for one in part["counts"]]
    areas = np.concatenate([part["areas"] for part in parts])
    keypoints = None
    if all(part["keypoints"] is not None for part in parts):
        keypoints = np.concatenate([part["keypoints"] for part in parts])

    leader = list(range(len(scores)))

    def leader_of(index: int) -> int:
        while leader[index] != index:
            leader[index] = leader[leader[index]]
            index = leader[index]
        return index

    for a, b in _neighbours(sliced.slices):
        window = _shared(sliced.slices[a], sliced.slices[b])
        own = [_inside(boxes[firsts[k] : firsts[k + 1]], window) + firsts[k] for k in (a, b)]
        for one, other in _same(own[0], own[1], labels, counts, window, image_size, merge_iou):
            leader[leader_of(one)] = leader_of(other)

    groups: dict[int, list[int]] = {}
    for index in np.argsort(-scores, kind="stable").tolist():
        groups.setdefault(leader_of(index), []).append(index)
    members = list(groups.values())  # each with its best first, and themselves best first
    best = np.array([group[0] for group in members], np.int64)
    merged = [counts[g[0]] if len(g) == 1 else rle_merge([counts[i] for i in g], *image_size) for g in members]
    many = [place for place, group in enumerate(members) if len(group) > 1]
    whole_boxes, whole_areas = boxes[best], areas[best]
    for place in many:
        group = boxes[members[place]]
        whole_boxes[place] = [*group[:, :2].min(axis=0), *group[:, 2:].max(axis=0)]
    whole_areas[many] = rle_areas([merged[place] for place in many])
    return {
        "labels": labels[best],
        "scores": scores[best],
        "boxes": whole_boxes,
        "counts": merged,
        "areas": whole_areas,
        "keypoints": None if keypoints is None else keypoints[best],
    }


def _to_image(one: Slice, found: Detections, image_size: tuple[int, int], mask_threshold: float) -> dict[str, Any]:
    """A slice's detections in pixels of the image."""
    boxes = found.boxes + np.array([one.left, one.top] * 2, np.float32)
    counts, areas = encode_roi_masks_and_areas(found.mask_probs, boxes, image_size, threshold=mask_threshold)
    keypoints = None if found.keypoints is None else found.keypoints + np.array([one.left, one.top, 0], np.float32)
    return {
        "labels": found.labels,
        "scores": found.scores,
        "boxes": boxes,
        "counts": counts,
        "areas": areas,
        "keypoints": keypoints,
    }


def _neighbours(slices: list[Slice]) -> list[tuple[int, int]]:
    """Pairs of slices that touch in the grid, each once."""
    places = {(one.row, one.column): index for index, one in enumerate(slices)}
    steps = ((0, 1), (1, -1), (1, 0), (1, 1))
    return [
        (index, places[one.row + down, one.column + right])
        for index, one in enumerate(slices)
        for down, right in steps
        if (one.row + down, one.column + right) in places
    ]


def _shared(a: Slice, b: Slice) -> tuple[int, int, int, int]:
    """The window XYXY that both show."""
    return max(a.left, b.left), max(a.top, b.top), min(a.right, b.right), min(a.bottom, b.bottom)


def _inside(boxes: np.ndarray, window: tuple[int, int, int, int]) -> np.ndarray:
    """Which boxes reach into a window."""
    left, top, right, bottom = window
    reach = (boxes[:, 0] < right) & (boxes[:, 2] > left) & (boxes[:, 1] < bottom) & (boxes[:, 3] > top)
    return np.flatnonzero(reach) if left < right and top < bottom else np.zeros(0, np.int64)


def _same(
    ours: np.ndarray,
    theirs: np.ndarray,
    labels: np.ndarray,
    counts: list[str],
    window: tuple[int, int, int, int],
    image_size: tuple[int, int],
    merge_iou: float,
) -> list[tuple[int, int]]:
    """Pairs of detections of two slices that are one instance, each in one pair at most, the most alike first."""
    if not len(ours) or not len(theirs):
        return []
    height, width = image_size
    strip = _rectangle(window, height, width)
    clipped = [[rle_merge([counts[i], strip], height, width, intersect=True) for i in side] for side in (ours, theirs)]
    overlap = rle_iou(clipped[0], clipped[1], height, width)
    overlap[labels[ours][:, None] != labels[theirs]] = 0
    pairs: list[tuple[int, int]] = []
    taken: tuple[set[int], set[int]] = (set(), set())
    for place in np.argsort(-overlap, axis=None, kind="stable").tolist():
        i, j = divmod(place, len(theirs))
        if overlap[i, j] < merge_iou or overlap[i, j] == 0:
            break
        if i not in taken[0] and j not in taken[1]:
            taken[0].add(i)
            taken[1].add(j)
            pairs.append((int(ours[i]), int(theirs[j])))
    return pairs


def _rectangle(window: tuple[int, int, int, int], height: int, width: int) -> str:
    """A window XYXY as a mask."""
    left, top, right, bottom = window
    inside, outside = bottom - top, height - (bottom - top)
    runs = [left * height + top, *([inside, outside] * (right - left))]
    runs[-1] = (width - right) * height + height - bottom
    return runs_to_rle(runs, height, width)
