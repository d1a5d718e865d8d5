"""Pairs at one IoU threshold: those of pycocotools, however many detections there are."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.evaluation.detections import DetectionTable
from pipeline.evaluation.ground_truth import Truth
from pipeline.evaluation.iou import find_overlaps
from pipeline.evaluation.matching import Matches, match
from pipeline.evaluation.run_detections import align
from pipeline.tables import load_instances
from tests.pipeline.evaluation.coco_results import pycocotools, results_of
from tests.pipeline.evaluation.random_cases import random_case


def matched(
    truth: Truth,
    table: DetectionTable,
    iou_type: str = "segm",
    iou_threshold: float = 0.5,
    score_threshold: float = 0.0,
) -> Matches:
    overlaps = find_overlaps(truth, table, iou_type)
    return match(truth, table, overlaps, iou_threshold=iou_threshold, score_threshold=score_threshold)


def test_matching_is_cocos_own(drawn_run):
    """Against what pycocotools notes about every detection and annotation at IoU 0.5."""
    content = drawn_run.coco
    for index, entry in enumerate(content["annotations"]):
        entry["iscrowd"] = index % 2
    instances = load_instances(drawn_run.uri)
    evaluator = pycocotools(content, results_of(instances, content, "segm"), "segm")
    want = set()
    for image in evaluator.evalImgs:
        if image is not None and image["aRng"] == [0, 1e10]:
            for row, hit, ignored in zip(image["dtIds"], image["dtMatches"][0], image["dtIgnore"][0], strict=True):
                want.add((row - 1, int(hit) - 1, bool(ignored)))
    truth = Truth.from_coco(content)
    table, _ = align(instances, None, truth)
    got = matched(truth, table)
    assert set(zip(got.rows.tolist(), got.truths.tolist(), got.ignored.tolist(), strict=True)) == want
    assert got.ignored.any()
    np.testing.assert_array_equal(got.image_ids, table.image_ids[got.rows])
    np.testing.assert_array_equal(got.category_ids, table.category_ids[got.rows])


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_thresholds_leave_out_what_is_below_them(iou_type):
    truth, table = random_case(0)
    loose = matched(truth, table, iou_type, 0.5, 0.5)
    assert sorted(loose.rows.tolist()) == np.flatnonzero(table.scores >= 0.5).tolist()
    assert (loose.ious[loose.truths >= 0] >= 0.5).all() and (loose.ious[loose.truths < 0] == 0).all()
    strict = matched(truth, table, iou_type, 1.0, 0.5)
    assert (strict.ious[strict.truths >= 0] == 1).all() and 0 < strict.found.sum() <= loose.found.sum()
    crowd = truth.annotations.is_crowd
    assert not loose.found[crowd].any() and (loose.counted == ~crowd).all() and loose.ignored.any()


def test_more_than_a_hundred_detections_of_an_image_and_class_all_take_part():
    truth, table = random_case(0, num_detections=3000)
    got = matched(truth, table)
    assert sorted(got.rows.tolist()) == list(range(3000))
    per_group = np.unique(np.stack([table.image_ids, table.category_ids]), axis=1, return_counts=True)[1]
    assert per_group.max() > 100
    assert got.found.sum() > matched(truth, table.take(np.arange(100))).found.sum()


def test_matches_of_some_images_are_those_of_an_evaluation_of_them_alone():
    truth, table = random_case(3)
    whole = matched(truth, table)
    ids = np.array([2, 9])
    rows = np.flatnonzero(np.isin(table.image_ids, ids))
    alone = matched(truth.only(ids), table.take(rows))
    part = whole.on_images(ids.tolist(), truth)
    assert part.rows.tolist() == rows[alone.rows].tolist()
    np.testing.assert_array_equal(part.ious, alone.ious)
    assert part.found.sum() == alone.found.sum() > 0 and part.counted.sum() == alone.counted.sum()


def test_nothing_to_match():
    truth, table = random_case(1)
    no_detections = matched(truth, table.take(np.zeros(0, np.int64)))
    assert not no_detections.found.any() and not len(no_detections.rows)
    nothing = Truth.from_coco({
        "images": [{"id": i, "file_name": f"{i}.png", "height": 40, "width": 50} for i in truth.image_ids.tolist()],
        "annotations": [],
        "categories": [{"id": n, "name": name} for n, name in truth.names.items()],
    })  # fmt: skip
    no_objects = matched(nothing, table)
    assert no_objects.is_false.all() and len(no_objects.rows) == len(table)
