"""Compiled kernels of COCO's evaluation over flat arrays: masks from run-length strings, IoU, matching, accumulation.

A mask is its *edges*: the positions, column by column, at which it begins and ends in turn. They equal pycocotools'
arithmetic to the last digit, because a mask's IoU is a division of two whole numbers. The first call compiles (some
seconds) or loads numba's cache, as `pipeline.masks.rle_kernel` says.
"""

from __future__ import annotations

import numpy as np

from pipeline.masks.rle_kernel import compiled


@compiled
def _fill_edges(edges: np.ndarray, text: np.ndarray, start: int, end: int, num_pixels: int) -> int:
    """Decodes one string into `edges`; returns their number, or -1 for a string that is not plain: malformed, of
    another size, or with an empty run behind the first."""
    num = 0
    position = 0
    before = 0  # the run before the last
    last = 0
    at = start
    while at < end:
        value = 0
        shift = 0
        more = True
        while more:
            if at >= end or shift > 30:
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
            value += before
        if value < 0 or (value == 0 and num > 0):
            return -1
        before = last
        last = value
        position += value
        edges[num] = position
        num += 1
    return num if num > 0 and position == num_pixels else -1


@compiled
def _fill_box(box: np.ndarray, edges: np.ndarray, start: int, num: int, height: int) -> int:
    """The mask's first and last column and row (inclusive) into `box`; returns its area."""
    box[0], box[1], box[2], box[3] = 1 << 40, -1, 1 << 40, -1
    area = 0
    column = 0
    base = 0
    for k in range(num // 2):
        first, last = edges[start + 2 * k], edges[start + 2 * k + 1] - 1
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
    """Pixels that two masks share."""
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
def fill_truth_edges(
    text: np.ndarray, offsets: np.ndarray, heights: np.ndarray, widths: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
    """All annotations' masks: edges (int64), where each begins (int64 [G + 1]), boxes (int64 [G, 4]), areas (int64
    [G]), and the first annotation that is not plain, or -1."""
    num = len(offsets) - 1
    edges = np.empty(offsets[num] - offsets[0], np.int64)
    starts = np.zeros(num + 1, np.int64)
    boxes = np.empty((num, 4), np.int64)
    areas = np.zeros(num, np.int64)
    for g in range(num):
        found = _fill_edges(edges[starts[g] :], text, offsets[g], offsets[g + 1], heights[g] * widths[g])
        if found < 0:
            return edges, starts, boxes, areas, g
        areas[g] = _fill_box(boxes[g], edges, starts[g], found, heights[g])
        starts[g + 1] = starts[g] + found
    return edges, starts, boxes, areas, -1


@compiled
def fill_mask_ious(
    ious: np.ndarray,
    areas: np.ndarray,
    pairs: np.ndarray,
    text: np.ndarray,
    offsets: np.ndarray,
    heights: np.ndarray,
    widths: np.ndarray,
    rows: np.ndarray,
    groups: np.ndarray,
    first_truth: np.ndarray,
    end_truth: np.ndarray,
    truths: np.ndarray,
    edges: np.ndarray,
    starts: np.ndarray,
    boxes: np.ndarray,
    truth_areas: np.ndarray,
    crowd: np.ndarray,
) -> int:
    """IoU of each detection (`rows`, group after group) with its group's annotations into `ious`, its area into
    `areas`. Returns the first detection that is not plain, or -1."""
    longest = 0
    for row in rows:
        longest = max(longest, offsets[row + 1] - offsets[row])
    mine = np.empty(longest + 1, np.int64)
    box = np.empty(4, np.int64)
    for group in range(len(groups) - 1):
        num_truths = end_truth[group] - first_truth[group]
        for place in range(groups[group], groups[group + 1]):
            row = rows[place]
            num = _fill_edges(mine, text, offsets[row], offsets[row + 1], heights[row] * widths[row])
            if num < 0:
                return row
            area = _fill_box(box, mine, 0, num, heights[row])
            areas[place] = area
            at = pairs[group] + (place - groups[group]) * num_truths
            for k in range(num_truths):
                g = truths[first_truth[group] + k]
                ious[at + k] = 0.0
                other = boxes[g]
                if box[0] > other[1] or other[0] > box[1] or box[2] > other[3] or other[2] > box[3]:
                    continue
                shared = _intersection(mine, num, edges, starts[g], starts[g + 1] - starts[g])
                if shared > 0:
                    ious[at + k] = shared / (area if crowd[g] else area + truth_areas[g] - shared)
    return -1


@compiled
def fill_box_ious(
    ious: np.ndarray,
    pairs: np.ndarray,
    found: np.ndarray,
    rows: np.ndarray,
    groups: np.ndarray,
    first_truth: np.ndarray,
    end_truth: np.ndarray,
    truths: np.ndarray,
    boxes: np.ndarray,
    crowd: np.ndarray,
) -> None:
    """As `fill_mask_ious` for boxes, float64 XYWH."""
    for group in range(len(groups) - 1):
        num_truths = end_truth[group] - first_truth[group]
        for place in range(groups[group], groups[group + 1]):
            d = found[rows[place]]
            at = pairs[group] + (place - groups[group]) * num_truths
            for k in range(num_truths):
                index = truths[first_truth[group] + k]
                g = boxes[index]
                ious[at + k] = 0.0
                width = min(d[2] + d[0], g[2] + g[0]) - max(d[0], g[0])
                if width <= 0:
                    continue
                height = min(d[3] + d[1], g[3] + g[1]) - max(d[1], g[1])
                if height <= 0:
                    continue
                shared = width * height
                union = d[2] * d[3] if crowd[index] else d[2] * d[3] + g[2] * g[3] - shared
                ious[at + k] = shared / union


@compiled
def _order_truths(
    order: np.ndarray, leave: np.ndarray, truths: np.ndarray, first: int, num: int, left_out: np.ndarray
) -> None:
    """A group's annotations into `order`: those that count first, then those that are `left_out`, each in the file's
    order; `leave` says which they are."""
    count = 0
    for wanted in (False, True):
        for k in range(num):
            if left_out[truths[first + k]] == wanted:
                order[count] = k
                leave[count] = wanted
                count += 1


@compiled
def _best_truth(
    ious: np.ndarray,
    at: int,
    num: int,
    truths: np.ndarray,
    first: int,
    crowd: np.ndarray,
    order: np.ndarray,
    leave: np.ndarray,
    taken: np.ndarray,
    least: float,
) -> int:
    """The annotation a detection goes to (its place in `order`), or -1: the one it overlaps most, by `least` or more,
    of those that are not `taken`, the last of equals, and one that counts neither way (`leave`) only where it found
    none that counts."""
    best = least
    hit = -1
    for k in range(num):
        if taken[k] and not crowd[truths[first + order[k]]]:
            continue
        if hit > -1 and not leave[hit] and leave[k]:
            break
        if ious[at + order[k]] < best:
            continue
        best = ious[at + order[k]]
        hit = k
    return hit


@compiled
def match_groups(
    outcome: np.ndarray,
    ious: np.ndarray,
    pairs: np.ndarray,
    areas: np.ndarray,
    groups: np.ndarray,
    first_truth: np.ndarray,
    end_truth: np.ndarray,
    truths: np.ndarray,
    crowd: np.ndarray,
    left_out: np.ndarray,
    ranges: np.ndarray,
    thresholds: np.ndarray,
) -> None:
    """COCO's matching of every group into `outcome` (uint32 [N, A], zeros): bit t for a true positive at threshold t,
    bit 16 + t for a detection that counts neither way. `left_out` (bool [A, G]) are annotations that count neither way
    in a range of area."""
    most = 0
    longest = 0
    for group in range(len(groups) - 1):
        most = max(most, end_truth[group] - first_truth[group])
        longest = max(longest, groups[group + 1] - groups[group])
    top = np.empty(longest)
    order = np.empty(most, np.int64)
    leave = np.empty(most, np.bool_)
    taken = np.empty(most, np.bool_)
    for group in range(len(groups) - 1):
        first, num = first_truth[group], end_truth[group] - first_truth[group]
        size = groups[group + 1] - groups[group]
        for d in range(size):  # most detections reach few thresholds or none
            at = pairs[group] + d * num
            top[d] = -1.0
            for k in range(num):
                top[d] = max(top[d], ious[at + k])
        for a in range(len(ranges)):
            low, high = ranges[a, 0], ranges[a, 1]
            _order_truths(order, leave, truths, first, num, left_out[a])
            for t in range(len(thresholds)):
                taken[:num] = False
                least = min(thresholds[t], 1 - 1e-10)
                for d in range(size):
                    place = groups[group] + d
                    hit = -1
                    if top[d] >= least:
                        at = pairs[group] + d * num
                        hit = _best_truth(ious, at, num, truths, first, crowd, order, leave, taken, least)
                    if hit > -1:
                        taken[hit] = True
                        outcome[place, a] |= np.uint32(1) << np.uint32(t + 16 if leave[hit] else t)
                    elif areas[place] < low or areas[place] > high:
                        outcome[place, a] |= np.uint32(1) << np.uint32(t + 16)


@compiled
def match_once(
    ious: np.ndarray,
    pairs: np.ndarray,
    kept: np.ndarray,
    groups: np.ndarray,
    first_truth: np.ndarray,
    end_truth: np.ndarray,
    truths: np.ndarray,
    crowd: np.ndarray,
    threshold: float,
) -> tuple[np.ndarray, np.ndarray]:
    """The same matching at one threshold, of the detections that are `kept` (bool [N]): the annotation each one found
    (int64 [N], -1 for none), and their IoU (float64 [N], 0 for none)."""
    least = min(threshold, 1 - 1e-10)
    found = np.full(len(kept), -1, np.int64)
    overlap = np.zeros(len(kept))
    most = 0
    for group in range(len(groups) - 1):
        most = max(most, end_truth[group] - first_truth[group])
    order = np.empty(most, np.int64)
    leave = np.empty(most, np.bool_)
    taken = np.empty(most, np.bool_)
    for group in range(len(groups) - 1):
        first, num = first_truth[group], end_truth[group] - first_truth[group]
        _order_truths(order, leave, truths, first, num, crowd)
        taken[:num] = False
        for place in range(groups[group], groups[group + 1]):
            if not kept[place]:
                continue
            at = pairs[group] + (place - groups[group]) * num
            hit = _best_truth(ious, at, num, truths, first, crowd, order, leave, taken, least)
            if hit > -1:
                taken[hit] = True
                found[place] = truths[first + order[hit]]
                overlap[place] = ious[at + order[hit]]
    return found, overlap


@compiled
def accumulate(
    outcome: np.ndarray,
    rank: np.ndarray,
    bounds: np.ndarray,
    num_objects: np.ndarray,
    num_thresholds: int,
    recalls: np.ndarray,
    limits: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Precision [T, R, K, A, M] and recall [T, K, A, M] of detections sorted by category (`bounds`), then best first.
    Only a true positive can raise the curve, so one number is kept for each."""
    num_categories, num_areas = num_objects.shape
    precision = -np.ones((num_thresholds, len(recalls), num_categories, num_areas, len(limits)))
    recall = -np.ones((num_thresholds, num_categories, num_areas, len(limits)))
    longest = 0
    for k in range(num_categories):
        longest = max(longest, bounds[k + 1] - bounds[k])
    curve = np.empty(longest + 1)
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
                    for place in range(bounds[k], bounds[k + 1]):
                        if rank[place] >= limits[m]:
                            continue
                        bits = outcome[place, a] >> np.uint32(t)
                        if bits & np.uint32(1):
                            curve[true] = (true + 1) / (np.float64(false) + np.float64(true + 1) + epsilon)
                            true += 1
                        elif not bits & np.uint32(1 << 16):
                            false += 1
                    recall[t, k, a, m] = true / total
                    for i in range(true - 1, 0, -1):
                        curve[i - 1] = max(curve[i - 1], curve[i])
                    reached = 0
                    for r in range(len(recalls)):
                        while reached < true and (reached + 1) / total < recalls[r]:
                            reached += 1
                        precision[t, r, k, a, m] = curve[reached] if reached < true else 0.0
    return precision, recall
