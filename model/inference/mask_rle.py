"""Run-length encoding (RLE) of pasted masks on the device, bit for bit that of `pipeline.masks.rle_kernel` on a CPU.

On a GPU the bottleneck is the transfer to the host: full-size masks would be gigabytes, run lengths are kilobytes.
Every pixel of every box is computed in the reference's own arithmetic, some millions at a time, and only the positions
where a mask begins or ends are kept. The reference is torchvision's paste on a CPU, whose fused multiply-adds are
emulated in float64.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_is_fused() -> bool:
    """Whether torch's resize on this machine's CPU uses fused multiply-add: in its AVX2 and AVX-512 builds, on ARM."""
    return platform.machine().lower() in ("aarch64", "arm64") or (
        torch.backends.cpu.get_cpu_capability().startswith("AVX")
    )


@dataclass(frozen=True)
class Paste:
    """Settings of mask pasting for run-length encoding.

    Attributes:
        threshold: A pixel is inside where its interpolated probability is >= this.
        fused: Whether the reference uses fused multiply-add, as torch does on this machine's CPU.
    """

    threshold: float
    fused: bool = field(default_factory=resize_is_fused)


_PIXELS_AT_A_TIME = 1 << 23
_SMALL_OUTPUT = 128  # height + width up to which torch's CPU resize uses its small kernel


def mask_runs(mask_probs: Tensor, boxes: Tensor, image_size: tuple[int, int], paste: Paste) -> tuple[Tensor, Tensor]:
    """The masks of one image as run lengths, those that `pipeline.masks.rle.encode_roi_masks` makes strings of.

    Args:
        mask_probs: float32 [N, M, M], 0..1.
        boxes: float32 [N, 4], XYXY, half-open, pixels of the image, on the same device.
        image_size: (height, width) of the image.
        paste: Threshold and arithmetic.

    Returns:
        (lengths int64 [R], counts int64 [N]), on the device: run lengths in pixels, column-major, outside first, mask
        after mask, and the number of runs of each mask. N = 0 gives two empty tensors.
    """
    height, width = image_size
    device, num_masks = boxes.device, len(boxes)
    if num_masks == 0:
        return (torch.zeros(0, dtype=torch.int64, device=device),) * 2
    padded = F.pad(mask_probs, (1, 1, 1, 1))
    left, top, right, bottom = _expand(boxes, mask_probs.shape[1]).unbind(1)
    sides = torch.stack([(bottom - top + 1).clamp(min=1), (right - left + 1).clamp(min=1)], dim=1)
    first_row, first_column = (-top).clamp(min=0), (-left).clamp(min=0)
    num_rows = ((bottom + 1).clamp(max=height) - top - first_row).clamp(min=0)
    num_columns = ((right + 1).clamp(max=width) - left - first_column).clamp(min=0)
    num_columns = torch.where(num_rows > 0, num_columns, 0)

    # One entry for each column of each box that lies in the image, then one for each pixel of it, in the order of runs.
    mask_of = torch.arange(num_masks, device=device).repeat_interleave(num_columns)
    column_of = first_column[mask_of] + _count_up(num_columns)
    level = torch.tensor(paste.threshold, dtype=torch.float32)
    outside = bool(torch.tensor(0.0) >= level)
    tracer = _RunTracer(height * width, outside)
    ends = num_rows[mask_of].cumsum(0)
    start = 0
    while start < len(mask_of):
        num_done = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(torch.searchsorted(ends, num_done + _PIXELS_AT_A_TIME, right=True)))
        pixels_of = num_rows[mask_of[start:stop]]
        mask = mask_of[start:stop].repeat_interleave(pixels_of)
        column = column_of[start:stop].repeat_interleave(pixels_of)
        row = first_row[mask] + _count_up(pixels_of)
        inside = _values(padded, mask, row, column, sides, paste.fused) >= level.to(device)
        tracer.add(mask, (left[mask] + column) * height + top[mask] + row, inside)
        start = stop
    return tracer.finish(num_masks, device)


def _expand(boxes: Tensor, side: int) -> Tensor:
    """torchvision's `expand_boxes` for a padding of 1, truncated to whole pixels: int64 [N, 4], edges inclusive."""
    scale = torch.tensor((side + 2) / side, dtype=boxes.dtype, device=boxes.device)
    half_size = (boxes[:, 2:] - boxes[:, :2]) * 0.5 * scale
    centre = (boxes[:, 2:] + boxes[:, :2]) * 0.5
    return torch.cat([centre - half_size, centre + half_size], dim=1).long()


def _count_up(counts: Tensor) -> Tensor:
    """0, 1, ... counts[0] - 1, 0, 1, ... counts[1] - 1, and so on."""
    total = counts.sum()
    return torch.arange(int(total), device=counts.device) - (counts.cumsum(0) - counts).repeat_interleave(counts)


def _values(padded: Tensor, mask: Tensor, row: Tensor, column: Tensor, sides: Tensor, fused: bool) -> Tensor:
    """Values of torch's CPU resize of the padded masks at these pixels of their boxes: float32 [n], bit for bit."""
    last = padded.shape[1] - 1
    small = sides.sum(dim=1) <= _SMALL_OUTPUT
    scales = torch.tensor(last + 1, dtype=torch.float32, device=padded.device) / sides.float()
    contracted = small[mask] if fused else torch.zeros_like(mask, dtype=torch.bool)
    y0, y1, down0, down1 = _source(scales[mask, 0], row, contracted, last)
    x0, x1, across0, across1 = _source(scales[mask, 1], column, contracted, last)
    values = padded.flatten()
    base = mask * (last + 1) ** 2
    corners = [values[base + y * (last + 1) + x] for y in (y0, y1) for x in (x0, x1)]
    upper = _add(corners[0], across0, corners[1] * across1, fused)
    lower = _add(corners[2], across0, corners[3] * across1, fused)
    general = _add(upper, down0, lower * down1, fused)
    if not bool(small.any()):
        return general
    summed = _add(corners[0], down0 * across0, corners[1] * (down0 * across1), fused)
    summed = _add(corners[2], down1 * across0, summed, fused)
    summed = _add(corners[3], down1 * across1, summed, fused)
    return torch.where(small[mask], summed, general)


def _source(scale: Tensor, index: Tensor, contracted: Tensor, last: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Along one axis, the two pixels of the padded mask that a pixel of the box lies between, and their weights."""
    centre = index.float() + 0.5
    plain = scale * centre - 0.5
    position = torch.where(contracted, (scale.double() * centre.double() - 0.5).float(), plain).clamp(min=0)
    low = position.long().clamp(max=last)
    high_weight = (position - low.float()).clamp(max=1)
    return low, (low + 1).clamp(max=last), 1 - high_weight, high_weight


def _add(a: Tensor, weight: Tensor, total: Tensor, fused: bool) -> Tensor:
    """``a * weight + total``, rounded once where the reference fuses."""
    return (a.double() * weight.double() + total.double()).float() if fused else a * weight + total


class _RunTracer:
    """Takes the pixels of boxes in the order of the runs, chunk by chunk, and keeps the positions where a mask changes.

    A position is column * height + row in the image.
    """

    def __init__(self, num_pixels: int, outside: bool) -> None:
        self.num_pixels, self.outside = num_pixels, outside
        self.masks: list[Tensor] = []
        self.positions: list[Tensor] = []
        self.previous: tuple[Tensor, Tensor, Tensor] | None = None  # the last pixel of the chunk before

    def add(self, mask: Tensor, position: Tensor, inside: Tensor) -> None:
        """Add the next pixels: index of the mask, position in the image, whether the pixel is inside the mask."""
        if self.previous is not None:
            mask, position, inside = (torch.cat(pair) for pair in zip(self.previous, (mask, position, inside)))
        follows = (mask[1:] == mask[:-1]) & (position[1:] == position[:-1] + 1)
        before = torch.where(follows, inside[:-1], self.outside)
        opens = inside[1:] != before
        closes = (inside[:-1] != self.outside) & ~follows
        if self.previous is None:
            self._keep(mask[:1], position[:1], inside[:1] != self.outside)
        self._keep(mask[:-1], position[:-1] + 1, closes)
        self._keep(mask[1:], position[1:], opens)
        self.previous = mask[-1:], position[-1:], inside[-1:]

    def _keep(self, mask: Tensor, position: Tensor, changes: Tensor) -> None:
        self.masks.append(mask[changes])
        self.positions.append(position[changes])

    def finish(self, num_masks: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """(lengths, counts): run lengths of all masks, and the number of runs of each."""
        mask_indices = torch.arange(num_masks, device=device)
        if self.previous is not None:
            mask, position, inside = self.previous
            self._keep(mask, position + 1, inside != self.outside)
        if self.outside:
            zeros = torch.zeros_like(mask_indices)
            self._keep(mask_indices, zeros, torch.ones_like(mask_indices, dtype=torch.bool))
        mask = torch.cat([*self.masks, mask_indices[:0]])
        position = torch.cat([*self.positions, mask_indices[:0]])
        is_end = position == self.num_pixels  # each mask's last run ends there in any case
        mask = torch.cat([mask[~is_end], mask_indices])
        position = torch.cat([position[~is_end], torch.full_like(mask_indices, self.num_pixels)])
        order = (mask * (self.num_pixels + 1) + position).argsort()
        mask, position = mask[order], position[order]
        starts = torch.cat([position[:1] * 0, torch.where(mask[1:] == mask[:-1], position[:-1], 0)])
        return position - starts, torch.bincount(mask, minlength=num_masks)
