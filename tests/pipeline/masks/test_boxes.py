"""Box conversions against numbers worked out by hand and against each other."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.masks.boxes import xywh_to_xyxy, xyxy_to_xywh

XYXY = np.array([[1, 1, 3, 4], [0, 0, 0, 0], [-2.5, 7, 10, 7.25], [5, 5, 2, 9]], np.float32)
XYWH = np.array([[1, 1, 2, 3], [0, 0, 0, 0], [-2.5, 7, 12.5, 0.25], [5, 5, -3, 4]], np.float32)


def test_each_form_becomes_the_other() -> None:
    np.testing.assert_array_equal(xyxy_to_xywh(XYXY), XYWH)
    np.testing.assert_array_equal(xywh_to_xyxy(XYWH), XYXY)


@pytest.mark.parametrize("convert", [xyxy_to_xywh, xywh_to_xyxy])
def test_the_input_is_unchanged_and_the_dtype_kept(convert) -> None:
    boxes = XYXY.copy()
    converted = convert(boxes)
    np.testing.assert_array_equal(boxes, XYXY)
    assert converted.dtype == np.float32
    assert not np.shares_memory(converted, boxes)


@pytest.mark.parametrize("convert", [xyxy_to_xywh, xywh_to_xyxy])
def test_no_boxes_stay_no_boxes(convert) -> None:
    assert convert(np.zeros((0, 4), np.float32)).shape == (0, 4)


def test_half_pixels_are_converted_exactly_there_and_back() -> None:
    boxes = np.random.default_rng(0).integers(0, 2**22, (500, 4)).astype(np.float32) / np.float32(2)
    np.testing.assert_array_equal(xywh_to_xyxy(xyxy_to_xywh(boxes)), boxes)


@pytest.mark.parametrize("convert", [xyxy_to_xywh, xywh_to_xyxy])
@pytest.mark.parametrize(
    ("boxes", "named"),
    [
        (np.zeros(4, np.float32), r"\[4\]"),
        (np.zeros((2, 5), np.float32), r"\[2, 5\]"),
        (np.zeros((1, 2, 4), np.float32), r"\[1, 2, 4\]"),
        (np.zeros((2, 4), np.float64), "float64"),
        (np.zeros((2, 4), np.int64), "int64"),
        ([[1.0, 2.0, 3.0, 4.0]], "list"),
    ],
)
def test_anything_but_float32_n_by_4_is_refused_by_name(convert, boxes, named) -> None:
    with pytest.raises(ValueError, match=rf"boxes must .*{named}"):
        convert(boxes)
