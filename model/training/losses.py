"""Loss terms by name: classification, box, mask; scalars that are 0, with a gradient of 0, over no samples.

Averages are those of the paper: the classification term and the box term (to which only positives contribute) over the
sampled RoIs, the mask term over the positives.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from model.vision import (
    complete_box_iou_loss,
    distance_box_iou_loss,
    generalized_box_iou_loss,
    sigmoid_focal_loss,
)


class BoxCoder(Protocol):
    """The two functions of torchvision's box coder that a loss uses; boxes are XYXY [N, 4], offsets [N, 4]."""

    def encode_single(self, reference_boxes: Tensor, proposals: Tensor) -> Tensor:
        """Offsets that lead from the proposals to the reference boxes."""

    def decode_single(self, rel_codes: Tensor, boxes: Tensor) -> Tensor:
        """The boxes that the offsets lead to."""


def class_loss(
    kind: str,
    logits: Tensor,
    labels: Tensor,
    *,
    allowed: Tensor | None = None,
    weights: Tensor | None = None,
    alpha: float,
    gamma: float,
) -> Tensor:
    """Mean classification loss over the RoIs; 0 for N = 0.

    Args:
        kind: "cross_entropy" (softmax over K + 1), or "focal": sigmoid focal loss (Lin et al., 2017, equation 5) summed
            over the K foreground classes.
        logits: [N, K + 1], background first.
        labels: int64 [N], 0..K.
        allowed: bool [N, K + 1]; a class where it is False takes no part in that RoI's loss. None = all do.
        weights: [K + 1]; the loss of a RoI is multiplied by the weight of its label. None = all are 1.
        alpha: Focal loss: weight of the RoI's own class; 1 - alpha is the weight of the others.
        gamma: Focal loss: exponent that lowers the weight of easy cases.
    """
    logits = logits.float()
    if kind == "cross_entropy":
        if allowed is not None:
            logits = logits.masked_fill(~allowed, -torch.inf)
        total = F.cross_entropy(logits, labels, weight=weights, reduction="sum")
    else:
        class_targets = F.one_hot(labels, logits.shape[1])[:, 1:].to(logits)
        terms = sigmoid_focal_loss(logits[:, 1:], class_targets, alpha=alpha, gamma=gamma)
        if allowed is not None:
            terms = terms * allowed[:, 1:]
        if weights is not None:
            terms = terms * weights[labels][:, None]
        # The background logit is unused; times 0 keeps its parameters in the graph.
        total = terms.sum() + logits[:, 0].sum() * 0
    return total / max(len(labels), 1)


def box_loss(kind: str, coder: BoxCoder, deltas: Tensor, boxes: Tensor, true_boxes: Tensor, *, beta: float) -> Tensor:
    """Box regression loss of one of the kinds `model.spec.BOX_LOSSES`, summed over N boxes; 0 for N = 0.

    Args:
        kind: "smooth_l1" and "l1" compare offsets; "iou", "giou", "diou" and "ciou" compare the decoded boxes.
        coder: Encodes boxes as offsets and decodes them.
        deltas: [N, 4] offsets.
        boxes: XYXY [N, 4] of positive size: anchors or RoIs.
        true_boxes: XYXY [N, 4] of positive size.
        beta: Absolute error at which smooth L1 turns from quadratic to linear.
    """
    if kind in ("smooth_l1", "l1"):
        return box_delta_loss(kind, deltas, coder.encode_single(true_boxes, boxes), beta=beta)
    return box_iou_loss(kind, coder.decode_single(deltas.float(), boxes), true_boxes)


def box_delta_loss(kind: str, deltas: Tensor, targets: Tensor, *, beta: float) -> Tensor:
    """Sum of "l1", or of "smooth_l1" (quadratic below `beta`), over regression offsets [N, 4]."""
    if kind == "l1":
        return F.l1_loss(deltas.float(), targets.float(), reduction="sum")
    return F.smooth_l1_loss(deltas.float(), targets.float(), beta=beta, reduction="sum")


def box_iou_loss(kind: str, boxes: Tensor, targets: Tensor) -> Tensor:
    """Sum of "iou" (1 - IoU), "giou", "diou" or "ciou" over N pairs of XYXY boxes [N, 4].

    Plain IoU has no gradient where two boxes are disjoint; the others have one.
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
    intersection = sides.prod(dim=1)
    areas = [(box[:, 2:] - box[:, :2]).prod(dim=1) for box in (boxes, targets)]
    return intersection / (areas[0] + areas[1] - intersection)


def mask_losses(kind: str, log_inside: Tensor, log_outside: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """The mask terms by name, each a mean over the masks: "bce", "dice", or both.

    Args:
        kind: "bce", "dice" or "bce_dice".
        log_inside: [N, M, M] log probability that the pixel is inside the mask (of the true class).
        log_outside: [N, M, M] log probability that it is outside.
        targets: [N, M, M], 0..1.

    Returns:
        `loss_mask` (the cross-entropy, or "dice" alone), and with "bce_dice" also `loss_mask_dice`. N = 0 gives 0.
    """
    count = max(targets.numel(), 1)
    cross_entropy = -(targets * log_inside + (1 - targets) * log_outside).sum() / count
    if kind == "bce":
        return {"loss_mask": cross_entropy}
    dice = dice_loss(log_inside.exp(), targets)
    return {"loss_mask": dice} if kind == "dice" else {"loss_mask": cross_entropy, "loss_mask_dice": dice}


def dice_loss(probabilities: Tensor, targets: Tensor) -> Tensor:
    """Mean over masks [N, M, M] of 1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1); 0 for N = 0.

    The ones give two empty masks a loss of 0 (Milletari et al., 2016, without the squares).
    """
    intersection = (probabilities * targets).sum(dim=(1, 2))
    total = probabilities.sum(dim=(1, 2)) + targets.sum(dim=(1, 2))
    return (1 - (2 * intersection + 1) / (total + 1)).sum() / max(len(targets), 1)
