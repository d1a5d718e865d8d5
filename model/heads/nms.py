"""Non-maximum suppression, hard or soft, of all classes and images of a batch at once."""

from __future__ import annotations

import torch
from torch import Tensor

from model.vision import box_iou, nms

# Candidates of an image, best first, that a first attempt considers; they nearly always leave enough detections.
_FIRST_CANDIDATES = 2_000


def suppress_within(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """Indices of the boxes that no better box of their group overlaps by more than the threshold, best first.

    A group's result does not depend on the other groups. On a CPU each group is computed by itself. On a GPU all are
    computed at once, shifted apart in float64, in which the shift costs no precision.

    Args:
        boxes: XYXY [N, 4]; N may be 0.
        scores: [N].
        groups: int64 [N], 0 or more: index of a class, a feature map, an image, or a number that combines them.
        iou_threshold: Of two boxes that overlap more, the one with the lower score goes.
    """
    if len(boxes) == 0:
        return groups[:0]
    if boxes.is_cuda:
        shifted = boxes.double() + (groups * (boxes.max().double() + 1))[:, None]
        return nms(shifted, scores.double(), iou_threshold)
    groups, order = groups.sort(stable=True)
    parts = order.split(groups.unique_consecutive(return_counts=True)[1].tolist())
    keep = torch.cat([part[nms(boxes[part], scores[part], iou_threshold)] for part in parts]).sort().values
    return keep[scores[keep].argsort(descending=True, stable=True)]


def best_of_each(images: Tensor, num_images: int, count: int) -> list[Tensor]:
    """For each image, the indices of its first `count` entries in `images` (int64 [N]), in their order."""
    return [torch.where(images == image)[0][:count] for image in range(num_images)]


def clip_to_sizes(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes XYXY [..., 4] clipped to images of these sizes (height, width), [..., 2]."""
    return torch.minimum(boxes.clamp(min=0), sizes[..., [1, 0, 1, 0]])


def suppress_images(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    images: Tensor,
    num_images: int,
    *,
    kind: str,
    iou_threshold: float,
    sigma: float,
    score_threshold: float,
    max_detections: int,
) -> list[tuple[Tensor, Tensor]]:
    """Indices and scores of the boxes that are kept of each image, best first; classes do not suppress each other.

    Args:
        boxes: XYXY [N, 4], of all images.
        scores: [N].
        labels: int64 [N].
        images: int64 [N], index of the box's image, 0 to `num_images` - 1.
        num_images: Images of the batch, also those without a box.
        kind: "hard" drops a box that overlaps a better one by more than `iou_threshold`. "soft_linear" multiplies
            its score by 1 - IoU instead, "soft_gaussian" every score by exp(-IoU^2 / sigma) (Bodla et al., 2017,
            equations 2 and 3).
        iou_threshold: For "hard" and "soft_linear".
        sigma: For "soft_gaussian".
        score_threshold: Soft kinds drop a box whose score falls to this value or below.
        max_detections: Largest number of boxes kept for each image.
    """
    by_image = [torch.where(images == image)[0] for image in range(num_images)]
    results = []
    if kind != "hard":
        width = sigma if kind == "soft_gaussian" else None
        for index in by_image:
            limits = (iou_threshold, width, score_threshold, max_detections)
            keep, kept_scores = _suppress_softly(boxes[index], scores[index], labels[index], *limits)
            results.append((index[keep], kept_scores))
        return results
    # A box is only suppressed by a better one: if the best candidates leave enough boxes, the rest change nothing.
    first = [index[scores[index].argsort(descending=True, stable=True)[:_FIRST_CANDIDATES]] for index in by_image]
    survivors = _suppress_hard(boxes, scores, labels, images, torch.cat(first).sort().values, iou_threshold)
    for image, (index, first_index) in enumerate(zip(by_image, first)):
        keep = survivors[images[survivors] == image][:max_detections]
        if len(keep) < max_detections and len(first_index) < len(index):
            keep = _suppress_hard(boxes, scores, labels, images, index, iou_threshold)[:max_detections]
        results.append((keep, scores[keep]))
    return results


def _suppress_hard(
    boxes: Tensor, scores: Tensor, labels: Tensor, images: Tensor, index: Tensor, iou_threshold: float
) -> Tensor:
    """Those of the boxes with these indices that hard suppression within image and class keeps, best first."""
    if len(index) == 0:
        return index
    groups = images[index] * (labels[index].max() + 1) + labels[index]
    return index[suppress_within(boxes[index], scores[index], groups, iou_threshold)]


def _suppress_softly(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    iou_threshold: float,
    sigma: float | None,
    score_threshold: float,
    max_detections: int,
) -> tuple[Tensor, Tensor]:
    """Indices and scores of one image's boxes that soft suppression keeps; without a sigma the linear one."""
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
        if sigma is None:
            factor = torch.where(overlap > iou_threshold, 1 - overlap, torch.ones_like(overlap))
        else:
            factor = torch.exp(-(overlap**2) / sigma)
        scores = torch.where(labels == labels[best], scores * factor, scores)
        scores[best] = -1
    if not kept:
        return labels[:0], scores[:0]
    return torch.stack(kept), torch.stack(kept_scores)
