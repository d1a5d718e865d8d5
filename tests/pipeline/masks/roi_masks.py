"""Mask-head outputs drawn for the tests, and the reference that pastes and encodes them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from pycocotools import mask as coco
from torchvision.models.detection import roi_heads

from pipeline.masks.rle import encode_roi_masks_and_areas


def reference(masks: np.ndarray, boxes: np.ndarray, size: tuple[int, int], threshold: float) -> list[str]:
    """torchvision's paste, `>= threshold`, pycocotools' encode; an empty paste where torchvision raises."""
    padded, scale = roi_heads.expand_masks(torch.from_numpy(masks)[:, None], 1)
    expanded = roi_heads.expand_boxes(torch.from_numpy(boxes), scale).to(torch.int64)
    counts = []
    for mask, box in zip(padded, expanded):
        try:
            pasted = roi_heads.paste_mask_in_image(mask[0], box, *size)
        except RuntimeError:
            x1, y1, x2, y2 = box.tolist()
            assert x2 < max(x1, 0) or y2 < max(y1, 0) or x1 >= size[1] or y1 >= size[0], "a visible box"
            pasted = torch.zeros(size)
        inside = (pasted >= threshold).numpy().astype(np.uint8)
        counts.append(coco.encode(np.asfortranarray(inside))["counts"].decode())
    return counts


def check_equal(masks: ArrayLike, boxes: ArrayLike, size: tuple[int, int], threshold: float = 0.5) -> None:
    """Checks strings and areas of one image's masks against the reference."""
    masks, boxes = np.asarray(masks, np.float32), np.asarray(boxes, np.float32)
    strings, areas = encode_roi_masks_and_areas(masks, boxes, size, threshold)
    expected = reference(masks, boxes, size, threshold)
    assert strings == expected, (masks.shape, boxes.tolist(), size, threshold)
    expected_areas = coco.area([{"size": list(size), "counts": counts} for counts in expected])
    np.testing.assert_array_equal(areas, expected_areas)


def draw_blobs(rng: np.random.Generator, num: int, side: int) -> np.ndarray:
    """Float32 [N, M, M] like a mask head's: smooth blobs, with noise of 0.5 on the logits."""
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    centre, radius = rng.uniform(-0.4, 0.4, (2, num, 1, 1)), rng.uniform(0.4, 1.0, (2, num, 1, 1))
    logits = 6 * (1 - ((y - centre[0]) / radius[0]) ** 2 - ((x - centre[1]) / radius[1]) ** 2)
    return (1 / (1 + np.exp(-logits - rng.normal(0, 0.5, logits.shape)))).astype(np.float32)


def draw_boxes(rng: np.random.Generator, num: int, size: tuple[int, int]) -> np.ndarray:
    """Float32 [N, 4], XYXY, half-open, of 2% to 42% of the image's sides."""
    sides = 0.02 + 0.4 * rng.random((num, 2)) ** 2
    centres = rng.random((num, 2))
    corners = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1)
    return (corners * [size[1], size[0], size[1], size[0]]).astype(np.float32)
