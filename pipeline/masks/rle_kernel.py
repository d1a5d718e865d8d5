"""Compiled kernel of `pipeline.masks.rle.encode_roi_masks`: mask-head probabilities to COCO run-length strings.

The reference (torchvision) pastes a mask by padding it with a ring of zeros and resizing it bilinearly to its box.
Along one image column that resize is piecewise linear between the rows of the padded mask, so the rows at which it
crosses the threshold are solved for, not scanned. The columns of the box that lie between the same two mask columns (a
*strip*) share the list of mask cells that can hold a crossing. So the time for a column depends on its crossings only,
not on its height.

Only a row whose value may lie within rounding of the threshold is decided by evaluating the reference's own float32
arithmetic for that one pixel (`_reference_inside`). torch's CPU resize has two kernels, which round differently:

* general (height + width of the output > 128): across first, then down, each `fma(a, wa, b * wb)`;
* small (height + width <= 128): four products of weights, summed left to right with fma, and the source index itself
  contracted to `fma(scale, i + 0.5, -0.5)`.

On a CPU without AVX2 and FMA torch runs both without any fma. Bit equality with torch 2.15 was checked on x86-64 over
tens of millions of pixels at its AVX-512, AVX2 and baseline levels; `tests/pipeline/masks/test_rle_kernel.py` checks it
again.

Importing this module imports numba (about half a second) and compiles nothing. The first call compiles the kernel (some
seconds) or loads it from numba's cache: `__pycache__` beside this file, or, where that cannot be written, the user's
cache folder, or `NUMBA_CACHE_DIR`. Where none of them can be written, every process compiles anew.
"""

from __future__ import annotations

import functools
import math
import os
import platform
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import binding
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

F32 = np.float32
_ZERO = F32(0.0)
_HALF = F32(0.5)
_ONE = F32(1.0)
_MAX_FLOAT = F32(np.finfo(F32).max)
_EPSILON = 2.0**-24  # half a unit in the last place of a float32 in [1, 2), relative
_SMALL_OUTPUT = 128  # height + width up to which torch takes its small kernel
_OUT, _IN = -2, -1  # kinds of segments without a crossing; the kind of an active segment is its cell's number, >= 0
_LONGEST_COUNT = 13  # characters of a 64-bit run length, five bits to a character


def compiled(function: Callable[..., Any]) -> Any:
    """Compiles a function with numba on its first call: releases the GIL, cached on disk where numba may write."""
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # numba found no folder to cache in: a read-only install without a home
        return njit(nogil=True)(function)


def torch_resize_is_fused() -> bool:
    """Whether torch's CPU resize on this machine uses fused multiply-add (its AVX2 and AVX-512 builds do)."""
    if os.environ.get("ATEN_CPU_CAPABILITY", "").lower() == "default":
        return False
    if platform.machine().lower() in ("aarch64", "arm64"):
        return True
    return _has_avx2_and_fma()


@functools.cache
def _has_avx2_and_fma() -> bool:
    features = binding.get_host_cpu_features()  # takes 0.14 ms, as long as some masks
    return bool(features.get("avx2")) and bool(features.get("fma"))


def _type_fma(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fma(*arguments)

    return types.float32(types.float32, types.float32, types.float32), generate


_fma: Any = intrinsic(_type_fma)
"""_fma(a, b, c): a * b + c in float32 with one rounding."""


@compiled
def _blend(a: F32, weight_a: F32, b: F32, weight_b: F32, fused: bool) -> F32:
    """`a * weight_a + b * weight_b`; with `fused`, only the second product is rounded by itself."""
    if fused:
        return _fma(a, weight_a, b * weight_b)
    return a * weight_a + b * weight_b


@compiled
def _accumulate(a: F32, weight: F32, total: F32, fused: bool) -> F32:
    """`total + a * weight`; with `fused`, rounded once."""
    if fused:
        return _fma(a, weight, total)
    return total + a * weight


@compiled
def _source_index(scale: F32, index: int, contracted: bool) -> F32:
    """The position of output pixel `index` on an axis of the padded mask, >= 0, in torch's float32 arithmetic."""
    centre = np.float32(index) + _HALF
    if contracted:
        return max(_fma(scale, centre, -_HALF), _ZERO)
    return max(scale * centre - _HALF, _ZERO)


@compiled
def _reference_inside(
    padded: NDArray[np.float32],
    row: int,
    column: int,
    row_scale: F32,
    column_scale: F32,
    threshold: F32,
    fused: bool,
    small: bool,
) -> bool:
    """Whether torch's resize of `padded` [column, row] is >= threshold at one pixel of the box."""
    last = padded.shape[0] - 1
    source_row = _source_index(row_scale, row, fused and small)
    source_column = _source_index(column_scale, column, fused and small)
    y0 = min(np.int64(source_row), last)
    x0 = min(np.int64(source_column), last)
    y1 = min(y0 + 1, last)
    x1 = min(x0 + 1, last)
    down1 = min(source_row - np.float32(y0), _ONE)
    across1 = min(source_column - np.float32(x0), _ONE)
    down0 = _ONE - down1
    across0 = _ONE - across1
    if small:
        value = _blend(padded[x0, y0], down0 * across0, padded[x1, y0], down0 * across1, fused)
        value = _accumulate(padded[x0, y1], down1 * across0, value, fused)
        value = _accumulate(padded[x1, y1], down1 * across1, value, fused)
    else:
        upper = _blend(padded[x0, y0], across0, padded[x1, y0], across1, fused)
        lower = _blend(padded[x0, y1], across0, padded[x1, y1], across1, fused)
        value = _blend(upper, down0, lower, down1, fused)
    return value >= threshold


@compiled
def _fill_row_starts(starts: NDArray[np.int64], size: int, scale: F32, contracted: bool) -> None:
    """Sets `starts[k]` to the first output row whose source index is at least k, and `starts[-1]` to `size`."""
    last = len(starts) - 1
    starts[0] = 0
    starts[last] = size
    for k in range(1, last):
        row = min(max(int((k + 0.5) / scale - 0.5), 0), size)
        while row > 0 and _source_index(scale, row - 1, contracted) >= k:
            row -= 1
        while row < size and _source_index(scale, row, contracted) < k:
            row += 1
        starts[k] = row


@compiled
def _fill_segments(
    segment_row: NDArray[np.int64],
    segment_kind: NDArray[np.int64],
    padded: NDArray[np.float32],
    strip: int,
    starts: NDArray[np.int64],
    first: int,
    end: int,
    sure_out: float,
    sure_in: float,
) -> int:
    """Cuts rows [first, end) of a strip into segments: surely out, surely in, or one active mask cell each.

    Returns the number of segments. `segment_row` gets their first rows and, as one entry more, `end`.
    """
    last = padded.shape[0] - 1
    left = padded[strip]
    right = padded[min(strip + 1, last)]
    num = 0
    previous = 0
    for cell in range(last + 1):
        start = max(starts[cell], first)
        if start >= min(starts[cell + 1], end):
            continue
        below = min(cell + 1, last)
        low = min(min(left[cell], right[cell]), min(left[below], right[below]))
        high = max(max(left[cell], right[cell]), max(left[below], right[below]))
        kind = cell
        if low >= sure_in:
            kind = _IN
        elif high < sure_out:
            kind = _OUT
        if kind >= 0 or kind != previous or num == 0:
            segment_row[num] = start
            segment_kind[num] = kind
            num += 1
        previous = kind
    segment_row[num] = end
    return num


@compiled
def _find_doubtful_rows(
    upper: F32,
    lower: F32,
    cell: int,
    start: int,
    end: int,
    level: float,
    margin: float,
    row_slack: float,
    rows_per_cell: float,
) -> tuple[int, int]:
    """Finds the rows in [start, end) of a cell that rounding could put on either side of `level`.

    The value changes linearly from `upper`, at the cell's upper knot, to `lower`, at its lower knot.

    Returns (doubt, clear): rows before `doubt` surely lie on the upper knot's side of the level, rows from `clear` on
    surely on the lower knot's. Only rows between them may be decided by rounding. `margin` bounds the error of a value,
    `row_slack` that of a source index.
    """
    rise = np.float64(lower) - np.float64(upper)
    if abs(rise) <= margin:
        return start, end
    middle = cell + (level - np.float64(upper)) / rise + 0.5
    slack = margin / abs(rise) + row_slack
    doubt = math.ceil((middle - slack) * rows_per_cell - 0.5)
    clear = math.floor((middle + slack) * rows_per_cell - 0.5) + 1
    doubt = min(max(doubt, start), end)
    return doubt, max(min(clear, end), doubt)


@compiled
def _switch(
    runs: NDArray[np.int64], num: int, position: int, inside: bool, last: int, current: bool
) -> tuple[int, int, bool]:
    """Makes the pixels from `position` on `inside`; closes the current run if that is a change.

    Returns the new (num, last, current): number of closed runs, start of the open run, and whether it is inside.
    """
    if inside != current:
        runs[num] = position - last
        return num + 1, position, inside
    return num, last, current


@compiled
def _encode_box(
    runs: NDArray[np.int64],
    padded: NDArray[np.float32],
    starts: NDArray[np.int64],
    segments: tuple[NDArray[np.int64], NDArray[np.int64]],
    box: NDArray[np.int64],
    image_size: tuple[int, int],
    threshold: F32,
    peak: F32,
    fused: bool,
) -> tuple[NDArray[np.int64], int]:
    """Fills `runs`, grown where it is too short, with the column-major run lengths of one pasted mask.

    `segments` are the arrays that `_fill_segments` writes to: of rows and of kinds. `image_size` is (H, W).

    Returns (runs, number of runs).
    """
    segment_row, segment_kind = segments
    height, width = image_size
    side = padded.shape[0]
    last_knot = side - 1
    left, top = box[0], box[1]
    box_height = max(box[3] - top + 1, 1)
    box_width = max(box[2] - left + 1, 1)
    small = box_height + box_width <= _SMALL_OUTPUT
    contracted = fused and small
    row_scale = np.float32(side) / np.float32(box_height)
    column_scale = np.float32(side) / np.float32(box_width)
    rows_per_cell = 1.0 / np.float64(row_scale)

    # The part of the box that lies in the image, in the box's own rows and columns.
    first_row, end_row = max(0, -top), min(box[3] + 1, height) - top
    first_column, end_column = max(0, -left), min(box[2] + 1, width) - left

    # Values: rounding of the blends. Rows: rounding of the source index, which is at most `side`.
    level = np.float64(threshold)
    margin = 16.0 * _EPSILON * max(np.float64(peak), abs(level))
    row_slack = 4.0 * _EPSILON * side
    sure_out = level - margin
    sure_in = level + margin if level != 0.0 else 0.0  # no blend of values >= 0 rounds below 0
    outside = _ZERO >= threshold

    num, last, current = _switch(runs, 0, 0, outside, 0, False)
    if first_row < end_row and first_column < end_column:
        _fill_row_starts(starts, box_height, row_scale, contracted)
        strip = -1
        num_segments = 0
        for column in range(first_column, end_column):
            if num + (end_row - first_row) + 4 > len(runs):
                grown = np.empty(2 * len(runs) + end_row - first_row, np.int64)
                grown[:num] = runs[:num]
                runs = grown
            source = _source_index(column_scale, column, contracted)
            x0 = min(np.int64(source), last_knot)
            x1 = min(x0 + 1, last_knot)
            across1 = min(source - np.float32(x0), _ONE)
            across0 = _ONE - across1
            if x0 != strip:
                strip = x0
                num_segments = _fill_segments(
                    segment_row, segment_kind, padded, strip, starts, first_row, end_row, sure_out, sure_in
                )
            base = (left + column) * height + top  # position of the box's row 0 in this column of the image
            if top + first_row > 0:
                num, last, current = _switch(runs, num, base - top, outside, last, current)
            for segment in range(num_segments):
                start = segment_row[segment]
                cell = segment_kind[segment]
                if cell < 0:
                    num, last, current = _switch(runs, num, base + start, cell == _IN, last, current)
                    continue
                end = segment_row[segment + 1]
                below = min(cell + 1, last_knot)
                upper = _blend(padded[x0, cell], across0, padded[x1, cell], across1, fused)
                lower = _blend(padded[x0, below], across0, padded[x1, below], across1, fused)
                if min(upper, lower) >= sure_in:
                    num, last, current = _switch(runs, num, base + start, True, last, current)
                    continue
                if max(upper, lower) < sure_out:
                    num, last, current = _switch(runs, num, base + start, False, last, current)
                    continue
                doubt, clear = _find_doubtful_rows(
                    upper, lower, cell, start, end, level, margin, row_slack, rows_per_cell
                )
                if start < doubt:
                    num, last, current = _switch(runs, num, base + start, upper >= threshold, last, current)
                for row in range(doubt, clear):
                    inside = _reference_inside(padded, row, column, row_scale, column_scale, threshold, fused, small)
                    num, last, current = _switch(runs, num, base + row, inside, last, current)
                if clear < end:
                    num, last, current = _switch(runs, num, base + clear, lower >= threshold, last, current)
            if top + end_row < height:
                num, last, current = _switch(runs, num, base + end_row, outside, last, current)
        if left + end_column < width:
            num, last, current = _switch(runs, num, (left + end_column) * height, outside, last, current)
    runs[num] = height * width - last
    return runs, num + 1


@compiled
def append_counts(
    text: NDArray[np.uint8], position: int, runs: NDArray[np.int64], num: int
) -> tuple[NDArray[np.uint8], int]:
    """Appends runs[:num] to `text` in COCO's compressed form.

    Returns `text`, grown where it had no room, and the position after the last character.
    """
    if position + _LONGEST_COUNT * num > len(text):
        grown = np.empty(2 * len(text) + _LONGEST_COUNT * num, np.uint8)
        grown[:position] = text[:position]
        text = grown
    for i in range(num):
        value = runs[i]
        if i > 2:
            value -= runs[i - 2]
        more = True
        while more:
            bits = value & 0x1F
            value >>= 5
            more = value != -1 if bits & 0x10 else value != 0
            text[position] = bits + (80 if more else 48)
            position += 1
    return text, position


@compiled
def encode_boxes(
    masks: NDArray[np.float32], boxes: NDArray[np.int64], height: int, width: int, threshold: F32, fused: bool
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64], int]:
    """Encodes all masks of one image into one text.

    Args:
        masks: float32 [N, M, M], C-contiguous.
        boxes: int64 [N, 4], XYXY with inclusive right and bottom edges, in original pixels, already expanded.
        height, width: int64, size of the original image, both at least 1.
        threshold: float32.
        fused: whether the reference arithmetic uses fused multiply-add; see `torch_resize_is_fused`.

    Returns:
        (text uint8 [L], ends int64 [N], areas int64 [N], bad int64). String n is text[ends[n - 1]:ends[n]]; areas are
        in pixels. `bad` is -1, or the index of the first mask with a non-finite value, where the work stopped.
    """
    num_masks, side = masks.shape[0], masks.shape[1]
    padded = np.zeros((side + 2, side + 2), np.float32)  # [column, row]: a column's values together
    starts = np.empty(side + 3, np.int64)
    segment_row = np.empty(side + 3, np.int64)
    segment_kind = np.empty(side + 3, np.int64)
    runs = np.empty(4096, np.int64)
    text = np.empty(4096 + 1024 * num_masks, np.uint8)
    ends = np.zeros(num_masks, np.int64)
    areas = np.zeros(num_masks, np.int64)
    position = 0
    for n in range(num_masks):
        peak = _ZERO
        finite = True
        for row in range(side):
            for column in range(side):
                value = masks[n, row, column]
                padded[column + 1, row + 1] = value
                size = abs(value)
                finite &= size <= _MAX_FLOAT
                peak = max(peak, size)
        if not finite:
            return text[:position], ends, areas, n
        runs, num_runs = _encode_box(
            runs, padded, starts, (segment_row, segment_kind), boxes[n], (height, width), threshold, peak, fused
        )
        text, position = append_counts(text, position, runs, num_runs)
        ends[n] = position
        area = 0
        for i in range(1, num_runs, 2):
            area += runs[i]
        areas[n] = area
    return text[:position], ends, areas, -1


@compiled
def write_masks(
    lengths: NDArray[np.int64], counts: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """Encodes masks that are given as run lengths into one text.

    Args:
        lengths: int64 [R], the run lengths of all masks, one mask after the other.
        counts: int64 [N], how many run lengths each mask has.

    Returns:
        (text uint8 [L], ends int64 [N], areas int64 [N]). String n is text[ends[n - 1]:ends[n]]; areas are in pixels.
    """
    text = np.empty(4 * len(lengths) + _LONGEST_COUNT, np.uint8)
    ends = np.empty(len(counts), np.int64)
    areas = np.zeros(len(counts), np.int64)
    first = 0
    position = 0
    for n in range(len(counts)):
        runs = lengths[first : first + counts[n]]
        text, position = append_counts(text, position, runs, counts[n])
        ends[n] = position
        areas[n] = runs[1::2].sum()
        first += counts[n]
    return text[:position].copy(), ends, areas
