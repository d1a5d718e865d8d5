"""Compiled kernels of COCO's evaluation over flat arrays: masks from run-length strings, IoU, matching, accumulation.

A mask is represented by its *edges*: the positions, counted column by column, at which it begins and ends in turn. The
IoU of masks equal those of pycocotools to the last digit, because each is a division of two whole numbers. The first
call compiles (some seconds) or loads numba's cache, as `pipeline.masks.rle_kernel` says.

Their arrays have names in `pipeline.evaluation.kernel_types`.
"""

from __future__ import annotations

import numpy as np

from pipeline.evaluation.kernel_types import Candidates, Edges, Groups, Rles
from pipeline.masks.rle_kernel import compiled


@compiled
def _fill_edges(edges: np.ndarray, text: np.ndarray, start: int, end: int, num_pixels: int) -> int:
    """Decodes one RLE string into `edges`.

    Returns:
        The number of edges, or -1 for a string that is malformed or of another number of pixels.
    """
    num = 0
    position = 0
    previous = 0  # the run before the last
    last = 0
    at = start
    while at < end:
        value = 0
        shift = 0
        more = True
        while more:
            if at >= end or shift > 55:
                return -1
            character = int(text[at]) - 48
            at += 1
            if character < 0 or character > 63:
                return -1
            value |= (character & 31) << shift
            shift += 5
            more = (character & 32) != 0
            if not more and (character & 16) != 0:
                value |= -1 << shift
        if num > 2:
            value += previous
        if value < 0:
            return -1
        previous = last
        last = value
        position += value
        edges[num] = position
        num += 1
    return num if num > 0 and position == num_pixels else -1


@compiled
def _fill_box(box: np.ndarray, edges: np.ndarray, start: int, num: int, height: int) -> int:
    """Writes the mask's first and last column and row (inclusive) into `box`; returns its area in pixels."""
    box[0], box[1], box[2], box[3] = 1 << 40, -1, 1 << 40, -1
    area = 0
    column = 0
    base = 0
    for k in range(num // 2):
        first, last = edges[start + 2 * k], edges[start + 2 * k + 1] - 1
        if last < first:  # an empty run
            continue
        area += last + 1 - first
        while base + height <= first:
            base += height
            column += 1
        box[0] = min(box[0], column)
        if last < base + height:
            box[2], box[3] = min(box[2], first - base), max(box[3], last - base)
        else:
            box[2], box[3] = 0, height - 1
            while base + height <= last:
                base += height
                column += 1
        box[1] = max(box[1], column)
    return area


@compiled
def _intersection(a: np.ndarray, num_a: int, b: np.ndarray, start_b: int, num_b: int) -> int:
    """The number of pixels that two masks share."""
    shared = 0
    i, j = 0, start_b
    end_a, end_b = num_a - num_a % 2, start_b + num_b - num_b % 2
    while i < end_a and j < end_b:
        low, high = max(a[i], b[j]), min(a[i + 1], b[j + 1])
        if high > low:
            shared += high - low
        if a[i + 1] < b[j + 1]:
            i += 2
        else:
            j += 2
    return shared


@compiled
def fill_truth_edges(rles: Rles) -> Edges:
    """Decodes the masks of all annotations; one that cannot be read is empty."""
    num = len(rles.heights)
    edges = np.empty(rles.offsets[num] - rles.offsets[0], np.int64)
    starts = np.zeros(num + 1, np.int64)
    boxes = np.empty((num, 4), np.int64)
    areas = np.zeros(num, np.int64)
    for g in range(num):
        num_pixels = rles.heights[g] * rles.widths[g]
        num_edges = _fill_edges(edges[starts[g] :], rles.text, rles.offsets[g], rles.offsets[g + 1], num_pixels)
        num_edges = max(num_edges, 0)
        areas[g] = _fill_box(boxes[g], edges, starts[g], num_edges, rles.heights[g])
        starts[g + 1] = starts[g] + num_edges
    return Edges(edges, starts, boxes, areas)


@compiled
def fill_mask_ious(
    ious: np.ndarray, areas: np.ndarray, rles: Rles, groups: Groups, truth: Edges, regions: np.ndarray
) -> None:
    """Writes the IoU of each detection's mask with its group's annotations into `ious`, and its area into `areas`.

    A mask that cannot be read has an area of -1 and an IoU of 0.

    Args:
        rles: the detections' masks.
        truth: the annotations' masks.
        regions: bool [G], annotations with which the IoU is the intersection over the detection's area.
    """
    longest = 0
    for row in groups.rows[groups.starts[0] : groups.starts[-1]]:
        longest = max(longest, rles.offsets[row + 1] - rles.offsets[row])
    row_edges = np.empty(longest + 1, np.int64)
    box = np.empty(4, np.int64)
    for group in range(len(groups.first)):
        num_truths = groups.end[group] - groups.first[group]
        for d in range(groups.starts[group], groups.starts[group + 1]):
            row = groups.rows[d]
            height = rles.heights[row]
            num = _fill_edges(row_edges, rles.text, rles.offsets[row], rles.offsets[row + 1], height * rles.widths[row])
            if num < 0:
                areas[d] = -1
                continue
            area = _fill_box(box, row_edges, 0, num, height)
            areas[d] = area
            at = groups.pairs[group] + (d - groups.starts[group]) * num_truths
            for k in range(num_truths):
                g = groups.truths[groups.first[group] + k]
                truth_box = truth.boxes[g]
                if box[0] > truth_box[1] or truth_box[0] > box[1] or box[2] > truth_box[3] or truth_box[2] > box[3]:
                    continue
                num_edges = truth.starts[g + 1] - truth.starts[g]
                shared = _intersection(row_edges, num, truth.edges, truth.starts[g], num_edges)
                if shared > 0:
                    ious[at + k] = shared / (area if regions[g] else area + truth.areas[g] - shared)


@compiled
def fill_box_ious(
    ious: np.ndarray, row_boxes: np.ndarray, groups: Groups, boxes: np.ndarray, regions: np.ndarray
) -> None:
    """Writes the IoU of each detection's box with its group's annotations into `ious`.

    Args:
        row_boxes, boxes: float64 [N, 4] and [G, 4], XYWH of the detections' rows and of the annotations.
        regions: see `fill_mask_ious`.
    """
    for group in range(len(groups.first)):
        num_truths = groups.end[group] - groups.first[group]
        for d in range(groups.starts[group], groups.starts[group + 1]):
            a = row_boxes[groups.rows[d]]
            at = groups.pairs[group] + (d - groups.starts[group]) * num_truths
            for k in range(num_truths):
                g = groups.truths[groups.first[group] + k]
                b = boxes[g]
                width = min(a[2] + a[0], b[2] + b[0]) - max(a[0], b[0])
                if width <= 0:
                    continue
                height = min(a[3] + a[1], b[3] + b[1]) - max(a[1], b[1])
                if height <= 0:
                    continue
                shared = width * height
                union = a[2] * a[3] if regions[g] else a[2] * a[3] + b[2] * b[3] - shared
                ious[at + k] = shared / union


@compiled
def _candidates(num: int) -> Candidates:
    """Room for the annotations of a group."""
    is_left_out, is_region, is_taken = np.empty(num, np.bool_), np.empty(num, np.bool_), np.empty(num, np.bool_)
    return Candidates(np.empty(num, np.int64), is_left_out, is_region, is_taken)


@compiled
def _fill_candidates(candidates: Candidates, truths: np.ndarray, regions: np.ndarray, left_out: np.ndarray) -> None:
    """Writes a group's annotations: first those that count, then those that are `left_out`, as the file has them."""
    count = 0
    for is_left_out in (False, True):
        for k in range(len(truths)):
            if left_out[truths[k]] == is_left_out:
                candidates.order[count] = k
                candidates.is_left_out[count] = is_left_out
                candidates.is_region[count] = regions[truths[k]]
                count += 1


@compiled
def _best_truth(ious: np.ndarray, candidates: Candidates, least: float) -> int:
    """The annotation that a detection takes (an index into `candidates.order`), or -1.

    It is the one that the detection overlaps most, with an IoU of at least `least`, of those that are not taken; of
    equal ones the last. An annotation that is left out is taken only where there is none that counts.
    """
    best = least
    hit = -1
    for k in range(len(ious)):
        if candidates.is_taken[k] and not candidates.is_region[k]:
            continue
        if hit > -1 and not candidates.is_left_out[hit] and candidates.is_left_out[k]:
            break
        if ious[candidates.order[k]] < best:
            continue
        best = ious[candidates.order[k]]
        hit = k
    return hit


@compiled
def match_groups(
    outcome: np.ndarray,
    ious: np.ndarray,
    areas: np.ndarray,
    groups: Groups,
    regions: np.ndarray,
    left_out: np.ndarray,
    ranges: np.ndarray,
    thresholds: np.ndarray,
) -> None:
    """COCO's matching of every group, at all IoU thresholds and in all ranges of area.

    Args:
        outcome: uint32 [N, A], zeros; written: bit t is set for a true positive at threshold t, bit 16 + t for a
            detection that counts neither as a true nor as a false positive.
        areas: float64 [N], of the detections.
        regions: bool [G], annotations that several detections may take.
        left_out: bool [A, G], annotations that count neither as found nor as missed in a range of area.
        ranges: float64 [A, 2], least and largest area.
        thresholds: float64 [T], of the IoU.
    """
    most_truths = 0
    most_detections = 0
    for group in range(len(groups.first)):
        most_truths = max(most_truths, groups.end[group] - groups.first[group])
        most_detections = max(most_detections, groups.starts[group + 1] - groups.starts[group])
    top = np.empty(most_detections)
    candidates = _candidates(most_truths)
    for group in range(len(groups.first)):
        truths = groups.truths[groups.first[group] : groups.end[group]]
        num = len(truths)
        size = groups.starts[group + 1] - groups.starts[group]
        for d in range(size):  # the largest IoU of each: most detections reach few thresholds or none
            at = groups.pairs[group] + d * num
            top[d] = -1.0
            for k in range(num):
                top[d] = max(top[d], ious[at + k])
        for a in range(len(ranges)):
            low, high = ranges[a, 0], ranges[a, 1]
            _fill_candidates(candidates, truths, regions, left_out[a])
            for t in range(len(thresholds)):
                candidates.is_taken[:num] = False
                least = min(thresholds[t], 1 - 1e-10)
                for d in range(size):
                    n = groups.starts[group] + d
                    hit = -1
                    if top[d] >= least:
                        at = groups.pairs[group] + d * num
                        hit = _best_truth(ious[at : at + num], candidates, least)
                    if hit > -1:
                        candidates.is_taken[hit] = True
                        outcome[n, a] |= np.uint32(1) << np.uint32(t + 16 if candidates.is_left_out[hit] else t)
                    elif areas[n] < low or areas[n] > high:
                        outcome[n, a] |= np.uint32(1) << np.uint32(t + 16)


@compiled
def match_once(
    ious: np.ndarray, groups: Groups, kept: np.ndarray, regions: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """The same matching at one IoU threshold and over all areas.

    Args:
        kept: bool [N], the detections that take part.
        regions: bool [G], annotations that several detections may take, and that count neither way.

    Returns:
        The annotation that each detection took (int64 [N], -1 for none), and the pair's IoU (float64 [N], 0 for none).
    """
    least = min(threshold, 1 - 1e-10)
    matched = np.full(len(kept), -1, np.int64)
    matched_ious = np.zeros(len(kept))
    most_truths = 0
    for group in range(len(groups.first)):
        most_truths = max(most_truths, groups.end[group] - groups.first[group])
    candidates = _candidates(most_truths)
    for group in range(len(groups.first)):
        truths = groups.truths[groups.first[group] : groups.end[group]]
        num = len(truths)
        _fill_candidates(candidates, truths, regions, regions)
        candidates.is_taken[:num] = False
        for d in range(groups.starts[group], groups.starts[group + 1]):
            if not kept[d]:
                continue
            at = groups.pairs[group] + (d - groups.starts[group]) * num
            hit = _best_truth(ious[at : at + num], candidates, least)
            if hit > -1:
                candidates.is_taken[hit] = True
                matched[d] = truths[candidates.order[hit]]
                matched_ious[d] = ious[at + candidates.order[hit]]
    return matched, matched_ious


@compiled
def accumulate(
    outcome: np.ndarray,
    rank: np.ndarray,
    weights: np.ndarray,
    bounds: np.ndarray,
    num_objects: np.ndarray,
    num_thresholds: int,
    recalls: np.ndarray,
    limits: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """COCO's precision-recall curves from the outcome of matching.

    Args:
        outcome: uint32 [N, A], see `match_groups`; detections sorted by category, then best score first.
        rank: int64 [N], of each detection within its image and class.
        weights: int64 [N], how often each detection counts.
        bounds: int64 [K + 1], where each category begins.
        num_objects: int64 [K, A], annotations that count.
        num_thresholds: T, number of IoU thresholds.
        recalls: float64 [R], recall thresholds.
        limits: int64 [M], how many detections of an image and class count.

    Returns:
        Interpolated precision [T, R, K, A, M] and recall [T, K, A, M], float64; -1 where no object counts.
    """
    num_categories, num_areas = num_objects.shape
    precision = -np.ones((num_thresholds, len(recalls), num_categories, num_areas, len(limits)))
    recall = -np.ones((num_thresholds, num_categories, num_areas, len(limits)))
    most_detections = 0
    for k in range(num_categories):
        most_detections = max(most_detections, bounds[k + 1] - bounds[k])
    curve = np.empty(most_detections + 1)  # precision at each true positive: only those can raise it
    found = np.empty(most_detections + 1, np.int64)  # true positives up to there
    epsilon = np.spacing(1.0)
    for k in range(num_categories):
        for a in range(num_areas):
            total = num_objects[k, a]
            if total == 0:
                continue
            for m in range(len(limits)):
                for t in range(num_thresholds):
                    true = 0
                    false = 0
                    num = 0
                    for n in range(bounds[k], bounds[k + 1]):
                        if rank[n] >= limits[m] or weights[n] == 0:
                            continue
                        bits = outcome[n, a] >> np.uint32(t)
                        if bits & np.uint32(1):
                            true += weights[n]
                            curve[num] = true / (np.float64(false) + np.float64(true) + epsilon)
                            found[num] = true
                            num += 1
                        elif not bits & np.uint32(1 << 16):
                            false += weights[n]
                    recall[t, k, a, m] = true / total
                    for i in range(num - 1, 0, -1):
                        curve[i - 1] = max(curve[i - 1], curve[i])
                    reached = 0
                    for r in range(len(recalls)):
                        while reached < num and found[reached] / total < recalls[r]:
                            reached += 1
                        precision[t, r, k, a, m] = curve[reached] if reached < num else 0.0
    return precision, recall
