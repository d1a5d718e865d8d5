"""The compiled kernels against numpy on whole masks, and against answers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from pipeline.evaluation import kernel
from pipeline.evaluation.kernel_types import Groups, Rles


def in_one_piece(texts: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    return np.frombuffer(b"".join(texts), np.uint8), np.cumsum([0, *map(len, texts)])


def test_edges_boxes_and_areas_are_those_of_the_pixels():
    rng = np.random.default_rng(0)
    shapes = rng.integers(1, 40, (200, 2))
    masks = [rng.random(shape) < rng.choice([0, 0.02, 0.3, 0.97, 1]) for shape in shapes]
    masks += [np.kron(mask, np.ones((7, 5), bool)) for mask in masks[:50]]  # long runs, whole columns
    heights, widths = np.array([mask.shape for mask in masks]).T
    text, offsets = in_one_piece([coco_mask.encode(np.asfortranarray(m.astype(np.uint8)))["counts"] for m in masks])
    edges, starts, boxes, areas = kernel.fill_truth_edges(Rles(text, offsets, heights, widths))
    for index, mask in enumerate(masks):
        flat = mask.ravel(order="F").astype(int)
        changes = np.flatnonzero(np.diff(flat, prepend=0))  # where it begins and ends in turn
        got = edges[starts[index] : starts[index + 1]]
        assert got[got < flat.size].tolist() == changes.tolist()
        assert areas[index] == mask.sum()
        if mask.any():
            rows, columns = np.nonzero(mask)
            assert boxes[index].tolist() == [columns.min(), columns.max(), rows.min(), rows.max()]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b"", id="no run"),
        pytest.param(b"5", id="too few pixels"),
        pytest.param(b"7", id="too many pixels"),
        pytest.param(b"O", id="negative run"),
        pytest.param(b"2P", id="ends within a number"),
        pytest.param(b"\x1f5", id="character below 48"),
        pytest.param(b"~~~", id="character above 111"),
    ],
)
def test_a_string_that_is_no_rle_of_its_size_has_no_area(text):
    plain = b"24"  # 2 pixels outside, 4 inside: 2 x 3
    rles = Rles(*in_one_piece([plain, text, plain]), np.full(3, 2), np.full(3, 3))
    assert kernel.fill_truth_edges(rles).areas.tolist() == [4, 0, 4]
    groups = Groups(np.arange(3), np.array([0, 3]), np.zeros(1, int), np.full(1, 3), np.arange(3), np.array([0, 9]))
    ious, areas = np.zeros(9), np.zeros(3)
    kernel.fill_mask_ious(ious, areas, rles, groups, kernel.fill_truth_edges(rles), np.zeros(3, bool))
    assert areas.tolist() == [4, -1, 4]
    assert ious.reshape(3, 3).tolist() == [[1, 0, 1], [0, 0, 0], [1, 0, 1]]


def test_empty_runs_change_nothing():
    """2 pixels outside, 0 inside, 0 outside, 4 inside: the same mask as 2 outside, 4 inside."""
    rles = Rles(*in_one_piece([b"2004", b"24"]), np.full(2, 2), np.full(2, 3))
    edges = kernel.fill_truth_edges(rles)
    assert edges.areas.tolist() == [4, 4] and edges.boxes[0].tolist() == edges.boxes[1].tolist()


def test_one_group_is_matched_best_score_first():
    """Three detections, best first; objects 0 and 1, and the crowd region 2."""
    ious = np.array([[0.6, 0.7, 0.0], [0.55, 0.9, 0.8], [0.2, 0.3, 0.9]]).ravel()
    groups = Groups(np.arange(3), np.array([0, 3]), np.array([0]), np.array([3]), np.arange(3), np.array([0, 9]))
    crowd = np.array([False, False, True])
    hits, values = kernel.match_once(ious, groups, np.ones(3, bool), crowd, 0.5)
    assert hits.tolist() == [1, 0, 2] and values.tolist() == [0.7, 0.55, 0.9]
    hits, values = kernel.match_once(ious, groups, np.array([False, True, True]), crowd, 0.5)
    assert hits.tolist() == [-1, 1, 2] and values.tolist() == [0, 0.9, 0.9]
    outcome = np.zeros((3, 1), np.uint32)
    areas, ranges, thresholds = np.full(3, 50.0), np.array([[0, 1e10]]), np.array([0.5, 0.75])
    kernel.match_groups(outcome, ious, areas, groups, crowd, crowd[None], ranges, thresholds)
    # At 0.5 both objects are found; at 0.75 the second one alone. The third detection counts neither way at both.
    assert outcome[:, 0].tolist() == [0b01, 0b11, 0b11 << 16]


@pytest.mark.parametrize(
    ("ious", "regions", "want"),
    [
        ([[0.9, 0.6, 0.0], [0.8, 0.7, 0.0], [0.8, 0.55, 0.95], [0.3, 0.3, 0.6]], [0, 0, 0], [0, 1, 2, -1]),
        ([[0.9, 0.6, 0.0], [0.8, 0.7, 0.0], [0.8, 0.55, 0.95], [0.3, 0.3, 0.6]], [0, 0, 1], [0, 1, 2, 2]),
        ([[0.5, 0.5]], [0, 0], [1]),  # the last of equals
        ([[], []], [], [-1, -1]),
    ],
)
def test_a_detection_takes_the_free_object_it_overlaps_most(ious, regions, want):
    table = np.array(ious, float)
    num, num_truths = table.shape
    bounds = np.array([0, num]), np.array([0]), np.array([num_truths])
    groups = Groups(np.arange(num), *bounds, np.arange(num_truths), np.array([0, table.size]))
    hits, _ = kernel.match_once(table.ravel(), groups, np.ones(num, bool), np.array(regions, bool), 0.5)
    assert hits.tolist() == want


def test_precision_is_interpolated_over_recall():
    """Two objects, hits at ranks 0 and 2: precision 1 up to a recall of 0.5, then 2/3; one detection finds one."""
    outcome = np.array([[1], [0], [1]], np.uint32)
    recalls = np.array([0.0, 0.5, 0.51, 1.0])
    precision, recall = kernel.accumulate(
        outcome,
        np.arange(3),
        np.ones(3, int),
        np.array([0, 3, 3, 3]),
        np.array([[2], [4], [0]]),
        1,
        recalls,
        np.array([1, 100]),
    )
    assert precision.shape == (1, 4, 3, 1, 2) and recall.shape == (1, 3, 1, 2)
    np.testing.assert_allclose(precision[0, :, 0, 0, 1], [1, 1, 2 / 3, 2 / 3], atol=1e-12)
    np.testing.assert_allclose(precision[0, :, 0, 0, 0], [1, 1, 0, 0], atol=1e-12)
    assert recall[0, 0, 0].tolist() == [0.5, 1.0]
    assert not precision[0, :, 1].any() and not recall[0, 1].any()  # objects, and no detection
    assert (precision[0, :, 2] == -1).all() and (recall[0, 2] == -1).all()  # no object


def test_a_weight_of_two_counts_twice_and_of_none_not_at_all():
    outcome = np.array([[1], [0], [1]], np.uint32)
    recalls = np.linspace(0, 1, 11)
    bounds, limits = np.array([0, 3]), np.array([100])
    weighted = kernel.accumulate(
        outcome, np.arange(3), np.array([2, 0, 1]), bounds, np.array([[3]]), 1, recalls, limits
    )
    repeated = kernel.accumulate(
        outcome[[0, 0, 2]], np.arange(3), np.ones(3, int), bounds, np.array([[3]]), 1, recalls, limits
    )
    for got, want in zip(weighted, repeated, strict=True):
        np.testing.assert_array_equal(got, want)
