"""Boundary IoU against the paper's own steps: a border of zeros, erosion by 3 x 3 once for each pixel of the band."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image, ImageFilter

from pipeline.masks.boundary import boundary_iou


def band_of(mask: np.ndarray) -> np.ndarray:
    """The band of a mask, by Pillow's filter of minima."""
    height, width = mask.shape
    steps = max(1, round(0.02 * math.sqrt(height**2 + width**2)))
    image = Image.fromarray(np.pad(mask, 1).astype(np.uint8) * 255)
    for _ in range(steps):
        eroded = np.asarray(image.filter(ImageFilter.MinFilter(3))).copy()
        eroded[[0, -1]] = eroded[:, [0, -1]] = 0  # Pillow leaves the outermost pixels as they are
        image = Image.fromarray(eroded)
    return mask & ~(np.asarray(image)[1:-1, 1:-1] > 0)


@pytest.mark.parametrize("size", [(40, 60), (150, 90), (7, 5), (1, 30)])
def test_it_is_the_iou_of_the_bands_that_repeated_erosion_leaves(size: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    for _ in range(5):
        blocks = random.random((2, size[0] // 5 + 1, size[1] // 5 + 1)) > 0.3
        first, second = (block.repeat(5, 0).repeat(5, 1)[: size[0], : size[1]] for block in blocks)
        bands = band_of(first), band_of(second)
        assert boundary_iou(first, second) == (bands[0] & bands[1]).sum() / (bands[0] | bands[1]).sum()


def test_equal_masks_have_one_and_a_shifted_outline_loses_more_than_the_mask() -> None:
    mask = np.zeros((200, 200), bool)
    mask[50:150, 50:150] = True
    shifted = np.roll(mask, 3, axis=1)
    assert boundary_iou(mask, mask) == 1
    assert boundary_iou(mask, shifted) < 0.8 < (mask & shifted).sum() / (mask | shifted).sum()
    assert boundary_iou(mask, shifted) == boundary_iou(shifted, mask)


def test_masks_that_fill_the_image_have_the_image_s_border_as_theirs() -> None:
    whole = np.ones((100, 100), bool)
    assert boundary_iou(whole, whole) == 1
    without_corner = whole.copy()
    without_corner[:3, :3] = False
    assert 0.9 < boundary_iou(whole, without_corner) < 1


def test_empty_masks_share_nothing() -> None:
    empty, mask = np.zeros((10, 10), bool), np.ones((10, 10), bool)
    assert boundary_iou(empty, empty) == boundary_iou(empty, mask) == 0
