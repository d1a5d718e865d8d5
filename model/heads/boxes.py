"""Boxes (XYXY, half-open): decoded from offsets to anchors or RoIs, and clipped to their images."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Coding(Protocol):
    """The constants of torchvision's box coder: weights of x, y, width and height, and the largest log of a scale."""

    weights: tuple[float, float, float, float]
    bbox_xform_clip: float


def decode_boxes(coding: Coding, deltas: Tensor, boxes: Tensor) -> Tensor:
    """The boxes [N, 4] that offsets [N, 4] lead to from these boxes [N, 4]; of the type of the offsets.

    Bit for bit `decode_single` of torchvision's box coder, whose constants are tensors that a GPU is waited for with.
    """
    boxes = boxes.to(deltas.dtype)
    starts, ends = [], []
    for axis in (0, 1):
        size = boxes[:, axis + 2] - boxes[:, axis]
        centre = deltas[:, axis] / coding.weights[axis] * size + (boxes[:, axis] + 0.5 * size)
        log_scale = torch.clamp(deltas[:, axis + 2] / coding.weights[axis + 2], max=coding.bbox_xform_clip)
        half_size = 0.5 * (torch.exp(log_scale) * size)
        starts.append(centre - half_size)
        ends.append(centre + half_size)
    return torch.stack([*starts, *ends], dim=1)


def clip_to_sizes(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes [..., 4] clipped to images of these sizes (height, width), [..., 2]."""
    corner = sizes.flip(-1)
    return torch.minimum(boxes.clamp(min=0), torch.cat([corner, corner], dim=-1))
