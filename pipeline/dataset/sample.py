"""Samples as the transforms take them: annotations to a dict of tensors, that to a target, and the random draws.

A sample is a dict of
- `image`: tv_tensors.Image, uint8 or float32 (0..1) [C, H, W]
- `boxes` [N, 4] and `ignore_boxes` [M, 4]: tv_tensors.BoundingBoxes, float32 XYXY half-open
- `labels`: int64 [N]
- `masks`: tv_tensors.Mask, uint8 [N, H, W]
- `keypoints` and `visibility`, in data with keypoints: tv_tensors.KeyPoints float32 [N, P, 2] in continuous
  coordinates (a pixel's centre is at +0.5), and float32 [N, P]

An object has the same index in all of them. Objects that transforms leave without a box or a mask are dropped when the
target is made. All randomness comes from torch's global generator, which the loader seeds for each sample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors

from pipeline.dataset.types import AnnotatedImage, Box, Instance, mask_to_box

SampleDict = dict[str, Tensor]
Transform = Callable[[SampleDict], SampleDict]


def size_of(sample: SampleDict) -> tuple[int, int]:
    """(H, W) of the sample's image."""
    height, width = sample["image"].shape[-2:]
    return (int(height), int(width))


def happens(probability: float) -> bool:
    """True with this probability."""
    return bool(torch.rand(()) < probability)


def draw(low: float, high: float) -> float:
    """A number drawn uniformly from low to high."""
    return low + (high - low) * float(torch.rand(()))


def draw_index(count: int) -> int:
    """An index drawn uniformly from 0 to count - 1."""
    return int(torch.randint(count, ()))


def to_sample_dict(image: AnnotatedImage, pixels: np.ndarray, keypoint_names: tuple[str, ...] = ()) -> SampleDict:
    """A photo (pixels [H, W, C]) and its annotations as a sample.

    Crowds, ignore regions and objects without a mask become ignore boxes. An object without a box
    has that of its mask; one without either is left out.

    Raises:
        ValueError: a mask that cannot be decoded.
    """
    size = (image.height, image.width)
    objects: list[tuple[Instance, np.ndarray]] = []
    ignored: list[Box] = []
    for instance in image.instances:
        x1, y1, x2, y2 = instance.box
        has_box = x2 > x1 and y2 > y1
        mask = None if instance.iscrowd else instance.mask(*size)
        if mask is not None and mask.any():
            objects.append((instance if has_box else replace(instance, box=mask_to_box(mask)), mask))
        elif has_box:  # an object without a mask is still no background: its box is ignored in the loss
            ignored.append(instance.box)
    masks = np.stack([mask for _, mask in objects]) if objects else np.zeros((0, *size), dtype=np.uint8)
    boxes = torch.tensor([instance.box for instance, _ in objects], dtype=torch.float32).reshape(-1, 4)
    ignore_boxes = torch.tensor(ignored, dtype=torch.float32).reshape(-1, 4)
    sample: SampleDict = {
        "image": tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1).contiguous()),
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
        "labels": torch.tensor([instance.label for instance, _ in objects], dtype=torch.int64),
        "masks": tv_tensors.Mask(torch.from_numpy(masks)),
        "ignore_boxes": tv_tensors.BoundingBoxes(ignore_boxes, format="XYXY", canvas_size=size),
    }
    if keypoint_names:
        absent = (0.0,) * (3 * len(keypoint_names))
        values = torch.tensor([i.keypoints or absent for i, _ in objects], dtype=torch.float32)
        values = values.reshape(-1, len(keypoint_names), 3)
        sample["keypoints"] = tv_tensors.KeyPoints(values[..., :2] + 0.5, canvas_size=size)
        sample["visibility"] = values[..., 2]
    return sample


def to_target(sample: SampleDict) -> dict[str, Tensor]:
    """The target of a transformed sample, plain tensors without the objects that have lost their box or mask.

    See `loader.SampleSet` for its keys. Keypoints that are absent or outside the image are (0, 0, 0).
    """
    height, width = sample["image"].shape[-2:]
    masks = sample["masks"].as_subclass(Tensor)
    boxes = _clipped(sample["boxes"], height, width)
    keep = (masks != 0).flatten(1).any(dim=1) & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    ignore_boxes = _clipped(sample["ignore_boxes"], height, width)
    not_empty = (ignore_boxes[:, 2] > ignore_boxes[:, 0]) & (ignore_boxes[:, 3] > ignore_boxes[:, 1])
    target = {
        "boxes": boxes[keep],
        "labels": sample["labels"][keep],
        "masks": masks[keep].contiguous(),
        "ignore_boxes": ignore_boxes[not_empty],
    }
    if "keypoints" in sample:
        points, visibility = sample["keypoints"].as_subclass(Tensor)[keep], sample["visibility"][keep]
        x, y = points.unbind(-1)
        present = (visibility > 0) & (x >= 0) & (x <= width) & (y >= 0) & (y <= height)
        triples = torch.cat([points - 0.5, visibility[..., None]], dim=-1)
        target["keypoints"] = torch.where(present[..., None], triples, 0.0)
    return target


def _clipped(boxes: Tensor, height: int, width: int) -> Tensor:
    boxes = boxes.as_subclass(Tensor).float()
    limits = torch.tensor([width, height, width, height], dtype=torch.float32)
    return torch.minimum(boxes.clamp(min=0), limits)
