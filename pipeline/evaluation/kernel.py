"""Compiled kernels of COCO's evaluation over flat arrays: masks from run-length strings, IoU, matching, accumulation.

A mask is represented by its *edges*: the positions, counted column by column, at which it begins and ends in turn. The
IoU of masks equal those of pycocotools to the last digit, because each is a division of two whole numbers. The first
call compiles (some seconds) or loads numba's cache, as `pipeline.masks.rle_kernel` says.

Groups (one class on one image) are described by the arrays of `pipeline.evaluation.iou.Overlaps`: `groups` is its
`starts`, `first_truth` and `end_truth` are its `first` and `end`.
"""

from __future__ import annotations

import numpy as np

from pipeline.masks.rle_kernel import compiled


@compiled
def _fill_edges(edges: np.ndarray, text: np.ndarray, start: int, end: int, num_pixels: int) -> int:
    """Decodes one RLE string into `edges`.

    Returns:
        The number of edges, or -1 for a string that is not plain: malformed, of another number of pixels, or with an
        empty run after the first.
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
            value += previous
        if value < 0 or (value == 0 and num > 0):
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
def fill_truth_edges(
    text: np.ndarray, offsets: np.ndarray, heights: np.ndarray, widths: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
    """Decodes the masks of all annotations.

    Args:
        text, offsets: RLE strings, see `Truth.rle_text`.
        heights, widths: int64 [G], of the masks.

    Returns:
        edges: int64, of all masks, one mask after the other.
        starts: int64 [G + 1], where each mask begins in `edges`.
        boxes: int64 [G, 4], first and last column, first and last row, inclusive.
        areas: int64 [G], in pixels.
        bad: the first annotation whose mask is not plain, or -1.
    """
    num = len(offsets) - 1
    edges = np.empty(offsets[num] - offsets[0], np.int64)
    starts = np.zeros(num + 1, np.int64)
    boxes = np.empty((num, 4), np.int64)
    areas = np.zeros(num, np.int64)
    for g in range(num):
        num_edges = _fill_edges(edges[starts[g] :], text, offsets[g], offsets[g + 1], heights[g] * widths[g])
        if num_edges < 0:
            return edges, starts, boxes, areas, g
        areas[g] = _fill_box(boxes[g], edges, starts[g], num_edges, heights[g])
        starts[g + 1] = starts[g] + num_edges
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
    """Writes the IoU of each detection's mask with its group's annotations into `ious`, and its area into `areas`.

    Args:
        text, offsets, heights, widths: the detections' masks, as `fill_truth_edges` takes those of annotations.
        edges, starts, boxes, truth_areas: the annotations' masks, see `fill_truth_edges`.

    Returns:
        The row of the first detection whose mask is not plain, or -1.
    """
    longest = 0
    for row in rows:
        longest = max(longest, offsets[row + 1] - offsets[row])
    row_edges = np.empty(longest + 1, np.int64)
    box = np.empty(4, np.int64)
    for group in range(len(groups) - 1):
        num_truths = end_truth[group] - first_truth[group]
        for d in range(groups[group], groups[group + 1]):
            row = rows[d]
            num = _fill_edges(row_edges, text, offsets[row], offsets[row + 1], heights[row] * widths[row])
            if num < 0:
                return row
            area = _fill_box(box, row_edges, 0, num, heights[row])
            areas[d] = area
            at = pairs[group] + (d - groups[group]) * num_truths
            for k in range(num_truths):
                g = truths[first_truth[group] + k]
                ious[at + k] = 0.0
                truth_box = boxes[g]
                if box[0] > truth_box[1] or truth_box[0] > box[1] or box[2] > truth_box[3] or truth_box[2] > box[3]:
                    continue
                shared = _intersection(row_edges, num, edges, starts[g], starts[g + 1] - starts[g])
                if shared > 0:
                    ious[at + k] = shared / (area if crowd[g] else area + truth_areas[g] - shared)
    return -1


@compiled
def fill_box_ious(
    ious: np.ndarray,
    pairs: np.ndarray,
    row_boxes: np.ndarray,
    rows: np.ndarray,
    groups: np.ndarray,
    first_truth: np.ndarray,
    end_truth: np.ndarray,
    truths: np.ndarray,
    boxes: np.ndarray,
    crowd: np.ndarray,
) -> None:
    """Writes the IoU of each detection's box with its group's annotations into `ious`.

    Args:
        row_boxes, boxes: float64 [N, 4] and [G, 4], XYWH of the detections' rows and of the annotations.
    """
    for group in range(len(groups) - 1):
        num_truths = end_truth[group] - first_truth[group]
        for d in range(groups[group], groups[group + 1]):
            a = row_boxes[rows[d]]
            at = pairs[group] + (d - groups[group]) * num_truths
            for k in range(num_truths):
                g = truths[first_truth[group] + k]
                b = boxes[g]
                ious[at + k] = 0.0
                width = min(a[2] + a[0], b[2] + b[0]) - max(a[0], b[0])
                if width <= 0:
                    continue
                height = min(a[3] + a[1], b[3] + b[1]) - max(a[1], b[1])
                if height <= 0:
                    continue
                shared = width * height
                union = a[2] * a[3] if crowd[g] else a[2] * a[3] + b[2] * b[3] - shared
                ious[at + k] = shared / union


@compiled
def _order_truths(
    order: np.ndarray, leave: np.ndarray, truths: np.ndarray, first: int, num: int, left_out: np.ndarray
) -> None:
    """Writes a group's annotations into `order`: first those that count, then those that are `left_out`, both in the
    order of the file. `leave` (bool) is set to whether they are left out."""
    count = 0
    for is_left_out in (False, True):
        for k in range(num):
            if left_out[truths[first + k]] == is_left_out:
                order[count] = k
                leave[count] = is_left_out
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
    """The annotation that a detection takes (an index into `order`), or -1.

    It is the one that the detection overlaps most, with an IoU of at least `least`, of those that are not `taken`; of
    equal ones the last. An annotation that is left out (`leave`) is taken only where there is none that counts.
    """
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
    """COCO's matching of every group, at all IoU thresholds and in all ranges of area.

    Args:
        outcome: uint32 [N, A], zeros; written: bit t is set for a true positive at threshold t, bit 16 + t for a
            detection that counts neither as a true nor as a false positive.
        left_out: bool [A, G], annotations that count neither as found nor as missed in a range of area.
        ranges: float64 [A, 2], least and largest area.
        thresholds: float64 [T], of the IoU.
    """
    most_truths = 0
    most_detections = 0
    for group in range(len(groups) - 1):
        most_truths = max(most_truths, end_truth[group] - first_truth[group])
        most_detections = max(most_detections, groups[group + 1] - groups[group])
    top = np.empty(most_detections)
    order = np.empty(most_truths, np.int64)
    leave = np.empty(most_truths, np.bool_)
    taken = np.empty(most_truths, np.bool_)
    for group in range(len(groups) - 1):
        first, num = first_truth[group], end_truth[group] - first_truth[group]
        size = groups[group + 1] - groups[group]
        for d in range(size):  # the largest IoU of each: most detections reach few thresholds or none
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
                    n = groups[group] + d
                    hit = -1
                    if top[d] >= least:
                        at = pairs[group] + d * num
                        hit = _best_truth(ious, at, num, truths, first, crowd, order, leave, taken, least)
                    if hit > -1:
                        taken[hit] = True
                        outcome[n, a] |= np.uint32(1) << np.uint32(t + 16 if leave[hit] else t)
                    elif areas[n] < low or areas[n] > high:
                        outcome[n, a] |= np.uint32(1) << np.uint32(t + 16)


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
    """The same matching at one IoU threshold and over all areas.

    Args:
        kept: bool [N], the detections that take part.

    Returns:
        The annotation that each detection took (int64 [N], -1 for none), and the pair's IoU (float64 [N], 0 for none).
    """
    least = min(threshold, 1 - 1e-10)
    matched = np.full(len(kept), -1, np.int64)
    matched_ious = np.zeros(len(kept))
    most_truths = 0
    for group in range(len(groups) - 1):
        most_truths = max(most_truths, end_truth[group] - first_truth[group])
    order = np.empty(most_truths, np.int64)
    leave = np.empty(most_truths, np.bool_)
    taken = np.empty(most_truths, np.bool_)
    for group in range(len(groups) - 1):
        first, num = first_truth[group], end_truth[group] - first_truth[group]
        _order_truths(order, leave, truths, first, num, crowd)
        taken[:num] = False
        for d in range(groups[group], groups[group + 1]):
            if not kept[d]:
                continue
            at = pairs[group] + (d - groups[group]) * num
            hit = _best_truth(ious, at, num, truths, first, crowd, order, leave, taken, least)
            if hit > -1:
                taken[hit] = True
                matched[d] = truths[first + order[hit]]
                matched_ious[d] = ious[at + order[hit]]
    return matched, matched_ious


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
    """COCO's precision-recall curves from the outcome of matching.

    Args:
        outcome: uint32 [N, A], see `match_groups`; detections sorted by category, then best score first.
        rank: int64 [N], of each detection within its image and class.
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
                    for n in range(bounds[k], bounds[k + 1]):
                        if rank[n] >= limits[m]:
                            continue
                        bits = outcome[n, a] >> np.uint32(t)
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
