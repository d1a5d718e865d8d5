"""Matching of detections with annotations at one IoU threshold, for precision, recall and the confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.evaluation.detections import DetectionTable
from pipeline.evaluation.ground_truth import Truth
from pipeline.evaluation.iou import Overlaps


@dataclass(frozen=True)
class Matches:
    """The pairs that greedy matching makes, as in COCO's evaluation.

    Attributes:
        rows: int64 [D], the detections that took part, as rows of their table: those that reach the score threshold,
            image by image in the truth's order.
        image_ids, category_ids: int64 [D], of these detections.
        truths: int64 [D], the annotation that each of them took (an index into those of the truth), -1 for none.
        ious: float64 [D], IoU of the pair, 0 for none.
        ignored: bool [D], whether it took a region; then it is neither a true nor a false positive.
        found: bool [G], for each annotation whether a detection took it; False for regions.
        counted: bool [G], for each annotation whether it counts, that is, is no region.
    """

    rows: np.ndarray
    image_ids: np.ndarray
    category_ids: np.ndarray
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

    def on_images(self, image_ids: Sequence[int], truth: Truth) -> Matches:
        """The matches on these images alone; annotations elsewhere are neither found nor counted."""
        kept, is_there = np.isin(self.image_ids, image_ids), np.isin(truth.annotations.image_ids, image_ids)
        of_detections = ("rows", "image_ids", "category_ids", "truths", "ious", "ignored")
        columns = {name: getattr(self, name)[kept] for name in of_detections}
        return Matches(**columns, found=self.found & is_there, counted=self.counted & is_there)


def match(
    truth: Truth, detections: DetectionTable, overlaps: Overlaps, *, iou_threshold: float, score_threshold: float
) -> Matches:
    """Matches detections with annotations of their class as COCO's evaluation does, however many there are.

    Detections choose in the order of their scores. Each takes, of the annotations that are not yet taken, the one it
    overlaps most.

    Args:
        overlaps: of the same detections and truth.
        iou_threshold: the least IoU of a pair.
        score_threshold: detections below it are left out.
    """
    from pipeline.evaluation import kernel

    regions = overlaps.regions
    kept = detections.scores[overlaps.groups.rows] >= score_threshold
    truths, ious = kernel.match_once(overlaps.ious, overlaps.groups, kept, regions, iou_threshold)
    # In the order of the truth's images: sums over the matches do not depend on how they are grouped.
    order = np.flatnonzero(kept)
    order = order[np.argsort(truth.index_of(detections.image_ids[overlaps.groups.rows[order]]), kind="stable")]
    truths, ious = truths[order], ious[order]
    hit = truths >= 0
    found = np.zeros(len(regions), bool)
    found[truths[hit]] = True
    rows = overlaps.groups.rows[order]
    return Matches(
        rows=rows,
        image_ids=detections.image_ids[rows],
        category_ids=detections.category_ids[rows],
        truths=truths,
        ious=ious,
        ignored=hit & regions[truths] if len(regions) else np.zeros(len(truths), bool),
        found=found & ~regions,
        counted=~regions,
    )
