"""Which of many overlapping boxes stay: non-maximum suppression, hard or soft."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_iou


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
        keep = batched_nms(boxes, scores, labels, iou_threshold)[:max_detections]
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
