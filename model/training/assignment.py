"""Assignment with missing labels: which anchors and RoIs are no negatives, and for which classes.

Annotations are missing in three cases: crowd and other ignored regions, classes that were not annotated in an image,
and images in which nothing was annotated. Anchors and RoIs there are no negatives.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.vision import box_area

# A label that torchvision's sampler never draws.
NOT_USED = -1


def separate_ignored(target: dict[str, Tensor]) -> dict[str, Tensor]:
    """The target with its crowd instances (`iscrowd` not 0) turned into `ignore_boxes`, after those it has already.

    A target without `iscrowd` is returned itself; one without crowd instances only loses `iscrowd`.
    """
    if "iscrowd" not in target:
        return target
    crowd = target["iscrowd"].bool()
    target = {name: value for name, value in target.items() if name != "iscrowd"}
    if not crowd.any():
        return target
    boxes = target["boxes"]
    regions = [target["ignore_boxes"].to(boxes)] if "ignore_boxes" in target else []
    for name in ("boxes", "labels", "masks", "keypoints", "area"):
        if name in target and len(target[name]) == len(crowd):
            target[name] = target[name][~crowd]
    target["ignore_boxes"] = torch.cat([*regions, boxes[crowd]])
    return target


def drop_ignored(labels: Tensor, boxes: Tensor, target: dict[str, Tensor], *, overlap: float) -> Tensor:
    """`labels` in which negatives (0) that lie in an ignored region are marked as not used (-1).

    Args:
        labels: [N], 0 background, above 0 an object.
        boxes: XYXY [N, 4] of the anchors or proposals.
        target: May have `ignore_boxes` [M, 4], in the same pixels.
        overlap: A box lies in a region if at least this fraction of its own area does.
    """
    regions = target.get("ignore_boxes")
    if regions is None or len(regions) == 0 or len(boxes) == 0:
        return labels
    inside = intersection_over_box(boxes, regions.to(boxes)).amax(dim=1) >= overlap
    return torch.where(inside & (labels == 0), torch.full_like(labels, NOT_USED), labels)


def intersection_over_box(boxes: Tensor, regions: Tensor) -> Tensor:
    """Fraction of each box's area that each region covers, [N, M] in 0..1; XYXY; 0 for a box without area."""
    corner = torch.maximum(boxes[:, None, :2], regions[None, :, :2])
    sides = (torch.minimum(boxes[:, None, 2:], regions[None, :, 2:]) - corner).clamp(min=0)
    return sides.prod(dim=2) / box_area(boxes)[:, None].clamp(min=1e-6)


def allowed_classes(targets: list[dict[str, Tensor]], labels: list[Tensor], num_classes: int) -> Tensor | None:
    """Which classes take part in each sampled RoI's loss, bool [N, K + 1], or None if all do in every image.

    A background RoI of an image with `labelled_classes` may be an object of a class that was not annotated: those
    classes take no part. An object is known to be of no other class: all take part.
    """
    if not any("labelled_classes" in target for target in targets):
        return None
    rows = []
    for target, image_labels in zip(targets, labels):
        allowed = torch.ones(len(image_labels), num_classes + 1, dtype=torch.bool, device=image_labels.device)
        if "labelled_classes" in target:
            known = torch.zeros_like(allowed[:1])
            known[:, 0] = True
            known[:, target["labelled_classes"].to(known.device)] = True
            allowed = torch.where((image_labels == 0)[:, None], known, allowed)
        rows.append(allowed)
    return torch.cat(rows)


def has_rpn_negatives(target: dict[str, Tensor], num_classes: int, *, partial: bool) -> bool:
    """Whether the class-agnostic RPN may take negatives from an image.

    Not where no class was annotated. Where only some classes were, `partial` decides: False never makes an object
    without annotation a negative, but leaves the RPN without negatives if all images are like this.
    """
    if "labelled_classes" not in target:
        return True
    count = len(target["labelled_classes"].unique())
    return count >= num_classes or (partial and count > 0)
