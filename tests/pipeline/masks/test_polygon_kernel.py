"""The strings of polygons filled by the kernel against pycocotools, byte for byte."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from pipeline.masks.polygon_kernel import fill


def draw(rng: np.random.Generator, kind: str, height: int, width: int) -> np.ndarray:
    """Corners, float64 [K, 2]."""
    num = int(rng.integers(3, 40))
    size = np.array([width, height])
    if kind == "inside":
        return rng.random((num, 2)) * size
    if kind == "whole numbers":
        return rng.integers(-5, max(height, width) + 5, (num, 2)).astype(float)
    if kind == "far outside":
        return rng.normal(0, 3, (num, 2)) * size
    if kind == "halves":
        return np.round(rng.random((num, 2)) * size * 2) / 2
    if kind == "corners twice":
        points = np.round(rng.random((num, 2)) * size, 1)
        points[1], points[-1] = points[0], points[-2]
        return points
    angles = np.linspace(0, 2 * np.pi, num)
    return np.round(size / 2 + size * 0.4 * np.stack([np.cos(angles), np.sin(angles)], axis=1), 2)


@pytest.mark.parametrize("kind", ["inside", "whole numbers", "far outside", "halves", "corners twice", "round"])
def test_strings_are_those_of_pycocotools(kind: str) -> None:
    rng = np.random.default_rng(len(kind))
    sizes = rng.integers(1, 200, (400, 2))
    polygons = [draw(rng, kind, *size) for size in sizes.tolist()]
    starts = np.append(0, np.cumsum([len(polygon) for polygon in polygons]))
    text, ends = fill(np.concatenate(polygons), starts, sizes[:, 0].copy(), sizes[:, 1].copy())
    strings = [part.tobytes() for part in np.split(text, ends[:-1])]
    for string, polygon, (height, width) in zip(strings, polygons, sizes.tolist(), strict=True):
        assert string == coco_mask.frPyObjects([polygon.ravel().tolist()], height, width)[0]["counts"]


def test_no_polygon() -> None:
    none = np.zeros(0, np.int64)
    text, ends = fill(np.zeros((0, 2)), np.zeros(1, np.int64), none, none)
    assert len(text) == 0 and len(ends) == 0
