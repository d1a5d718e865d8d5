"""RoI pooler: pools each RoI from the feature pyramid level that its size calls for."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.heads.roi_align_cpu import MapTable
from model.heads.roi_pooling import pool_rois
from model.spec import ModelSpec

# A RoI of this side is pooled from the level of stride 2 ** 4 (Lin et al., Feature Pyramid Networks, equation 1).
CANONICAL_SIZE_PX = 224.0
CANONICAL_LEVEL = 4


class RoIPooler(nn.Module):
    """Pools RoIs of a batch from maps of these strides, finest first; a single map serves RoIs of all sizes."""

    def __init__(self, spec: ModelSpec, *, output_size: int, strides: tuple[int, ...]) -> None:
        super().__init__()
        self.output_size = output_size
        self.strides = strides
        self.spec = spec

    def table(self, features: dict[str, Tensor]) -> MapTable | None:
        """Tables of the maps, for faster RoIAlign on a CPU; None on a GPU, with gradients, or for another operation."""
        has_tables = (self.spec.roi_op, self.spec.roi_reduce) == (
            "align",
            "average",
        ) and self.spec.roi_sampling_ratio > 0
        maps = list(features.values())[: len(self.strides)]
        if not has_tables or maps[0].device.type != "cpu" or torch.is_grad_enabled():
            return None
        return MapTable(maps, self.strides)

    def forward(self, features: dict[str, Tensor] | MapTable, boxes: list[Tensor]) -> Tensor:
        """[N, C, P, P] for all boxes (XYXY, resized pixels) of all images, image after image."""
        rois = torch.cat([torch.cat([b.new_full((len(b), 1), i), b], dim=1) for i, b in enumerate(boxes)])
        levels = assign_levels(rois[:, 1:], self.strides)
        size, ratio, half_pixel = self.output_size, self.spec.roi_sampling_ratio, self.spec.roi_half_pixel
        if isinstance(features, MapTable):
            return features.align(rois, levels, output_size=size, sampling_ratio=ratio, half_pixel=half_pixel)
        maps = list(features.values())[: len(self.strides)]
        pooled = maps[0].new_zeros(len(rois), maps[0].shape[1], size, size)
        for level, (feature, stride) in enumerate(zip(maps, self.strides)):
            index = torch.where(levels == level)[0]
            part = pool_rois(
                feature,
                rois[index],
                output_size=size,
                scale=1 / stride,
                op=self.spec.roi_op,
                reduce=self.spec.roi_reduce,
                sampling_ratio=ratio,
                half_pixel=half_pixel,
            )
            pooled = pooled.index_put((index,), part.to(pooled.dtype))
        return pooled


def assign_levels(boxes: Tensor, strides: tuple[int, ...]) -> Tensor:
    """Index of the map that each box (XYXY [N, 4], resized pixels) is pooled from, int64 [N]."""
    sides = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    finest = strides[0].bit_length() - 1
    # The small constant keeps rounding from putting a side of exactly 2 ** k * 224 on the level below.
    levels = torch.floor(CANONICAL_LEVEL + torch.log2(sides / CANONICAL_SIZE_PX) + 1e-6)
    return levels.clamp(finest, finest + len(strides) - 1).long() - finest
