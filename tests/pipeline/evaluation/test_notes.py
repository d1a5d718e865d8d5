"""Notes of an evaluation: each thing that was left out or is understated is said once, with counts and names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline.evaluation.ground_truth import Truth
from pipeline.evaluation.metrics import evaluate, evaluate_run
from pipeline.evaluation.notes import understated
from pipeline.tables import load_instances


def boxes_of(num: int, category_id: int = 10, image_id: int = 1) -> list[dict[str, Any]]:
    """Annotations of 8 x 8 pixels side by side."""
    return [
        {"image_id": image_id, "category_id": category_id, "bbox": [10.0 * (n % 20), 10.0 * (n // 20), 8.0, 8.0]}
        for n in range(num)
    ]


def content_of(annotations: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "images": [{"id": 1, "file_name": "a.png", "height": 100, "width": 200}],
        "annotations": annotations,
        "categories": [{"id": 10, "name": "circle"}, {"id": 20, "name": "square"}],
    }


def detected(annotations: list[dict[str, Any]]) -> pd.DataFrame:
    """The annotations themselves as detections."""
    rows = []
    for entry in annotations:
        x, y, w, h = entry["bbox"]
        name = {10: "circle", 20: "square"}[entry["category_id"]]
        columns = {"image_id": "a.png", "category_id": entry["category_id"], "category": name, "score": 0.9}
        rows.append({**columns, "x1": x, "y1": y, "x2": x + w, "y2": y + h})
    return pd.DataFrame(rows)


def test_the_limit_cuts_ap_alone_and_says_so():
    boxes = boxes_of(150)
    metrics = evaluate(detected(boxes), None, content_of(boxes), iou_types=["bbox"])
    assert metrics.overall("bbox", "recall") == metrics.overall("bbox", "precision") == 1
    assert metrics.overall("bbox", "AP") < 0.7
    assert metrics.notes == (
        "bbox AP counts the best 100 detections of an image and class: 50 others on 1 images were left out of it, "
        "while precision and recall count them; evaluate.max_detections sets the limit",
    )
    higher = evaluate(detected(boxes), None, content_of(boxes), iou_types=["bbox"], max_detections=150)
    assert higher.overall("bbox", "AP") == pytest.approx(1) and not higher.notes
    assert higher.overall("bbox", "AR150") == 1


def test_classes_that_only_one_side_has_are_named():
    boxes = [*boxes_of(3), *boxes_of(2, 20)]
    metrics = evaluate(detected(boxes), None, content_of(boxes[:3]), iou_types=["bbox"])
    assert metrics.overall("bbox", "AP") == pytest.approx(1)
    assert metrics.notes == (
        "2 detections (bbox) of square, of which the ground truth has no object that counts, do not lower AP",
    )
    without = evaluate(detected(boxes[:3]), None, content_of(boxes), iou_types=["bbox"], run_classes={10: "circle"})
    assert without.overall("bbox", "AP") == pytest.approx(0.5)
    assert without.notes == (
        "the model, whose classes are circle, does not have these of the ground truth: square; "
        "their 2 objects count as missed",
    )
    only_circles = evaluate(detected(boxes), None, content_of(boxes), iou_types=["bbox"], classes=("circle",))
    assert only_circles.names == {10: "circle"} and only_circles.overall("bbox", "true_positives") == 3
    assert only_circles.coverage.num_other_category == 2


def test_a_run_of_a_model_is_asked_for_its_classes(drawn_run):
    content = drawn_run.coco
    content["categories"].append({"id": 99, "name": "star"})
    content["annotations"].append({**content["annotations"][0], "id": 999, "category_id": 99})
    notes = evaluate_run(drawn_run.uri, content).notes
    assert any(
        note.endswith("does not have these of the ground truth: star; their 1 objects count as missed")
        for note in notes
    )


def test_annotations_without_a_mask_or_a_box_are_named_by_kind_of_iou(drawn_run, frames):
    content = drawn_run.coco
    content["annotations"][0]["segmentation"] = [[1, 1, 5, 5]]
    content["annotations"][2] |= {"segmentation": [[3, 3, 9, 3, 6, 3]], "bbox": None}
    labels = [f"annotation {content['annotations'][n]['id']}" for n in (0, 2)]
    both = evaluate(frames[0], frames[1], content)
    assert [note for note in both.notes if "ignore regions" in note] == [
        "1 annotations are ignore regions, which count neither way, because they have no mask that can be used: it has "
        f"no polygon of three points ({labels[0]})",
        "1 annotations are ignore regions, which count neither way, because they have no mask that can be used: its "
        f"mask has no area ({labels[1]})",
    ]
    boxes = evaluate(frames[0], frames[1], content, iou_types=["bbox"])
    assert [labels[1] in note for note in boxes.notes if "no box that can be used" in note] == [True]
    found = [metrics.overall(kind, "true_positives") + metrics.overall(kind, "false_negatives")
             for metrics, kind in ((both, "segm"), (boxes, "bbox"))]  # fmt: skip
    assert found == [len(content["annotations"]) - 2, len(content["annotations"]) - 1]


def test_masks_without_a_pixel_are_missed_and_named(drawn_run, frames):
    content = drawn_run.coco
    content["annotations"][1] |= {"bbox": [500, 500, 5, 5], "segmentation": [[500, 500, 505, 500, 505, 505]]}
    notes = evaluate(frames[0], frames[1], content).notes
    label = f"annotation {content['annotations'][1]['id']}"
    assert f"1 annotations have a mask without a pixel ({label}); they count as missed" in notes


def test_nothing_that_counts_and_nothing_that_can_be_read():
    crowd = [{**entry, "iscrowd": 1} for entry in boxes_of(2)]
    metrics = evaluate(detected(crowd), None, content_of(crowd), iou_types=["bbox"])
    assert np.isnan(metrics.overall("bbox", "AP"))
    assert "the ground truth has no object that counts, so that AP and recall are not measured" in metrics.notes
    boxes = boxes_of(3)
    frame = detected(boxes).assign(score=[0.9, np.nan, 0.9])
    metrics = evaluate(frame, None, content_of(boxes), iou_types=["bbox"])
    assert metrics.overall("bbox", "true_positives") == 2 and metrics.overall("bbox", "false_positives") == 0
    assert metrics.notes == ("1 detections have a score or geometry that cannot be read (bbox); left out",)


def test_images_of_the_run_alone_are_counted(drawn_run, frames):
    content = drawn_run.coco
    content["images"] = content["images"][:6]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] in kept]
    notes = evaluate(frames[0], frames[1], content).notes
    assert "2 images of the run not in the ground truth; detections there were left out" in notes


def test_only_high_scores_understate_ap():
    assert understated(None) is understated(0.05) is None
    note = understated(0.3)
    assert note is not None and note.startswith("the run kept scores from 0.3 up only; AP is understated")


def test_a_whole_run_against_its_own_truth_needs_no_note(drawn_run):
    truth = Truth.load(drawn_run.truth)
    part = truth.only(truth.image_ids[:7])
    images = load_instances(drawn_run.uri)
    assert evaluate(images, None, part).notes == ()
