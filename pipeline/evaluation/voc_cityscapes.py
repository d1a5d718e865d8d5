"""Average precision as Pascal VOC and as Cityscapes define it, for comparing with figures published in those terms."""

from __future__ import annotations

from collections.abc import Sequence
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

    A detection goes to the object of its class it overlaps most, taken or not; the second on an object is false. Crowd
    regions count as VOC's "difficult" objects: neither found nor missed. Boxes are half-open here (VOC's devkit counts
    the last pixel in, which moves an IoU by about one pixel's worth).

    Args:
        method: "area" under the interpolated curve (VOC 2010 on), or "11point" (VOC 2007).

    Returns:
        AP 0..1 by category id; NaN for a category without objects.

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
    """`voc_ap` of both methods from one matching: `VOC_AP` (area) and `VOC_AP_11point`, by category id, means under
    None.

    Raises:
        ValueError: another iou_type.
    """
    states = _voc_states(truth, detections, iou_type, iou_threshold)
    area, points = (_voc_aps(truth, detections, states, method) for method in VOC_METHODS)
    return {number: {"VOC_AP": area[number], "VOC_AP_11point": points[number]} for number in area}


def _voc_states(truth: Truth, detections: DetectionTable, iou_type: str, iou_threshold: float) -> np.ndarray:
    """int8 [N]: 1 for a true detection, 0 for a false one, -1 for one on a crowd region."""
    category_of, crowd = truth.category_ids, truth.is_crowd
    state = np.full(len(detections), -1, np.int8)
    for pairs in iter_pairs(truth, detections, iou_type):
        taken: set[int] = set()
        labels = detections.category_ids[pairs.rows]
        for at, row in enumerate(pairs.rows):  # best first
            theirs = np.flatnonzero(category_of[pairs.places] == labels[at])
            state[row] = 0
            if len(theirs):
                best = theirs[int(np.argmax(pairs.ious[at, theirs]))]
                if pairs.ious[at, best] >= iou_threshold:
                    place = int(pairs.places[best])
                    state[row] = -1 if crowd[place] else int(place not in taken)
                    taken.add(place)
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
    """Cityscapes' instance-level AP on masks: `AP` over the thresholds and `AP50`, by category id, means under None.

    An object counts as found when a mask overlaps it by more than the threshold; of several, the best-scored is the
    hit and the others are false. A mask that found nothing is left out where more of it than the threshold lies on
    crowd regions ("groups") or on objects smaller than `min_region_px`. NaN for a category without objects.

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
    """One class on one image: scores float64 [d] and mask areas float64 [d] of what was found, shared pixels and IoU
    with each object, float64 [d, g], and whether the object counts, bool [g]."""

    scores: np.ndarray
    areas: np.ndarray
    shared: np.ndarray
    ious: np.ndarray
    counts: np.ndarray


def _cityscapes_cells(truth: Truth, detections: DetectionTable, min_region_px: int) -> dict[int, list[_Cell]]:
    category_of, crowd = truth.category_ids, truth.is_crowd
    of_detection, of_truth = _mask_areas(truth, detections)
    cells: dict[int, list[_Cell]] = {number: [] for number in truth.names}
    for pairs in iter_pairs(truth, detections, "segm"):
        found, real = detections.category_ids[pairs.rows], category_of[pairs.places]
        for number in np.union1d(found, real).tolist():
            if number not in cells:
                continue
            mine, theirs = np.flatnonzero(found == number), np.flatnonzero(real == number)
            rows, places = pairs.rows[mine], pairs.places[theirs]
            areas, regions = of_detection[rows], of_truth[places]
            shared = _intersections(pairs.ious[np.ix_(mine, theirs)], areas, regions, crowd[places])
            # A group's overlap counts as any object's does when it is asked whether a mask found something.
            union = areas[:, None] + regions[None] - shared
            ious = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
            counts = ~crowd[places] & (regions >= min_region_px)
            cells[number].append(_Cell(detections.scores[rows], areas, shared, ious, counts))
    return cells


def _cityscapes_class(cells: Sequence[_Cell], threshold: float) -> float:
    is_true: list[float] = []
    scores: list[float] = []
    missed = num_objects = num_found = 0
    for cell in cells:
        hits = cell.ious > threshold
        num_objects += int(cell.counts.sum())
        num_found += len(cell.scores)
        for column in np.flatnonzero(cell.counts):
            found = sorted(cell.scores[hits[:, column]].tolist(), reverse=True)
            if not found:
                missed += 1
            scores += found
            is_true += [1.0] * bool(found) + [0.0] * (len(found) - 1)
        free = ~hits.any(axis=1) & (cell.shared[:, ~cell.counts].sum(axis=1) <= threshold * cell.areas)
        is_true += [0.0] * int(free.sum())
        scores += cell.scores[free].tolist()
    if not num_objects:
        return float("nan")
    return _cityscapes_curve_ap(np.array(is_true), np.array(scores), missed) if num_found and is_true else 0.0


def _cityscapes_curve_ap(is_true: np.ndarray, scores: np.ndarray, missed: int) -> float:
    """The area under the curve by steps centred on its points, as cityscapesScripts integrates it."""
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


def _intersections(ious: np.ndarray, mine: np.ndarray, theirs: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """Shared pixels of each pair, from IoU (for crowd regions: from the share of the detection)."""
    shared = np.where(crowd[None], ious * mine[:, None], ious * (mine[:, None] + theirs[None]) / (1 + ious))
    return np.round(shared)


def _mask_areas(truth: Truth, detections: DetectionTable) -> tuple[np.ndarray, np.ndarray]:
    if detections.counts is None:
        raise ValueError("Cityscapes' AP needs masks; load the instances with rle_counts")
    of_truth = rle_areas([rle["counts"] for rle in truth.rles])
    of_detection = rle_areas([rle["counts"] for rle in detections.to_rles()])
    return of_detection.astype(np.float64), of_truth.astype(np.float64)


def _mean(values: object) -> float:
    kept = [value for value in values if value == value]  # type: ignore[attr-defined]
    return float(np.mean(kept)) if kept else float("nan")
