"""Slicing of huge images: the grid of slices, and how objects on the borders of slices are merged."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from model.categories import Category
from model.inference.predictor import Detections
from pipeline.bulk.encode import encode_instances
from pipeline.images.slices import Slice, SlicedDetections, cut, merge, neighbour_pairs
from pipeline.masks.rle import decode_rle
from pipeline.run_spec import Slicing

THRESHOLDS = {"mask_threshold": 0.5, "merge_iou": 0.5}


@pytest.mark.parametrize("size", [(1000, 1000), (300, 300), (301, 900), (299, 1700), (300, 100), (12, 3001)])
def test_slices_cover_the_image_with_one_size_and_the_overlap(size: tuple[int, int]) -> None:
    height, width = size
    slices = cut(height, width, Slicing(300, 60, 0.5))
    covered = np.zeros(size, int)
    for window in slices:
        covered[window.top : window.bottom, window.left : window.right] += 1
        assert (window.bottom - window.top, window.right - window.left) == (min(300, height), min(300, width))
    assert covered.min() == 1
    for a, b in pairwise(slices):
        if a.row == b.row:
            assert a.right - b.left >= 60
    assert len(slices) == max(1, -(-(height - 60) // 240)) * max(1, -(-(width - 60) // 240))


def test_an_overlap_beyond_half_a_slice_is_refused() -> None:
    with pytest.raises(ValueError, match="overlap is 151; allowed is at most half of size, 150"):
        Slicing(300, 151, 0.5)


def perfect_detections(
    slices: list[Slice], objects: list[tuple[tuple[int, int, int, int], int, float]]
) -> SlicedDetections:
    """What a perfect network detects of rectangles (XYXY, label, score) in each slice: the part that the slice shows.

    A detection's score is the object's, times the share of its area that the slice shows.
    """
    detections = []
    for window in slices:
        rows = []
        for (x1, y1, x2, y2), label, score in objects:
            box = max(x1, window.left), max(y1, window.top), min(x2, window.right), min(y2, window.bottom)
            if box[0] < box[2] and box[1] < box[3]:
                share = (box[2] - box[0]) * (box[3] - box[1]) / ((x2 - x1) * (y2 - y1))
                corner = np.array([window.left, window.top] * 2)
                rows.append((box - corner, label, score * share))
        rows.sort(key=lambda row: -row[2])
        detections.append(
            Detections(
                boxes=np.array([row[0] for row in rows], np.float32).reshape(-1, 4),
                labels=np.array([row[1] for row in rows], np.int64),
                scores=np.array([row[2] for row in rows], np.float32),
                mask_probs=np.ones((len(rows), 28, 28), np.float32),
                keypoints=None,
            )
        )
    return SlicedDetections(slices, detections)


def test_objects_on_borders_come_back_whole() -> None:
    slices = cut(560, 560, Slicing(300, 40, 0.5))  # 2 x 2, shared: 260 to 300
    objects = [
        ((200, 20, 380, 90), 1, 0.9),  # across the vertical border
        ((40, 230, 90, 330), 2, 0.8),  # across the horizontal border
        ((240, 240, 330, 320), 1, 0.7),  # in all four
        ((265, 100, 295, 140), 3, 0.6),  # whole in both slices
        ((10, 10, 60, 60), 1, 0.5),  # in one slice alone
    ]
    whole = merge(perfect_detections(slices, objects), (560, 560), **THRESHOLDS)
    assert sorted(whole.labels.tolist()) == [1, 1, 1, 2, 3]
    boxes = {tuple(box) for box in whole.boxes.round().astype(int).tolist()}
    assert boxes == {box for box, _, _ in objects}
    assert np.all(np.diff(whole.scores) <= 0)
    for box, counts, area in zip(whole.boxes.round().astype(int), whole.counts, whole.areas):
        mask = decode_rle(counts, 560, 560)
        assert mask.sum() == area
        x1, y1, x2, y2 = box
        # A pasted mask of ones fills its box but for the outermost pixels, which interpolation takes.
        assert mask[y1 + 2 : y2 - 2, x1 + 2 : x2 - 2].all()
        assert mask.sum() <= (x2 - x1 + 2) * (y2 - y1 + 2)


def test_other_labels_and_other_masks_stay_apart() -> None:
    slices = cut(300, 560, Slicing(300, 40, 0.5))
    both = merge(
        perfect_detections(slices, [((250, 20, 320, 90), 1, 0.9), ((250, 20, 320, 90), 2, 0.8)]),
        (300, 560),
        **THRESHOLDS,
    )
    assert both.labels.tolist() == [1, 2], "two classes at one position"
    near = merge(
        perfect_detections(slices, [((200, 20, 278, 90), 1, 0.9), ((282, 20, 400, 90), 1, 0.8)]),
        (300, 560),
        **THRESHOLDS,
    )
    assert near.boxes.round().astype(int).tolist() == [[200, 20, 278, 90], [282, 20, 400, 90]]


def test_an_object_longer_than_slices_is_one() -> None:
    slices = cut(200, 1500, Slicing(200, 50, 0.5))
    whole = merge(perfect_detections(slices, [((30, 60, 1400, 120), 1, 0.9)]), (200, 1500), **THRESHOLDS)
    assert whole.boxes.round().astype(int).tolist() == [[30, 60, 1400, 120]]


def test_nothing_found_gives_empty_columns() -> None:
    slices = cut(300, 560, Slicing(300, 40, 0.5))
    columns = encode_instances(perfect_detections(slices, []), (Category(1, "a"),), (300, 560), 0.5, 0.5)
    assert all(values == [] for values in columns.values())


def test_work_grows_with_the_number_of_slices() -> None:
    hundred, four_hundred = (len(neighbour_pairs(cut(side, side, Slicing(100, 20, 0.5)))) for side in (820, 1620))
    assert hundred <= 4 * 100 and four_hundred / hundred <= 4.4
