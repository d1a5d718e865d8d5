"""Greedy matching of detections with annotations at one IoU threshold, for precision, recall and confusion matrix."""

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
        rows: int64 [D], the detections that took part, as rows of their table: those that reach the score threshold,
            best first within an image and class.
        truths: int64 [D], the annotation that each of them took (an index into `Truth.annotations`), -1 for none.
        ious: float64 [D], IoU of the pair, 0 for none.
        ignored: bool [D], whether it took a crowd region; then it is neither a true nor a false positive.
        found: bool [G], for each annotation whether a detection took it; False for crowd regions.
        counted: bool [G], for each annotation whether it counts, that is, is no crowd region.
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
    """All detections and annotations of one image, whatever their classes, and their IoU.

    Attributes:
        image_id: as the truth numbers it.
        rows: int64 [d], the detections as rows of their table, best score first.
        truths: int64 [g], the annotations as indices into `Truth.annotations`.
        ious: float64 [d, g]; with a crowd region it is the intersection over the detection's area.
    """

    image_id: Any
    rows: np.ndarray
    truths: np.ndarray
    ious: np.ndarray


def iter_pairs(
    truth: Truth,
    detections: DetectionTable,
    iou_type: str,
    *,
    score_threshold: float = 0.0,
) -> Iterator[ImagePairs]:
    """The pairs of every image of the truth, in its order; pycocotools computes the IoU.

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
    rows_of = dict(zip(ids.tolist(), np.split(rows, starts[1:]), strict=True)) if len(ids) else {}
    for image_id, indices in truth.by_image.items():
        image_rows = rows_of.get(image_id, np.empty(0, np.int64))
        truths = np.asarray(indices, np.int64)
        if not len(image_rows) or not len(truths):
            yield ImagePairs(image_id, image_rows, truths, np.zeros((len(image_rows), len(truths))))
            continue
        crowd = [int(truth.annotations[i].get("iscrowd", 0)) for i in indices]
        if iou_type == "bbox":
            boxes = np.array([truth.annotations[i]["bbox"] for i in indices], np.float64)
            ious = coco_mask.iou(detections.bboxes[image_rows], boxes, crowd)
        else:
            ious = coco_mask.iou([rles[i] for i in image_rows.tolist()], [truth.rles[i] for i in indices], crowd)
        yield ImagePairs(image_id, image_rows, truths, np.maximum(ious, 0))  # -1: masks of different sizes


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
    """Matches detections with annotations of their class as COCO's evaluation does.

    Detections choose in the order of their scores. Each takes, of the annotations that are not yet taken, the one it
    overlaps most.

    Args:
        iou_type: bbox or segm.
        iou_threshold: the least IoU of a pair.
        score_threshold: detections below it are left out.
        max_detections: at most so many of an image and class take part, best first; None: all.
        overlaps: those of the same detections and truth, where they are known. They hold at most `MOST_OF_A_CLASS`
            detections of an image and class. Without them pycocotools computes the IoU.

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
            of_class = np.flatnonzero(labels == category)[:max_detections]  # rows of `pairs.ious`
            columns = np.flatnonzero(category_of[pairs.truths] == category)
            class_truths = pairs.truths[columns]
            taken = greedy_match(pairs.ious[np.ix_(of_class, columns)], crowd[class_truths], iou_threshold)
            hit = taken >= 0
            rows.append(pairs.rows[of_class])
            if len(columns):
                truths.append(np.where(hit, class_truths[taken], -1))
                ious.append(np.where(hit, pairs.ious[of_class, columns[taken]], 0.0))
                ignored.append(hit & crowd[class_truths[taken]])
            else:
                truths.append(taken)
                ious.append(np.zeros(len(of_class)))
                ignored.append(np.zeros(len(of_class), bool))
            found[class_truths[taken[hit]]] = True
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
    """The same matching from known IoU, by the compiled kernel."""
    from pipeline.evaluation import kernel

    crowd = truth.is_crowd
    kept = detections.scores[overlaps.rows] >= score_threshold
    if max_detections is not None:
        kept &= overlaps.rank < max_detections
    truths, ious = kernel.match_once(
        overlaps.ious, overlaps.pairs, kept, overlaps.starts, overlaps.first, overlaps.end, overlaps.truths, crowd,
        iou_threshold,
    )  # fmt: skip
    # In the order of the truth's images, as `iter_pairs` gives them: sums over the matches are then rounded alike.
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
        ignore: bool [g], crowd regions. One may be taken by several detections, and only by those that match no object.

    Returns:
        int64 [d]: the column that each row took, -1 for none.
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
