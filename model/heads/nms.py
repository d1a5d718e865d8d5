"""Non-maximum suppression, hard or soft, of all classes and images of a batch at once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from model.transfers import row_of_each, to_host, true_columns
from model.vision import box_iou, nms

# Candidates of an image, best first, that a first attempt considers; they nearly always leave enough detections.
_FIRST_CANDIDATES = 2_000
# Score of an entry that is not to be used. It comes after all others and so suppresses none of them.
UNUSABLE = -1.0


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


def first_of_each(images: Tensor, usable: Tensor, num_images: int, count: int) -> Tensor:
    """Which entries are among the first `count` usable ones of each image: bool [num_images, N].

    Args:
        images: int64 [N], the image of each entry.
        usable: bool [N].
        num_images: Images of the batch.
        count: Largest number of an image.
    """
    own = (images == torch.arange(num_images, device=images.device)[:, None]) & usable
    return own & (own.cumsum(1) <= count)


def suppress_images(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    counts: Sequence[int],
    *,
    kind: str,
    iou_threshold: float,
    sigma: float,
    score_threshold: float | Tensor,
    max_detections: int,
) -> list[tuple[Tensor, Tensor]]:
    """Indices and scores of the boxes that are kept of each image, best first; classes do not suppress each other.

    Args:
        boxes: XYXY [N, 4], image after image.
        scores: [N]; those of `UNUSABLE` are not kept.
        labels: int64 [N].
        counts: Number of boxes of each image of the batch, also of those without a box.
        kind: "hard" drops a box that overlaps a better one by more than `iou_threshold`. "soft_linear" multiplies
            its score by 1 - IoU instead, "soft_gaussian" every score by exp(-IoU^2 / sigma) (Bodla et al., 2017,
            equations 2 and 3).
        iou_threshold: For "hard" and "soft_linear".
        sigma: For "soft_gaussian".
        score_threshold: Soft kinds drop a box whose score falls to this value or below; a value, or [N] of each box.
        max_detections: Largest number of boxes kept for each image.
    """
    starts = [0, *accumulate(counts)]
    if kind != "hard":
        width = sigma if kind == "soft_gaussian" else None
        limits = (iou_threshold, width, max_detections)
        results = []
        for start, count in zip(starts, counts):
            part = slice(start, start + count)
            threshold = score_threshold[part] if isinstance(score_threshold, Tensor) else score_threshold
            keep, kept_scores = _suppress_softly(boxes[part], scores[part], labels[part], threshold, *limits)
            results.append((start + keep, kept_scores))
        return results
    images = row_of_each(counts, boxes.device)
    # A box is only suppressed by a better one: if the best candidates leave enough boxes, the rest change nothing.
    first = []
    for start, count in zip(starts, counts):
        best = scores[start : start + count]
        if count > _FIRST_CANDIDATES:
            best = best.argsort(descending=True, stable=True)[:_FIRST_CANDIDATES].sort().values
            first.append(start + best)
        else:
            first.append(torch.arange(start, start + count, device=boxes.device))
    kept = _suppress_hard(boxes, scores, labels, images, torch.cat(first), len(counts), iou_threshold, max_detections)
    short = [
        image for image, count in enumerate(counts) if len(kept[image]) < max_detections and count > _FIRST_CANDIDATES
    ]
    if short:
        rest = [torch.arange(starts[image], starts[image + 1], device=boxes.device) for image in short]
        again = _suppress_hard(
            boxes, scores, labels, images, torch.cat(rest), len(counts), iou_threshold, max_detections
        )
        for image in short:
            kept[image] = again[image]
    return [(keep, scores[keep]) for keep in kept]


def _suppress_hard(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    images: Tensor,
    index: Tensor,
    num_images: int,
    iou_threshold: float,
    max_detections: int,
) -> list[Tensor]:
    """Of the boxes with these indices, those of each image that hard suppression keeps, best first."""
    if len(index) == 0:
        return [index] * num_images
    groups = images[index] * (labels[index].max() + 1) + labels[index]
    survivors = index[suppress_within(boxes[index], scores[index], groups, iou_threshold)]
    chosen = first_of_each(images[survivors], scores[survivors] != UNUSABLE, num_images, max_detections)
    (counts,) = to_host(chosen.sum(1))
    return [survivors[columns] for columns in true_columns(chosen, counts.tolist())]


def _suppress_softly(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    score_threshold: float | Tensor,
    iou_threshold: float,
    sigma: float | None,
    max_detections: int,
) -> tuple[Tensor, Tensor]:
    """Indices and scores of one image's boxes that soft suppression keeps; without a sigma the linear one."""
    scores = scores.clone()
    kept: list[Tensor] = []
    kept_scores: list[Tensor] = []
    while len(scores) and len(kept) < max_detections:
        scores = scores.masked_fill(scores <= score_threshold, UNUSABLE)
        best_score, best = scores.max(dim=0)
        if best_score == UNUSABLE:
            break
        kept.append(best)
        kept_scores.append(best_score)
        overlap = box_iou(boxes[best][None], boxes)[0]
        if sigma is None:
            factor = torch.where(overlap > iou_threshold, 1 - overlap, torch.ones_like(overlap))
        else:
            factor = torch.exp(-(overlap**2) / sigma)
        scores = torch.where(labels == labels[best], scores * factor, scores)
        scores[best] = UNUSABLE
    if not kept:
        return labels[:0], scores[:0]
    return torch.stack(kept), torch.stack(kept_scores)
