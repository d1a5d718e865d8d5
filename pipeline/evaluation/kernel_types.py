"""Named groups of arrays that the compiled kernels of evaluation take and give: RLE strings, mask edges, groups."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Rles(NamedTuple):
    """Masks as RLE strings in one piece.

    Attributes:
        text: uint8, the characters of all strings, one string after the other.
        offsets: int64 [N + 1], where each string begins in `text`.
        heights, widths: int64 [N], of the masks.
    """

    text: np.ndarray
    offsets: np.ndarray
    heights: np.ndarray
    widths: np.ndarray


class Edges(NamedTuple):
    """Masks as the positions, counted column by column, at which they begin and end in turn.

    Attributes:
        edges: int64, of all masks, one mask after the other.
        starts: int64 [N + 1], where each mask begins in `edges`.
        boxes: int64 [N, 4], first and last column, first and last row, inclusive.
        areas: int64 [N], in pixels.
    """

    edges: np.ndarray
    starts: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray


class Groups(NamedTuple):
    """Detections and annotations in groups, mostly one for each class and image that has detections.

    Attributes:
        rows: int64 [N], the detections as rows of their table: group after group, best score first within a group.
        starts: int64 [C + 1], where each group begins in `rows`.
        first, end: int64 [C], where each group's annotations begin and end in `truths`.
        truths: int64 [G], the annotations (indices into those of the truth), by group.
        pairs: int64 [C + 1], where the IoU of each group begin among those of all pairs, detection after detection.
    """

    rows: np.ndarray
    starts: np.ndarray
    first: np.ndarray
    end: np.ndarray
    truths: np.ndarray
    pairs: np.ndarray

    def part(self, begin: int, stop: int) -> Groups:
        """The groups from `begin` to before `stop`, on the same arrays."""
        groups, bounds = slice(begin, stop), slice(begin, stop + 1)
        starts, first, end, pairs = self.starts[bounds], self.first[groups], self.end[groups], self.pairs[bounds]
        return Groups(self.rows, starts, first, end, self.truths, pairs)


class Candidates(NamedTuple):
    """The annotations of one group in the order in which a detection looks at them.

    Attributes:
        order: int64, indices within the group: first those that count, then those that are left out.
        is_left_out: bool, whether each counts neither as found nor as missed.
        is_region: bool, whether several detections may take it.
        is_taken: bool, whether a detection took it; changed during matching.
    """

    order: np.ndarray
    is_left_out: np.ndarray
    is_region: np.ndarray
    is_taken: np.ndarray
