"""Masks to polygons that draw exactly the same pixels: along the pixels' edges, holes and islands included.

COCO's rasteriser fills by parity, column by column, and an integer corner is a corner of pixels to it; so a
path along the edges is exact, and a bridge walked there and back leaves no trace. That carries holes and
several parts into formats that hold one polygon for each object.
"""

from __future__ import annotations

import numpy as np

from pipeline.dataset.annotations import Polygons, Rle, segmentation_to_mask

Loop = list[tuple[int, int]]


def mask_to_loops(mask: np.ndarray) -> tuple[list[Loop], list[Loop]]:
    """Outer loops (one for each 4-connected part) and loops around holes, as corners (x, y); empty for an
    empty mask.
    """
    inside = np.pad(mask != 0, 1)
    core = inside[1:-1, 1:-1]
    # Edges of pixels, walked so that the inside lies on the right: along the top to the right, down, back,
    # up.
    starts: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for outside, start, end in (
        (~inside[:-2, 1:-1], (0, 0), (1, 0)),
        (~inside[1:-1, 2:], (1, 0), (1, 1)),
        (~inside[2:, 1:-1], (1, 1), (0, 1)),
        (~inside[1:-1, :-2], (0, 1), (0, 0)),
    ):
        rows, columns = np.nonzero(core & outside)
        for y, x in zip(rows.tolist(), columns.tolist()):
            starts.setdefault((x + start[0], y + start[1]), []).append((x + end[0], y + end[1]))
    outer: list[Loop] = []
    holes: list[Loop] = []
    while starts:
        loop = _walk(starts, next(iter(starts)))
        (outer if _signed_area(loop) > 0 else holes).append(loop)
    return outer, holes


def mask_to_polygons(mask: np.ndarray) -> Polygons:
    """COCO polygons of a mask: one for each part, or a single one for a mask with holes; [] for an empty
    mask.
    """
    outer, holes = mask_to_loops(mask)
    if holes:
        return [_flat(_bridged([*outer, *holes]))]
    return [_flat(loop) for loop in outer]


def mask_to_polygon(mask: np.ndarray) -> list[float]:
    """One flat polygon for the whole mask, whatever its parts and holes; [] for an empty mask."""
    outer, holes = mask_to_loops(mask)
    return _flat(_bridged([*outer, *holes])) if outer else []


def segmentation_to_polygon(segmentation: Polygons | Rle, height: int, width: int) -> list[float]:
    """One flat polygon with the same pixels: the given one where there is just one, else a traced one."""
    if isinstance(segmentation, list) and len(segmentation) == 1:
        return segmentation[0]
    return mask_to_polygon(segmentation_to_mask(segmentation, height, width))


def _walk(starts: dict[tuple[int, int], list[tuple[int, int]]], first: tuple[int, int]) -> Loop:
    """Takes one closed loop out of the edges, from a corner of pixels on; only the loop's own corners
    stay.
    """
    loop: Loop = []
    here, step, first_step = first, (0, 0), (0, 0)
    while True:
        ends = starts.get(here, [])
        # Where two pixels touch at a corner two paths cross: turning right keeps the two pixels apart.
        right = (here[0] - step[1], here[1] + step[0])
        if loop and here == first and (not ends or (first[0] + first_step[0], first[1] + first_step[1]) == right):
            break
        end = right if right in ends else ends[0]
        ends.remove(end)
        if not ends:
            del starts[here]
        before, step = step, (end[0] - here[0], end[1] - here[1])
        if not loop:
            first_step = step
        if step != before:
            loop.append(here)
        here = end
    return loop[1:] if step == first_step else loop


def _signed_area(loop: Loop) -> int:
    return sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in zip(loop, loop[1:] + loop[:1]))


def _bridged(loops: list[Loop]) -> Loop:
    """All loops as one path: from the first loop's start to each other loop and back the same way."""
    path = [*loops[0], loops[0][0]]
    x0, y0 = loops[0][0]
    for loop in loops[1:]:
        corner = (loop[0][0], y0)
        path += [corner, *loop, loop[0], corner, (x0, y0)]
    return path


def _flat(loop: Loop) -> list[float]:
    return [float(value) for point in loop for value in point]
