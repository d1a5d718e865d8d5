"""Settings of evaluation and comparison: what is out of range or cannot be measured is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.evaluation.settings import ComparisonSettings, EvaluationSettings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score_threshold": 1.5}, "score_threshold is 1.5"),
        ({"iou_threshold": 0.0}, "iou_threshold is 0.0"),
        ({"max_detections": 0}, "max_detections is 0; it must be at least 1"),
        ({"classes": ()}, r"classes is \(\); it must be at least 1 long"),
        ({"iou_types": ("mask",)}, "iou_types is 'mask'; allowed are bbox, segm, keypoints"),
        ({"backend": "fast"}, "backend is 'fast'; allowed are auto, compiled, pycocotools"),
        ({"also": ("voc", "kitti")}, "also is 'kitti'"),
        ({"also": ("cityscapes",), "iou_types": ("bbox",)}, "must have 'segm'"),
        ({"slices": ("size",), "iou_types": ("keypoints",)}, "must have 'bbox' or 'segm'"),
    ],
)
def test_what_cannot_be_measured_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvaluationSettings(**changes)


def test_breakdowns_are_of_masks_where_these_are_measured() -> None:
    assert EvaluationSettings().breakdown_type == "segm"
    assert EvaluationSettings(iou_types=("bbox", "keypoints")).breakdown_type == "bbox"


def test_a_comparison_has_the_thresholds_of_an_evaluation() -> None:
    settings = ComparisonSettings(iou_type="bbox", max_detections=7)
    assert (settings.max_detections, settings.score_threshold, settings.only_common) == (7, 0.5, True)
    with pytest.raises(ValueError, match="confidence is 95; it must be less than 1"):
        ComparisonSettings(confidence=95)
