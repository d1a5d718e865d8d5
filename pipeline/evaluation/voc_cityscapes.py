"""Average precision as Pascal VOC and as Cityscapes define it, for comparison with figures published in those terms."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.evaluation.detections import DetectionTable
from pipeline.evaluation.ground_truth import Truth
from pipeline.evaluation.iou import Overlaps
from pipeline.masks.rle import rle_areas

VOC_METHODS = ("area", "11point")
_VOC_THRESHOLD = 0.5  # the least IoU of a true positive
CITYSCAPES_THRESHOLDS = tuple(np.arange(0.5, 1.0, 0.05).round(2).tolist())


def voc_ap(truth: Truth, detections: DetectionTable, overlaps: Overlaps) -> dict[int | None, dict[str, float]]:
    """Pascal VOC's AP at an IoU of 0.5 of each category, and their means under None.

    A detection is assigned to the object of its class that it overlaps most, whether that is taken or not; a second
    detection of an object is a false positive. Crowd regions count as VOC's "difficult" objects: neither as found nor
    as missed. Boxes are half-open here. VOC's devkit includes the last pixel, which changes an IoU by about one pixel's
    worth.

    Args:
        overlaps: of the same detections and truth, of boxes or masks.

    Returns:
        By category id `VOC_AP`, the area under the interpolated curve (VOC 2010 on), and `VOC_AP_11point` (VOC 2007),
        0..1; NaN for a category without objects, 0 where nothing was detected.

    Source: Everingham et al., The Pascal Visual Object Classes Challenge (2010), section 4.2; VOC devkit, VOCevaldet.m.
    """
    state = _voc_states(overlaps, len(detections))
    area, points = (_voc_aps(truth, detections, overlaps, state, method) for method in VOC_METHODS)
    return {number: {"VOC_AP": area[number], "VOC_AP_11point": points[number]} for number in area}


def _voc_states(overlaps: Overlaps, num: int) -> np.ndarray:
    """int8 [num]: 1 for a true positive, 0 for a false positive, -1 for a detection on a region or in no group."""
    state = np.full(num, -1, np.int8)
    state[overlaps.groups.rows] = 0
    groups = overlaps.groups
    for group in np.flatnonzero(groups.end > groups.first).tolist():
        truths = groups.truths[groups.first[group] : groups.end[group]]
        rows = groups.rows[groups.starts[group] : groups.starts[group + 1]]  # best first
        taken: set[int] = set()
        for row, ious in zip(rows.tolist(), overlaps.block(group), strict=True):
            best = int(np.argmax(ious))
            if ious[best] >= _VOC_THRESHOLD:
                state[row] = -1 if overlaps.regions[truths[best]] else int(best not in taken)
                taken.add(best)
    return state


def _voc_aps(
    truth: Truth, detections: DetectionTable, overlaps: Overlaps, state: np.ndarray, method: str
) -> dict[int | None, float]:
    result: dict[int | None, float] = {}
    for number in truth.names:
        num_objects = int((~overlaps.regions & (truth.annotations.category_ids == number)).sum())
        rows = np.flatnonzero((detections.category_ids == number) & (state >= 0))
        rows = rows[np.argsort(-detections.scores[rows], kind="stable")]
        result[number] = _voc_curve_ap(state[rows] == 1, num_objects, method) if num_objects else float("nan")
    return {None: _mean(result.values()), **result}


def _voc_curve_ap(hits: np.ndarray, num_objects: int, method: str) -> float:
    true, false = np.cumsum(hits), np.cumsum(~hits)
    recall, precision = true / num_objects, true / np.maximum(true + false, 1)
    if method == "11point":
        points = np.arange(11) / 10
        return float(np.mean([precision[recall >= point].max(initial=0.0) for point in points]))
    recall = np.concatenate([[0.0], recall, [1.0]])
    precision = np.concatenate([[0.0], precision, [0.0]])
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    steps = np.flatnonzero(recall[1:] != recall[:-1])
    return float(np.sum((recall[steps + 1] - recall[steps]) * envelope[steps + 1]))


def cityscapes_ap(
    truth: Truth,
    detections: DetectionTable,
    overlaps: Overlaps,
    *,
    thresholds: Sequence[float] = CITYSCAPES_THRESHOLDS,
    min_region_px: int = 100,
) -> dict[int | None, dict[str, float]]:
    """Cityscapes' instance-level AP on masks.

    An object is found when the IoU of a detection with it is above the threshold. Of several such detections the one
    with the best score is the true positive, and the others are false positives. A detection that finds no object is
    left out where a larger share of its pixels than the threshold lies on crowd regions ("groups") or on objects
    smaller than `min_region_px`.

    Args:
        overlaps: of the same detections and truth, of masks.
        thresholds: of the IoU; `AP` is the mean over them, and `AP50` is there if 0.5 is one of them.
        min_region_px: least area of an object that counts, in pixels.

    Returns:
        `AP` and `AP50` by category id, and their means under None; NaN for a category without objects.

    Source: Cordts et al., The Cityscapes Dataset (2016), section 4.3; cityscapesScripts,
    evalInstanceLevelSemanticLabeling.py.
    """
    cells = _cityscapes_cells(truth, detections, overlaps, min_region_px)
    result: dict[int | None, dict[str, float]] = {}
    for number in truth.names:
        values = {threshold: _cityscapes_class(cells[number], threshold) for threshold in thresholds}
        result[number] = {"AP": float(np.mean(list(values.values())))}
        if 0.5 in values:
            result[number]["AP50"] = values[0.5]
    names = next(iter(result.values())) if result else {}
    return {None: {name: _mean(figures[name] for figures in result.values()) for name in names}, **result}


@dataclass(frozen=True)
class _Cell:
    """The detections and annotations of one class on one image.

    Attributes:
        scores: float64 [d].
        areas: float64 [d], of the detections' masks, in pixels.
        shared: float64 [d, g], pixels that detection and annotation share.
        ious: float64 [d, g].
        counts: bool [g], whether the annotation is an object that counts.
    """

    scores: np.ndarray
    areas: np.ndarray
    shared: np.ndarray
    ious: np.ndarray
    counts: np.ndarray


def _cityscapes_cells(
    truth: Truth, detections: DetectionTable, overlaps: Overlaps, min_region_px: int
) -> dict[int, list[_Cell]]:
    groups, category_ids = overlaps.groups, overlaps.category_ids.tolist()
    truth_areas = rle_areas(truth.rles).astype(np.float64)
    counts = ~overlaps.regions & (truth_areas >= min_region_px)
    cells: dict[int, list[_Cell]] = {number: [] for number in truth.names}
    has_detections = np.zeros(len(counts), bool)
    for group, category in enumerate(overlaps.categories.tolist()):
        of_group = slice(groups.starts[group], groups.starts[group + 1])
        truths = groups.truths[groups.first[group] : groups.end[group]]
        has_detections[truths] = True
        areas, regions = overlaps.areas[of_group], truth_areas[truths]
        shared = _intersections(overlaps.block(group), areas, regions, overlaps.regions[truths])
        # The true IoU with crowd regions too: a detection that matches one is no false positive.
        union = areas[:, None] + regions[None] - shared
        ious = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
        scores = detections.scores[groups.rows[of_group]]
        cells[category_ids[category]].append(_Cell(scores, areas, shared, ious, counts[truths]))
    for number in truth.names:  # objects on images without a detection of their class
        alone = counts[~has_detections & (truth.annotations.category_ids == number)]
        nothing = np.zeros((0, len(alone)))
        cells[number].append(_Cell(np.zeros(0), np.zeros(0), nothing, nothing, alone))
    return cells


def _cityscapes_class(cells: Sequence[_Cell], threshold: float) -> float:
    """The AP of one class at one IoU threshold."""
    is_true: list[float] = []
    scores: list[float] = []
    missed = num_objects = num_detections = 0
    for cell in cells:
        hits = cell.ious > threshold
        num_objects += int(cell.counts.sum())
        num_detections += len(cell.scores)
        for column in np.flatnonzero(cell.counts):
            hit_scores = sorted(cell.scores[hits[:, column]].tolist(), reverse=True)
            if not hit_scores:
                missed += 1
            scores += hit_scores
            is_true += [1.0] * bool(hit_scores) + [0.0] * (len(hit_scores) - 1)
        is_false = ~hits.any(axis=1) & (cell.shared[:, ~cell.counts].sum(axis=1) <= threshold * cell.areas)
        is_true += [0.0] * int(is_false.sum())
        scores += cell.scores[is_false].tolist()
    if not num_objects:
        return float("nan")
    return _cityscapes_curve_ap(np.array(is_true), np.array(scores), missed) if num_detections and is_true else 0.0


def _cityscapes_curve_ap(is_true: np.ndarray, scores: np.ndarray, missed: int) -> float:
    """The area under the precision-recall curve by steps centred on its points, as cityscapesScripts integrates it."""
    order = np.argsort(scores, kind="stable")
    scores, below = scores[order], np.concatenate([[0.0], np.cumsum(is_true[order])])
    starts = np.unique(scores, return_index=True)[1]
    true = below[-1] - below[starts]
    false = len(scores) - starts - true
    lost = below[starts] + missed
    precision = np.append(true / (true + false), 1.0)
    recall = np.append(np.divide(true, true + lost, out=np.zeros_like(true), where=true + lost > 0), 0.0)
    around = np.concatenate([[recall[0]], recall, [0.0]])
    return float(np.dot(precision, np.convolve(around, [-0.5, 0, 0.5], "valid")))


def _intersections(ious: np.ndarray, areas: np.ndarray, regions: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """Shared pixels of each pair, from the IoU that pycocotools gives (for crowd regions: share of the detection).

    Args:
        ious: float64 [d, g].
        areas, regions: float64 [d] and [g], pixels of the detections and of the annotations.
        crowd: bool [g].
    """
    shared = np.where(crowd[None], ious * areas[:, None], ious * (areas[:, None] + regions[None]) / (1 + ious))
    return np.round(shared)


def _mean(values: Iterable[float]) -> float:
    """The mean without NaN, or NaN where there is nothing else."""
    numbers = [value for value in values if value == value]
    return float(np.mean(numbers)) if numbers else float("nan")
