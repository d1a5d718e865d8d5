"""Compiled kernel that fills polygons as pycocotools does: many polygons to COCO run-length strings in one call.

pycocotools walks along each edge on a grid five times as fine as the pixels, and notes the row at every step from one
column of pixels to the next. In column-major order these boundaries are the ends of runs. Here only those steps are
computed, with the same arithmetic, not the whole walk.

Source: `rleFrPoly` in pycocotools' maskApi; the results are equal to its results, number for number.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.masks.rle_kernel import append_counts, compiled

_FINE = 5.0  # steps of the fine grid to a pixel


@compiled
def fill(
    points: NDArray[np.float64], starts: NDArray[np.int64], heights: NDArray[np.int64], widths: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Fills polygons, each in its own image, and encodes the masks in COCO's compressed form.

    Args:
        points: float64 [P, 2], the corners of all polygons, one polygon after the other: x and y in pixels.
        starts: int64 [N + 1]; polygon n has the corners points[starts[n]:starts[n + 1]].
        heights, widths: int64 [N], the size of each polygon's image.

    Returns:
        (text uint8 [L], ends int64 [N]): string n is text[ends[n - 1]:ends[n]].
    """
    num = len(heights)
    ends, in_order = np.empty(4096, np.int64), np.empty(4096, np.int64)
    runs = np.empty(4097, np.int64)
    text = np.empty(4096 + 256 * num, np.uint8)
    text_ends = np.zeros(num, np.int64)
    position = 0
    for i in range(num):
        height, width = heights[i], widths[i]
        corners = starts[i + 1] - starts[i]
        k = 0
        for j in range(corners):
            a, b = starts[i] + j, starts[i] + (j + 1) % corners
            x0, y0 = _fine(points[a, 0]), _fine(points[a, 1])
            x1, y1 = _fine(points[b, 0]), _fine(points[b, 1])
            first, last = _columns(x0, x1, width)
            if last < first:
                continue
            if k + last - first + 2 > len(ends):
                ends = np.concatenate((ends, np.empty(k + last - first + 2, np.int64)))
            dx, dy = abs(x1 - x0), abs(y1 - y0)
            if (dx >= dy and x0 > x1) or (dx < dy and y0 > y1):
                x0, y0, x1, y1 = x1, y1, x0, y0
            slope = (y1 - y0) / dx if dx >= dy else (x1 - x0) / dy
            for c in range(first, last + 1):
                border = 5 * c + 2
                if dx >= dy:
                    t = border - x0
                    y = min(np.int64(y0 + slope * t + 0.5), np.int64(y0 + slope * (t + 1) + 0.5))
                else:  # find the last step on the side of the border where the edge begins
                    t = min(max(np.int64((border + 0.5 - x0) / slope), np.int64(0)), dy - 1)
                    side = x0 > border
                    while t > 0 and (np.int64(x0 + slope * t + 0.5) > border) != side:
                        t -= 1
                    while (np.int64(x0 + slope * (t + 1) + 0.5) > border) == side:
                        t += 1
                    y = t + y0
                row = np.ceil(min(max((y + 0.5) / _FINE - 0.5, 0.0), float(height)))
                ends[k] = c * height + np.int64(row)
                k += 1
        if k > len(in_order):
            in_order, runs = np.empty(2 * k, np.int64), np.empty(2 * k + 1, np.int64)
        _sort_by_column(ends[:k], in_order, height)
        # Two boundaries at the same position cancel: the runs on both sides of them are one.
        total = 0
        last = np.int64(0)
        joins = False
        for j in range(k + 1):
            end = in_order[j] if j < k else height * width
            if joins:
                runs[total - 1] += end - last
                joins = False
            elif end > last or j == 0:
                runs[total] = end - last
                total += 1
            else:
                joins = True
            last = end
        text, position = append_counts(text, position, runs, total)
        text_ends[i] = position
    return text[:position], text_ends


@compiled
def _fine(pixels: float) -> int:
    """A coordinate on the fine grid."""
    return int(_FINE * pixels + 0.5)


@compiled
def _columns(x0: int, x1: int, width: int) -> tuple[int, int]:
    """The first and last pixel column c whose border, between fine columns 5c + 2 and 5c + 3, an edge crosses."""
    return max(0, -((2 - min(x0, x1)) // 5)), min(width - 1, (max(x0, x1) - 3) // 5)


@compiled
def _sort_by_column(ends: NDArray[np.int64], in_order: NDArray[np.int64], height: int) -> None:
    """Sorts boundaries into `in_order`: counting sort by column, then insertion sort in each column, which has few."""
    if len(ends) == 0:
        return
    low = ends.min() // height
    starts = np.zeros(ends.max() // height - low + 2, np.int64)
    for end in ends:
        starts[end // height - low + 1] += 1
    for c in range(1, len(starts)):
        starts[c] += starts[c - 1]
    placed = starts.copy()
    for end in ends:
        c = end // height - low
        at = placed[c]
        while at > starts[c] and in_order[at - 1] > end:
            in_order[at] = in_order[at - 1]
            at -= 1
        in_order[at] = end
        placed[c] += 1
