"""Boundary IoU of two masks: the IoU of the bands along their outlines, which tells masks of large objects apart.

B. Cheng et al.: Boundary IoU: Improving Object-Centric Image Segmentation Evaluation, CVPR 2021.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

BAND = 0.02  # width of the band, of the image's diagonal: the paper's for COCO


def boundary_iou(first: NDArray[np.bool_], second: NDArray[np.bool_], band: float = BAND) -> float:
    """Intersection over union of the two masks' bands; 0 where both masks are empty.

    The band of a mask is those of its pixels that an erosion takes away: by rows and columns at most its width from a
    pixel outside. Beyond the image all is outside.

    Args:
        first, second: bool [H, W], two masks of one image.
        band: width of the band as a share of the image's diagonal; at least one pixel.
    """
    width = max(1, round(band * math.hypot(*first.shape)))
    either = first | second
    rows, columns = (np.flatnonzero(either.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return 0.0
    window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    bands = [mask[window] & ~_eroded(mask[window], width) for mask in (first, second)]
    return float(np.count_nonzero(bands[0] & bands[1]) / np.count_nonzero(bands[0] | bands[1]))


def _eroded(mask: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """The pixels of a mask whose square of `width` pixels to each side is inside; around the array all is outside."""
    for axis in (0, 1):
        pad = [(0, 0), (0, 0)]
        pad[axis] = (width + 1, width)
        inside = np.cumsum(np.pad(mask, pad), axis=axis, dtype=np.int32)
        length, side = mask.shape[axis], 2 * width + 1
        ends, starts = (inside.take(range(at, at + length), axis=axis) for at in (side, 0))
        mask = ends - starts == side
    return mask
