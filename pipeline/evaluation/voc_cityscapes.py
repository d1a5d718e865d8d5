"""Average precision as Pascal VOC and as Cityscapes define it, for comparison with figures published in those terms."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.evaluation.detections import DetectionTable
from pipeline.evaluation.ground_truth import Truth
from pipeline.evaluation.matching import iter_pairs
from pipeline.masks.rle import rle_areas

VOC_METHODS = ("area", "11point")
CITYSCAPES_THRESHOLDS = tuple(np.arange(0.5, 1.0, 0.05).round(2).tolist())


def voc_ap(
    truth: Truth,
    detections: DetectionTable,
    *,
    iou_type: str = "bbox",
    iou_threshold: float = 0.5,
    method: str = "area",
) -> dict[int | None, float]:
    """Pascal VOC's AP of each category, and their mean under None.

    A detection is assigned to the object of its class that it overlaps most, whether that is taken or not; a second
    detection of an object is a false positive. Crowd regions count as VOC's "difficult" objects: neither as found nor
    as missed. Boxes are half-open here. VOC's devkit includes the last pixel, which changes an IoU by about one pixel's
    worth.

    Args:
        iou_type: bbox or segm.
        iou_threshold: the least IoU of a true positive.
        method: "area" under the interpolated curve (VOC 2010 on), or "11point" (VOC 2007).

    Returns:
        AP 0..1 by category id; NaN for a category without objects, 0 where nothing was detected.

    Raises:
        ValueError: another method or iou_type.

    Source: Everingham et al., The Pascal Visual Object Classes Challenge (2010), section 4.2; VOC devkit, VOCevaldet.m.
    """
    if method not in VOC_METHODS:
        raise ValueError(f"method is {method!r}; allowed are {', '.join(VOC_METHODS)}")
    return _voc_aps(truth, detections, _voc_states(truth, detections, iou_type, iou_threshold), method)


def voc_figures(
    truth: Truth, detections: DetectionTable, *, iou_type: str = "bbox", iou_threshold: float = 0.5
) -> dict[int | None, dict[str, float]]:
    """`voc_ap` by both methods from one matching.

    Returns:
        `VOC_AP` (area) and `VOC_AP_11point` by category id, and their means under None.

    Raises:
        ValueError: another iou_type.
    """
    states = _voc_states(truth, detections, iou_type, iou_threshold)
    area, points = (_voc_aps(truth, detections, states, method) for method in VOC_METHODS)
    return {number: {"VOC_AP": area[number], "VOC_AP_11point": points[number]} for number in area}


def _voc_states(truth: Truth, detections: DetectionTable, iou_type: str, iou_threshold: float) -> np.ndarray:
    """int8 [N]: 1 for a true positive, 0 for a false positive, -1 for a detection on a crowd region."""
    category_of, crowd = truth.category_ids, truth.is_crowd
    state = np.full(len(detections), -1, np.int8)
    for pairs in iter_pairs(truth, detections, iou_type):
        taken: set[int] = set()
        labels = detections.category_ids[pairs.rows]
        for at, row in enumerate(pairs.rows):  # best first
            columns = np.flatnonzero(category_of[pairs.truths] == labels[at])
            state[row] = 0
            if len(columns):
                best = columns[int(np.argmax(pairs.ious[at, columns]))]
                if pairs.ious[at, best] >= iou_threshold:
                    index = int(pairs.truths[best])
                    state[row] = -1 if crowd[index] else int(index not in taken)
                    taken.add(index)
    return state


def _voc_aps(truth: Truth, detections: DetectionTable, state: np.ndarray, method: str) -> dict[int | None, float]:
    category_of, crowd = truth.category_ids, truth.is_crowd
    result: dict[int | None, float] = {}
    for number in truth.names:
        num_objects = int((~crowd & (category_of == number)).sum())
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
        thresholds: of the IoU; `AP` is the mean over them, and `AP50` is there if 0.5 is one of them.
        min_region_px: least area of an object that counts, in pixels.

    Returns:
        `AP` and `AP50` by category id, and their means under None; NaN for a category without objects.

    Raises:
        ValueError: detections without masks.

    Source: Cordts et al., The Cityscapes Dataset (2016), section 4.3; cityscapesScripts,
    evalInstanceLevelSemanticLabeling.py.
    """
    cells = _cityscapes_cells(truth, detections, min_region_px)
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


def _cityscapes_cells(truth: Truth, detections: DetectionTable, min_region_px: int) -> dict[int, list[_Cell]]:
    category_of, crowd = truth.category_ids, truth.is_crowd
    detection_areas, truth_areas = _mask_areas(truth, detections)
    cells: dict[int, list[_Cell]] = {number: [] for number in truth.names}
    for pairs in iter_pairs(truth, detections, "segm"):
        row_classes, truth_classes = detections.category_ids[pairs.rows], category_of[pairs.truths]
        for number in np.union1d(row_classes, truth_classes).tolist():
            if number not in cells:
                continue
            of_class, columns = np.flatnonzero(row_classes == number), np.flatnonzero(truth_classes == number)
            rows, truths = pairs.rows[of_class], pairs.truths[columns]
            areas, regions = detection_areas[rows], truth_areas[truths]
            shared = _intersections(pairs.ious[np.ix_(of_class, columns)], areas, regions, crowd[truths])
            # The true IoU with crowd regions too: a detection that matches one is no false positive.
            union = areas[:, None] + regions[None] - shared
            ious = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
            counts = ~crowd[truths] & (regions >= min_region_px)
            cells[number].append(_Cell(detections.scores[rows], areas, shared, ious, counts))
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


def _mask_areas(truth: Truth, detections: DetectionTable) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of the detections' and of the annotations' masks, float64 [N] and [G]."""
    if detections.counts is None:
        raise ValueError("Cityscapes' AP needs masks; load the instances with rle_counts")
    truth_areas = rle_areas([rle["counts"] for rle in truth.rles])
    detection_areas = rle_areas([rle["counts"] for rle in detections.to_rles()])
    return detection_areas.astype(np.float64), truth_areas.astype(np.float64)


def _mean(values: Iterable[float]) -> float:
    """The mean without NaN, or NaN where there is nothing else."""
    numbers = [value for value in values if value == value]
    return float(np.mean(numbers)) if numbers else float("nan")
