"""Errors of a run against ground truth, read shard by shard: of each photo, and of each class at every score."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd

from pipeline.evaluation.ground_truth import Truth
from pipeline.evaluation.iou import find_overlaps
from pipeline.evaluation.matching import match
from pipeline.evaluation.metrics import classes_of
from pipeline.evaluation.notes import notes_on_truth
from pipeline.evaluation.run_detections import Coverage, align, cover, match_images
from pipeline.evaluation.settings import CountSettings
from pipeline.runs import AnyRun
from pipeline.tables import iter_shards, load_images

NOT_COUNTED = -2  # of a detection: it lies on a region that counts neither way, or is of a class that is not measured


@dataclass(frozen=True)
class Yardstick:
    """The ground truth that runs are measured with, and how their detections are matched with it."""

    truth: Truth
    settings: CountSettings = field(default_factory=CountSettings)

    @property
    def iou_type(self) -> str:
        """segm, or bbox where no annotation has a mask."""
        annotations = self.truth.annotations
        return "segm" if not len(annotations) or annotations.has_mask.any() else "bbox"

    @property
    def scores(self) -> np.ndarray:
        """float64 [S], the scores from which detections are counted: 0, 0.01 .. 1, and that of the settings."""
        return np.unique(np.append(np.arange(101) / 100, self.settings.score_threshold))


@dataclass(frozen=True)
class Counts:
    """What was found of a class, or of all, with a score of at least each of `Yardstick.scores`.

    Attributes:
        objects: number of annotated objects that count.
        true, false: int64 [S], true and false positives.
    """

    objects: int
    true: np.ndarray
    false: np.ndarray

    @property
    def precision(self) -> np.ndarray:
        """float64 [S], NaN without a detection."""
        return _ratio(self.true, self.true + self.false)

    @property
    def recall(self) -> np.ndarray:
        """float64 [S], NaN without an object."""
        return _ratio(self.true, np.full_like(self.true, self.objects))

    @property
    def f1(self) -> np.ndarray:
        """float64 [S], NaN without an object or a detection."""
        return _ratio(2 * self.true, self.true + self.false + self.objects)

    @property
    def best(self) -> int | None:
        """The index of the lowest score at which F1 is best; None where F1 is nowhere measured."""
        return None if np.isnan(self.f1).all() else int(np.nanargmax(self.f1))


@dataclass(frozen=True)
class RunErrors:
    """The errors of a run.

    Attributes:
        truth_id: the truth's image id by the run's `image_id`, for each image that both have.
        false, missed: int64 [I], false positives and missed objects of each image of the truth, at the thresholds of
            the settings.
        by_class: counts by class name, in the order of the truth's classes.
        coverage: counts of what was measured and left out.
        notes: sentences about what was left out, or counts as missed.
    """

    truth_id: dict[str, int]
    false: np.ndarray
    missed: np.ndarray
    by_class: dict[str, Counts]
    coverage: Coverage
    notes: tuple[str, ...]

    @cached_property
    def overall(self) -> Counts:
        """The counts of all classes together."""
        parts = list(self.by_class.values())
        none = np.zeros(1, np.int64)
        true, false = (sum((getattr(part, name) for part in parts), start=none) for name in ("true", "false"))
        return Counts(sum(part.objects for part in parts), true, false)


def count_errors(run: AnyRun, yardstick: Yardstick) -> RunErrors:
    """Counts the errors of a run, in memory that grows with the truth and not with the run's instances.

    Objects on images that the run could not segment or does not have count as missed.

    Raises:
        EvaluationError: a run that does not fit the truth.
    """
    truth, scores = yardstick.truth, yardstick.scores
    images = load_images(run, ["image_id", "status"])
    matched = match_images(images["image_id"], truth)
    category_ids = np.sort(list(truth.names))
    num_images = len(truth.image_ids)
    false, missed = np.zeros((2, num_images), np.int64)
    histograms = np.zeros((2, len(category_ids), len(scores)), np.int64)  # of true and of false positives
    parts = []
    for shard_images, instances in iter_shards(run):
        shard_images = shard_images[shard_images["image_id"].isin(matched.truth_id.keys())]
        if not len(shard_images):
            continue
        part = truth.only(np.array([matched.truth_id[name] for name in shard_images["image_id"]], np.int64))
        detections, coverage = align(instances, shard_images, part, masks=yardstick.iou_type == "segm")
        overlaps = find_overlaps(part, detections, yardstick.iou_type)
        at = {"iou_threshold": yardstick.settings.iou_threshold}
        errors = match(part, detections, overlaps, score_threshold=yardstick.settings.score_threshold, **at)
        false_here, missed_here = errors.errors_by_image(part)
        indices = truth.index_of(part.image_ids)
        false[indices], missed[indices] = false_here, missed_here
        # A detection's match does not depend on those with lower scores: one matching holds those at all scores.
        matches = match(part, detections, overlaps, score_threshold=0.0, **at)
        bins = np.searchsorted(scores, detections.scores[matches.rows], side="right") - 1
        classes = np.searchsorted(category_ids, matches.category_ids)
        for histogram, is_kind in zip(histograms, (matches.is_true, matches.is_false), strict=True):
            np.add.at(histogram, (classes[is_kind], bins[is_kind]), 1)
        parts.append(coverage)
    counted = ~truth.is_region(yardstick.iou_type)
    not_in_run = ~np.isin(truth.image_ids, list(matched.truth_id.values()))
    objects_of_image = np.bincount(truth.image_index[counted], minlength=num_images)
    missed[not_in_run] = objects_of_image[not_in_run]
    classes_of_objects = np.searchsorted(category_ids, truth.annotations.category_ids[counted])
    objects = np.bincount(classes_of_objects, minlength=len(category_ids))
    at_least = np.cumsum(histograms[..., ::-1], axis=-1)[..., ::-1]
    whole = cover(images, truth, matched).with_detections_of(parts)
    rows = {int(number): row for row, number in enumerate(category_ids)}
    return RunErrors(
        truth_id=matched.truth_id,
        false=false,
        missed=missed,
        by_class={
            name: Counts(int(objects[rows[number]]), at_least[0, rows[number]], at_least[1, rows[number]])
            for number, name in truth.names.items()
        },
        coverage=whole,
        notes=notes_on_truth(truth, whole, classes_of(run), has_masks=yardstick.iou_type == "segm"),
    )


@dataclass(frozen=True)
class Pairs:
    """Which detections of some images found which objects, whatever their scores.

    Attributes:
        truths: int64 [N], for each row of the instances the index of the annotation it found, -1 for a false positive,
            or NOT_COUNTED.
        scores: float64 [G], for each annotation the score of the detection that found it, NaN for none.
    """

    truths: np.ndarray
    scores: np.ndarray


def pair_instances(instances: pd.DataFrame, images: pd.DataFrame, truth: Truth, yardstick: Yardstick) -> Pairs:
    """Pairs a run's instances with objects, as `count_errors` counts them.

    A pair holds at every score up to that of its detection.

    Args:
        instances: rows of the instances table on these images.
        images: `image_id` and `status` of the images.
        truth: of these images alone.
    """
    detections, _ = align(instances, images, truth, masks=yardstick.iou_type == "segm")
    overlaps = find_overlaps(truth, detections, yardstick.iou_type)
    at = {"iou_threshold": yardstick.settings.iou_threshold}
    matches = match(truth, detections, overlaps, score_threshold=0.0, **at)
    assert detections.rows is not None  # of `align`
    truths = np.full(len(instances), NOT_COUNTED, np.int64)
    truths[detections.rows[matches.rows]] = np.where(matches.ignored, NOT_COUNTED, matches.truths)
    scores = np.full(len(truth.annotations), np.nan)
    scores[matches.truths[matches.is_true]] = detections.scores[matches.rows[matches.is_true]]
    return Pairs(truths, scores)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)
