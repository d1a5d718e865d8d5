"""The loss terms by name. Each gives a scalar; over nothing at all it gives a zero that still has a gradient.

Averages are over what the paper averages over: the classification and the box term over the RoIs sampled
(also the box term, though only positives add to it), the mask term over the positives.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import (
    complete_box_iou_loss,
    distance_box_iou_loss,
    generalized_box_iou_loss,
    sigmoid_focal_loss,
)


def class_loss(
    kind: str, logits: Tensor, labels: Tensor, *, allowed: Tensor | None = None, alpha: float, gamma: float
) -> Tensor:
    """Mean over the RoIs of the classification loss.

    Args:
        kind: "cross_entropy" (softmax over K + 1), or "focal": sigmoid focal loss (Lin et al., 2017, equation
            5) summed over the K foreground classes.
        logits: [N, K + 1], background first.
        labels: int64 [N], 0..K.
        allowed: bool [N, K + 1]; a class where it is False takes no part in that RoI's loss. None = all do.
        alpha: Focal loss: weight of a class that is there; 1 - alpha is that of one that is not.
        gamma: Focal loss: how much easy cases are played down.
    """
    logits = logits.float()
    if kind == "cross_entropy":
        if allowed is not None:
            logits = logits.masked_fill(~allowed, -torch.inf)
        total = F.cross_entropy(logits, labels, reduction="sum")
    else:
        truth = F.one_hot(labels, logits.shape[1])[:, 1:].to(logits)
        terms = sigmoid_focal_loss(logits[:, 1:], truth, alpha=alpha, gamma=gamma)
        if allowed is not None:
            terms = terms * allowed[:, 1:]
        # The background logit is unused; times 0 keeps its parameters in the graph.
        total = terms.sum() + logits[:, 0].sum() * 0
    return total / max(len(labels), 1)


def box_loss(kind: str, coder: BoxCoder, deltas: Tensor, boxes: Tensor, true_boxes: Tensor, *, beta: float) -> Tensor:
    """Sum over N boxes that are to be moved onto their true ones of one of `model.spec.BOX_LOSSES`.

    Args:
        kind: "smooth_l1" and "l1" compare offsets, "iou", "giou", "diou" and "ciou" the moved boxes.
        coder: What an offset means.
        deltas: [N, 4] offsets.
        boxes: XYXY [N, 4] of positive size: anchors or RoIs.
        true_boxes: XYXY [N, 4] of positive size.
        beta: Where smooth L1 turns from a parabola into a line.
    """
    if kind in ("smooth_l1", "l1"):
        return box_delta_loss(kind, deltas, coder.encode_single(true_boxes, boxes), beta=beta)
    return box_iou_loss(kind, coder.decode_single(deltas.float(), boxes), true_boxes)


def box_delta_loss(kind: str, deltas: Tensor, targets: Tensor, *, beta: float) -> Tensor:
    """Sum over [N, 4] regression offsets of "l1", or of "smooth_l1" that is a parabola below `beta`."""
    if kind == "l1":
        return F.l1_loss(deltas.float(), targets.float(), reduction="sum")
    return F.smooth_l1_loss(deltas.float(), targets.float(), beta=beta, reduction="sum")


def box_iou_loss(kind: str, boxes: Tensor, targets: Tensor) -> Tensor:
    """Sum over N pairs of XYXY boxes [N, 4] of "iou" (1 - IoU), "giou", "diou" or "ciou".

    Plain IoU has no gradient where the boxes do not meet; the others do.
    """
    if kind == "iou":
        return (1 - paired_iou(boxes, targets)).sum()
    function = {
        "giou": generalized_box_iou_loss,
        "diou": distance_box_iou_loss,
        "ciou": complete_box_iou_loss,
    }[kind]
    return function(boxes.float(), targets.float(), reduction="sum")


def paired_iou(boxes: Tensor, targets: Tensor) -> Tensor:
    """IoU of each box with its target, float32 [N]; XYXY [N, 4] of positive size each."""
    boxes, targets = boxes.float(), targets.float()
    corner = torch.maximum(boxes[:, :2], targets[:, :2])
    sides = (torch.minimum(boxes[:, 2:], targets[:, 2:]) - corner).clamp(min=0)
    both = sides.prod(dim=1)
    areas = [(box[:, 2:] - box[:, :2]).prod(dim=1) for box in (boxes, targets)]
    return both / (areas[0] + areas[1] - both)


def mask_losses(kind: str, log_inside: Tensor, log_outside: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """The mask terms by name, each a mean over the masks: "bce", "dice", or both.

    Args:
        kind: "bce", "dice" or "bce_dice".
        log_inside: [N, M, M] log probability that the pixel is inside the mask (of the true class).
        log_outside: [N, M, M] log probability that it is outside.
        targets: [N, M, M], 0..1.

    Returns:
        `loss_mask` (the cross-entropy if there is one), and with "bce_dice" also `loss_mask_dice`.
    """
    count = max(targets.numel(), 1)
    cross_entropy = -(targets * log_inside + (1 - targets) * log_outside).sum() / count
    if kind == "bce":
        return {"loss_mask": cross_entropy}
    dice = dice_loss(log_inside.exp(), targets)
    return {"loss_mask": dice} if kind == "dice" else {"loss_mask": cross_entropy, "loss_mask_dice": dice}


def dice_loss(probabilities: Tensor, targets: Tensor) -> Tensor:
    """Mean over [N, M, M] masks of 1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1).

    The ones make two empty masks agree (Milletari et al., 2016, without the squares).
    """
    both = (probabilities * targets).sum(dim=(1, 2))
    either = probabilities.sum(dim=(1, 2)) + targets.sum(dim=(1, 2))
    return (1 - (2 * both + 1) / (either + 1)).sum() / max(len(targets), 1)
