"""Evaluation of a run against ground truth: COCO's AP and AR, precision, recall, F1 and mean IoU, and breakdowns."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import pyarrow as pa

from pipeline import malloc
from pipeline.evaluation.breakdown import confusion_matrix, size_figures, slice_figures, slice_images, threshold_figures
from pipeline.evaluation.coco import CocoMatches, CocoResult, evaluate_by_pycocotools, match_coco
from pipeline.evaluation.detections import DetectionTable
from pipeline.evaluation.ground_truth import EvaluationError, Truth
from pipeline.evaluation.iou import Overlaps, find_overlaps
from pipeline.evaluation.matching import Matches, match
from pipeline.evaluation.notes import notes_on, understated
from pipeline.evaluation.run_detections import COLUMNS, MASK_COLUMNS, Coverage, TruthSource, align, check_categories
from pipeline.evaluation.settings import EvaluationSettings
from pipeline.evaluation.voc_cityscapes import cityscapes_ap, voc_ap
from pipeline.manifest import Run
from pipeline.schema import IMAGES_SCHEMA
from pipeline.tables import load_images, load_table

if TYPE_CHECKING:
    import pandas as pd


class PlainTable(TypedDict):
    """A table of slices (`by` what) for JSON: column names, and rows with None for missing values."""

    by: str
    columns: list[str]
    rows: list[list[object]]


class PlainConfusion(TypedDict):
    """A confusion matrix for JSON."""

    names: list[str]
    counts: list[list[int]]


class MetricsJson(TypedDict, total=False):
    """`Metrics` for JSON; figures by name, and None where there are no objects to measure with.

    Attributes:
        overall: by kind of IoU.
        by_category: by kind of IoU, then category name.
        pr_curves: by kind of IoU, see `Metrics.to_dict`.
    """

    overall: dict[str, dict[str, float | None]]
    by_category: dict[str, dict[str, dict[str, float | None]]]
    score_threshold: float
    iou_threshold: float
    run_score_threshold: float | None
    pr_curves: dict[str, dict[str, list[float | None]]]
    coverage: dict[str, int | dict[str, int]]
    evaluator: list[str]
    notes: list[str]
    confusion: PlainConfusion | None
    slices: list[PlainTable]


@dataclass(frozen=True)
class Measured:
    """The matches from which all figures follow, of all images or of a share of them.

    Attributes:
        coco: at COCO's thresholds, by kind of IoU.
        matches: at the thresholds of the settings, by kind of IoU (keypoints have none).
        coverage: counts.
        confusion: see `confusion_matrix`; None where it was not asked for.
    """

    coco: dict[str, CocoMatches]
    matches: dict[str, Matches]
    coverage: Coverage
    confusion: pd.DataFrame | None


@dataclass(frozen=True)
class Metrics:
    """The figures of one evaluation.

    Attributes:
        coco: COCO's evaluation, by kind of IoU.
        at_threshold: precision, recall, F1, mean_iou, true_positives, false_positives and false_negatives at
            `score_threshold` and `iou_threshold`; by kind of IoU, then category id (None: all).
        names: category names by id.
        coverage: counts of what was measured and what was left out.
        score_threshold, iou_threshold: of `at_threshold`.
        run_score_threshold: the lowest score that the run kept, or None where it is not known.
        notes: sentences for a reader about what was left out or is understated.
        other: AP as VOC and Cityscapes define it (`VOC_AP`, `VOC_AP_11point`, `Cityscapes_AP`, `Cityscapes_AP50`), as
            far as asked for; by kind of IoU, then category id (None: all).
        confusion: see `breakdown.confusion_matrix`; None where it was not asked for.
        slices: a table for each `by` of `slices` asked for, see `breakdown.size_figures` and `breakdown.slice_figures`.
    """

    coco: dict[str, CocoResult]
    at_threshold: dict[str, dict[int | None, dict[str, float]]]
    names: dict[int, str]
    coverage: Coverage
    score_threshold: float
    iou_threshold: float
    run_score_threshold: float | None = None
    notes: tuple[str, ...] = ()
    other: dict[str, dict[int | None, dict[str, float]]] = field(default_factory=dict)
    confusion: pd.DataFrame | None = None
    slices: dict[str, pd.DataFrame] = field(default_factory=dict)

    def overall(self, iou_type: str, metric: str) -> float:
        """One figure over all categories, e.g. ("segm", "AP"); NaN where there are no objects to measure with.

        Raises:
            ValueError: the figure was not measured.
        """
        figures = self.figures(iou_type).get(None, {})
        if metric not in figures:
            measured = ", ".join(figures) or "nothing of that kind"
            raise ValueError(f"{iou_type} {metric} was not measured; measured were {measured}")
        return figures[metric]

    def to_frame(self) -> pd.DataFrame:
        """The figures as a table, one row each.

        Columns: `iou_type`, `metric`, `category` and `category_id` (both missing for figures over all categories),
        `value` (float64, NaN where there are no objects to measure with).
        """
        import pandas as pd

        rows = [
            (iou_type, name, None if number is None else self.names[number], number, value)
            for iou_type in self.coco
            for number, figures in self.figures(iou_type).items()
            for name, value in figures.items()
        ]
        frame = pd.DataFrame(rows, columns=["iou_type", "metric", "category", "category_id", "value"])
        return frame.astype(
            {"iou_type": "str", "metric": "str", "category": "str", "category_id": "Int64", "value": "float64"}
        )

    def to_dict(self) -> MetricsJson:
        """All of it as plain values; a curve has the mean precision over the categories at 101 recalls."""
        by_kind = {kind: self.figures(kind) for kind in self.coco}
        return {
            "overall": {kind: _without_nan(figures[None]) for kind, figures in by_kind.items()},
            "by_category": {
                kind: {self.names[n]: _without_nan(of_n) for n, of_n in figures.items() if n is not None}
                for kind, figures in by_kind.items()
                if self.names
            },
            "score_threshold": self.score_threshold,
            "iou_threshold": self.iou_threshold,
            "run_score_threshold": self.run_score_threshold,
            "pr_curves": {kind: _curves(result) for kind, result in self.coco.items()},
            "coverage": dict(vars(self.coverage)),
            "evaluator": sorted({result.backend for result in self.coco.values()}),
            "notes": list(self.notes),
            "confusion": None
            if self.confusion is None
            else {"names": list(self.confusion.columns), "counts": self.confusion.to_numpy().tolist()},
            "slices": [_plain_table(by, table) for by, table in self.slices.items()],
        }

    def figures(self, iou_type: str) -> dict[int | None, dict[str, float]]:
        """All figures of one kind of IoU by name: over all categories under None, then by category id.

        A figure is NaN where there are no objects to measure with. Without that kind there are none.
        """
        if (result := self.coco.get(iou_type)) is None:
            return {}
        coco: dict[int | None, dict[str, float]] = {None: dict(zip(result.names, result.stats.tolist(), strict=True))}
        coco.update(result.by_category().items())
        at_threshold, other = self.at_threshold.get(iou_type, {}), self.other.get(iou_type, {})
        return {
            number: {name: float("nan") if value == -1 else float(value) for name, value in figures.items()}
            | at_threshold.get(number, {})
            | other.get(number, {})
            for number, figures in coco.items()
        }


def evaluate_run(run: str | Run, ground_truth: TruthSource, **settings: Any) -> Metrics:
    """`evaluate` on the tables of a run. Its lowest score and its classes are taken from its specification.

    Args:
        run: the run, or its URI.
        settings: of `evaluate`.

    Raises:
        RunError: there is no run.
        EvaluationError: see `evaluate`.
    """
    from pipeline.manifest import open_run

    run = open_run(run) if isinstance(run, str) else run
    settings = {"run_score_threshold": score_threshold_of(run), "run_classes": classes_of(run), **settings}
    columns = dict.fromkeys(["image_id", "status", *settings.get("slices", ())])
    images = load_images(run, [name for name in columns if name in IMAGES_SCHEMA.names])
    return evaluate(run, images, ground_truth, **settings)


def evaluate(
    instances: pd.DataFrame | pa.Table | Run,
    images: pd.DataFrame | None,
    ground_truth: TruthSource,
    *,
    run_score_threshold: float | None = None,
    run_classes: Mapping[int, str] | None = None,
    **settings: Any,
) -> Metrics:
    """Measures a run's instances against ground truth.

    Args:
        instances: the instances table (see `columns_for` for the columns needed), or the run to read it from; boxes are
            half-open, in pixels of the original image.
        images: the images table (`image_id`, `status`); None: every image of the truth counts as segmented.
        ground_truth: COCO JSON (URI or object; its values are used as they are) or an `AnnotatedSet`.
        run_score_threshold: the lowest score that the run kept, where known.
        run_classes: names of the model's classes by category id, where known.
        settings: of `EvaluationSettings`.

    Raises:
        AnnotationError: a ground truth that breaks its schema.
        EvaluationError: images or categories that cannot be matched; the message lists them.
        ValueError: a setting out of range, or a missing column.
    """
    chosen = EvaluationSettings(**settings)
    if isinstance(instances, Run):
        truth, rows = _load(instances, ground_truth, columns_for(chosen.iou_types))
    else:
        truth, rows = Truth.load(ground_truth), instances
    truth = truth.of_classes(chosen.classes)
    check_measurable(truth, chosen.iou_types)
    has_masks, has_keypoints = "segm" in chosen.iou_types, "keypoints" in chosen.iou_types
    table, coverage = align(rows, images, truth, masks=has_masks, keypoints=has_keypoints)
    del rows
    malloc.give_back_holes()  # of the tables as they were read
    measured, overlaps = measure(truth, table, coverage, chosen)
    metrics = to_metrics(truth, measured, chosen, run_score_threshold, run_classes)
    if chosen.backend == "pycocotools":
        by_kind = {
            kind: evaluate_by_pycocotools(truth, table, of_kind, chosen.max_detections)
            for kind, of_kind in overlaps.items()
        }
        metrics = replace(metrics, coco=by_kind)
    other = _other_ap(truth, table, overlaps, chosen.also)
    return replace(metrics, other=other, slices=_slices(truth, images, measured, chosen))


def measure(
    truth: Truth, table: DetectionTable, coverage: Coverage, settings: EvaluationSettings
) -> tuple[Measured, dict[str, Overlaps]]:
    """Matches detections with the truth, and gives the IoU of all pairs by kind of IoU."""
    overlaps: dict[str, Overlaps] = {kind: find_overlaps(truth, table, kind) for kind in settings.iou_types}
    at = {"iou_threshold": settings.iou_threshold, "score_threshold": settings.score_threshold}
    matches = {kind: match(truth, table, each, **at) for kind, each in overlaps.items() if kind != "keypoints"}
    confusion = None
    if "confusion" in settings.also:
        by = settings.breakdown_type
        confusion = confusion_matrix(truth, table, matches[by], iou_type=by, iou_threshold=settings.iou_threshold)
    coco = {kind: match_coco(truth, table, each) for kind, each in overlaps.items()}
    return Measured(coco, matches, coverage, confusion), overlaps


def to_metrics(
    truth: Truth,
    measured: Measured,
    settings: EvaluationSettings,
    run_score_threshold: float | None,
    run_classes: Mapping[int, str] | None,
) -> Metrics:
    """The figures that follow from the matches; warns where AP is understated because the run kept only high scores."""
    notes = notes_on(truth, measured.coco, measured.coverage, settings.max_detections, run_classes)
    if (note := understated(run_score_threshold)) is not None:
        warnings.warn(note, stacklevel=3)
        notes += (note,)
    return Metrics(
        coco={kind: matches.result(settings.max_detections) for kind, matches in measured.coco.items()},
        at_threshold={kind: threshold_figures(truth, matches) for kind, matches in measured.matches.items()},
        names=truth.names,
        coverage=measured.coverage,
        score_threshold=settings.score_threshold,
        iou_threshold=settings.iou_threshold,
        run_score_threshold=run_score_threshold,
        notes=notes,
        confusion=measured.confusion,
    )


def check_measurable(truth: Truth, iou_types: Sequence[str]) -> None:
    """Checks that the truth has images, and something of what the kinds of IoU look at, if it has annotations.

    Raises:
        EvaluationError: it has not.
    """
    annotations = truth.annotations
    if not len(truth.image_ids):
        raise EvaluationError("the ground truth has no image, so there is nothing to measure with")
    found = {"segm": annotations.has_mask, "bbox": annotations.has_box, "keypoints": annotations.num_keypoints > 0}
    names = {"segm": "a mask", "bbox": "a box", "keypoints": "keypoints"}
    for kind in iou_types:
        if len(annotations) and not found[kind].any():
            raise EvaluationError(
                f"no annotation of the ground truth has {names[kind]} that can be used; iou_types has {kind!r}, which "
                "needs them"
            )


def _load(run: Run, ground_truth: TruthSource, columns: Sequence[str]) -> tuple[Truth, pa.Table]:
    """The truth and the run's instances, read at the same time in two threads."""
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(load_table, "instances", run, columns)
        truth = Truth.load(ground_truth)
        check_categories(classes_of(run), truth.names)
        return truth, reading.result()


def columns_for(iou_types: Sequence[str]) -> list[str]:
    """Columns of the instances table that these kinds of IoU need."""
    return [
        *COLUMNS,
        *(MASK_COLUMNS if "segm" in iou_types else ()),
        *(["keypoints"] if "keypoints" in iou_types else []),
    ]


def score_threshold_of(run: Run) -> float | None:
    """The lowest score that the run kept, from its specification; None where it is not known."""
    return run.spec.segment.score_threshold


def classes_of(run: Run) -> dict[int, str]:
    """Names of the classes of the run's model by category id, from its specification."""
    return {category.id: category.name for category in run.spec.model.categories}


def _other_ap(
    truth: Truth, table: DetectionTable, overlaps: Mapping[str, Overlaps], also: Sequence[str]
) -> dict[str, dict[int | None, dict[str, float]]]:
    """`Metrics.other`."""
    other: dict[str, dict[int | None, dict[str, float]]] = {}
    for kind, of_kind in overlaps.items():
        if "voc" in also and kind != "keypoints":
            other[kind] = voc_ap(truth, table, of_kind)
    if "cityscapes" in also:
        segm = other.setdefault("segm", {})
        for number, figures in cityscapes_ap(truth, table, overlaps["segm"]).items():
            renamed = {f"Cityscapes_{name}": value for name, value in figures.items()}
            segm[number] = segm.get(number, {}) | renamed
    return other


def _slices(
    truth: Truth, images: pd.DataFrame | None, measured: Measured, settings: EvaluationSettings
) -> dict[str, pd.DataFrame]:
    """`Metrics.slices`."""
    tables = {}
    for by in settings.slices:
        coco, matches = measured.coco[settings.breakdown_type], measured.matches[settings.breakdown_type]
        if by == "size":
            tables[by] = size_figures(truth, matches)
        else:
            image_ids = slice_images(truth, by, images)
            tables[by] = slice_figures(truth, coco, matches, image_ids, settings.max_detections)
    return tables


def _curves(result: CocoResult) -> dict[str, list[float | None]]:
    """Mean precision over the categories at 101 recalls, for the IoU thresholds 0.5 and 0.75."""
    recall, at_50 = result.pr_curve(iou_threshold=0.5)
    _, at_75 = result.pr_curve(iou_threshold=0.75)
    curves = {"recall": recall, "IoU 0.50": at_50, "IoU 0.75": at_75}
    return {name: [None if np.isnan(v) else round(float(v), 4) for v in values] for name, values in curves.items()}


def _plain_table(by: str, table: pd.DataFrame) -> PlainTable:
    rows = [[None if value != value else value for value in row] for row in table.astype(object).to_numpy().tolist()]
    return {"by": by, "columns": list(table.columns), "rows": rows}


def _without_nan(figures: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if np.isnan(value) else value for name, value in figures.items()}
