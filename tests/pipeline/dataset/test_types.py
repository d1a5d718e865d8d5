"""Annotated sets in memory: masks, boxes and areas of segmentations."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.dataset.types import (
    AnnotationError,
    Polygons,
    Rle,
    mask_to_box,
    mask_to_instance,
    polygon_area,
    polygons_to_box,
    segmentation_to_mask,
    segmentation_to_polygon,
)


def test_polygons_and_both_kinds_of_rle_give_the_same_mask() -> None:
    mask = np.zeros((7, 9), dtype=np.uint8)
    mask[2:5, 3:8] = 1
    polygons: Polygons = [[3, 2, 8, 2, 8, 5, 3, 5]]
    instance = mask_to_instance(1, mask)
    flat = mask.T.ravel()
    edges = np.concatenate(([0], np.flatnonzero(np.diff(flat)) + 1, [len(flat)]))
    runs: Rle = {"size": [7, 9], "counts": np.diff(edges).tolist()}
    segmentations: list[Polygons | Rle] = [polygons, [*polygons, [1, 1, 2, 2]], instance.segmentation, runs]
    for segmentation in segmentations:
        decoded = segmentation_to_mask(segmentation, 7, 9)
        assert np.array_equal(decoded, mask) and decoded.dtype == np.uint8
    assert instance.box == (3, 2, 8, 5) and instance.bbox == (3, 2, 5, 3) and instance.area == 15
    assert polygon_area(polygons) == 15


def test_no_polygon_is_an_empty_mask() -> None:
    assert segmentation_to_mask([], 4, 5).shape == (4, 5) and not segmentation_to_mask([], 4, 5).any()
    assert mask_to_box(np.zeros((4, 5))) == polygons_to_box([], 4, 5) == (0, 0, 0, 0)
    assert mask_to_instance(1, np.zeros((4, 5), dtype=np.uint8)).mask(4, 5).sum() == 0


def test_an_rle_of_another_size_or_too_few_pixels_is_refused() -> None:
    rle = mask_to_instance(1, np.ones((4, 5), dtype=np.uint8)).segmentation
    with pytest.raises(AnnotationError, match=r"RLE of size \[4, 5\] on an image of \[5, 4\]"):
        segmentation_to_mask(rle, 5, 4)
    with pytest.raises(ValueError, match="sum to"):
        segmentation_to_mask({"size": [4, 5], "counts": [3, 4]}, 4, 5)


def test_polygon_boxes_are_cut_at_the_image() -> None:
    assert polygons_to_box([[-3.0, 2.0, 12.0, 2.0, 5.0, 30.5]], 20, 10) == (0.0, 2.0, 10.0, 20.0)


def test_a_single_polygon_is_kept_and_several_are_joined_to_one() -> None:
    polygon = [1.5, 1.5, 8.0, 2.25, 4.0, 7.0]
    assert segmentation_to_polygon([polygon], 10, 10) is polygon
    two = [polygon, [0.0, 0.0, 3.0, 0.0, 0.0, 3.0]]
    joined = segmentation_to_polygon(two, 10, 10)
    assert np.array_equal(segmentation_to_mask([joined], 10, 10), segmentation_to_mask(two, 10, 10))


def test_parts_become_one_polygon_of_the_same_pixels() -> None:
    apart = [[1.0, 1, 5, 1, 5, 5, 1, 5], [8.0, 2, 12, 2, 12, 9]]
    over_one_another = [[1.0, 1, 5, 1, 5, 5, 1, 5], [3.0, 3, 9, 3, 9, 9, 3, 9]]
    for polygons in (apart, over_one_another, [apart[1]], []):
        polygon = segmentation_to_polygon(polygons, 12, 15)
        want = segmentation_to_mask(polygons, 12, 15)
        assert np.array_equal(segmentation_to_mask([polygon], 12, 15), want)
    assert len(segmentation_to_polygon(apart, 12, 15)) == 2 * (4 + 3 + 2)  # and a seam there and back
