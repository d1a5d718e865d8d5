"""IoU of detections and annotations against pixels and box formulas written down independently."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from pipeline.evaluation.detections import DetectionTable, to_text
from pipeline.evaluation.ground_truth import EvaluationError, Truth
from pipeline.evaluation.iou import find_overlaps
from tests.pipeline.evaluation.random_cases import SIZE, random_case


def mask_iou(truth: Truth, table: DetectionTable, row: int, index: int) -> float:
    detected = coco_mask.decode(table.to_rles()[row]).astype(bool)
    annotated = coco_mask.decode({"size": list(SIZE), "counts": truth.rles[index]}).astype(bool)
    union = detected if truth.annotations.is_crowd[index] else detected | annotated
    return float((detected & annotated).sum() / union.sum())


def box_iou(truth: Truth, table: DetectionTable, row: int, index: int) -> float:
    (ax, ay, aw, ah), (bx, by, bw, bh) = table.bboxes[row], truth.annotations.boxes[index]
    width, height = min(ax + aw, bx + bw) - max(ax, bx), min(ay + ah, by + bh) - max(ay, by)
    shared = max(width, 0) * max(height, 0)
    return float(shared / (aw * ah if truth.annotations.is_crowd[index] else aw * ah + bw * bh - shared))


@pytest.mark.parametrize("by_class", [True, False])
@pytest.mark.parametrize(("iou_type", "iou"), [("segm", mask_iou), ("bbox", box_iou)])
def test_every_pair_of_a_group_has_its_iou(iou_type, iou, by_class):
    truth, table = random_case(2, num_detections=60)
    overlaps = find_overlaps(truth, table, iou_type, by_class=by_class)
    groups, annotations = overlaps.groups, truth.annotations
    assert sorted(groups.rows.tolist()) == list(range(len(table)))
    num_pairs = 0
    for group in range(len(groups.first)):
        rows = groups.rows[groups.starts[group] : groups.starts[group + 1]]
        indices = groups.truths[groups.first[group] : groups.end[group]]
        image_id = overlaps.image_ids[overlaps.images[group]]
        is_there = annotations.image_ids == image_id
        if by_class:
            category_id = overlaps.category_ids[overlaps.categories[group]]
            assert (table.category_ids[rows] == category_id).all()
            is_there &= annotations.category_ids == category_id
        assert (table.image_ids[rows] == image_id).all()
        assert indices.tolist() == np.flatnonzero(is_there).tolist()
        assert (np.diff(table.scores[rows]) <= 0).all()
        want = [[iou(truth, table, row, index) for index in indices] for row in rows]
        np.testing.assert_array_equal(overlaps.block(group), np.array(want).reshape(len(rows), len(indices)))
        num_pairs += len(rows) * len(indices)
    assert num_pairs == len(overlaps.ious) > 100 and (overlaps.ious > 0).any() and annotations.is_crowd.any()


def test_areas_are_those_of_the_masks_or_the_boxes():
    truth, table = random_case(1, num_detections=50)
    table = replace(table, bboxes=table.bboxes * 2)
    pixels = np.array([coco_mask.area(rle) for rle in table.to_rles()])
    overlaps = find_overlaps(truth, table, "segm")
    np.testing.assert_array_equal(overlaps.areas, pixels[overlaps.groups.rows])
    overlaps = find_overlaps(truth, table, "bbox")
    np.testing.assert_array_equal(overlaps.areas, 4 * pixels[overlaps.groups.rows])


def test_detections_that_cannot_be_read_are_in_no_group_and_are_counted():
    truth, table = random_case(1, num_detections=40)
    counts = to_text(table.counts).to_pylist()
    counts[3], counts[7] = "", counts[7][:-1] + "~"
    scores, bboxes = table.scores.copy(), table.bboxes.copy()
    scores[5], bboxes[9, 2] = np.nan, np.inf
    damaged = replace(table, counts=counts, scores=scores, bboxes=bboxes)
    for iou_type, unreadable in (("segm", [3, 5, 7, 9]), ("bbox", [5, 9])):
        overlaps = find_overlaps(truth, damaged, iou_type)
        assert overlaps.num_unreadable == len(unreadable)
        kept = np.setdiff1d(np.arange(40), unreadable)
        assert sorted(overlaps.groups.rows.tolist()) == kept.tolist()
        want = find_overlaps(truth, table.take(kept), iou_type)
        np.testing.assert_array_equal(overlaps.ious, want.ious)
        np.testing.assert_array_equal(overlaps.groups.rows, kept[want.groups.rows])


def test_detections_without_what_is_measured_are_refused():
    truth, table = random_case(1, num_detections=5)
    with pytest.raises(ValueError, match="images or of categories that the truth does not have"):
        find_overlaps(truth, replace(table, image_ids=np.full(5, 1234)), "bbox")
    with pytest.raises(ValueError, match="segm evaluation needs masks"):
        find_overlaps(truth, replace(table, counts=None, sizes=None), "segm")
    with pytest.raises(ValueError, match="keypoint evaluation needs keypoints"):
        find_overlaps(truth, table, "keypoints")
    with pytest.raises(EvaluationError, match="no detection has 17 keypoints"):
        find_overlaps(truth, replace(table, keypoints=[[1.0] * 6] * 5), "keypoints")
    with pytest.raises(ValueError, match="iou_type is 'mask'; allowed are bbox, segm, keypoints"):
        find_overlaps(truth, table, "mask")


def test_keypoints_of_another_number_than_cocos_are_refused_by_name():
    truth, table = random_case(1, num_detections=5)
    truth.annotations.keypoints[4] = [1.0, 2.0, 2.0] * 5
    with pytest.raises(EvaluationError, match="annotation 5 has 5 keypoints; AP of keypoints is that of COCO's 17"):
        find_overlaps(truth, replace(table, keypoints=[[1.0] * 51] * 5), "keypoints")
