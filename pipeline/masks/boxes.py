"""The two ways to write a box: XYXY `boxes` on the model's side, XYWH `bbox` on COCO's."""

from __future__ import annotations

import numpy as np


def xyxy_to_xywh(boxes: np.ndarray) -> np.ndarray:
    """COCO's form of half-open corner boxes.

    Args:
        boxes: float32 [N, 4], XYXY in pixels, right and bottom edges outside the box. N = 0 is allowed.

    Returns:
        A new float32 [N, 4], XYWH in the same pixels: `width = x2 - x1`, `height = y2 - y1`, negative where a
        box's corners are the wrong way round.

    Raises:
        ValueError: `boxes` is not a float32 array of shape [N, 4].
    """
    _check_boxes(boxes)
    converted = boxes.copy()
    converted[:, 2:] -= boxes[:, :2]
    return converted


def xywh_to_xyxy(boxes: np.ndarray) -> np.ndarray:
    """The half-open corners of COCO's boxes.

    Args:
        boxes: float32 [N, 4], XYWH in pixels. N = 0 is allowed.

    Returns:
        A new float32 [N, 4], XYXY in the same pixels, half-open: `x2 = x1 + width`, `y2 = y1 + height`.
        Undoes `xyxy_to_xywh` up to float32 rounding, and exactly for whole and half pixels below 2**22.

    Raises:
        ValueError: `boxes` is not a float32 array of shape [N, 4].
    """
    _check_boxes(boxes)
    converted = boxes.copy()
    converted[:, 2:] += boxes[:, :2]
    return converted


def _check_boxes(boxes: np.ndarray) -> None:
    if not isinstance(boxes, np.ndarray):
        raise ValueError(f"boxes must be a float32 array of shape [N, 4], not a {type(boxes).__name__}")
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes must have the shape [N, 4], not {list(boxes.shape)}")
    if boxes.dtype != np.float32:
        raise ValueError(f"boxes must be float32, not {boxes.dtype}")
