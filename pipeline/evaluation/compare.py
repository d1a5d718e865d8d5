"""Comparison of two runs on one ground truth: difference of AP with a bootstrap interval; gates on AP and its loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.evaluation.detections import DetectionTable
from pipeline.evaluation.ground_truth import Truth
from pipeline.evaluation.matching import greedy_match, iter_pairs, match
from pipeline.evaluation.metrics import Metrics
from pipeline.evaluation.run_detections import TruthSource, align

if TYPE_CHECKING:
    import pandas as pd

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
_RECALL_THRESHOLDS = np.linspace(0.0, 1.0, 101)
_MAX_DETECTIONS = 100
_EPSILON = np.spacing(1)


@dataclass(frozen=True)
class _ClassMatches:
    """One category's detections over all images, best score first, and its objects.

    Attributes:
        images: int64 [D], the index of each detection's image.
        hits, ignored: bool [T, D], whether it is a true positive or counts neither way, by IoU threshold.
        objects: int64 [I], the number of objects on each image.
    """

    images: np.ndarray
    hits: np.ndarray
    ignored: np.ndarray
    objects: np.ndarray


@dataclass(frozen=True)
class MatchedRun:
    """A run matched with the truth at COCO's ten IoU thresholds, from which AP follows for any sample of the images.

    Attributes:
        image_ids: of the truth, sorted.
        classes: by category id.
    """

    image_ids: tuple[Any, ...]
    classes: dict[int, _ClassMatches]

    def average_precision(self, weights: np.ndarray | None = None) -> dict[int | None, float]:
        """COCO's AP (all areas, 100 detections) by category id, and the mean under None; NaN without objects.

        Args:
            weights: int64 [I], how often each image is in the sample; None: once each, which gives exactly the AP of
                COCO's evaluation. A weight of 2 is equal to two copies of the image.
        """
        weights = np.ones(len(self.image_ids), np.int64) if weights is None else weights
        figures: dict[int | None, float] = {number: _ap(matches, weights) for number, matches in self.classes.items()}
        measured = [value for value in figures.values() if value == value]
        return {None: float(np.mean(measured)) if measured else float("nan"), **figures}


@dataclass(frozen=True)
class Comparison:
    """Two runs, a and b, against one truth. Differences are figures of b minus figures of a.

    Attributes:
        iou_type: bbox or segm.
        ap: AP of a and of b.
        difference: of the two APs.
        interval: bootstrap interval of the difference over images, at `confidence`.
        confidence: of the interval, between 0 and 1.
        by_category: one row for each category, largest loss first: `category_id`, `category`, `objects`, `ap_a`,
            `ap_b`, `difference`, `low`, `high` (the interval).
        images: one row for each image, largest loss of b first: `image` (the truth's file name), `errors_a`,
            `errors_b` (false positives and missed objects at the thresholds), `iou_a`, `iou_b` (summed over the objects
            found), `change` (errors_b - errors_a).
    """

    iou_type: str
    ap: tuple[float, float]
    difference: float
    interval: tuple[float, float]
    confidence: float
    by_category: pd.DataFrame
    images: pd.DataFrame

    @property
    def is_significant(self) -> bool:
        """Whether 0 lies outside of the interval."""
        return not self.interval[0] <= 0 <= self.interval[1]


def match_run(truth: Truth, detections: DetectionTable, iou_type: str) -> MatchedRun:
    """Matches a run's detections at COCO's ten IoU thresholds, for `MatchedRun.average_precision`.

    Raises:
        ValueError: an iou_type other than bbox and segm.
    """
    # COCO goes through images by id, and equal scores on two images keep that order.
    image_ids = tuple(sorted(image["id"] for image in truth.images))
    index_of = {image_id: index for index, image_id in enumerate(image_ids)}
    category_of, crowd = truth.category_ids, truth.is_crowd
    # By category id: for each image its index, and scores, hits, ignored of its detections.
    parts_of: dict[int, list[tuple[int, np.ndarray, np.ndarray, np.ndarray]]] = {number: [] for number in truth.names}
    objects = {number: np.zeros(len(image_ids), np.int64) for number in truth.names}
    for pairs in iter_pairs(truth, detections, iou_type):
        index = index_of[pairs.image_id]
        for number in category_of[pairs.truths][~crowd[pairs.truths]]:
            objects[int(number)][index] += 1
        labels = detections.category_ids[pairs.rows]
        for number in np.unique(labels).tolist():
            if number not in parts_of:
                continue
            of_class = np.flatnonzero(labels == number)[:_MAX_DETECTIONS]
            columns = np.flatnonzero(category_of[pairs.truths] == number)
            is_crowd = crowd[pairs.truths[columns]]
            ious = pairs.ious[np.ix_(of_class, columns)]
            hits = np.zeros((len(IOU_THRESHOLDS), len(of_class)), bool)
            ignored = np.zeros_like(hits)
            if ious.size and ious.max() >= IOU_THRESHOLDS[0]:
                for t, threshold in enumerate(IOU_THRESHOLDS):
                    taken = greedy_match(ious, is_crowd, threshold)
                    ignored[t] = (taken >= 0) & is_crowd[taken]
                    hits[t] = (taken >= 0) & ~ignored[t]
            parts_of[number].append((index, detections.scores[pairs.rows[of_class]], hits, ignored))
    classes = {}
    for number, parts in parts_of.items():
        parts.sort(key=lambda part: part[0])
        empty = np.zeros((len(IOU_THRESHOLDS), 0), bool)
        scores = np.concatenate([part[1] for part in parts]) if parts else np.zeros(0)
        order = np.argsort(-scores, kind="stable")
        images = np.repeat([part[0] for part in parts], [len(part[1]) for part in parts]).astype(np.int64)
        classes[number] = _ClassMatches(
            images[order],
            np.concatenate([part[2] for part in parts] or [empty], axis=1)[:, order],
            np.concatenate([part[3] for part in parts] or [empty], axis=1)[:, order],
            objects[number],
        )
    return MatchedRun(image_ids, classes)


def compare(
    instances_a: pd.DataFrame,
    instances_b: pd.DataFrame,
    ground_truth: TruthSource,
    *,
    images_a: pd.DataFrame | None = None,
    images_b: pd.DataFrame | None = None,
    iou_type: str = "segm",
    num_resamples: int = 300,
    confidence: float = 0.95,
    seed: int = 0,
    score_threshold: float = 0.5,
    iou_threshold: float = 0.5,
) -> Comparison:
    """The AP of run b minus the AP of run a, with a paired bootstrap interval over images.

    Each resample draws as many images as there are, with replacement, the same ones for both runs, and computes COCO's
    AP from them. The interval is that of the percentiles (Efron 1979). It shows how much of the difference may be due
    to the choice of annotated images. It does not show how much training anew would change.

    Args:
        instances_a, instances_b: the instances tables of the two runs.
        ground_truth, images_a, images_b: as `evaluate` takes them.
        iou_type: bbox or segm.
        num_resamples: number of bootstrap samples; 0 gives a NaN interval.
        confidence: of the interval, between 0 and 1.
        seed: of the resampling.
        score_threshold, iou_threshold: of the errors in `Comparison.images`.

    Raises:
        EvaluationError: a run that does not fit the truth.
        ValueError: a confidence outside of 0 to 1.
    """
    import pandas as pd

    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; allowed is more than 0 and less than 1")
    truth = Truth.load(ground_truth)
    masks = iou_type == "segm"
    tables = [
        align(instances, images, truth, masks=masks)[0]
        for instances, images in ((instances_a, images_a), (instances_b, images_b))
    ]
    first, second = (match_run(truth, table, iou_type) for table in tables)
    ap_a, ap_b = first.average_precision(), second.average_precision()
    samples = _resample(first, second, num_resamples, seed)
    tail = (1 - confidence) / 2
    intervals = {key: _interval([sample[key] for sample in samples], tail) for key in ap_a}
    by_category = pd.DataFrame(
        [
            (n, name, int(first.classes[n].objects.sum()), ap_a[n], ap_b[n], ap_b[n] - ap_a[n], *intervals[n])
            for n, name in truth.names.items()
        ],
        columns=["category_id", "category", "objects", "ap_a", "ap_b", "difference", "low", "high"],
    ).sort_values("difference", ignore_index=True, kind="stable")
    images = _per_image(truth, tables, iou_type, score_threshold, iou_threshold)
    return Comparison(
        iou_type,
        (ap_a[None], ap_b[None]),
        ap_b[None] - ap_a[None],
        intervals[None],
        confidence,
        by_category,
        images,
    )


def check_gates(
    metrics: Metrics | None = None,
    comparison: Comparison | None = None,
    *,
    min_ap: float | None = None,
    max_drop: float | None = None,
    iou_type: str = "segm",
) -> list[str]:
    """The reasons why a run fails its gates; an empty list means that it passes.

    Args:
        metrics: an evaluation, for `min_ap`.
        comparison: with another run, for `max_drop`.
        min_ap: the least AP of `metrics`. An AP that could not be measured (NaN) fails.
        max_drop: how far the AP of run b of `comparison` may lie below that of run a.
        iou_type: of `min_ap`.

    Raises:
        ValueError: a gate without the figures that it needs.
    """
    reasons = []
    if min_ap is not None:
        if metrics is None:
            raise ValueError("gate.min_ap needs the figures of an evaluation")
        ap = metrics.overall(iou_type, "AP")
        if not ap >= min_ap:
            reasons.append(f"{iou_type} AP is {ap:.4f}; gate.min_ap asks for {min_ap:.4f}")
    if max_drop is not None:
        if comparison is None:
            raise ValueError("gate.max_drop needs a comparison with another run")
        if not -comparison.difference <= max_drop:
            reasons.append(
                f"{comparison.iou_type} AP fell from {comparison.ap[0]:.4f} to {comparison.ap[1]:.4f}; gate.max_drop "
                f"allows {max_drop:.4f}"
            )
    return reasons


def _resample(first: MatchedRun, second: MatchedRun, num: int, seed: int) -> list[Mapping[int | None, float]]:
    """Differences of AP by category id (None: the mean) in each of `num` bootstrap samples of the images."""
    rng = np.random.default_rng(seed)
    num_images = len(first.image_ids)
    samples: list[Mapping[int | None, float]] = []
    for _ in range(num if num_images else 0):
        weights = np.bincount(rng.integers(0, num_images, num_images), minlength=num_images)
        a, b = first.average_precision(weights), second.average_precision(weights)
        # The mean is over the classes that have objects in the sample, the same for both runs.
        samples.append({key: b[key] - a[key] for key in a})
    return samples


def _ap(matches: _ClassMatches, weights: np.ndarray) -> float:
    """COCO's AP of one category; `weights` (int64 [I]) are how often each image is in the sample."""
    num_objects = int((matches.objects * weights).sum())
    if not num_objects:
        return float("nan")
    row_weights = weights[matches.images]
    drawn = row_weights > 0
    row_weights = row_weights[drawn]
    total = 0.0
    for hits, ignored in zip(matches.hits[:, drawn], matches.ignored[:, drawn]):
        true = np.cumsum(np.where(hits, row_weights, 0))
        false = np.cumsum(np.where(~hits & ~ignored, row_weights, 0))
        precision = true / (false + true + _EPSILON)
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        at = np.searchsorted(true / num_objects, _RECALL_THRESHOLDS, side="left")
        total += float(envelope[at[at < len(envelope)]].sum())
    return total / (len(IOU_THRESHOLDS) * len(_RECALL_THRESHOLDS))


def _interval(values: Sequence[float], tail: float) -> tuple[float, float]:
    """The quantiles `tail` and 1 - `tail` of the values without NaN."""
    numbers = [value for value in values if value == value]
    if not numbers:
        return float("nan"), float("nan")
    low, high = np.quantile(numbers, [tail, 1 - tail])
    return float(low), float(high)


def _per_image(
    truth: Truth, tables: Sequence[DetectionTable], iou_type: str, score_threshold: float, iou_threshold: float
) -> pd.DataFrame:
    """`Comparison.images`: errors of both runs on each image."""
    import pandas as pd

    index_of = {image["id"]: index for index, image in enumerate(truth.images)}
    truth_images = np.array([index_of[entry["image_id"]] for entry in truth.annotations], np.int64)
    columns: dict[str, Any] = {"image": [image["file_name"] for image in truth.images]}
    for name, table in zip("ab", tables, strict=True):
        matches = match(truth, table, iou_type, score_threshold=score_threshold, iou_threshold=iou_threshold)
        row_images = np.array([index_of[image_id] for image_id in table.image_ids[matches.rows].tolist()], np.int64)
        num_images = len(truth.images)
        false = np.bincount(row_images[matches.is_false], minlength=num_images)
        missed = np.bincount(truth_images[matches.counted & ~matches.found], minlength=num_images)
        columns[f"errors_{name}"] = false + missed
        hits = matches.is_true
        columns[f"iou_{name}"] = np.bincount(row_images[hits], weights=matches.ious[hits], minlength=num_images)
    frame = pd.DataFrame(columns)
    frame["change"] = frame["errors_b"] - frame["errors_a"]
    lost = frame["iou_a"] - frame["iou_b"]
    order = np.lexsort((-lost.to_numpy(), -frame["change"].to_numpy()))
    return frame.iloc[order].reset_index(drop=True)[["image", "errors_a", "errors_b", "iou_a", "iou_b", "change"]]
