"""Non-maximum suppression, hard and soft: three boxes in a row by hand, many against torchvision."""

import math
from typing import Any

import pytest
import torch
from torchvision.ops import batched_nms

from model.heads import nms
from model.heads.nms import suppress_images, suppress_within

# IoU of the first and second box: 1/3; of the second and third: 1/3; of the first and third: 0.
BOXES = torch.tensor([[0.0, 0, 2, 1], [1, 0, 3, 1], [2, 0, 4, 1]])
SCORES = torch.tensor([0.9, 0.8, 0.3])
SAME = torch.tensor([1, 1, 1])


def suppress(boxes, scores, labels, **options):
    """Indices and scores of the boxes of one image that are kept."""
    return suppress_images(boxes, scores, labels, torch.zeros(len(boxes), dtype=torch.int64), 1, **options)[0]


def run(kind, labels=SAME, iou_threshold=0.3, score_threshold=0.05, max_detections=10):
    keep, scores = suppress(
        BOXES,
        SCORES,
        labels,
        kind=kind,
        iou_threshold=iou_threshold,
        sigma=0.5,
        score_threshold=score_threshold,
        max_detections=max_detections,
    )
    return keep.tolist(), scores.tolist()


def test_hard_nms_drops_what_a_better_box_overlaps():
    keep, scores = run("hard")
    assert keep == [0, 2] and scores == pytest.approx([0.9, 0.3])


def test_linear_soft_nms_lowers_scores_by_the_overlap():
    # The second falls to 0.8 * 2/3 = 0.533, then takes the third to 0.3 * 2/3.
    keep, scores = run("soft_linear")
    assert keep == [0, 1, 2] and scores == pytest.approx([0.9, 0.8 * 2 / 3, 0.2])
    # Overlaps up to the threshold cost nothing.
    assert run("soft_linear", iou_threshold=0.5)[1] == pytest.approx([0.9, 0.8, 0.3])


def test_gaussian_soft_nms_lowers_scores_by_equation_3():
    factor = math.exp(-(1 / 9) / 0.5)
    keep, scores = run("soft_gaussian")
    assert keep == [0, 1, 2] and scores == pytest.approx([0.9, 0.8 * factor, 0.3 * factor])


@pytest.mark.parametrize("kind", ["hard", "soft_linear", "soft_gaussian"])
def test_boxes_of_different_classes_do_not_suppress_each_other(kind):
    assert run(kind, labels=torch.tensor([1, 2, 1]))[1] == pytest.approx([0.9, 0.8, 0.3])


def test_boxes_whose_score_falls_to_the_threshold_are_dropped():
    assert run("soft_linear", score_threshold=0.25)[0] == [0, 1]


@pytest.mark.parametrize("kind", ["hard", "soft_linear", "soft_gaussian"])
def test_at_most_max_detections_stay_and_no_box_gives_none(kind):
    assert len(run(kind, max_detections=1)[0]) == 1
    keep, scores = suppress(
        BOXES[:0],
        SCORES[:0],
        SAME[:0],
        kind=kind,
        iou_threshold=0.5,
        sigma=0.5,
        score_threshold=0.0,
        max_detections=5,
    )
    assert keep.dtype == torch.int64 and len(keep) == len(scores) == 0


def test_linear_soft_nms_of_boxes_that_coincide_or_are_disjoint_is_hard_nms():
    """Where every IoU is 1 or 0, the linear form drops what the hard form drops."""
    generator = torch.Generator().manual_seed(0)
    positions = torch.randint(0, 5, (40,), generator=generator)
    boxes = torch.stack([positions * 10.0, positions * 0.0, positions * 10.0 + 5, positions * 0.0 + 5], dim=1)
    scores, labels = torch.rand(40, generator=generator), torch.randint(1, 3, (40,), generator=generator)
    keep, _ = suppress(
        boxes,
        scores,
        labels,
        kind="soft_linear",
        iou_threshold=0.5,
        sigma=0.5,
        score_threshold=0.0,
        max_detections=100,
    )
    assert keep.tolist() == batched_nms(boxes, scores, labels, 0.5).tolist()


def random_boxes(count=600):
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(count, 4, generator=generator) * 100
    boxes[:, 2:] += boxes[:, :2]
    return boxes, torch.rand(count, generator=generator), torch.randint(0, 7, (count,), generator=generator)


def test_groups_do_not_affect_each_other():
    boxes, scores, groups = random_boxes()
    assert suppress_within(boxes, scores, groups, 0.4).tolist() == batched_nms(boxes, scores, groups, 0.4).tolist()
    alone = suppress_within(boxes[groups == 3], scores[groups == 3], groups[groups == 3], 0.4)
    together = suppress_within(boxes, scores, groups, 0.4)
    assert torch.where(groups == 3)[0][alone].tolist() == together[groups[together] == 3].tolist()
    assert suppress_within(boxes[:0], scores[:0], groups[:0], 0.4).tolist() == []


@pytest.mark.parametrize("first", [5, 50, 2000])
def test_a_batch_gives_what_its_images_give_one_by_one_for_any_number_of_first_candidates(first, monkeypatch):
    monkeypatch.setattr(nms, "_FIRST_CANDIDATES", first)
    boxes, scores, labels = random_boxes()
    images = torch.arange(600) % 3
    images[images == 1] = 2  # image 1 has no candidate
    options: dict[str, Any] = {
        "kind": "hard",
        "iou_threshold": 0.4,
        "sigma": 0.5,
        "score_threshold": 0.0,
        "max_detections": 30,
    }
    kept = suppress_images(boxes, scores, labels, images, 4, **options)
    for image, (keep, kept_scores) in enumerate(kept):
        own = torch.where(images == image)[0]
        expected = own[suppress_within(boxes[own], scores[own], labels[own], 0.4)[:30]]
        assert keep.tolist() == expected.tolist() and torch.equal(kept_scores, scores[expected])
    assert [len(keep) for keep, _ in kept] == [30, 0, 30, 0]
