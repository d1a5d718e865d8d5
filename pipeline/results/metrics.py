"""A run's Parquet against ground truth: average precision as COCO defines it, and precision, recall, F1 and mean IoU
at a score threshold.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.dataset.annotations import AnnotatedSet
from pipeline.manifest import Run
from pipeline.results.coco_eval import CocoResult, DetectionTable, evaluate_table
from pipeline.results.matching import Matches, match
from pipeline.results.query import load_images, load_instances
from pipeline.results.truth import EvaluationError, ImageMatch, Truth, check_categories, match_images
from pipeline.schema import OK

if TYPE_CHECKING:
    import pandas as pd

TruthSource = Truth | AnnotatedSet | Mapping[str, Any] | str
_COLUMNS = ("image_id", "category_id", "category", "score", "x1", "y1", "x2", "y2")
_MASK_COLUMNS = ("rle_counts", "image_height", "image_width")
_HIGHEST_SCORE_THRESHOLD = 0.05  # above it AP loses the tail of its precision-recall curves


@dataclass(frozen=True)
class Coverage:
    """What was measured, and what was not there to be measured. Objects of images with errors, and of images that
    the run does not have, count as missed.

    Attributes:
        num_images: images of the ground truth.
        num_ok: those that the run segmented.
        failed: those that the run has but could not segment, by status.
        num_missing: those that the run does not have.
        num_extra_images: images of the run that the ground truth does not have; left out.
        num_truths: annotated objects, crowd regions not counted.
        num_truths_lost: those of them on images that failed or are missing.
        num_instances: detections that were measured.
        num_other_category: detections of categories that the ground truth does not have; left out.
        num_not_labelled: detections of classes that were not labelled on their image; left out.
        num_other_size: detections whose image has another size in the ground truth; their masks match nothing.
    """

    num_images: int
    num_ok: int
    failed: dict[str, int]
    num_missing: int
    num_extra_images: int
    num_truths: int
    num_truths_lost: int
    num_instances: int
    num_other_category: int = 0
    num_not_labelled: int = 0
    num_other_size: int = 0


@dataclass(frozen=True)
class Metrics:
    """The figures of one evaluation.

    Attributes:
        coco: COCO's evaluation, by kind of IoU.
        at_threshold: precision, recall, F1, mean_iou, true_positives, false_positives and false_negatives at
            `score_threshold` and `iou_threshold`; by kind of IoU, then category id (None: all).
        names: category names by id.
        coverage: what was measured.
        run_score_threshold: the lowest score the run kept, or None where it is not known.
        notes: what a reader should know, in words.
    """

    coco: dict[str, CocoResult]
    at_threshold: dict[str, dict[int | None, dict[str, float]]]
    names: dict[int, str]
    coverage: Coverage
    score_threshold: float
    iou_threshold: float
    run_score_threshold: float | None = None
    notes: tuple[str, ...] = field(default=())

    def overall(self, iou_type: str, metric: str) -> float:
        """One figure over all categories, e.g. ("segm", "AP"); NaN where there is no truth to measure by.

        Raises:
            ValueError: it was not measured.
        """
        figures = {**self._coco_figures(iou_type), **self.at_threshold.get(iou_type, {}).get(None, {})}
        if metric not in figures:
            measured = ", ".join(figures) or "nothing of that kind"
            raise ValueError(f"{iou_type} {metric} was not measured; measured were {measured}")
        return figures[metric]

    def to_frame(self) -> pd.DataFrame:
        """One row a figure: `iou_type`, `metric`, `category` (None over all), `category_id`, `value` (float64, NaN
        where there is no truth to measure by)."""
        import pandas as pd

        rows: list[tuple[str, str, str | None, int | None, float]] = []
        for iou_type, result in self.coco.items():
            rows += [(iou_type, name, None, None, value) for name, value in self._coco_figures(iou_type).items()]
            at = self.at_threshold.get(iou_type, {})
            rows += [(iou_type, name, None, None, value) for name, value in at.get(None, {}).items()]
            for number, figures in result.by_category().items():
                merged = {name: _or_nan(value) for name, value in figures.items()} | at.get(number, {})
                rows += [(iou_type, name, self.names[number], number, value) for name, value in merged.items()]
        frame = pd.DataFrame(rows, columns=["iou_type", "metric", "category", "category_id", "value"])
        return frame.astype(
            {"iou_type": "str", "metric": "str", "category": "str", "category_id": "Int64", "value": "float64"}
        )

    def to_dict(self) -> dict[str, Any]:
        """The same for JSON: plain values, null where there is no truth to measure by."""
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
        }

    def _coco_figures(self, iou_type: str) -> dict[str, float]:
        result = self.coco.get(iou_type)
        if result is None:
            return {}
        return {name: _or_nan(value) for name, value in zip(result.names, result.stats.tolist(), strict=True)}


def evaluate_run(run: str | Run, ground_truth: TruthSource, **settings: Any) -> Metrics:
    """`evaluate` on the tables of a run; its score threshold is taken from its specification.

    Raises:
        RunError: there is no run.
        EvaluationError: see `evaluate`.
    """
    from pipeline.manifest import open_run

    run = open_run(run) if isinstance(run, str) else run
    ground_truth = Truth.load(ground_truth)
    class_map = run.spec.get("model", {}).get("categories", ())  # also classes of which nothing was found
    check_categories({category["id"]: category["name"] for category in class_map}, ground_truth.names)
    iou_types = settings.get("iou_types", ("bbox", "segm"))
    columns = [*_COLUMNS, *_MASK_COLUMNS, *(["keypoints"] if "keypoints" in iou_types else [])]
    settings.setdefault("run_score_threshold", run.spec.get("segment", {}).get("score_threshold"))
    return evaluate(load_instances(run, columns), load_images(run, ["image_id", "status"]), ground_truth, **settings)


def evaluate(
    instances: pd.DataFrame,
    images: pd.DataFrame | None,
    ground_truth: TruthSource,
    *,
    iou_types: Sequence[str] = ("bbox", "segm"),
    score_threshold: float = 0.5,
    iou_threshold: float = 0.5,
    backend: str = "auto",
    run_score_threshold: float | None = None,
) -> Metrics:
    """Measures a run's instances against ground truth.

    Args:
        instances: the instances table (see `DetectionTable` for what is needed); boxes half-open in original pixels.
        images: the images table (`image_id`, `status`); None: every image of the truth counts as segmented.
        ground_truth: COCO JSON (URI or object; its very values are used) or an `AnnotatedSet`.
        iou_types: of bbox, segm, keypoints.
        score_threshold: from which precision, recall, F1 and mean IoU count an instance; AP uses all.
        iou_threshold: from which an instance counts as found there.
        backend: see `coco_eval.evaluate_table`.
        run_score_threshold: the lowest score the run kept, where known.

    Raises:
        EvaluationError: images or categories that cannot be matched; the message lists the clash.
        ValueError: a setting out of range, or a missing column.
    """
    for name, value in (("score_threshold", score_threshold), ("iou_threshold", iou_threshold)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}; allowed is 0 to 1")
    truth = Truth.load(ground_truth)
    detections, coverage = align(
        instances, images, truth, masks="segm" in iou_types, keypoints="keypoints" in iou_types
    )
    coco = {kind: evaluate_table(truth, detections, kind, backend=backend) for kind in iou_types}
    at_threshold = {
        kind: threshold_figures(
            truth,
            detections,
            match(truth, detections, kind, iou_threshold=iou_threshold, score_threshold=score_threshold),
        )
        for kind in iou_types
        if kind != "keypoints"
    }
    notes = _notes(coverage, run_score_threshold)
    return Metrics(
        coco, at_threshold, truth.names, coverage, score_threshold, iou_threshold, run_score_threshold, notes
    )


def align(
    instances: pd.DataFrame, images: pd.DataFrame | None, truth: Truth, *, masks: bool = True, keypoints: bool = False
) -> tuple[DetectionTable, Coverage]:
    """A run's instances as detections on the truth's images, and what was left out.

    Boxes become XYWH in float64 (x2 - x1 of the float32 values, exactly); the rows keep their order.

    Raises:
        EvaluationError: see `match_images` and `check_categories`.
        ValueError: a column is missing.
    """
    needed = [*_COLUMNS, *(_MASK_COLUMNS if masks else ()), *(["keypoints"] if keypoints else [])]
    if missing := [name for name in needed if name not in instances.columns]:
        raise ValueError(f"the instances lack the column {missing[0]!r}; load them with it")
    # Each image id once, then by place: Python strings are the slow part of large runs.
    codes, unique = instances["image_id"].factorize()
    matched = match_images(unique if images is None else images["image_id"], truth.images)
    pairs = instances[["category_id", "category"]].drop_duplicates()
    if pairs["category_id"].duplicated().any():
        twice = pairs.loc[pairs["category_id"].duplicated(), "category_id"].iloc[0]
        names = ", ".join(sorted(pairs.loc[pairs["category_id"] == twice, "category"]))
        raise EvaluationError(f"category id {twice} stands for several categories in the run: {names}")
    check_categories(dict(zip(pairs["category_id"].tolist(), pairs["category"], strict=True)), truth.names)

    on_truth = (
        np.array([image_id in matched.truth_id for image_id in unique], bool)[codes]
        if len(codes)
        else np.zeros(0, bool)
    )
    category_ids = instances["category_id"].to_numpy(np.int64)
    known = np.isin(category_ids, list(truth.names))
    numbers = np.array([matched.truth_id.get(image_id, 0) for image_id in unique], np.int64)
    truth_ids = numbers[codes] if len(codes) else np.zeros(0, np.int64)
    labelled = _is_labelled(truth, truth_ids, category_ids)
    keep = on_truth & known & labelled
    x1, y1, x2, y2 = (instances[name].to_numpy(np.float64)[keep] for name in ("x1", "y1", "x2", "y2"))
    table = DetectionTable(
        image_ids=truth_ids[keep],
        category_ids=category_ids[keep],
        scores=instances["score"].to_numpy(np.float64)[keep],
        bboxes=np.stack([x1, y1, x2 - x1, y2 - y1], axis=1),
        counts=instances["rle_counts"].to_numpy(object)[keep].tolist() if masks else None,
        sizes=instances[["image_height", "image_width"]].to_numpy(np.int64)[keep] if masks else None,
        keypoints=list(instances["keypoints"].to_numpy(object)[keep]) if keypoints else None,
    )
    num_other_size = 0
    if masks:
        table, num_other_size = _with_truth_sizes(table, truth)
    coverage = _coverage(images, truth, matched)
    return table, Coverage(
        **coverage,
        num_instances=len(table),
        num_other_category=int((on_truth & ~known).sum()),
        num_not_labelled=int((on_truth & known & ~labelled).sum()),
        num_other_size=num_other_size,
    )


def threshold_figures(truth: Truth, detections: DetectionTable, matches: Matches) -> dict[int | None, dict[str, float]]:
    """precision, recall, F1, mean_iou (over the true positives), true_positives, false_positives and
    false_negatives; by category id, and over all under None. NaN for a figure without anything to measure by."""
    of_truth = np.array([entry["category_id"] for entry in truth.annotations], np.int64)
    of_row = detections.category_ids[matches.rows]
    figures: dict[int | None, dict[str, float]] = {}
    for number in (None, *truth.names):
        rows = np.ones(len(of_row), bool) if number is None else of_row == number
        truths = matches.counted if number is None else matches.counted & (of_truth == number)
        hits = matches.is_true & rows
        tp, fp = int(hits.sum()), int((matches.is_false & rows).sum())
        fn = int((truths & ~matches.found).sum())
        figures[number] = {
            "precision": _ratio(tp, tp + fp),
            "recall": _ratio(tp, tp + fn),
            "F1": _ratio(2 * tp, 2 * tp + fp + fn),
            "mean_iou": float(matches.ious[hits].mean()) if tp else float("nan"),
            "true_positives": float(tp),
            "false_positives": float(fp),
            "false_negatives": float(fn),
        }
    return figures


def _with_truth_sizes(table: DetectionTable, truth: Truth) -> tuple[DetectionTable, int]:
    """Masks of another size than the truth's image become empty masks of its size: they are detections that found
    nothing, not an error that stops the evaluation of thousands of others."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth.images}
    unique, codes = np.unique(table.image_ids, return_inverse=True)
    wanted = np.array([sizes[i] for i in unique.tolist()], np.int64).reshape(-1, 2)[codes]
    wrong = np.flatnonzero((wanted != table.sizes).any(axis=1))
    if not len(wrong):
        return table, 0
    from pipeline.rle import runs_to_rle

    counts = list(table.counts or ())
    for row in wrong:
        height, width = wanted[row].tolist()
        counts[row] = runs_to_rle([height * width], height, width)
    return DetectionTable(
        table.image_ids, table.category_ids, table.scores, table.bboxes, counts, wanted, table.keypoints
    ), len(wrong)


def _is_labelled(truth: Truth, image_ids: np.ndarray, category_ids: np.ndarray) -> np.ndarray:
    """bool [N]: the detection's class was looked for on its image (always, unless the truth says otherwise)."""
    labelled = np.ones(len(image_ids), bool)
    for image in truth.images:
        if image.get("labelled_category_ids") is not None:
            labelled &= (image_ids != image["id"]) | np.isin(category_ids, image["labelled_category_ids"])
    return labelled


def _coverage(images: pd.DataFrame | None, truth: Truth, matched: ImageMatch) -> dict[str, Any]:
    failed: Counter[str] = Counter()
    if images is None:
        ok = {image["id"] for image in truth.images}
    else:
        ok = set()
        for image_id, status in zip(images["image_id"], images["status"], strict=True):
            if (truth_id := matched.truth_id.get(image_id)) is not None:
                if status == OK:
                    ok.add(truth_id)
                else:
                    failed[status] += 1
    counted = [entry["image_id"] for entry in truth.annotations if not entry.get("iscrowd", 0)]
    return {
        "num_images": len(truth.images),
        "num_ok": len(ok),
        "failed": dict(failed),
        "num_missing": 0 if images is None else len(matched.missing),
        "num_extra_images": matched.extra,
        "num_truths": len(counted),
        "num_truths_lost": sum(image_id not in ok for image_id in counted),
    }


def _notes(coverage: Coverage, run_score_threshold: float | None) -> tuple[str, ...]:
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
    """Mean precision over the categories at 101 recalls, for two IoU thresholds."""
    recall, at_50 = result.pr_curve(iou_threshold=0.5)
    _, at_75 = result.pr_curve(iou_threshold=0.75)
    curves = {"recall": recall, "IoU 0.50": at_50, "IoU 0.75": at_75}
    return {name: [None if np.isnan(v) else round(float(v), 4) for v in values] for name, values in curves.items()}


def _or_nan(value: float) -> float:
    return float("nan") if value == -1 else float(value)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
