"""Which of many overlapping boxes stay: non-maximum suppression, hard or soft, of all images and classes at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_iou, nms

# Candidates of an image that are looked at first; a prediction is of its best, so that these are nearly always enough.
_FIRST_CANDIDATES = 2_000


def suppress_within(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """Indices of the boxes that no better one of their group overlaps by more than the threshold, best first.

    A group's result does not depend on the others: on a CPU each is looked at by itself, on a GPU all at once, moved
    apart in float64, where the move costs no precision.

    Args:
        boxes: XYXY [N, 4]; N may be 0.
        scores: [N].
        groups: int64 [N], 0 or more: a class, a map of a pyramid, an image, or all of these in one number.
        iou_threshold: Of two boxes that overlap more, the one with the lower score goes.
    """
    if len(boxes) == 0:
        return groups[:0]
    if boxes.is_cuda:
        moved = boxes.double() + (groups * (boxes.max().double() + 1))[:, None]
        return nms(moved, scores.double(), iou_threshold)
    groups, order = groups.sort(stable=True)
    parts = order.split(groups.unique_consecutive(return_counts=True)[1].tolist())
    keep = torch.cat([part[nms(boxes[part], scores[part], iou_threshold)] for part in parts]).sort().values
    return keep[scores[keep].argsort(descending=True, stable=True)]


def best_of_each(images: Tensor, num_images: int, count: int) -> list[Tensor]:
    """For each image, the places of its first `count` entries in `images`, int64 [N], in their order."""
    return [torch.where(images == image)[0][:count] for image in range(num_images)]


def clip_to_sizes(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes XYXY [..., 4] moved into images of these sizes (height, width), [..., 2]."""
    return torch.minimum(boxes.clamp(min=0), sizes[..., [1, 0, 1, 0]])


def suppress_images(
    boxes: Tensor, scores: Tensor, labels: Tensor, images: Tensor, num_images: int, *, max_detections: int, **how: Any
) -> list[tuple[Tensor, Tensor]]:
    """`suppress` for each image of a batch: [(indices, scores)].

    Args:
        boxes, scores, labels: As `suppress` takes them, of all images.
        images: int64 [N], whose box it is, 0 to `num_images` - 1.
        max_detections: Most boxes of an image that stay.
        how: The other arguments of `suppress`.
    """
    own = [torch.where(images == image)[0] for image in range(num_images)]
    if how["kind"] != "hard":
        found = [suppress(boxes[i], scores[i], labels[i], max_detections=max_detections, **how) for i in own]
        return [(index[keep], kept_scores) for index, (keep, kept_scores) in zip(own, found)]
    # A box is only ever suppressed by a better one: where the best candidates leave enough, the others do not matter.
    first = [index[scores[index].argsort(descending=True, stable=True)[:_FIRST_CANDIDATES]] for index in own]
    chosen = _suppress_hard(boxes, scores, labels, images, torch.cat(first).sort().values, how["iou_threshold"])
    results = []
    for image, (index, some) in enumerate(zip(own, first)):
        keep = chosen[images[chosen] == image][:max_detections]
        if len(keep) < max_detections and len(some) < len(index):
            keep = _suppress_hard(boxes, scores, labels, images, index, how["iou_threshold"])[:max_detections]
        results.append((keep, scores[keep]))
    return results


def _suppress_hard(
    boxes: Tensor, scores: Tensor, labels: Tensor, images: Tensor, index: Tensor, iou_threshold: float
) -> Tensor:
    """Which of the boxes at these places stay, best first."""
    if len(index) == 0:
        return index
    groups = images[index] * (labels[index].max() + 1) + labels[index]
    return index[suppress_within(boxes[index], scores[index], groups, iou_threshold)]


def suppress(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    *,
    kind: str,
    iou_threshold: float,
    sigma: float,
    score_threshold: float,
    max_detections: int,
) -> tuple[Tensor, Tensor]:
    """Indices of the boxes that stay, and their scores, best first; each class for itself.

    Args:
        boxes: XYXY [N, 4].
        scores: [N].
        labels: int64 [N].
        kind: "hard" drops a box that overlaps a better one by more than `iou_threshold`. "soft_linear"
            multiplies its score by 1 - IoU instead, "soft_gaussian" every score by exp(-IoU^2 / sigma) (Bodla
            et al., 2017, equations 2 and 3).
        iou_threshold: For "hard" and "soft_linear".
        sigma: For "soft_gaussian".
        score_threshold: A box whose score falls to it or below is dropped.
        max_detections: Most boxes that stay.
    """
    if kind == "hard":
        keep = suppress_within(boxes, scores, labels, iou_threshold)[:max_detections]
        return keep, scores[keep]
    scores = scores.clone()
    kept: list[Tensor] = []
    kept_scores: list[Tensor] = []
    while len(scores) and len(kept) < max_detections:
        best_score, best = scores.max(dim=0)
        if best_score <= score_threshold:
            break
        kept.append(best)
        kept_scores.append(best_score)
        overlap = box_iou(boxes[best][None], boxes)[0]
        if kind == "soft_linear":
            factor = torch.where(overlap > iou_threshold, 1 - overlap, torch.ones_like(overlap))
        else:
            factor = torch.exp(-(overlap**2) / sigma)
        scores = torch.where(labels == labels[best], scores * factor, scores)
        scores[best] = -1
    if not kept:
        return labels[:0], scores[:0]
    return torch.stack(kept), torch.stack(kept_scores)
