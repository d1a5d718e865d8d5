"""Evaluation of a run against ground truth: COCO's AP and AR, precision, recall, F1 and mean IoU, and breakdowns."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline import malloc
from pipeline.evaluation.breakdown import confusion_matrix, size_figures, slice_figures, slice_images, threshold_figures
from pipeline.evaluation.coco import CocoResult, evaluate_table, overlaps_for
from pipeline.evaluation.detections import DetectionTable
from pipeline.evaluation.ground_truth import Truth, check_categories
from pipeline.evaluation.matching import match
from pipeline.evaluation.run_detections import COLUMNS, MASK_COLUMNS, Coverage, TruthSource, align
from pipeline.evaluation.voc_cityscapes import cityscapes_ap, voc_figures
from pipeline.manifest import Run
from pipeline.schema import IMAGES_SCHEMA
from pipeline.storage import files
from pipeline.tables import load_images, load_table

if TYPE_CHECKING:
    import pandas as pd

ALSO = ("voc", "cityscapes", "confusion")
_HIGHEST_SCORE_THRESHOLD = 0.05  # a run that keeps only higher scores loses the tail of its precision-recall curves


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
        figures = {
            **self._coco_figures(iou_type),
            **self.at_threshold.get(iou_type, {}).get(None, {}),
            **self.other.get(iou_type, {}).get(None, {}),
        }
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

        rows: list[tuple[str, str, str | None, int | None, float]] = []
        for iou_type, result in self.coco.items():
            rows += [(iou_type, name, None, None, value) for name, value in self._coco_figures(iou_type).items()]
            at_threshold, other = self.at_threshold.get(iou_type, {}), self.other.get(iou_type, {})
            overall = at_threshold.get(None, {}) | other.get(None, {})
            rows += [(iou_type, name, None, None, value) for name, value in overall.items()]
            for number, figures in result.by_category().items():
                merged = {name: _or_nan(value) for name, value in figures.items()}
                merged |= at_threshold.get(number, {}) | other.get(number, {})
                rows += [(iou_type, name, self.names[number], number, value) for name, value in merged.items()]
        frame = pd.DataFrame(rows, columns=["iou_type", "metric", "category", "category_id", "value"])
        return frame.astype(
            {"iou_type": "str", "metric": "str", "category": "str", "category_id": "Int64", "value": "float64"}
        )

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values for JSON; None where there are no objects to measure with."""
        overall: dict[str, Any] = {}
        by_category: dict[str, Any] = {}
        for row in self.to_frame().to_dict("records"):
            value = None if np.isnan(row["value"]) else row["value"]
            if isinstance(row["category"], str):
                by_category.setdefault(row["iou_type"], {}).setdefault(row["category"], {})[row["metric"]] = value
            else:
                overall.setdefault(row["iou_type"], {})[row["metric"]] = value
        return {
            "overall": overall,
            "by_category": by_category,
            "score_threshold": self.score_threshold,
            "iou_threshold": self.iou_threshold,
            "run_score_threshold": self.run_score_threshold,
            "pr_curves": {kind: _curves(result) for kind, result in self.coco.items()},
            "coverage": {**self.coverage.__dict__},
            "evaluator": sorted({result.backend for result in self.coco.values()}),
            "notes": list(self.notes),
            "confusion": None
            if self.confusion is None
            else {"names": list(self.confusion.columns), "counts": self.confusion.to_numpy().tolist()},
            "slices": [{"by": by, **_plain_table(table)} for by, table in self.slices.items()],
        }

    def _coco_figures(self, iou_type: str) -> dict[str, float]:
        result = self.coco.get(iou_type)
        if result is None:
            return {}
        return {name: _or_nan(value) for name, value in zip(result.names, result.stats.tolist(), strict=True)}


def evaluate_run(run: str | Run, ground_truth: TruthSource, **settings: Any) -> Metrics:
    """`evaluate` on the tables of a run. The lowest score that the run kept is taken from its specification.

    Args:
        run: the run, or its URI.
        settings: of `evaluate`.

    Raises:
        RunError: there is no run.
        EvaluationError: see `evaluate`.
    """
    from pipeline.manifest import open_run

    run = open_run(run) if isinstance(run, str) else run
    settings.setdefault("run_score_threshold", score_threshold_of(run))
    columns = dict.fromkeys(["image_id", "status", *settings.get("slices", ())])
    images = load_images(run, [name for name in columns if name in IMAGES_SCHEMA.names])
    return evaluate(run, images, ground_truth, **settings)


def evaluate(
    instances: pd.DataFrame | pa.Table | Run,
    images: pd.DataFrame | None,
    ground_truth: TruthSource,
    *,
    iou_types: Sequence[str] = ("bbox", "segm"),
    score_threshold: float = 0.5,
    iou_threshold: float = 0.5,
    backend: str = "auto",
    run_score_threshold: float | None = None,
    also: Sequence[str] = (),
    slices: Sequence[str] = (),
) -> Metrics:
    """Measures a run's instances against ground truth.

    Args:
        instances: the instances table (see `columns_for` for the columns needed), or the run to read it from; boxes are
            half-open, in pixels of the original image.
        images: the images table (`image_id`, `status`); None: every image of the truth counts as segmented.
        ground_truth: COCO JSON (URI or object; its values are used as they are) or an `AnnotatedSet`.
        iou_types: of bbox, segm, keypoints.
        score_threshold: the least score of an instance that counts for precision, recall, F1 and mean IoU. AP uses all
            instances.
        iou_threshold: the least IoU of a true positive for precision, recall, F1 and mean IoU.
        backend: see `coco.evaluate_table`.
        run_score_threshold: the lowest score that the run kept, where known.
        also: of voc (VOC's AP, by area and by 11 points, at an IoU of 0.5), cityscapes (its AP, of masks), confusion.
        slices: of "size", "crowding", "overlap" and the columns of `images`. These, and the confusion matrix, are of
            masks where `iou_types` has segm, else of boxes.

    Raises:
        EvaluationError: images or categories that cannot be matched; the message lists them.
        ValueError: a setting out of range, or a missing column.
    """
    for name, value in (("score_threshold", score_threshold), ("iou_threshold", iou_threshold)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}; allowed is 0 to 1")
    check_also(iou_types, also, slices)
    with files.no_collection():
        if isinstance(instances, Run):
            truth, rows = _load(instances, ground_truth, columns_for(iou_types))
        else:
            truth, rows = Truth.load(ground_truth), instances
        detections, coverage = align(rows, images, truth, masks="segm" in iou_types, keypoints="keypoints" in iou_types)
        del rows
        malloc.give_back_holes()  # of the tables as they were read
        overlaps = {kind: overlaps_for(truth, detections, kind, backend=backend) for kind in iou_types}
        coco = {
            kind: evaluate_table(truth, detections, kind, backend=backend, overlaps=of_kind)
            for kind, of_kind in overlaps.items()
        }
        thresholds: dict[str, Any] = {"score_threshold": score_threshold, "iou_threshold": iou_threshold}
        at_threshold = {
            kind: threshold_figures(
                truth,
                detections.category_ids,
                match(truth, detections, kind, **thresholds, overlaps=of_kind),
            )
            for kind, of_kind in overlaps.items()
            if kind != "keypoints"
        }
        kind = "segm" if "segm" in iou_types else "bbox"
        tables = {}
        for by in slices:
            if by == "size":
                tables[by] = size_figures(truth, detections, iou_type=kind, **thresholds, overlaps=overlaps[kind])
            else:
                image_ids = slice_images(truth, by, images)
                tables[by] = slice_figures(truth, detections, image_ids, iou_type=kind, backend=backend, **thresholds)
        other = _other_ap(truth, detections, iou_types, also)
        confusion = confusion_matrix(truth, detections, iou_type=kind, **thresholds) if "confusion" in also else None
    return Metrics(
        coco,
        at_threshold,
        truth.names,
        coverage,
        score_threshold,
        iou_threshold,
        run_score_threshold,
        notes_on(coverage, run_score_threshold),
        other=other,
        confusion=confusion,
        slices=tables,
    )


def _load(run: Run, ground_truth: TruthSource, columns: Sequence[str]) -> tuple[Truth, pa.Table]:
    """The truth and the run's instances, read at the same time in two threads."""
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(load_table, "instances", run, columns)
        truth = Truth.load(ground_truth)
        check_class_map(run, truth)
        return truth, reading.result()


def check_class_map(run: Run, truth: Truth) -> None:
    """Checks the categories of the run's model against the truth, also those without instances.

    Raises:
        EvaluationError: see `check_categories`.
    """
    check_categories({category.id: category.name for category in run.spec.model.categories}, truth.names)


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


def check_also(iou_types: Sequence[str], also: Sequence[str], slices: Sequence[str]) -> None:
    """Checks `also` and `slices` of `evaluate` against the kinds of IoU that are evaluated.

    Raises:
        ValueError: an unknown name in `also`, or one that needs boxes or masks where they are not evaluated.
    """
    if unknown := [name for name in also if name not in ALSO]:
        raise ValueError(f"also is {unknown[0]!r}; allowed are {', '.join(ALSO)}")
    if "cityscapes" in also and "segm" not in iou_types:
        raise ValueError(f"also is 'cityscapes', which needs segm; iou_types is {', '.join(iou_types)}")
    if (also or slices) and not {"bbox", "segm"} & set(iou_types):
        asked = ", ".join((*also, *slices))
        raise ValueError(f"{asked}: these need bbox or segm; iou_types is {', '.join(iou_types)}")


def _other_ap(
    truth: Truth, detections: DetectionTable, iou_types: Sequence[str], also: Sequence[str]
) -> dict[str, dict[int | None, dict[str, float]]]:
    """`Metrics.other`."""
    other: dict[str, dict[int | None, dict[str, float]]] = {}
    for kind in iou_types:
        if "voc" in also and kind != "keypoints":
            other[kind] = voc_figures(truth, detections, iou_type=kind)
    if "cityscapes" in also:
        segm = other.setdefault("segm", {})
        for number, figures in cityscapes_ap(truth, detections).items():
            renamed = {f"Cityscapes_{name}": value for name, value in figures.items()}
            segm[number] = segm.get(number, {}) | renamed
    return other


def notes_on(coverage: Coverage, run_score_threshold: float | None) -> tuple[str, ...]:
    """`Metrics.notes`: sentences about what was left out or is understated.

    An understated AP (the run kept only high scores) is also given as a warning.
    """
    notes = []
    if coverage.failed or coverage.num_missing:
        reasons = [f"{count} {status}" for status, count in sorted(coverage.failed.items())]
        if coverage.num_missing:
            reasons.append(f"{coverage.num_missing} not in the run")
        notes.append(
            f"{coverage.num_images - coverage.num_ok} of {coverage.num_images} images were not segmented "
            f"({', '.join(reasons)}); their {coverage.num_truths_lost} objects count as missed"
        )
    if coverage.num_other_category:
        notes.append(f"{coverage.num_other_category} detections of categories without ground truth were left out")
    if coverage.num_not_labelled or coverage.num_truths_not_labelled:
        notes.append(
            f"{coverage.num_truths_not_labelled} objects and {coverage.num_not_labelled} detections of classes that "
            "nobody looked for on their image were left out"
        )
    if coverage.num_other_size:
        notes.append(
            f"{coverage.num_other_size} masks have another size than their image in the ground truth, so they match "
            "nothing"
        )
    if run_score_threshold is not None and run_score_threshold > _HIGHEST_SCORE_THRESHOLD:
        notes.append(
            f"the run kept scores from {run_score_threshold:g} up only; AP is understated, segment with a "
            f"score_threshold of {_HIGHEST_SCORE_THRESHOLD:g} or less to compare with published figures"
        )
        warnings.warn(notes[-1], stacklevel=3)
    return tuple(notes)


def _curves(result: CocoResult) -> dict[str, list[float | None]]:
    """Mean precision over the categories at 101 recalls, for the IoU thresholds 0.5 and 0.75."""
    recall, at_50 = result.pr_curve(iou_threshold=0.5)
    _, at_75 = result.pr_curve(iou_threshold=0.75)
    curves = {"recall": recall, "IoU 0.50": at_50, "IoU 0.75": at_75}
    return {name: [None if np.isnan(v) else round(float(v), 4) for v in values] for name, values in curves.items()}


def _plain_table(table: pd.DataFrame) -> dict[str, Any]:
    """A table for JSON: column names, and rows with None for missing values."""
    rows = [[None if value != value else value for value in row] for row in table.astype(object).to_numpy().tolist()]
    return {"columns": list(table.columns), "rows": rows}


def _or_nan(value: float) -> float:
    """NaN for -1, which is COCO's mark for no objects."""
    return float("nan") if value == -1 else float(value)
