"""RoI pooling operations on one feature map: RoIAlign, RoIPool and RoIWarp, each with average or max.

A RoI is (image, x1, y1, x2, y2) in pixels of the input image; times `scale` it is in pixels of the map. RoIAlign (He et
al., 2017, section 3) samples the map bilinearly at exact positions. RoIPool (Girshick, 2015, section 2.1) rounds the
RoI and its bins to whole pixels of the map. RoIWarp (Dai et al., 2016; compared in table 2c of He et al.) samples
bilinearly, but over the rounded RoI.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.vision import roi_align, roi_pool


def pool_rois(
    features: Tensor,
    rois: Tensor,
    *,
    output_size: int,
    scale: float,
    op: str = "align",
    reduce: str = "average",
    sampling_ratio: int = 2,
    half_pixel: bool = False,
) -> Tensor:
    """The feature map over each RoI, resampled to P x P bins.

    Args:
        features: [B, C, H, W]; those of another type than the RoIs are pooled in that of the RoIs.
        rois: [N, 5]: index of the image in the batch, then XYXY pixels of the input image.
        output_size: P, bins along each side.
        scale: Map pixels per image pixel, 1 / stride.
        op: "align", "pool" or "warp".
        reduce: "average" or "max" over the samples or pixels of a bin.
        sampling_ratio: Samples along each side of a bin ("align" and "warp"); 0 = as many as the bin has pixels, or
            2 with "max".
        half_pixel: RoIAlign's shift by half a pixel. RoIWarp always has it: its RoIs are whole pixels.

    Returns:
        [N, C, P, P] of the dtype of `features`; N = 0 gives [0, C, P, P].
    """
    if features.dtype != rois.dtype:
        # torchvision wants one type for both, and has no bfloat16 on GPUs.
        options: Any = {"op": op, "reduce": reduce, "sampling_ratio": sampling_ratio, "half_pixel": half_pixel}
        pooled = pool_rois(features.to(rois.dtype), rois, output_size=output_size, scale=scale, **options)
        return pooled.to(features.dtype)
    if op == "pool":
        if reduce == "max":
            return roi_pool(features, rois, output_size, scale)
        return _average_pool(features, rois, output_size, scale)
    if op == "warp":
        starts, sizes = _round_rois(rois, scale)
        rois = torch.cat([rois[:, :1], starts, starts + sizes], dim=1).to(rois.dtype)
        scale, half_pixel = 1.0, True
    if reduce == "average":
        return roi_align(features, rois, output_size, scale, sampling_ratio, half_pixel)
    # The r x r samples of a bin one by one: r x r times as many bins with one sample each.
    ratio = sampling_ratio or 2
    samples = roi_align(features, rois, output_size * ratio, scale, 1, half_pixel)
    return F.max_pool2d(samples, ratio) if len(rois) else samples[..., ::ratio, ::ratio]


def _round_rois(rois: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """First pixel (x, y) and size (width, height, at least 1) of each RoI on the map, int64 [N, 2] each.

    Rounded as in RoIPool: the pixel that the last corner rounds to belongs to the RoI.
    """
    corners = (rois[:, 1:].float() * scale + 0.5).floor().long()
    return corners[:, :2], (corners[:, 2:] - corners[:, :2] + 1).clamp(min=1)


def _average_pool(features: Tensor, rois: Tensor, output_size: int, scale: float) -> Tensor:
    """RoIPool with the mean of a bin's pixels, computed from an integral image; an empty bin is 0."""
    height, width = features.shape[-2:]
    # In float64: differences of sums over a whole map lose too much in float32.
    integral = F.pad(features.double().cumsum(-1).cumsum(-2), (1, 0, 1, 0))
    starts, sizes = _round_rois(rois, scale)
    left, right = _bins(starts[:, 0], sizes[:, 0], output_size, width)
    top, bottom = _bins(starts[:, 1], sizes[:, 1], output_size, height)
    image = rois[:, 0].long()[:, None, None]

    def corner(y: Tensor, x: Tensor) -> Tensor:
        return integral[image, :, y[:, :, None], x[:, None, :]]

    total = corner(bottom, right) - corner(top, right) - corner(bottom, left) + corner(top, left)
    count = ((bottom - top)[:, :, None] * (right - left)[:, None, :]).clamp(min=1)
    return (total / count[..., None]).permute(0, 3, 1, 2).to(features.dtype)


def _bins(start: Tensor, size: Tensor, count: int, limit: int) -> tuple[Tensor, Tensor]:
    """First pixel and end (exclusive) of each bin along one axis, int64 [N, count] each, inside 0..limit."""
    index = torch.arange(count, device=start.device)
    # In integers: floor(i * size / count) and ceil((i + 1) * size / count).
    first = start[:, None] + (index * size[:, None]) // count
    end = start[:, None] - (-(index + 1) * size[:, None]) // count
    return first.clamp(0, limit), end.clamp(0, limit)
