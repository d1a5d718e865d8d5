"""Which detection found which annotated object, at one IoU threshold: the ground floor of precision, recall, mean
IoU, the confusion matrix and the comparison of two runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.evaluation.detections import DetectionTable
from pipeline.evaluation.ground_truth import Truth
from pipeline.evaluation.iou import Overlaps


@dataclass(frozen=True)
class Matches:
    """The pairs that greedy matching makes, as in COCO's evaluation.

    Attributes:
        rows: int64 [D], the detections that were matched against, as rows of the table given: those that reach the
            score, best first within an image.
        truths: int64 [D], the annotation (its place in the truth) each of them found, -1 for none.
        ious: float64 [D], IoU of the pair, 0 for none.
        ignored: bool [D], it lies on a crowd region, so it counts neither way.
        found: bool [G], for each annotation whether it was found.
        counted: bool [G], for each annotation whether it counts (is no crowd region).
    """

    rows: np.ndarray
    truths: np.ndarray
    ious: np.ndarray
    ignored: np.ndarray
    found: np.ndarray
    counted: np.ndarray

    @property
    def is_true(self) -> np.ndarray:
        """bool [D]: true positives."""
        return (self.truths >= 0) & ~self.ignored

    @property
    def is_false(self) -> np.ndarray:
        """bool [D]: false positives."""
        return (self.truths < 0) & ~self.ignored


@dataclass(frozen=True)
class ImagePairs:
    """One image: its detections (rows, best first), its annotations (places) and their IoU, float64 [d, g]. Where an
    annotation is a crowd region, the intersection is divided by the detection's area alone."""

    image_id: Any
    rows: np.ndarray
    places: np.ndarray
    ious: np.ndarray


def iter_pairs(
    truth: Truth,
    detections: DetectionTable,
    iou_type: str,
    *,
    score_threshold: float = 0.0,
) -> Iterator[ImagePairs]:
    """Every image of the truth with the IoU of all its detections and annotations, whatever their classes.

    Args:
        iou_type: bbox or segm.
        score_threshold: detections below it are left out.

    Raises:
        ValueError: another iou_type, or no masks where segm is asked for.
    """
    if iou_type not in ("bbox", "segm"):
        raise ValueError(f"iou_type is {iou_type!r}; allowed are bbox, segm")
    rles = detections.to_rles() if iou_type == "segm" else []
    from pycocotools import mask as coco_mask

    rows = np.flatnonzero(detections.scores >= score_threshold)
    order = np.lexsort((-detections.scores[rows], detections.image_ids[rows]))  # stable: equal scores keep their order
    rows = rows[order]
    ids, starts = np.unique(detections.image_ids[rows], return_index=True)
    of_image = dict(zip(ids.tolist(), np.split(rows, starts[1:]), strict=True)) if len(ids) else {}
    for image_id, listed in truth.by_image.items():
        found = of_image.get(image_id, np.empty(0, np.int64))
        places = np.asarray(listed, np.int64)
        if not len(found) or not len(places):
            yield ImagePairs(image_id, found, places, np.zeros((len(found), len(places))))
            continue
        crowd = [int(truth.annotations[i].get("iscrowd", 0)) for i in listed]
        if iou_type == "bbox":
            ious = coco_mask.iou(
                detections.bboxes[found], np.array([truth.annotations[i]["bbox"] for i in listed], np.float64), crowd
            )
        else:
            ious = coco_mask.iou(
                [rles[i] for i in found.tolist()],
                [truth.rles[i] for i in listed],
                crowd,
            )
        yield ImagePairs(image_id, found, places, np.maximum(ious, 0))  # -1: masks of different sizes


def match(
    truth: Truth,
    detections: DetectionTable,
    iou_type: str,
    *,
    iou_threshold: float = 0.5,
    score_threshold: float = 0.0,
    max_detections: int | None = 100,
    overlaps: Overlaps | None = None,
) -> Matches:
    """Matches detections with annotations of the same class, best score first, each with the annotation it overlaps
    most of those not yet taken, as COCO's evaluation does; `max_detections` counts for each image and class.

    Args:
        overlaps: those of the same detections and truth, where they are known; they hold no more detections of an image
            and class than COCO looks at. Without them pycocotools computes the IoU.

    Raises:
        ValueError: see `iter_pairs`.
    """
    if overlaps is not None:
        return _match_overlaps(truth, detections, overlaps, iou_threshold, score_threshold, max_detections)
    category_of, crowd = truth.category_ids, truth.is_crowd
    rows, truths, ious, ignored = [], [], [], []
    found = np.zeros(len(truth.annotations), bool)
    for pairs in iter_pairs(truth, detections, iou_type, score_threshold=score_threshold):
        labels = detections.category_ids[pairs.rows]
        for category in np.unique(labels):
            mine = np.flatnonzero(labels == category)[:max_detections]
            theirs = np.flatnonzero(category_of[pairs.places] == category)
            places = pairs.places[theirs]
            took = greedy_match(pairs.ious[np.ix_(mine, theirs)], crowd[places], iou_threshold)
            hit = took >= 0
            rows.append(pairs.rows[mine])
            truths.append(np.where(hit, places[took], -1) if len(places) else took)
            ious.append(np.where(hit, pairs.ious[mine, theirs[took]], 0.0) if len(places) else np.zeros(len(mine)))
            ignored.append(hit & crowd[places[took]] if len(places) else np.zeros(len(mine), bool))
            found[places[took[hit]]] = True
    return Matches(
        rows=_join(rows, np.int64),
        truths=_join(truths, np.int64),
        ious=_join(ious, np.float64),
        ignored=_join(ignored, bool),
        found=found & ~crowd,
        counted=~crowd,
    )


def _match_overlaps(
    truth: Truth,
    detections: DetectionTable,
    overlaps: Overlaps,
    iou_threshold: float,
    score_threshold: float,
    max_detections: int | None,
) -> Matches:
    from pipeline.evaluation import kernel

    crowd = truth.is_crowd
    kept = detections.scores[overlaps.rows] >= score_threshold
    if max_detections is not None:
        kept &= overlaps.rank < max_detections
    truths, ious = kernel.match_once(
        overlaps.ious, overlaps.pairs, kept, overlaps.starts, overlaps.first, overlaps.end, overlaps.truths, crowd,
        iou_threshold,
    )  # fmt: skip
    # Images in the truth's order, as `iter_pairs` gives them, so that sums over the matches round alike.
    by_id = np.argsort([image["id"] for image in truth.images])
    order = np.flatnonzero(kept)
    order = order[np.argsort(overlaps.of_rows(by_id[overlaps.images])[order], kind="stable")]
    truths, ious = truths[order], ious[order]
    hit = truths >= 0
    found = np.zeros(len(truth.annotations), bool)
    found[truths[hit]] = True
    return Matches(
        rows=overlaps.rows[order],
        truths=truths,
        ious=ious,
        ignored=hit & crowd[truths] if len(crowd) else np.zeros(len(truths), bool),
        found=found & ~crowd,
        counted=~crowd,
    )


def greedy_match(ious: np.ndarray, ignore: np.ndarray, iou_threshold: float) -> np.ndarray:
    """COCO's matching of one image and class.

    Args:
        ious: [d, g], detections best first.
        ignore: bool [g], crowd regions: several detections may lie on one, and only if they found nothing else.

    Returns:
        int64 [d]: the column each row took, -1 for none.
    """
    taken = np.full(len(ious), -1, np.int64)
    least = min(iou_threshold, 1 - 1e-10)
    free = np.ones(ious.shape[1], bool)
    for row in np.flatnonzero((ious >= least).any(axis=1)) if ious.size else ():
        for kind in (~ignore & free, ignore):
            candidates = np.flatnonzero(kind & (ious[row] >= least))
            if len(candidates):
                values = ious[row, candidates]
                best = candidates[len(values) - 1 - int(np.argmax(values[::-1]))]  # COCO takes the last of equals
                taken[row] = best
                free[best] = False
                break
    return taken


def _join(parts: list[np.ndarray], dtype: Any) -> np.ndarray:
    return np.concatenate(parts).astype(dtype) if parts else np.empty(0, dtype)
