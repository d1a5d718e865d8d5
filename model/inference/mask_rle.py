"""Run lengths of pasted masks, computed on whatever device the masks are: the GPU twin of `pipeline.masks.rle_kernel`.

On a GPU what is scarce is not arithmetic but the way to the host: full-size masks would be gigabytes, run lengths are
kilobytes. So every pixel of every box is decided, in the reference's own arithmetic and some million at a time, and
only the places where a mask begins or ends are kept. The reference is torchvision's paste on a CPU, whose fused
multiply-adds are imitated in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Paste:
    """How masks are pasted where their run lengths are wanted.

    Attributes:
        threshold: a pixel is inside where its interpolated probability is >= this.
        fused: whether the reference's CPU uses fused multiply-add, see `pipeline.masks.rle_kernel.torch_resize_is_fused`.
    """

    threshold: float
    fused: bool


_PIXELS_AT_A_TIME = 1 << 23
_SMALL_OUTPUT = 128  # height + width up to which torch's CPU resize takes its small kernel


def mask_runs(mask_probs: Tensor, boxes: Tensor, image_size: tuple[int, int], paste: Paste) -> tuple[Tensor, Tensor]:
    """The masks of one image as run lengths, those of `pipeline.masks.rle.encode_roi_masks` before they become strings.

    Args:
        mask_probs: float32 [N, M, M], 0..1.
        boxes: float32 [N, 4], XYXY, half-open, pixels of the image, on the same device.
        image_size: (height, width) of the image.
        paste: threshold and arithmetic.

    Returns:
        (lengths int64 [R], counts int64 [N]), on the device: run lengths in pixels, column-major, outside first, mask
        after mask, and how many of them each mask has. N = 0 gives two empty tensors.
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

    # One entry for each shown column of each box, then one for each of its shown pixels, in the order of the runs.
    mask_of = torch.arange(num_masks, device=device).repeat_interleave(num_columns)
    column_of = first_column[mask_of] + _count_up(num_columns)
    level = torch.tensor(paste.threshold, dtype=torch.float32)
    outside = bool(torch.tensor(0.0) >= level)
    walk = _Walk(height * width, outside)
    ends = num_rows[mask_of].cumsum(0)
    start = 0
    while start < len(mask_of):
        done = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(torch.searchsorted(ends, done + _PIXELS_AT_A_TIME, right=True)))
        pixels_of = num_rows[mask_of[start:stop]]
        mask = mask_of[start:stop].repeat_interleave(pixels_of)
        column = column_of[start:stop].repeat_interleave(pixels_of)
        row = first_row[mask] + _count_up(pixels_of)
        inside = _values(padded, mask, row, column, sides, paste.fused) >= level.to(device)
        walk.take(mask, (left[mask] + column) * height + top[mask] + row, inside)
        start = stop
    return walk.finish(num_masks, device)


def _expand(boxes: Tensor, side: int) -> Tensor:
    """torchvision's `expand_boxes` for a padding of 1, cut to whole pixels: int64 [N, 4], edges inclusive."""
    scale = torch.tensor((side + 2) / side, dtype=boxes.dtype, device=boxes.device)
    half_size = (boxes[:, 2:] - boxes[:, :2]) * 0.5 * scale
    centre = (boxes[:, 2:] + boxes[:, :2]) * 0.5
    return torch.cat([centre - half_size, centre + half_size], dim=1).long()


def _count_up(counts: Tensor) -> Tensor:
    """0, 1, ... counts[0] - 1, 0, 1, ... counts[1] - 1, and so on."""
    total = counts.sum()
    return torch.arange(int(total), device=counts.device) - (counts.cumsum(0) - counts).repeat_interleave(counts)


def _values(padded: Tensor, mask: Tensor, row: Tensor, column: Tensor, sides: Tensor, fused: bool) -> Tensor:
    """torch's CPU resize of the padded masks at these pixels of their boxes, float32, to the last bit."""
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
    """The two places of the padded mask's axis that a pixel lies between, and their weights."""
    centre = index.float() + 0.5
    plain = scale * centre - 0.5
    at = torch.where(contracted, (scale.double() * centre.double() - 0.5).float(), plain).clamp(min=0)
    low = at.long().clamp(max=last)
    upper = (at - low.float()).clamp(max=1)
    return low, (low + 1).clamp(max=last), 1 - upper, upper


def _add(a: Tensor, weight: Tensor, total: Tensor, fused: bool) -> Tensor:
    """``a * weight + total``, rounded once where the reference fuses."""
    return (a.double() * weight.double() + total.double()).float() if fused else a * weight + total


class _Walk:
    """Follows the pixels of boxes in the order of the runs and keeps where the mask changes."""

    def __init__(self, num_pixels: int, outside: bool) -> None:
        self.num_pixels, self.outside = num_pixels, outside
        self.masks: list[Tensor] = []
        self.places: list[Tensor] = []
        self.carried: tuple[Tensor, Tensor, Tensor] | None = None

    def take(self, mask: Tensor, place: Tensor, inside: Tensor) -> None:
        """The next pixels: whose they are, where they lie in the image column by column, whether they are inside."""
        if self.carried is not None:
            mask, place, inside = (torch.cat(pair) for pair in zip(self.carried, (mask, place, inside)))
        follows = (mask[1:] == mask[:-1]) & (place[1:] == place[:-1] + 1)
        before = torch.where(follows, inside[:-1], self.outside)
        opens = inside[1:] != before
        closes = (inside[:-1] != self.outside) & ~follows
        if self.carried is None:
            self._keep(mask[:1], place[:1], inside[:1] != self.outside)
        self._keep(mask[:-1], place[:-1] + 1, closes)
        self._keep(mask[1:], place[1:], opens)
        self.carried = mask[-1:], place[-1:], inside[-1:]

    def _keep(self, mask: Tensor, place: Tensor, changes: Tensor) -> None:
        self.masks.append(mask[changes])
        self.places.append(place[changes])

    def finish(self, num_masks: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Run lengths and how many each mask has."""
        every = torch.arange(num_masks, device=device)
        if self.carried is not None:
            mask, place, inside = self.carried
            self._keep(mask, place + 1, inside != self.outside)
        if self.outside:
            self._keep(every, torch.zeros_like(every), torch.ones_like(every, dtype=torch.bool))
        mask, place = torch.cat([*self.masks, every[:0]]), torch.cat([*self.places, every[:0]])
        is_end = place == self.num_pixels  # the last run reaches it anyway
        mask, place = torch.cat([mask[~is_end], every]), torch.cat([place[~is_end], every * 0 + self.num_pixels])
        order = (mask * (self.num_pixels + 1) + place).argsort()
        mask, place = mask[order], place[order]
        starts = torch.cat([place[:1] * 0, torch.where(mask[1:] == mask[:-1], place[:-1], 0)])
        return place - starts, torch.bincount(mask, minlength=num_masks)
