"""Anchor generators: torchvision's, and detectron2's with unrounded sides and exact strides."""

from __future__ import annotations

import torch
from torch import Tensor

from model.spec import ModelSpec
from model.transfers import to_device
from model.vision import AnchorGenerator


def build_anchors(spec: ModelSpec, strides: tuple[int, ...]) -> AnchorGenerator:
    """The spec's anchor generator for feature maps of these strides, finest first."""
    ratios = (spec.anchor_ratios,) * len(spec.anchor_sizes)
    if spec.anchor_style == "torchvision":
        return AnchorGenerator(spec.anchor_sizes, ratios)
    return ExactAnchors(spec.anchor_sizes, ratios, strides)


class ExactAnchors(AnchorGenerator):
    """Anchors as in detectron2: sides are not rounded, and positions are multiples of the map's own stride.

    torchvision rounds the sides, and spaces anchors by image side // map side, which differs from the stride where the
    image's side is no multiple of it.
    """

    def __init__(
        self, sizes: tuple[tuple[float, ...], ...], ratios: tuple[tuple[float, ...], ...], strides: tuple[int, ...]
    ) -> None:
        self.strides = strides
        super().__init__(sizes, ratios)

    def generate_anchors(
        self,
        scales: list[float],
        aspect_ratios: list[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device = torch.device("cpu"),  # noqa: B008 (torchvision's own signature)
    ) -> Tensor:
        """Anchors of one map around (0, 0), ratio by ratio: [len(aspect_ratios) * len(scales), 4] XYXY in pixels."""
        scale = torch.as_tensor(scales, dtype=dtype, device=device)[None]
        root = torch.as_tensor(aspect_ratios, dtype=dtype, device=device).sqrt()[:, None]
        widths, heights = (scale / root).reshape(-1), (scale * root).reshape(-1)
        return torch.stack([-widths, -heights, widths, heights], dim=1) / 2

    def grid_anchors(self, grid_sizes: list[list[int]], strides: list[list[Tensor]]) -> list[Tensor]:
        """The anchors of each map at each of its cells: [cells * anchors, 4] XYXY in pixels of the padded images."""
        exact = [[to_device(stride, inexact[0].device)] * 2 for stride, inexact in zip(self.strides, strides)]
        return super().grid_anchors(grid_sizes, exact)
