"""Outlines of LabelMe and VIA as objects."""

from __future__ import annotations

import math

import pytest

from pipeline.dataset.formats.outlines import ellipse_outline, outlines_to_instance
from pipeline.dataset.types import Polygons, polygon_area
from pipeline.notes import NoteList

SQUARE = [2.0, 2.0, 6.0, 2.0, 6.0, 6.0, 2.0, 6.0]


def test_an_ellipse_has_its_area_and_its_turn() -> None:
    area = 64 * math.sin(2 * math.pi / 64) / 2 * 8 * 4  # of a regular polygon of 64 corners, stretched
    outline = ellipse_outline(10, 20, 8, 4, math.pi / 2)
    assert polygon_area([outline]) == pytest.approx(area)
    assert (max(outline[0::2]), max(outline[1::2])) == pytest.approx((14, 28), abs=1e-6)


@pytest.mark.parametrize(
    ("outlines", "box", "is_ignored", "note"),
    [
        ([SQUARE], (2, 2, 6, 6), False, ""),
        ([SQUARE, [1.0, 1.0]], (2, 2, 6, 6), False, "parts of fewer than three points are left out (dog)"),
        ([[-5.0, 1, 3, 1, 3, 4, -5, 4]], (0, 1, 3, 4), False, ""),  # half outside
        ([[3.5, 4.0]], (3, 4, 4, 5), True, "without an area that are ignore regions"),
        ([[3.5, 4.0, 7.0, 9.5]], (3, 4, 7, 10), True, "without an area that are ignore regions"),
        ([[3.0, 4, 5, 4, 9, 4]], (3, 4, 9, 5), True, "without an area that are ignore regions"),
        ([[-2e6, -3e6, 2e6, -3e6, 2e6, 3e6, -2e6, 3e6]], (0, 0, 30, 20), False, ""),  # a square that is far too large
        ([[-5.0, 1, -1, 1, -1, 4]], None, False, "outside the image left out (dog)"),
        ([[30.0, 1, 40, 1, 40, 4]], None, False, "outside the image left out (dog)"),
        ([[], []], None, False, "without a point left out (dog)"),
    ],
)
def test_what_outlines_become(outlines: Polygons, box: tuple[float, ...] | None, is_ignored: bool, note: str) -> None:
    notes = NoteList()
    instance = outlines_to_instance(1, outlines, (20, 30), iscrowd=False, name="dog", notes=notes)
    assert (None if instance is None else instance.box) == box
    assert note in " ".join(notes.to_dict()) and bool(notes.to_dict()) == bool(note)
    if instance is not None:
        assert instance.iscrowd == is_ignored
        x1, y1, x2, y2 = instance.box
        if is_ignored:  # all pixels around its points
            assert instance.mask(20, 30)[int(y1) : int(y2), int(x1) : int(x2)].all()


def test_an_image_of_unknown_size_has_no_outside() -> None:
    instance = outlines_to_instance(1, [[30.0, 1, 40, 1, 40, 4]], (0, 0), iscrowd=True, name="", notes=NoteList())
    assert instance is not None and instance.iscrowd and instance.box == (30, 1, 40, 4)
