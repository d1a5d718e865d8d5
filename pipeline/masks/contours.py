"""Contours: masks to polygons along pixel edges, holes and several parts included; optional simplification.

A polygon that is not simplified is exact: COCO's rasteriser, filling it, gives the same mask back. The rasteriser fills
by parity, column by column, and takes integer coordinates for corners of pixels. So a seam, a line that is walked there
and back, fills nothing. Seams join holes and parts to one polygon, for formats that hold one polygon for each object.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

Polygon = list[float]
"""x, y, x, y, ... in pixels; pixel (0, 0) covers 0..1."""

Loop = list[tuple[int, int]]
"""Corners (x, y) of a closed path, the first not repeated at the end."""

Ring = NDArray[np.float64]
"""A `Loop` as an array [N, 2]."""

_MOST_DISTANCES = 4_000_000  # in a table of all distances between the corners of two rings


def mask_to_loops(mask: NDArray[Any]) -> tuple[list[Loop], list[Loop]]:
    """The loops around a mask's parts and around its holes.

    Args:
        mask: [H, W], zero is outside.

    Returns:
        (outer, holes): one outer loop for each 4-connected part, one loop for each hole; two empty lists for an empty
        mask. Corners are (x, y) in pixels, 0..W and 0..H.
    """
    outer, holes = _outer_and_holes(mask)
    return _to_loops(outer), _to_loops(holes)


def mask_to_polygons(mask: NDArray[Any]) -> list[Polygon]:
    """A mask [H, W] as COCO polygons: one for each part, or a single one if there are holes; [] for an empty mask."""
    outer, holes = mask_to_loops(mask)
    if holes:
        return [_flat(_bridged([*outer, *holes]))]
    return [_flat(loop) for loop in outer]


def mask_to_polygon(mask: NDArray[Any]) -> Polygon:
    """A mask [H, W] as one polygon that holds all its parts and holes; [] for an empty mask."""
    outer, holes = mask_to_loops(mask)
    return _flat(_bridged([*outer, *holes])) if outer else []


def mask_to_part_polygons(mask: NDArray[Any], *, tolerance_px: float = 0.0) -> list[Polygon]:
    """A mask as one polygon for each part, its holes included.

    Args:
        mask: [H, W], zero is outside.
        tolerance_px: largest distance of the simplified outline from the exact one (Douglas and Peucker 1973). 0 keeps
            the exact outline.

    Returns:
        One polygon for each 4-connected part, largest first; coordinates in pixels, 0..W and 0..H. A hole is joined to
        its part's outline by a seam. [] for an empty mask. A part or hole that is simplified to fewer than three
        corners is left out.

    Raises:
        ValueError: the mask has not two dimensions, or the tolerance is negative.
    """
    if mask.ndim != 2:
        raise ValueError(f"mask must have the shape [H, W], not {list(mask.shape)}")
    if tolerance_px < 0:
        raise ValueError(f"tolerance_px must not be negative, but is {tolerance_px}")
    outer, holes = _outer_and_holes(mask)
    outer.sort(key=lambda ring: -_signed_area(ring))
    holes_of_part: list[list[Ring]] = [[] for _ in outer]
    for hole in holes:
        holes_of_part[_part_around(outer, hole)].append(hole)
    polygons = []
    for ring, inner in zip(outer, holes_of_part, strict=True):
        outline, *inner_outlines = (simplify(part, tolerance_px) for part in (ring, *inner))
        if len(outline) >= 3:
            polygons.append(_joined(outline, [hole for hole in inner_outlines if len(hole) >= 3]).ravel().tolist())
    return polygons


def join_polygons(polygons: list[Polygon]) -> Polygon:
    """Several polygons as one, joined by seams, for formats with one polygon for each object; [] for none."""
    if not polygons:
        return []
    first, *others = (np.array(polygon, np.float64).reshape(-1, 2) for polygon in polygons)
    return _joined(first, others).ravel().tolist()


def simplify(ring: Ring, tolerance_px: float) -> Ring:
    """A ring without the corners that lie within the tolerance of the remaining outline (Douglas and Peucker 1973).

    Args:
        ring: closed, float64 [N, 2]. Rings of at most four corners stay as they are.
        tolerance_px: in pixels; 0 keeps every corner.
    """
    if tolerance_px == 0 or len(ring) <= 4:
        return ring
    farthest = int(np.argmax(((ring - ring[0]) ** 2).sum(axis=1)))
    keep = np.zeros(len(ring) + 1, bool)
    keep[[0, farthest, len(ring)]] = True
    closed = np.concatenate([ring, ring[:1]])
    stack = [(0, farthest), (farthest, len(ring))]
    while stack:
        start, end = stack.pop()
        if end - start < 2:
            continue
        chord = closed[end] - closed[start]
        from_start = closed[start + 1 : end] - closed[start]
        length = float(np.hypot(*chord))
        across = np.abs(chord[0] * from_start[:, 1] - chord[1] * from_start[:, 0])
        distances = across / length if length else np.hypot(*from_start.T)
        worst = int(np.argmax(distances))
        if distances[worst] > tolerance_px:
            middle = start + 1 + worst
            keep[middle] = True
            stack += [(start, middle), (middle, end)]
    return ring[keep[:-1]]


def _outer_and_holes(mask: NDArray[Any]) -> tuple[list[Ring], list[Ring]]:
    rings = _rings(mask != 0)
    return [ring for ring in rings if _signed_area(ring) > 0], [ring for ring in rings if _signed_area(ring) < 0]


def _rings(inside: NDArray[np.bool_]) -> list[Ring]:
    """All outlines of a mask through the corners of pixels: positive signed area around parts, negative around holes.

    In an image (y down) the mask lies to the right of an outline's direction. Pixels that touch at a corner only belong
    to different parts.
    """
    padded = np.pad(inside, 1).astype(np.int8)
    # across[y, x]: the edge from corner (x, y) to (x + 1, y); +1 where the mask lies below it, -1 where above.
    across = (padded[1:, 1:-1] - padded[:-1, 1:-1]).astype(np.int8)
    corner = np.diff(np.pad(across, ((0, 0), (1, 1))), axis=1) != 0
    leaving: dict[tuple[int, int], list[tuple[int, int]]] = {}  # from each corner, the ends of the edges that leave it
    ys, xs = np.nonzero(corner)
    for y in np.unique(ys).tolist():
        stops = xs[ys == y].tolist()
        for left, right in itertools.pairwise(stops):
            sign = int(across[y, left])
            if sign > 0:
                leaving.setdefault((left, y), []).append((right, y))
            elif sign < 0:
                leaving.setdefault((right, y), []).append((left, y))
    down = (padded[1:-1, 1:] - padded[1:-1, :-1]).astype(np.int8)  # +1: the mask lies right of the edge
    corner = np.diff(np.pad(down, ((1, 1), (0, 0))), axis=0) != 0
    xs, ys = np.nonzero(corner.T)
    for x in np.unique(xs).tolist():
        stops = ys[xs == x].tolist()
        for top, bottom in itertools.pairwise(stops):
            sign = int(down[top, x])
            if sign > 0:
                leaving.setdefault((x, bottom), []).append((x, top))
            elif sign < 0:
                leaving.setdefault((x, top), []).append((x, bottom))
    rings = []
    while leaving:
        start = next(iter(leaving))
        ring = [start]
        point = start
        heading = (0, 0)
        while True:
            targets = leaving[point]
            if len(targets) > 1:  # two pixels touch at this corner: a turn to the right stays with the same pixel
                targets.sort(key=partial(_turn, heading, point))
            target = targets.pop()
            if not targets:
                del leaving[point]
            heading = (target[0] - point[0], target[1] - point[1])
            point = target
            if point == start:
                break
            ring.append(point)
        rings.append(np.array(ring, np.float64))
    return rings


def _turn(heading: tuple[int, int], corner: tuple[int, int], target: tuple[int, int]) -> int:
    """Positive where the edge from `corner` to `target` turns right (in an image, y down) from `heading`."""
    return heading[0] * (target[1] - corner[1]) - heading[1] * (target[0] - corner[0])


def _signed_area(ring: Ring) -> float:
    x, y = ring.T
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def _part_around(outer: list[Ring], hole: Ring) -> int:
    """The index of the smallest outer ring that contains the hole."""
    # A point just inside the hole: the mask lies to the right of the hole's outline, so the hole lies to its left.
    (x0, y0), (x1, y1) = hole[0], hole[1]
    along = np.sign([x1 - x0, y1 - y0])
    x, y = np.array([x0, y0]) + 0.5 * along + 0.5 * np.array([along[1], -along[0]])
    return min((_signed_area(ring), index) for index, ring in enumerate(outer) if _contains(ring, x, y))[1]


def _contains(ring: Ring, x: float, y: float) -> bool:
    """Whether a point lies in a ring, which must not be simplified: edges that cross the point's row are vertical."""
    x0, y0 = ring.T
    y1 = np.roll(y0, -1)
    crosses = (y0 > y) != (y1 > y)
    return bool((crosses & (x0 > x)).sum() % 2)


def _joined(ring: Ring, inner_rings: list[Ring]) -> Ring:
    """One ring of several: each inner ring is joined by a seam between its corner and the ring's that are nearest."""
    for inner in inner_rings:
        if len(ring) * len(inner) < _MOST_DISTANCES:
            distances = ((ring[:, None] - inner[None]) ** 2).sum(axis=2)
            at, start = (int(i) for i in np.unravel_index(int(np.argmin(distances)), distances.shape))
        else:  # the corner nearest to the inner ring's first one
            at, start = int(np.argmin(((ring - inner[0]) ** 2).sum(axis=1))), 0
        loop = np.concatenate([inner[start:], inner[: start + 1]])
        ring = np.concatenate([ring[: at + 1], loop, ring[at:]])
    return ring


def _to_loops(rings: list[Ring]) -> list[Loop]:
    return [[(int(x), int(y)) for x, y in ring.tolist()] for ring in rings]


def _bridged(loops: list[Loop]) -> Loop:
    """All loops as one: a seam of integer corners leads from the first loop's start to each other loop and back."""
    if len(loops) == 1:
        return loops[0]
    path = [*loops[0], loops[0][0]]
    x0, y0 = loops[0][0]
    for loop in loops[1:]:
        corner = (loop[0][0], y0)
        path += [corner, *loop, loop[0], corner, (x0, y0)]
    return path


def _flat(loop: Loop) -> Polygon:
    return [float(value) for point in loop for value in point]
