"""RoIAlign on a CPU: the maps of a batch become one table of places, and every bin a weighted sum of its rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


class MapTable:
    """The maps of a batch, a row of C channels for each place of each image on each map.

    torch sums rows of a table several times faster than torchvision's RoIAlign walks planes of maps, and all heads
    share one table. No gradients; they need a fixed number of samples in a bin (`roi_sampling_ratio` above 0).

    Args:
        maps: Finest first, [B, C, H, W] each, all of one type.
        strides: Pixels of the image in a pixel of each map.
    """

    def __init__(self, maps: Sequence[Tensor], strides: Sequence[int]) -> None:
        self.sizes = torch.tensor([one.shape[2:] for one in maps])
        counts = [one.shape[0] * one.shape[2] * one.shape[3] for one in maps]
        self.starts = torch.tensor([0, *counts]).cumsum(0)
        self.rows = maps[0].new_empty(sum(counts), maps[0].shape[1])
        for one, rows in zip(maps, self.rows.split(counts)):
            rows.view(len(one), *one.shape[2:], -1).copy_(one.permute(0, 2, 3, 1))
        self.scales = torch.tensor([1 / stride for stride in strides])

    def align(self, rois: Tensor, levels: Tensor, *, output_size: int, sampling_ratio: int, half_pixel: bool) -> Tensor:
        """What `torchvision.ops.roi_align` gives of each RoI, up to the order in which a bin's samples are added.

        Args:
            rois: float32 [N, 5]: index of the image in the batch, then XYXY pixels of the input image.
            levels: int64 [N], the map each is taken from.
            output_size: P, bins along each side.
            sampling_ratio: Samples along each side of a bin, at least 1.
            half_pixel: RoIAlign's shift by half a pixel.

        Returns:
            [N, C, P, P] of the maps' type, channels last in memory; N = 0 gives [0, C, P, P].
        """
        scale = self.scales[levels][:, None]
        corners = rois[:, 1:] * scale - (0.5 if half_pixel else 0.0)
        extents = corners[:, 2:] - corners[:, :2]
        bins = (extents if half_pixel else extents.clamp(min=1)) / output_size
        height, width = self.sizes[levels].unbind(1)
        rows, row_weights = _samples(corners[:, 1], bins[:, 1], height, output_size, sampling_ratio)
        columns, column_weights = _samples(corners[:, 0], bins[:, 0], width, output_size, sampling_ratio)
        first = self.starts[levels] + rois[:, 0].long() * height * width
        places = (first[:, None, None] + rows * width[:, None, None])[:, :, None, :, None] + columns[:, None, :, None]
        weights = row_weights[:, :, None, :, None] * column_weights[:, None, :, None] / sampling_ratio**2
        pooled = F.embedding_bag(
            places.flatten(3).flatten(0, 2),
            self.rows,
            mode="sum",
            per_sample_weights=weights.flatten(3).flatten(0, 2).to(self.rows.dtype),
        )
        return pooled.view(len(rois), output_size, output_size, self.rows.shape[1]).permute(0, 3, 1, 2)


def _samples(start: Tensor, bin_size: Tensor, limit: Tensor, count: int, ratio: int) -> tuple[Tensor, Tensor]:
    """Along one axis: the places that a bin's samples lie between, and their weights, [N, count, 2 ratio] each."""
    bins = torch.arange(count, dtype=start.dtype)[:, None]
    steps = torch.arange(ratio, dtype=start.dtype) + 0.5
    at = start[:, None, None] + bins * bin_size[:, None, None] + steps * bin_size[:, None, None] / ratio
    limit = limit[:, None, None]
    outside = (at < -1) | (at > limit)
    at = at.clamp(min=0)
    low = torch.minimum(at.long(), limit - 1)
    high = torch.minimum(low + 1, limit - 1)
    upper = torch.where(low == limit - 1, 0.0, at - low)
    weights = torch.stack([1 - upper, upper], dim=-1).masked_fill(outside[..., None], 0.0)
    return torch.stack([low, high], dim=-1).flatten(2), weights.flatten(2)
