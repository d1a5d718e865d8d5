"""Polygons of masks, filled by pycocotools, give the same masks back; parts, holes and simplification."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from pipeline.masks.contours import (
    join_polygons,
    mask_to_loops,
    mask_to_part_polygons,
    mask_to_polygon,
    mask_to_polygons,
)


def drawn(polygons: list[list[float]], height: int, width: int) -> np.ndarray:
    """The union of the polygons, filled by pycocotools: uint8 [H, W]."""
    if not polygons:
        return np.zeros((height, width), np.uint8)
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)))


@pytest.mark.parametrize("seed", range(6))
def test_random_masks_come_back_exactly(seed: int) -> None:
    """Noise of all densities: parts, holes, islands in holes, pixels that touch at corners, all borders."""
    rng = np.random.default_rng(seed)
    for _ in range(60):
        height, width = rng.integers(1, 20, 2)
        mask = (rng.random((height, width)) < rng.uniform(0.1, 0.95)).astype(np.uint8)
        mask = np.kron(mask, np.ones((seed % 3 + 1, seed % 2 + 1), dtype=np.uint8))
        polygons, polygon = mask_to_polygons(mask), mask_to_polygon(mask)
        if not mask.any():
            assert polygons == [] and polygon == []
            continue
        assert np.array_equal(drawn(polygons, *mask.shape), mask)
        assert np.array_equal(drawn([polygon], *mask.shape), mask)


def test_points_within_an_edge_are_no_corners() -> None:
    mask = np.zeros((9, 9), dtype=np.uint8)
    mask[2:7, 3:8] = 1
    assert sorted(zip(*[iter(mask_to_polygons(mask)[0])] * 2)) == [(3, 2), (3, 7), (8, 2), (8, 7)]


def test_parts_that_touch_at_a_corner_are_two() -> None:
    outer, holes = mask_to_loops(np.array([[1, 0], [0, 1]]))
    assert len(outer) == 2 and holes == []
    outer, holes = mask_to_loops(np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]]))
    assert len(outer) == 1 and len(holes) == 1


def test_part_polygons_give_the_mask_back_apart_and_joined() -> None:
    rng = np.random.default_rng(0)
    for number in range(150):
        mask = rng.random(rng.integers(1, 14, 2)) < rng.random()
        if number % 2:
            mask = np.kron(mask, np.ones((3, 2), bool))
        polygons = mask_to_part_polygons(mask)
        np.testing.assert_array_equal(drawn(polygons, *mask.shape), mask)
        joined = join_polygons(polygons)
        np.testing.assert_array_equal(drawn([joined] if joined else [], *mask.shape), mask)


def test_part_polygons_of_simple_masks() -> None:
    mask = np.zeros((5, 6), np.uint8)
    mask[1:3, 2:5] = 1
    (polygon,) = mask_to_part_polygons(mask)
    assert set(map(tuple, np.reshape(polygon, (-1, 2)))) == {(2, 1), (5, 1), (5, 3), (2, 3)}
    assert mask_to_part_polygons(np.zeros((4, 4))) == []
    diagonal = np.eye(2)
    assert len(mask_to_part_polygons(diagonal)) == 2
    with pytest.raises(ValueError, match=r"\[H, W\], not \[3\]"):
        mask_to_part_polygons(np.zeros(3))
    with pytest.raises(ValueError, match="must not be negative"):
        mask_to_part_polygons(mask, tolerance_px=-1)
    assert join_polygons([]) == []


def test_part_polygons_come_largest_first_each_with_its_own_holes() -> None:
    mask = np.zeros((20, 40), np.uint8)
    mask[2:8, 1:9] = 1
    mask[4:6, 3:5] = 0  # a hole in the small part
    mask[1:19, 15:38] = 1
    mask[5:15, 20:30] = 0  # a hole in the large part, which holds an island
    mask[8:12, 24:27] = 1
    large, small, island = mask_to_part_polygons(mask)
    filled = [drawn([polygon], 20, 40) for polygon in (large, small, island)]
    assert [int(part.sum()) for part in filled] == [18 * 23 - 100, 6 * 8 - 4, 12]
    np.testing.assert_array_equal(np.maximum.reduce(filled), mask)


def test_simplified_polygons_have_few_corners_and_stay_near() -> None:
    y, x = np.mgrid[:200, :240]
    ring = (np.hypot(y - 100, x - 120) < 80) & (np.hypot(y - 90, x - 110) > 25)
    exact, simple = mask_to_part_polygons(ring), mask_to_part_polygons(ring, tolerance_px=1.0)
    assert len(simple[0]) < len(exact[0]) / 4
    back = drawn(simple, *ring.shape).astype(bool)
    assert (back & ring).sum() / (back | ring).sum() > 0.97
