"""Each loss term against numbers worked out by hand."""

import math
from typing import Any

import pytest
import torch

from model.training import losses
from model.vision import RoIHeads

LN2, LN3, LN4 = math.log(2), math.log(3), math.log(4)
BOX = torch.tensor([[0.0, 0, 2, 2]])


def box_coder(*weights: float) -> losses.BoxCoder:
    """torchvision's coder, as its heads have it."""
    heads: Any = RoIHeads(None, None, None, 0.5, 0.5, 16, 0.25, weights, 0.05, 0.5, 100)
    return heads.box_coder


def class_loss(kind, logits, labels, allowed=None, weights=None):
    allowed = None if allowed is None else torch.tensor(allowed)
    weights = None if weights is None else torch.tensor(weights)
    tensors = torch.tensor(logits), torch.tensor(labels)
    return losses.class_loss(kind, *tensors, allowed=allowed, weights=weights, alpha=0.25, gamma=2.0).item()


def test_cross_entropy_is_a_mean_over_rois():
    # exp of the logits: 1, 2, 4 of 7; then 1, 1, 1 of 3.
    value = class_loss("cross_entropy", [[0.0, LN2, LN4], [0.0, 0.0, 0.0]], [2, 0])
    assert value == pytest.approx((math.log(7 / 4) + LN3) / 2)


def test_cross_entropy_leaves_out_classes_that_are_not_allowed():
    assert class_loss("cross_entropy", [[0.0, LN2, LN4]], [0], [[True, True, False]]) == pytest.approx(LN3)


def test_focal_loss():
    # Class 1 is there: p = 1/2, 0.25 * (1/2)^2 * ln 2. Class 2 is not: p = 3/4, 0.75 * (3/4)^2 * ln 4.
    value = class_loss("focal", [[9.0, 0.0, LN3]], [1])
    assert value == pytest.approx(0.25 * 0.25 * LN2 + 0.75 * 0.5625 * LN4)
    assert class_loss("focal", [[9.0, 0.0, LN3]], [1], [[True, True, False]]) == pytest.approx(0.0625 * LN2)


@pytest.mark.parametrize("kind", ["cross_entropy", "focal"])
def test_the_loss_of_a_roi_is_multiplied_by_the_weight_of_its_class(kind):
    logits, labels = [[0.0, LN2, LN4], [LN3, 0.0, 0.0], [0.0, LN4, 0.0]], [2, 0, 1]
    each = [class_loss(kind, [row], [label]) for row, label in zip(logits, labels)]
    weighted = class_loss(kind, logits, labels, weights=[1.0, 5.0, 0.5])
    assert weighted == pytest.approx((0.5 * each[0] + each[1] + 5 * each[2]) / 3)
    assert class_loss(kind, logits, labels, weights=[1.0, 1.0, 1.0]) == class_loss(kind, logits, labels)


def test_offset_losses():
    deltas, targets = torch.tensor([[0.05, 1.0, 0.0, 0.0]]), torch.zeros(1, 4)
    # Below 1/9 a parabola, 0.05^2 / 2 * 9; above it a line, 1 - 1/18.
    assert losses.box_delta_loss("smooth_l1", deltas, targets, beta=1 / 9).item() == pytest.approx(0.01125 + 17 / 18)
    assert losses.box_delta_loss("l1", deltas, targets, beta=1 / 9).item() == pytest.approx(1.05)


@pytest.mark.parametrize(
    ("kind", "other", "expected"),
    [
        # Intersection 1, union 7.
        ("iou", [1.0, 1, 3, 3], 6 / 7),
        # The hull has 9, 2 of it in neither.
        ("giou", [1.0, 1, 3, 3], 6 / 7 + 2 / 9),
        # Centres sqrt(2) apart, the hull's diagonal is sqrt(18).
        ("diou", [1.0, 1, 3, 3], 6 / 7 + 2 / 18),
        ("ciou", [1.0, 1, 3, 3], 6 / 7 + 2 / 18),
        # IoU 1/2, centres 1 apart, diagonal sqrt(20); v = 4 / pi^2 (atan(1/2) - atan(1))^2 = 0.041956.
        ("ciou", [0.0, 0, 2, 4], 0.5 + 1 / 20 + 0.041956**2 / (0.5 + 0.041956)),
        # Disjoint: IoU is 0; the hull has 8, 2 of it in neither.
        ("iou", [2.0, 0, 4, 2], 1.0),
        ("giou", [3.0, 0, 4, 2], 1 + 2 / 8),
    ],
)
def test_box_losses(kind, other, expected):
    assert losses.box_iou_loss(kind, BOX, torch.tensor([other])).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # The target is half a width to the right and twice as high, offsets 1/2 and ln 2: each costs itself less 1/18.
        ("smooth_l1", (0.5 - 1 / 18) + (LN2 - 1 / 18)),
        ("l1", 0.5 + LN2),
        # Not moved, (0, 0, 2, 2) has an intersection of 2 with (1, -1, 3, 3), and a union of 10.
        ("iou", 0.8),
        # The hull (0, -1, 3, 3) has 12.
        ("giou", 0.8 + 2 / 12),
        # Centres 1 apart, the hull's diagonal is 5.
        ("diou", 0.8 + 1 / 25),
        # v = 4 / pi^2 (atan(1/2) - atan(1))^2 = 0.041956.
        ("ciou", 0.8 + 1 / 25 + 0.041956**2 / (0.8 + 0.041956)),
    ],
)
def test_box_loss_of_every_name_from_offsets_of_zero(kind, expected):
    coder = box_coder(1.0, 1.0, 1.0, 1.0)
    true_boxes = torch.tensor([[1.0, -1, 3, 3]])
    options: dict[str, Any] = {"boxes": BOX, "true_boxes": true_boxes, "beta": 1 / 9}
    assert losses.box_loss(kind, coder, torch.zeros(1, 4), **options).item() == pytest.approx(expected, abs=1e-5)
    # The right offsets give a loss of 0, and the coder's weights scale the offsets.
    doubling_coder = box_coder(2.0, 2.0, 2.0, 2.0)
    right_deltas = torch.tensor([[0.5, 0.0, 0.0, LN2]])
    for scale, scaled_coder in ((1, coder), (2, doubling_coder)):
        assert losses.box_loss(kind, scaled_coder, right_deltas * scale, **options).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("kind", ["iou", "giou", "diou", "ciou"])
def test_box_losses_add_up_and_vanish_on_equal_boxes(kind):
    boxes = torch.tensor([[0.0, 0, 2, 2], [1, 1, 5, 4]])
    assert losses.box_iou_loss(kind, boxes, boxes).item() == pytest.approx(0, abs=1e-5)
    single = losses.box_iou_loss(kind, BOX, BOX + 1).item()
    assert losses.box_iou_loss(kind, boxes[[0, 0]], boxes[[0, 0]] + 1).item() == pytest.approx(2 * single)


def test_dice():
    probabilities = torch.tensor([[[0.5, 0.5], [0.0, 1.0]]])
    targets = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    # Both 1.5, sums 2 and 2: 1 - (3 + 1) / (4 + 1).
    assert losses.dice_loss(probabilities, targets).item() == pytest.approx(0.2)
    # Two empty masks agree: 1 - 1 / 1; the mean of the two.
    zeros = torch.zeros(1, 2, 2)
    both = losses.dice_loss(torch.cat([probabilities, zeros]), torch.cat([targets, zeros]))
    assert both.item() == pytest.approx(0.1)


def test_both_mask_terms_are_named():
    half = torch.full((1, 1, 2), -LN2)
    terms = losses.mask_losses("bce_dice", half, half, torch.tensor([[[1.0, 0.0]]]))
    assert list(terms) == ["loss_mask", "loss_mask_dice"]
    assert terms["loss_mask"].item() == pytest.approx(LN2)
    # p = 1/2 twice: 1 - (2 * 0.5 + 1) / (1 + 1 + 1).
    assert terms["loss_mask_dice"].item() == pytest.approx(1 / 3)


@pytest.mark.parametrize("kind", ["cross_entropy", "focal"])
def test_losses_over_nothing_are_zero_and_have_a_gradient(kind):
    logits = torch.zeros(0, 3, requires_grad=True)
    total = losses.class_loss(kind, logits, torch.zeros(0).long(), alpha=0.25, gamma=2.0)
    empty = torch.zeros(0, 2, 2, requires_grad=True)
    total = total + sum(losses.mask_losses("bce_dice", empty, empty, torch.zeros(0, 2, 2)).values())
    boxes = torch.zeros(0, 4, requires_grad=True)
    for name in ("iou", "giou", "diou", "ciou"):
        total = total + losses.box_iou_loss(name, boxes, boxes.detach())
    total = total + losses.box_delta_loss("l1", boxes, boxes.detach(), beta=1.0)
    assert total.item() == 0
    total.backward()
    for inputs, shape in ((logits, (0, 3)), (boxes, (0, 4)), (empty, (0, 2, 2))):
        assert inputs.grad is not None and inputs.grad.shape == shape
