"""Run lengths of pasted masks (RLE): on a GPU only the places where a mask begins or ends go to the host.

Full-size masks would be gigabytes, run lengths are kilobytes. A mask is enlarged bilinearly, so down a column of its
box the probability is a straight line between two rows of the mask head's output and passes the threshold at most once
there. `trace_runs` decides the first and the last pixel of each such segment, and where they differ looks for the
crossing between them by bisection: the work grows with the columns of the boxes, not with their pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.transfers import to_host

Runs = tuple[np.ndarray, np.ndarray]
"""(lengths int64 [R], counts int64 [N]) of N masks: run lengths in pixels, column-major, outside first, mask after
mask, and the number of runs of each mask."""


@dataclass(frozen=True)
class Placement:
    """Where the masks of a batch lie: the pixels of their boxes, widened by the border of one pixel that masks have.

    All are int64 [N], on the device of the boxes; rows and columns are counted from the box's own first ones.

    Attributes:
        top, left: the box's first row and column, in pixels of the image; may lie outside.
        height, width: of the box, at least 1.
        first_row, num_rows: the rows of the box that are in the image.
        first_column, num_columns: the columns that are; none where no row is.
        image_height, image_width: of the image.
    """

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    first_row: Tensor
    num_rows: Tensor
    first_column: Tensor
    num_columns: Tensor
    image_height: Tensor
    image_width: Tensor

    @cached_property
    def end_row(self) -> Tensor:
        """The first row of the box that is not in the image any more."""
        return self.first_row + self.num_rows


def place(boxes: Tensor, image_sizes: Tensor, side: int) -> Placement:
    """The placement of masks of M x M probabilities.

    Args:
        boxes: float32 [N, 4], XYXY, half-open, in pixels of the image.
        image_sizes: int64 [N, 2], (height, width) of each mask's image.
        side: M.
    """
    left, top, right, bottom = _expand(boxes, side).unbind(1)
    image_height, image_width = image_sizes.unbind(1)
    first_row, first_column = (-top).clamp(min=0), (-left).clamp(min=0)
    num_rows = (torch.minimum(bottom + 1, image_height) - top - first_row).clamp(min=0)
    num_columns = (torch.minimum(right + 1, image_width) - left - first_column).clamp(min=0)
    return Placement(
        top=top,
        left=left,
        height=(bottom - top + 1).clamp(min=1),
        width=(right - left + 1).clamp(min=1),
        first_row=first_row,
        num_rows=num_rows,
        first_column=first_column,
        num_columns=num_columns * (num_rows > 0),
        image_height=image_height,
        image_width=image_width,
    )


def _expand(boxes: Tensor, side: int) -> Tensor:
    """torchvision's `expand_boxes` for a padding of 1, truncated to whole pixels: int64 [N, 4], edges inclusive."""
    half_size = (boxes[:, 2:] - boxes[:, :2]) * 0.5 * ((side + 2) / side)
    centre = (boxes[:, 2:] + boxes[:, :2]) * 0.5
    return torch.cat([centre - half_size, centre + half_size], dim=1).long()


def trace_runs(
    mask_probs: Tensor, placement: Placement, image_sizes: Sequence[tuple[int, int]], num_columns: int, threshold: float
) -> Runs:
    """The run lengths of the pasted masks of a batch, by one wait for their number and one for themselves.

    A pixel is inside where its interpolated probability is >= the threshold. The pixels are those of torchvision's
    `paste_masks_in_image` on a CPU, except where that probability is within 1e-6 of the threshold.

    Args:
        mask_probs: float32 [N, M, M], 0..1.
        placement: Of the same masks, on the same device.
        image_sizes: (height, width) of each mask's image, N of them.
        num_columns: Sum of the placement's `num_columns`, as the host has read it.
        threshold: Compared in float32; at 0 or below every pixel of the image is inside.
    """
    num_pixels = np.array([height * width for height, width in image_sizes], np.int64)
    threshold = float(np.float32(threshold))
    if threshold <= 0 or num_columns == 0:
        none = np.zeros(0, np.int64), np.zeros(len(num_pixels), np.int64)
        return runs_between(*none, num_pixels, starts_inside=threshold <= 0)
    side, device = mask_probs.shape[1] + 2, mask_probs.device
    padded = F.pad(mask_probs, (1, 1, 1, 1))

    # Of each column of each box that is in the image: the values of the padded mask's rows there, [C, side].
    starts = placement.num_columns.cumsum(0) - placement.num_columns
    mask = torch.arange(len(num_pixels), device=device).repeat_interleave(
        placement.num_columns, output_size=num_columns
    )
    number = torch.arange(num_columns, device=device) - starts[mask]
    column = placement.first_column[mask] + number
    low, high, low_weight, high_weight = _between(_scale(placement.width, side)[mask], column, side)
    by_column = padded.transpose(1, 2)
    rows = by_column[mask, low] * low_weight[:, None] + by_column[mask, high] * high_weight[:, None]

    # Segments of a column: the box's rows between two rows of the padded mask, [N, side] each.
    scale = _scale(placement.height, side)
    knots = torch.arange(1, side, device=device, dtype=torch.float64)
    firsts = ((knots + 0.5) / scale.double()[:, None] - 0.5).ceil().long()
    first_row, end_row = placement.first_row[:, None], placement.end_row[:, None]
    firsts = torch.cat([first_row, torch.minimum(firsts.clamp(min=0), end_row).maximum(first_row), end_row], dim=1)
    # An empty segment stands for the last row before it, so that nothing changes there.
    last = torch.maximum(firsts[:, 1:] - 1, first_row)
    first = torch.minimum(firsts[:, :-1], last)

    def is_inside(column: Tensor, row: Tensor) -> Tensor:
        """Whether pixels are inside: their column, an index of `rows`, and their row of the box."""
        low, high, low_weight, high_weight = _between(scale[mask[column]], row, side)
        return rows[column, low] * low_weight + rows[column, high] * high_weight >= threshold

    def is_inside_at(row: Tensor) -> Tensor:
        """The same of whole columns, of the segments' rows [N, side]: [C, side]."""
        low, high, low_weight, high_weight = (values[mask] for values in _between(scale[:, None], row, side))
        return rows.gather(1, low) * low_weight + rows.gather(1, high) * high_weight >= threshold

    at_first, at_last = is_inside_at(first), is_inside_at(last)
    # A column goes on in the next one where the box is as high as the image.
    is_whole = (placement.top + placement.first_row == 0) & (placement.num_rows == placement.image_height)
    goes_on = is_whole[mask] & (number > 0)
    ends_inside = at_last[:, -1:]
    before = torch.cat([ends_inside[:1] & False, ends_inside[:-1]]) & goes_on[:, None]
    ends_image = (placement.left[mask] + column + 1 == placement.image_width[mask]) & (
        (placement.top + placement.end_row == placement.image_height)[mask]
    )
    next_goes_on = torch.cat([goes_on[1:], goes_on[:1] & False])
    changes = torch.stack([at_first != torch.cat([before, at_last[:, :-1]], dim=1), at_first != at_last], dim=2)
    changes = torch.cat([changes.flatten(1), ends_inside & ~(next_goes_on | ends_image)[:, None]], dim=1)
    per_column = changes.sum(1)
    counts = torch.zeros_like(placement.top).index_add_(0, mask, per_column)

    column_of, slot = changes.nonzero().unbind(1)
    mask_of, segment = mask[column_of], (slot // 2).clamp(max=side - 1)
    lower, upper = first[mask_of, segment], last[mask_of, segment]
    is_first_inside = is_inside(column_of, lower)
    longest = max(height for height, _ in image_sizes)
    for _ in range(longest.bit_length()):
        middle = (lower + upper) // 2
        is_like_first = is_inside(column_of, middle) == is_first_inside
        lower, upper = torch.where(is_like_first, middle, lower), torch.where(is_like_first, upper, middle)
    row = torch.where(slot % 2 == 1, upper, first[mask_of, segment])
    row = torch.where(slot == 2 * side, placement.end_row[mask_of], row)
    position = (placement.left[mask_of] + column[column_of]) * placement.image_height[mask_of]
    position += placement.top[mask_of] + row
    positions, numbers = to_host(position, counts)
    return runs_between(positions.numpy(), numbers.numpy(), num_pixels)


def _scale(lengths: Tensor, side: int) -> Tensor:
    """Rows or columns of the padded mask for each of the box's: float32 [N]. (`side / lengths` is rounded twice.)"""
    return torch.full_like(lengths, side, dtype=torch.float32) / lengths


def _between(scale: Tensor, index: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Along one axis, the two of `side` values that a pixel of the box lies between, and their weights."""
    position = (scale * (index.float() + 0.5) - 0.5).clamp(min=0)
    low = position.long().clamp(max=side - 1)
    high_weight = (position - low.float()).clamp(max=1)
    return low, (low + 1).clamp(max=side - 1), 1 - high_weight, high_weight


def runs_between(
    changes: np.ndarray, counts: np.ndarray, num_pixels: np.ndarray, *, starts_inside: bool = False
) -> Runs:
    """Run lengths from the positions (column * height + row) at which masks begin or end.

    Args:
        changes: int64 [K], ascending for each mask, mask after mask; none at the end of the image.
        counts: int64 [N], the number of changes of each mask.
        num_pixels: int64 [N], of each mask's image.
        starts_inside: The first pixel of every mask is inside.
    """
    ends = np.insert(changes, np.cumsum(counts), num_pixels)  # the last run of a mask ends with its image
    counts = counts + 1
    if starts_inside:
        ends = np.insert(ends, np.cumsum(counts) - counts, 0)
        counts = counts + 1
    lengths = np.diff(ends, prepend=0)
    firsts = np.cumsum(counts) - counts
    lengths[firsts] = ends[firsts]
    return lengths, counts


def paste_runs(mask_probs: Tensor, boxes: Tensor, image_size: tuple[int, int], threshold: float) -> Runs:
    """The run lengths of one image's masks on a CPU, by torch's own resize, mask by mask: torchvision's very pixels.

    Args:
        mask_probs: float32 [N, M, M], 0..1.
        boxes: float32 [N, 4], XYXY, half-open, in pixels of the image.
        image_size: (height, width) of the image.
        threshold: A pixel is inside where its interpolated probability is >= this, compared in float32.
    """
    height, width = image_size
    padded = F.pad(mask_probs, (1, 1, 1, 1))
    changes = [np.zeros(0, np.int64)]
    for mask, (left, top, right, bottom) in zip(padded, _expand(boxes, mask_probs.shape[1]).tolist()):
        size = (max(bottom - top + 1, 1), max(right - left + 1, 1))
        values = F.interpolate(mask[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
        end_row, end_column = (max(min(end + 1, most), 0) for end, most in ((bottom, height), (right, width)))
        values = values[max(-top, 0) : max(end_row - top, 0), max(-left, 0) : max(end_column - left, 0)]
        columns = np.zeros((values.shape[1], height), np.int8)
        first_row = max(top, 0)
        columns[:, first_row : first_row + values.shape[0]] = (values.numpy() >= np.float32(threshold)).T
        positions = np.flatnonzero(np.diff(columns.ravel(), prepend=0, append=0)) + max(left, 0) * height
        changes.append(positions[positions < height * width])
    counts = np.array([len(positions) for positions in changes[1:]], np.int64)
    num_pixels = np.full(len(counts), height * width, np.int64)
    if threshold <= 0:  # then the pixels around a box are inside, too
        return runs_between(changes[0], counts * 0, num_pixels, starts_inside=True)
    return runs_between(np.concatenate(changes), counts, num_pixels)
