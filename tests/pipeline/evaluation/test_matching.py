"""Pairs at one IoU threshold: those of pycocotools, whether its IoU are computed here or by it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from pipeline.evaluation.ground_truth import Truth
from pipeline.evaluation.iou import find_overlaps
from pipeline.evaluation.matching import greedy_match, match
from pipeline.evaluation.run_detections import align
from pipeline.tables import load_instances
from tests.pipeline.evaluation.coco_results import results_of
from tests.pipeline.evaluation.random_cases import random_case


def test_a_detection_takes_the_free_object_it_overlaps_most():
    ious = np.array([[0.9, 0.6, 0.0], [0.8, 0.7, 0.0], [0.8, 0.55, 0.95], [0.3, 0.3, 0.6]])
    nowhere = np.zeros(3, bool)
    assert greedy_match(ious, nowhere, 0.5).tolist() == [0, 1, 2, -1]
    assert greedy_match(ious, nowhere, 0.9).tolist() == [0, -1, 2, -1]
    crowd = np.array([False, False, True])  # several may lie on it, and only what found no object does
    assert greedy_match(ious, crowd, 0.5).tolist() == [0, 1, 2, 2]
    assert greedy_match(np.array([[0.5, 0.5]]), np.zeros(2, bool), 0.5).tolist() == [1]  # the last of equals
    assert greedy_match(np.zeros((2, 0)), np.zeros(0, bool), 0.5).tolist() == [-1, -1]


def test_matching_is_cocos_own(drawn_run):
    """Against what pycocotools notes about every detection and annotation at IoU 0.5."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    content = drawn_run.coco
    for index, entry in enumerate(content["annotations"]):
        entry["iscrowd"] = index % 2
    instances = load_instances(drawn_run.uri)
    truth = COCO()
    truth.dataset = json.loads(json.dumps(content))
    truth.createIndex()
    evaluator = COCOeval(truth, truth.loadRes(results_of(instances, content, "segm")), "segm")
    evaluator.evaluate()
    want = set()
    for image in evaluator.evalImgs:
        if image is not None and image["aRng"] == [0, 1e10]:
            for row, hit, ignored in zip(image["dtIds"], image["dtMatches"][0], image["dtIgnore"][0], strict=True):
                want.add((row - 1, int(hit) - 1, bool(ignored)))
    table, _ = align(instances, None, Truth.from_coco(content))
    got = match(Truth.from_coco(content), table, "segm")
    assert set(zip(got.rows.tolist(), got.truths.tolist(), got.ignored.tolist(), strict=True)) == want
    assert got.ignored.any()


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("limits", [(0.5, 0.0, 100), (0.5, 0.5, 100), (0.9, 0.3, 5), (1.0, 0.0, 100), (0.0, 0.2, 100)])
def test_known_overlaps_give_the_same_pairs(iou_type, limits):
    iou_threshold, score_threshold, max_detections = limits
    for seed in range(5):
        truth, table = random_case(seed, num_detections=1500 if seed == 0 else 400)
        settings: dict[str, Any] = {
            "iou_threshold": iou_threshold,
            "score_threshold": score_threshold,
            "max_detections": max_detections,
        }
        want = match(truth, table, iou_type, **settings)
        got = match(truth, table, iou_type, **settings, overlaps=find_overlaps(truth, table, iou_type))
        for name in ("rows", "truths", "ious", "ignored", "found", "counted"):
            np.testing.assert_array_equal(getattr(got, name), getattr(want, name), err_msg=name)
        assert len(want.rows) and (iou_threshold > 0.5 or (want.found.any() and want.ignored.any()))
        if seed == 0:
            assert len(find_overlaps(truth, table, iou_type).rows) < len(table)  # more than are looked at


def test_nothing_to_match():
    truth, table = random_case(1)
    no_detections = table.take(np.zeros(0, np.int64))
    no_objects = Truth(truth.images, [], truth.categories)
    for objects, detections in ((truth, no_detections), (no_objects, table)):
        want = match(objects, detections, "segm")
        got = match(objects, detections, "segm", overlaps=find_overlaps(objects, detections, "segm"))
        assert got.rows.tolist() == want.rows.tolist()
        assert not got.found.any() and not got.is_true.any()
