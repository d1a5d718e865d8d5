"""A run's figures: equal to those of pycocotools on the same values; what was not measured is counted and noted."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from pycocotools import mask as coco_mask

from pipeline.dataset.shapes import SHAPE_CATEGORIES
from pipeline.evaluation.ground_truth import Truth
from pipeline.evaluation.iou import find_overlaps
from pipeline.evaluation.metrics import evaluate, evaluate_run
from pipeline.evaluation.run_detections import align
from pipeline.evaluation.voc_cityscapes import cityscapes_ap, voc_ap
from pipeline.tables import load_instances
from tests.pipeline.evaluation.coco_results import pycocotools, results_of
from tests.pipeline.evaluation.damaged_cases import cases, check_damaged
from tests.pipeline.made_run import image_row, instance_row


@pytest.mark.parametrize("backend", ["compiled", "pycocotools"])
def test_a_run_gives_the_figures_of_pycocotools(drawn_run, backend):
    metrics = evaluate_run(drawn_run.uri, drawn_run.coco, backend=backend)
    instances = load_instances(drawn_run.uri)
    for iou_type in ("bbox", "segm"):
        results = results_of(instances, drawn_run.coco, iou_type)
        want = pycocotools(drawn_run.coco, results, iou_type)
        np.testing.assert_allclose(metrics.coco[iou_type].stats, want.stats, rtol=0, atol=1e-12)
        assert 0.1 < want.stats[0] < 0.9
        assert metrics.coco[iou_type].backend == backend


def test_an_annotated_set_and_a_file_give_the_same(drawn_run, tmp_path):
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(drawn_run.coco))
    by_set = evaluate_run(drawn_run.uri, drawn_run.truth).to_dict()
    assert by_set == evaluate_run(drawn_run.uri, str(path)).to_dict()


def test_threshold_figures_agree_with_counting_by_hand(drawn_run):
    metrics = evaluate_run(drawn_run.uri, drawn_run.truth, score_threshold=0.4)
    instances = load_instances(drawn_run.uri)
    tp = fp = fn = 0
    ious = []
    for image in drawn_run.truth.images:
        rows = instances[(instances["image_id"] == image.file_name) & (instances["score"] >= 0.4)]
        objects = [(i.label, i.mask(image.height, image.width)) for i in image.instances]
        for row in rows.sort_values("score", ascending=False).itertuples():
            mask = drawn_run.masks[row.image_id, row.instance]
            best, best_index = 0.0, None
            for index, (label, truth_mask) in enumerate(objects):
                iou = (mask & truth_mask).sum() / (mask | truth_mask).sum()
                if SHAPE_CATEGORIES[label - 1].id == row.category_id and iou >= 0.5 and iou > best:
                    best, best_index = iou, index
            if best_index is None:
                fp += 1
            else:
                tp += 1
                ious.append(best)
                del objects[best_index]
        fn += len(objects)
    assert min(tp, fp, fn) > 0
    assert metrics.overall("segm", "true_positives") == tp
    assert metrics.overall("segm", "precision") == tp / (tp + fp)
    assert metrics.overall("segm", "recall") == tp / (tp + fn)
    assert metrics.overall("segm", "F1") == pytest.approx(2 * tp / (2 * tp + fp + fn))
    assert metrics.overall("segm", "mean_iou") == pytest.approx(np.mean(ious))


def test_equal_scores_keep_the_order_of_the_table(drawn_run):
    instances = load_instances(drawn_run.uri).assign(score=np.float32(0.5))
    for frame in (instances, instances.iloc[::-1]):
        want = pycocotools(drawn_run.coco, results_of(frame, drawn_run.coco, "segm"), "segm")
        got = evaluate(frame, None, drawn_run.coco, iou_types=["segm"])
        np.testing.assert_array_equal(got.coco["segm"].stats, want.stats)


def test_failed_and_missing_images_count_as_missed_and_are_named(drawn_run, frames):
    instances, images = frames
    metrics = evaluate(instances, images, drawn_run.truth)
    lost = len(drawn_run.truth.images[7].instances)
    assert metrics.coverage.failed == {"corrupt": 1} and metrics.coverage.num_truths_lost == lost > 0
    assert "1 corrupt" in metrics.notes[0] and f"{lost} objects count as missed" in metrics.notes[0]
    gone = images["image_id"] == "sub/photo_0.png"
    fewer = evaluate(instances[instances["image_id"] != "sub/photo_0.png"], images[~gone], drawn_run.truth)
    assert fewer.coverage.num_missing == 1
    assert fewer.overall("segm", "recall") < metrics.overall("segm", "recall")
    total = metrics.overall("segm", "true_positives") + metrics.overall("segm", "false_negatives")
    assert total == drawn_run.truth.num_instances


def test_nothing_found_is_zero_and_nothing_to_find_is_nan(drawn_run, frames):
    instances, images = frames
    nothing = evaluate(instances.iloc[:0], images, drawn_run.truth)
    assert nothing.overall("segm", "AP") == 0 and nothing.overall("bbox", "AR100") == 0
    assert np.isnan(nothing.overall("segm", "precision")) and nothing.overall("segm", "recall") == 0
    empty = {**drawn_run.coco, "annotations": []}
    for backend in ("compiled", "pycocotools"):
        none = evaluate(instances, images, empty, backend=backend)
        assert np.isnan(none.overall("segm", "AP")) and none.overall("segm", "precision") == 0
    assert evaluate(instances.iloc[:0], images, empty).to_dict()["overall"]["segm"]["AP"] is None


def test_frame_and_dict_hold_the_same_figures(drawn_run):
    metrics = evaluate_run(drawn_run.uri, drawn_run.truth)
    frame = metrics.to_frame()
    plain = json.loads(json.dumps(metrics.to_dict()))
    assert not frame.duplicated(["iou_type", "metric", "category"]).any()
    overall = frame[frame["category"].isna()]
    assert plain["overall"]["segm"]["AP"] == metrics.overall("segm", "AP")
    assert set(overall["metric"]) >= {
        "AP",
        "AP50",
        "AP75",
        "AP_small",
        "AR100",
        "mean_iou",
        "precision",
        "recall",
        "F1",
    }
    classes = frame[(frame["iou_type"] == "segm") & (frame["metric"] == "AP")].dropna(subset=["category"])
    assert classes["value"].mean() == pytest.approx(metrics.overall("segm", "AP"))
    assert plain["by_category"]["segm"]["circle"]["AP"] == classes.set_index("category").loc["circle", "value"]
    with pytest.raises(ValueError, match=r"AP51 was not measured.*AP50"):
        metrics.overall("segm", "AP51")


def test_a_high_score_threshold_of_the_run_is_warned_about(drawn_run, frames):
    instances, images = frames
    with pytest.warns(UserWarning, match=r"0\.5 up only") as caught:
        metrics = evaluate(instances, images, drawn_run.truth, run_score_threshold=0.5)
    assert caught[0].filename == __file__  # the warning points at the caller
    assert "understated" in metrics.notes[-1]
    assert evaluate_run(drawn_run.uri, drawn_run.truth).run_score_threshold == 0.05


def test_a_perfect_run_scores_one():
    mask = np.zeros((50, 60), bool)
    mask[10:30, 5:40] = True
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    rle["counts"] = rle["counts"].decode()
    coco = {
        "images": [{"id": 1, "file_name": "a.png", "height": 50, "width": 60}],
        "categories": [{"id": 10, "name": "circle"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 10,
                "bbox": [5, 10, 35, 20],
                "area": 700,
                "iscrowd": 0,
                "segmentation": rle,
            }
        ],
    }
    instances = pd.DataFrame([instance_row("a.png", 0, SHAPE_CATEGORIES[0], 0.9, mask)])
    metrics = evaluate(instances, pd.DataFrame([image_row("a.png", "a.png", "ok", (50, 60), 1, 0)]), coco)
    for iou_type in ("bbox", "segm"):
        assert metrics.overall(iou_type, "AP") == pytest.approx(1.0)
        assert metrics.overall(iou_type, "mean_iou") == 1.0
    with pytest.raises(ValueError, match="iou_threshold is 2"):
        evaluate(instances, None, coco, iou_threshold=2)


def test_keypoints_are_evaluated_from_the_table(drawn_run, frames):
    rng = np.random.default_rng(0)
    content = drawn_run.coco
    for entry in content["annotations"]:
        x, y, w, h = entry["bbox"]
        points = np.stack([x + rng.random(17) * w, y + rng.random(17) * h, rng.integers(0, 3, 17)], 1)
        entry.update(keypoints=points.ravel().tolist(), num_keypoints=int((points[:, 2] > 0).sum()))
    ids = {image["file_name"]: image["id"] for image in content["images"]}
    column = []
    for row in frames[0].itertuples():
        objects = [e for e in content["annotations"] if e["image_id"] == ids[row.image_id]]
        nearby = np.array(objects[rng.integers(len(objects))]["keypoints"]) + rng.normal(0, 1.5, 51)
        column.append(nearby.astype(np.float32))
    instances = frames[0].assign(keypoints=column)
    got = evaluate(instances, frames[1], content, iou_types=["keypoints"])
    results = [
        {
            "image_id": ids[row.image_id],
            "category_id": int(row.category_id),
            "score": float(row.score),
            "keypoints": [float(value) for value in row.keypoints],
        }
        for row in instances.itertuples()
    ]
    want = pycocotools(content, results, "keypoints")
    np.testing.assert_allclose(got.coco["keypoints"].stats, want.stats, rtol=0, atol=1e-12)
    assert 0 < want.stats[0] < 1
    assert "AR50" in set(got.to_frame()["metric"])


def test_voc_cityscapes_confusion_and_slices_are_measured_where_asked_for(drawn_run, frames):
    instances, images = frames
    also, slices = ["voc", "cityscapes", "confusion"], ["size", "crowding", "status", "height"]
    metrics = evaluate(instances, images, drawn_run.truth, also=also, slices=slices)
    truth = Truth.load(drawn_run.truth)
    table, _ = align(instances, images, truth)
    boxes, masks = (find_overlaps(truth, table, kind) for kind in ("bbox", "segm"))
    voc = voc_ap(truth, table, boxes)
    assert metrics.overall("bbox", "VOC_AP") == voc[None]["VOC_AP"]
    assert metrics.overall("segm", "VOC_AP_11point") == voc_ap(truth, table, masks)[None]["VOC_AP_11point"]
    assert metrics.overall("segm", "Cityscapes_AP50") == cityscapes_ap(truth, table, masks)[None]["AP50"]
    plain = json.loads(json.dumps(metrics.to_dict()))
    assert plain["by_category"]["bbox"]["circle"]["VOC_AP"] == voc[10]["VOC_AP"]
    counts = np.array(plain["confusion"]["counts"])
    assert counts.trace() == metrics.overall("segm", "true_positives")
    assert [table["by"] for table in plain["slices"]] == slices
    status = plain["slices"][2]
    by_status = {row[0]: dict(zip(status["columns"], row, strict=True)) for row in status["rows"]}
    assert by_status["corrupt"]["AP"] == 0 and by_status["corrupt"]["precision"] is None
    assert by_status["all"]["AP"] == metrics.overall("segm", "AP")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"also": ["voc2"]}, "also is 'voc2'; allowed are voc, cityscapes, confusion"),
        ({"also": ["cityscapes"], "iou_types": ["bbox"]}, "which measures masks; iou_types is \\['bbox'\\]"),
        ({"slices": ["size"], "iou_types": ["keypoints"]}, "must have 'bbox' or 'segm'"),
        ({"slices": ["weather"]}, "cannot be sliced by 'weather'; allowed are crowding, overlap, image_id"),
    ],
)
def test_a_figure_that_cannot_be_measured_is_refused(drawn_run, frames, asked, message):
    instances, images = frames
    with pytest.raises(ValueError, match=message):
        evaluate(instances, images, drawn_run.truth, **{"iou_types": ["bbox", "segm"], **asked})


RANDOM: Any = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True, "database": None}


@settings(max_examples=100, **RANDOM)
@given(cases())
def test_damaged_annotations_give_pycocotools_numbers_a_note_or_a_refusal(case):
    check_damaged(case)


@pytest.mark.long
@settings(max_examples=500, **RANDOM)
@given(cases())
def test_five_hundred_damaged_truths(case):
    check_damaged(case)
