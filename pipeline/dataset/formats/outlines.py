"""Outlines as LabelMe and VIA draw them: circles as polygons, and drawn outlines as objects or ignore regions."""

from __future__ import annotations

import math

from pipeline.dataset.types import Instance, Polygons, polygon_area, polygons_to_box
from pipeline.notes import NoteList

_NUM_POINTS = 64
_LONGEST_SIDE_PX = 2**31
_FARTHEST_PX = 1e6  # beyond it no polygon is filled; circles and rectangles may reach there


def ellipse_outline(cx: float, cy: float, rx: float, ry: float, theta: float = 0.0) -> list[float]:
    """A polygon of 64 points [x, y, ...] on an ellipse of these radii, turned by `theta` radians."""
    outline = []
    for step in range(_NUM_POINTS):
        angle = 2 * math.pi * step / _NUM_POINTS
        u, v = rx * math.cos(angle), ry * math.sin(angle)
        outline.append(cx + u * math.cos(theta) - v * math.sin(theta))
        outline.append(cy + u * math.sin(theta) + v * math.cos(theta))
    return outline


def outlines_to_instance(
    label: int, outlines: Polygons, size: tuple[int, int], *, iscrowd: bool, name: str, notes: NoteList
) -> Instance | None:
    """The object that one or more outlines make.

    Outlines of fewer than three points have no area. An object of such outlines alone, or of points on one line, is an
    ignore region: the whole pixels around its points.

    Args:
        outlines: flat lists of points [x, y, ...].
        size: (H, W) of the image; (0, 0) where it is not known.
        name: of the object, for the notes.
        notes: what was decided.

    Returns:
        None for an object without a point, or without one in the image.
    """
    height, width = (side or _LONGEST_SIDE_PX for side in size)
    points = [[min(max(value, -_FARTHEST_PX), _FARTHEST_PX) for value in outline] for outline in outlines if outline]
    if not points:
        notes.add("objects without a point left out", name)
        return None
    xs, ys = ([value for outline in points for value in outline[start::2]] for start in (0, 1))
    polygons = [outline for outline in points if len(outline) >= 6]
    is_flat = not polygons or min(xs) == max(xs) or min(ys) == max(ys)
    if is_flat:
        x1, y1 = math.floor(min(xs)), math.floor(min(ys))
        x2, y2 = max(math.ceil(max(xs)), x1 + 1), max(math.ceil(max(ys)), y1 + 1)
        polygons = [[float(v) for v in (x1, y1, x2, y1, x2, y2, x1, y2)]]
    left, top, right, bottom = box = polygons_to_box(polygons, height, width)
    if left >= right or top >= bottom:
        notes.add("objects outside the image left out", name)
        return None
    if is_flat:
        notes.add("objects without an area that are ignore regions, neither positive nor negative", name)
    elif len(polygons) < len(outlines):
        notes.add("objects of which parts of fewer than three points are left out", name)
    return Instance(label, box, polygons, iscrowd or is_flat, polygon_area(polygons))
