"""IoU of detections and annotations against pixels and box formulas written down independently."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from pipeline.evaluation.detections import DetectionTable
from pipeline.evaluation.ground_truth import Truth
from pipeline.evaluation.input_check import OddInput
from pipeline.evaluation.iou import MOST_OF_A_CLASS, find_overlaps
from tests.pipeline.evaluation.random_cases import random_case


def mask_iou(truth: Truth, table: DetectionTable, row: int, index: int) -> float:
    detected = coco_mask.decode(table.to_rles()[row]).astype(bool)
    annotated = coco_mask.decode(truth.rles[index]).astype(bool)
    union = detected if truth.is_crowd[index] else detected | annotated
    return float((detected & annotated).sum() / union.sum())


def box_iou(truth: Truth, table: DetectionTable, row: int, index: int) -> float:
    (ax, ay, aw, ah), (bx, by, bw, bh) = table.bboxes[row], truth.annotations[index]["bbox"]
    width, height = min(ax + aw, bx + bw) - max(ax, bx), min(ay + ah, by + bh) - max(ay, by)
    shared = max(width, 0) * max(height, 0)
    return float(shared / (aw * ah if truth.is_crowd[index] else aw * ah + bw * bh - shared))


@pytest.mark.parametrize(("iou_type", "iou"), [("segm", mask_iou), ("bbox", box_iou)])
def test_every_pair_of_an_image_and_class_has_its_iou(iou_type, iou):
    truth, table = random_case(2, num_detections=60)
    overlaps = find_overlaps(truth, table, iou_type)
    assert sorted(overlaps.rows.tolist()) == list(range(len(table)))
    num_pairs = 0
    for group in range(len(overlaps.starts) - 1):
        rows = overlaps.rows[overlaps.starts[group] : overlaps.starts[group + 1]]
        indices = overlaps.truths[overlaps.first[group] : overlaps.end[group]]
        image_id = overlaps.image_ids[overlaps.images[group]]
        category_id = overlaps.category_ids[overlaps.categories[group]]
        assert (table.image_ids[rows] == image_id).all() and (table.category_ids[rows] == category_id).all()
        assert indices.tolist() == [
            index
            for index, entry in enumerate(truth.annotations)
            if (entry["image_id"], entry["category_id"]) == (image_id, category_id)
        ]
        assert (np.diff(table.scores[rows]) <= 0).all()
        got = overlaps.ious[overlaps.pairs[group] : overlaps.pairs[group + 1]].reshape(len(rows), len(indices))
        want = [[iou(truth, table, row, index) for index in indices] for row in rows]
        np.testing.assert_array_equal(got, np.array(want).reshape(got.shape))
        num_pairs += got.size
    assert num_pairs == len(overlaps.ious) > 100 and (overlaps.ious > 0).any() and truth.is_crowd.any()


def test_only_the_best_of_an_image_and_class_are_looked_at():
    truth, table = random_case(0, num_detections=1500)
    overlaps = find_overlaps(truth, table, "bbox")
    assert np.diff(overlaps.starts).max() == MOST_OF_A_CLASS["bbox"]
    for image_id, category_id in ((9, 1), (2, 3)):
        of_group = (table.image_ids == image_id) & (table.category_ids == category_id)
        assert of_group.sum() > MOST_OF_A_CLASS["bbox"]
        kept = overlaps.rows[of_group[overlaps.rows]]
        best = np.sort(table.scores[of_group])[::-1][: MOST_OF_A_CLASS["bbox"]]
        np.testing.assert_array_equal(table.scores[kept], best)


def test_areas_are_those_of_the_masks_or_the_boxes():
    truth, table = random_case(1, num_detections=50)
    table = replace(table, bboxes=table.bboxes * 2)
    pixels = np.array([coco_mask.area(rle) for rle in table.to_rles()])
    overlaps = find_overlaps(truth, table, "segm")
    np.testing.assert_array_equal(overlaps.areas, pixels[overlaps.rows])
    overlaps = find_overlaps(truth, table, "bbox")
    np.testing.assert_array_equal(overlaps.areas, 4 * pixels[overlaps.rows])


def test_input_that_only_pycocotools_may_judge_is_refused():
    truth, table = random_case(1, num_detections=5)
    with pytest.raises(OddInput, match="a score is not finite"):
        find_overlaps(truth, replace(table, scores=np.array([0.5, np.nan, 0.5, 0.5, 0.5])), "bbox")
    with pytest.raises(OddInput, match="images or of categories that the truth does not have"):
        find_overlaps(truth, replace(table, image_ids=np.full(5, 1234)), "bbox")
    counts = [rle["counts"] for rle in table.to_rles()]
    with pytest.raises(OddInput, match="the mask of detection 3 is not plain RLE"):
        find_overlaps(truth, replace(table, counts=[*counts[:3], "", counts[4]]), "segm")
    with pytest.raises(ValueError, match="segm evaluation needs masks"):
        find_overlaps(truth, replace(table, counts=None, sizes=None), "segm")
