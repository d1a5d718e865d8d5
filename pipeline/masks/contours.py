"""Contours: masks to polygons along the edges of pixels, holes and islands included.

A contour that is not simplified is exact: filling it gives the very mask back. COCO's rasteriser fills by parity, column
by column, and an integer corner is a corner of pixels to it; so a seam that is walked there and back leaves no trace.
That carries holes and several parts into formats that hold one polygon for each object.
"""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np

Polygon = list[float]  # x, y, x, y, ... in pixels, pixel (0, 0) covering 0..1
Loop = list[tuple[int, int]]  # corners (x, y) of a closed path


def mask_to_loops(mask: np.ndarray) -> tuple[list[Loop], list[Loop]]:
    """Outer loops (one for each 4-connected part) and loops around holes, as corners (x, y); none for an empty mask."""
    rings = _rings(mask != 0)
    outer = [ring for ring in rings if _signed_area(ring) > 0]
    holes = [ring for ring in rings if _signed_area(ring) < 0]
    return _to_loops(outer), _to_loops(holes)


def mask_to_polygons(mask: np.ndarray) -> list[Polygon]:
    """COCO polygons of a mask: one for each part, or a single one for a mask with holes; [] for an empty mask."""
    outer, holes = mask_to_loops(mask)
    if holes:
        return [_flat(_bridged([*outer, *holes]))]
    return [_flat(loop) for loop in outer]


def mask_to_polygon(mask: np.ndarray) -> Polygon:
    """One flat polygon for the whole mask, whatever its parts and holes; [] for an empty mask."""
    outer, holes = mask_to_loops(mask)
    return _flat(_bridged([*outer, *holes])) if outer else []


def mask_to_part_polygons(mask: np.ndarray, *, tolerance_px: float = 0.0) -> list[Polygon]:
    """The outlines of a mask.

    Args:
        mask: [H, W], zero is outside.
        tolerance_px: how far an outline may be simplified away from the pixels' edges (Douglas and Peucker 1973).
            At 0 it is exact.

    Returns:
        One flat x, y, x, y, ... list for each part that hangs together by pixels' edges, largest first; coordinates
        in pixels, 0..W and 0..H, pixel (0, 0) covering 0..1. A hole is joined to its part's outline by a seam walked
        there and back, so that one list holds both. No list for an empty mask.

    Raises:
        ValueError: not two dimensions, or a negative tolerance.
    """
    if mask.ndim != 2:
        raise ValueError(f"mask must have the shape [H, W], not {list(mask.shape)}")
    if tolerance_px < 0:
        raise ValueError(f"tolerance_px must not be negative, but is {tolerance_px}")
    rings = _rings(mask != 0)
    outer = [ring for ring in rings if _signed_area(ring) > 0]
    holes = [ring for ring in rings if _signed_area(ring) < 0]
    outer.sort(key=lambda ring: -_signed_area(ring))
    of_part: list[list[np.ndarray]] = [[] for _ in outer]
    for hole in holes:
        of_part[_part_around(outer, hole)].append(hole)
    polygons = []
    for ring, inner in zip(outer, of_part, strict=True):
        parts = [simplify(part, tolerance_px) for part in (ring, *inner)]
        if len(parts[0]) >= 3:
            polygons.append(_joined(parts[0], [part for part in parts[1:] if len(part) >= 3]).ravel().tolist())
    return polygons


def join_polygons(polygons: list[Polygon]) -> Polygon:
    """Several polygons as one, joined by seams walked there and back, for formats that know one polygon an object.
    Empty for none."""
    if not polygons:
        return []
    first, *rest = (np.array(polygon, np.float64).reshape(-1, 2) for polygon in polygons)
    return _joined(first, rest).ravel().tolist()


def simplify(ring: np.ndarray, tolerance_px: float) -> np.ndarray:
    """A closed ring, float64 [N, 2], with the points left out that lie within the tolerance of what remains."""
    if tolerance_px == 0 or len(ring) <= 4:
        return ring
    far = int(np.argmax(((ring - ring[0]) ** 2).sum(axis=1)))
    keep = np.zeros(len(ring) + 1, bool)
    keep[[0, far, len(ring)]] = True
    closed = np.concatenate([ring, ring[:1]])
    stack = [(0, far), (far, len(ring))]
    while stack:
        start, end = stack.pop()
        if end - start < 2:
            continue
        along = closed[end] - closed[start]
        away = closed[start + 1 : end] - closed[start]
        length = float(np.hypot(*along))
        offset = np.abs(along[0] * away[:, 1] - along[1] * away[:, 0]) / length if length else np.hypot(*away.T)
        worst = int(np.argmax(offset))
        if offset[worst] > tolerance_px:
            middle = start + 1 + worst
            keep[middle] = True
            stack += [(start, middle), (middle, end)]
    return ring[keep[:-1]]


def _rings(inside: np.ndarray) -> list[np.ndarray]:
    """Closed outlines through the corners of pixels, the mask to the right of the way in an image (y down), so that
    outlines have a positive area and holes a negative one. Pixels that touch at a corner only are apart."""
    padded = np.pad(inside, 1).astype(np.int8)
    # across[y, x]: the edge from corner (y, x) to (y, x + 1); +1 where the mask lies below it, -1 where above.
    across = (padded[1:, 1:-1] - padded[:-1, 1:-1]).astype(np.int8)
    corner = np.diff(np.pad(across, ((0, 0), (1, 1))), axis=1) != 0
    leaving: dict[tuple[int, int], list[tuple[int, int]]] = {}
    ys, xs = np.nonzero(corner)
    for y in np.unique(ys).tolist():
        stops = xs[ys == y].tolist()
        for left, right in itertools.pairwise(stops):
            way = int(across[y, left])
            if way > 0:
                leaving.setdefault((left, y), []).append((right, y))
            elif way < 0:
                leaving.setdefault((right, y), []).append((left, y))
    down = (padded[1:-1, 1:] - padded[1:-1, :-1]).astype(np.int8)  # +1: the mask lies right of the edge
    corner = np.diff(np.pad(down, ((1, 1), (0, 0))), axis=0) != 0
    xs, ys = np.nonzero(corner.T)
    for x in np.unique(xs).tolist():
        stops = ys[xs == x].tolist()
        for top, bottom in itertools.pairwise(stops):
            way = int(down[top, x])
            if way > 0:
                leaving.setdefault((x, bottom), []).append((x, top))
            elif way < 0:
                leaving.setdefault((x, top), []).append((x, bottom))
    rings = []
    while leaving:
        start = next(iter(leaving))
        ring = [start]
        point = start
        heading = (0, 0)
        while True:
            ways = leaving[point]
            if len(ways) > 1:  # two pixels touch at this corner: turn right, which keeps to the pixel one walks around
                ways.sort(key=partial(_turn, heading, point))
            target = ways.pop()
            if not ways:
                del leaving[point]
            heading = (target[0] - point[0], target[1] - point[1])
            point = target
            if point == start:
                break
            ring.append(point)
        rings.append(np.array(ring, np.float64))
    return rings


def _turn(heading: tuple[int, int], corner: tuple[int, int], target: tuple[int, int]) -> int:
    """Positive for a turn to the right in an image, on the way from `corner` to `target`."""
    return heading[0] * (target[1] - corner[1]) - heading[1] * (target[0] - corner[0])


def _signed_area(ring: np.ndarray) -> float:
    x, y = ring.T
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def _part_around(outer: list[np.ndarray], hole: np.ndarray) -> int:
    """The smallest outline that holds the hole's first pixel."""
    # A point just inside the hole: the hole's outline has the mask on its right, so the hole lies on its left.
    (x0, y0), (x1, y1) = hole[0], hole[1]
    along = np.sign([x1 - x0, y1 - y0])
    x, y = np.array([x0, y0]) + 0.5 * along + 0.5 * np.array([along[1], -along[0]])
    around = [(_signed_area(ring), place) for place, ring in enumerate(outer) if _holds(ring, x, y)]
    return min(around)[1]


def _holds(ring: np.ndarray, x: float, y: float) -> bool:
    x0, y0 = ring.T
    y1 = np.roll(y0, -1)
    crosses = (y0 > y) != (y1 > y)
    return bool((crosses & (x0 > x)).sum() % 2)  # before simplification, edges that cross a row are upright


def _joined(ring: np.ndarray, others: list[np.ndarray]) -> np.ndarray:
    """The ring with others hung into it, each by a seam between the two nearest corners."""
    for other in others:
        gaps = ((ring[:, None] - other[None]) ** 2).sum(axis=2) if len(ring) * len(other) < 4_000_000 else None
        if gaps is None:  # too many corners for a table of all distances: the nearest to the other's first corner
            at, to = int(np.argmin(((ring - other[0]) ** 2).sum(axis=1))), 0
        else:
            at, to = (int(i) for i in np.unravel_index(int(np.argmin(gaps)), gaps.shape))
        loop = np.concatenate([other[to:], other[: to + 1]])
        ring = np.concatenate([ring[: at + 1], loop, ring[at:]])
    return ring


def _to_loops(rings: list[np.ndarray]) -> list[Loop]:
    return [[(int(x), int(y)) for x, y in ring.tolist()] for ring in rings]


def _bridged(loops: list[Loop]) -> Loop:
    """All loops as one path: from the first loop's start to each other loop and back the same way."""
    path = [*loops[0], loops[0][0]]
    x0, y0 = loops[0][0]
    for loop in loops[1:]:
        corner = (loop[0][0], y0)
        path += [corner, *loop, loop[0], corner, (x0, y0)]
    return path


def _flat(loop: Loop) -> Polygon:
    return [float(value) for point in loop for value in point]
