"""Comparison of two runs on one ground truth: difference of AP with a bootstrap interval; gates on AP and its loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.evaluation.coco import CocoMatches, match_coco
from pipeline.evaluation.ground_truth import EvaluationError, Truth
from pipeline.evaluation.iou import find_overlaps
from pipeline.evaluation.matching import Matches, match
from pipeline.evaluation.metrics import Metrics, check_measurable
from pipeline.evaluation.notes import notes_on
from pipeline.evaluation.run_detections import TruthSource, align, match_images
from pipeline.evaluation.settings import ComparisonSettings

if TYPE_CHECKING:
    import pandas as pd


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
        images: one row for each image compared, largest loss of b first: `image` (the truth's file name), `errors_a`,
            `errors_b` (false positives and missed objects at the thresholds), `iou_a`, `iou_b` (summed over the objects
            found), `change` (errors_b - errors_a).
        missing_a, missing_b: file names of the truth that the run does not have.
        notes: sentences about images that a run does not have, and about what was left out.
    """

    iou_type: str
    ap: tuple[float, float]
    difference: float
    interval: tuple[float, float]
    confidence: float
    by_category: pd.DataFrame
    images: pd.DataFrame
    missing_a: tuple[str, ...]
    missing_b: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def is_significant(self) -> bool:
        """Whether 0 lies outside of the interval."""
        return not self.interval[0] <= 0 <= self.interval[1]


def compare(
    instances_a: pd.DataFrame,
    instances_b: pd.DataFrame,
    ground_truth: TruthSource,
    *,
    images_a: pd.DataFrame | None = None,
    images_b: pd.DataFrame | None = None,
    **settings: Any,
) -> Comparison:
    """The AP of run b minus the AP of run a, with a paired bootstrap interval over images.

    Each resample draws as many images as there are, with replacement, the same ones for both runs, and computes COCO's
    AP from them. The interval is that of the percentiles (Efron 1979). It shows how much of the difference may be due
    to the choice of annotated images. It does not show how much training anew would change.

    Args:
        instances_a, instances_b: the instances tables of the two runs.
        ground_truth, images_a, images_b: as `evaluate` takes them; without its images table a run counts as having all
            images of the truth.
        settings: of `ComparisonSettings`.

    Raises:
        AnnotationError: a ground truth that breaks its schema.
        EvaluationError: a run that does not fit the truth, or runs that have no image of it in common.
        ValueError: a setting that is not allowed.
    """
    import pandas as pd

    chosen = ComparisonSettings(**settings)
    truth = Truth.load(ground_truth).of_classes(chosen.classes)
    check_measurable(truth, [chosen.iou_type])
    missing_a, missing_b = (
        () if i is None else match_images(i["image_id"], truth).missing for i in (images_a, images_b)
    )
    notes = tuple(
        f"run {name} lacks {len(missing)} of {len(truth.file_names)} images of the ground truth "
        f"({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}); "
        + ("only images that both runs have are compared" if chosen.only_common else "their objects count as missed")
        for name, missing in (("a", missing_a), ("b", missing_b))
        if missing
    )
    if chosen.only_common and (missing_a or missing_b):
        truth = truth.only(truth.image_ids[~np.isin(truth.file_names, [*missing_a, *missing_b])])
        if not len(truth.image_ids):
            raise EvaluationError("the two runs have no image of the ground truth in common")
    measured = [
        _measure(truth, instances, images, chosen)
        for instances, images in ((instances_a, images_a), (instances_b, images_b))
    ]
    (first, matches_a, notes_a), (second, matches_b, notes_b) = measured
    ap_a, ap_b = (coco.average_precision(chosen.max_detections) for coco in (first, second))
    samples = _resample(first, second, chosen)
    tail = (1 - chosen.confidence) / 2
    intervals = {key: _interval([sample[key] for sample in samples], tail) for key in ap_a}
    num_objects = np.bincount(first.object_categories[first.is_counted[:, 0]], minlength=len(first.category_ids))
    objects = dict(zip(first.category_ids.tolist(), num_objects.tolist(), strict=True))
    by_category = pd.DataFrame(
        [(n, name, objects[n], ap_a[n], ap_b[n], ap_b[n] - ap_a[n], *intervals[n]) for n, name in truth.names.items()],
        columns=["category_id", "category", "objects", "ap_a", "ap_b", "difference", "low", "high"],
    ).sort_values("difference", ignore_index=True, kind="stable")
    return Comparison(
        chosen.iou_type,
        (ap_a[None], ap_b[None]),
        ap_b[None] - ap_a[None],
        intervals[None],
        chosen.confidence,
        by_category,
        _per_image(truth, (matches_a, matches_b)),
        missing_a,
        missing_b,
        tuple(dict.fromkeys((*notes, *notes_a, *notes_b))),
    )


def check_gates(
    metrics: Metrics | None = None,
    comparison: Comparison | None = None,
    *,
    min_ap: float | None = None,
    max_drop: float | None = None,
) -> list[str]:
    """The reasons why a run fails its gates; an empty list means that it passes.

    Args:
        metrics: an evaluation, for `min_ap`.
        comparison: with another run, for `max_drop`.
        min_ap: the least segm AP of `metrics`. An AP that could not be measured (NaN) fails.
        max_drop: how far the AP of run b of `comparison` may lie below that of run a.

    Raises:
        ValueError: a gate without the figures that it needs.
    """
    reasons = []
    if min_ap is not None:
        if metrics is None:
            raise ValueError("gate.min_ap needs the figures of an evaluation")
        ap = metrics.overall("segm", "AP")
        if not ap >= min_ap:
            reasons.append(f"segm AP is {ap:.4f}; gate.min_ap asks for {min_ap:.4f}")
    if max_drop is not None:
        if comparison is None:
            raise ValueError("gate.max_drop needs a comparison with another run")
        if not -comparison.difference <= max_drop:
            reasons.append(
                f"{comparison.iou_type} AP fell from {comparison.ap[0]:.4f} to {comparison.ap[1]:.4f}; gate.max_drop "
                f"allows {max_drop:.4f}"
            )
    return reasons


def _measure(
    truth: Truth, instances: pd.DataFrame, images: pd.DataFrame | None, settings: ComparisonSettings
) -> tuple[CocoMatches, Matches, tuple[str, ...]]:
    """A run's matches at COCO's thresholds and at those of the settings, and notes on them."""
    table, coverage = align(instances, images, truth, masks=settings.iou_type == "segm")
    overlaps = find_overlaps(truth, table, settings.iou_type)
    coco = match_coco(truth, table, overlaps)
    at = {"iou_threshold": settings.iou_threshold, "score_threshold": settings.score_threshold}
    notes = notes_on(truth, {settings.iou_type: coco}, coverage, settings.max_detections)
    return coco, match(truth, table, overlaps, **at), notes


def _resample(
    first: CocoMatches, second: CocoMatches, settings: ComparisonSettings
) -> list[Mapping[int | None, float]]:
    """Differences of AP by category id (None: the mean) in each bootstrap sample of the images."""
    rng = np.random.default_rng(settings.seed)
    num_images = len(first.image_ids)
    samples: list[Mapping[int | None, float]] = []
    for _ in range(settings.num_resamples if num_images else 0):
        weights = np.bincount(rng.integers(0, num_images, num_images), minlength=num_images)
        a, b = (coco.average_precision(settings.max_detections, weights) for coco in (first, second))
        # The mean is over the classes that have objects in the sample, the same for both runs.
        samples.append({key: b[key] - a[key] for key in a})
    return samples


def _interval(values: Sequence[float], tail: float) -> tuple[float, float]:
    """The quantiles `tail` and 1 - `tail` of the values without NaN."""
    numbers = [value for value in values if value == value]
    if not numbers:
        return float("nan"), float("nan")
    low, high = np.quantile(numbers, [tail, 1 - tail])
    return float(low), float(high)


def _per_image(truth: Truth, matches_of_runs: Sequence[Matches]) -> pd.DataFrame:
    """`Comparison.images`: errors of both runs on each image."""
    import pandas as pd

    num_images = len(truth.image_ids)
    columns: dict[str, Sequence[str] | np.ndarray] = {"image": list(truth.file_names)}
    for name, matches in zip("ab", matches_of_runs, strict=True):
        row_images = truth.index_of(matches.image_ids)
        false = np.bincount(row_images[matches.is_false], minlength=num_images)
        missed = np.bincount(truth.image_index[matches.counted & ~matches.found], minlength=num_images)
        columns[f"errors_{name}"] = false + missed
        hits = matches.is_true
        columns[f"iou_{name}"] = np.bincount(row_images[hits], weights=matches.ious[hits], minlength=num_images)
    frame = pd.DataFrame(columns)
    frame["change"] = frame["errors_b"] - frame["errors_a"]
    lost = frame["iou_a"] - frame["iou_b"]
    order = np.lexsort((-lost.to_numpy(), -frame["change"].to_numpy()))
    return frame.iloc[order].reset_index(drop=True)[["image", "errors_a", "errors_b", "iou_a", "iou_b", "change"]]
