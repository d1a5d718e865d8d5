"""Box conversions between the model's XYXY `boxes` and COCO's XYWH `bbox`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def xyxy_to_xywh(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """COCO's XYWH boxes of half-open XYXY boxes.

    Args:
        boxes: float32 [N, 4], XYXY in pixels, half-open (the pixel at x2, y2 is outside). N = 0 is allowed.

    Returns:
        A new float32 [N, 4], XYWH in the same pixels: `width = x2 - x1`, `height = y2 - y1`; negative where x2 < x1 or
        y2 < y1.

    Raises:
        ValueError: `boxes` is not a float32 array of shape [N, 4].
    """
    _check_boxes(boxes)
    converted = boxes.copy()
    converted[:, 2:] -= boxes[:, :2]
    return converted


def xywh_to_xyxy(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Half-open XYXY boxes of COCO's XYWH boxes.

    Args:
        boxes: float32 [N, 4], XYWH in pixels. N = 0 is allowed.

    Returns:
        A new float32 [N, 4], XYXY in the same pixels, half-open: `x2 = x1 + width`, `y2 = y1 + height`. The inverse of
        `xyxy_to_xywh` up to float32 rounding, and exactly so for whole and half pixels below 2**22.

    Raises:
        ValueError: `boxes` is not a float32 array of shape [N, 4].
    """
    _check_boxes(boxes)
    converted = boxes.copy()
    converted[:, 2:] += boxes[:, :2]
    return converted


def _check_boxes(boxes: NDArray[np.float32]) -> None:
    if not isinstance(boxes, np.ndarray):
        raise ValueError(f"boxes must be a float32 array of shape [N, 4], not a {type(boxes).__name__}")
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes must have the shape [N, 4], not {list(boxes.shape)}")
    if boxes.dtype != np.float32:
        raise ValueError(f"boxes must be float32, not {boxes.dtype}")
