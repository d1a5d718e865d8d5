"""A run's instances as detections on the images of a ground truth, and what was left out on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline.dataset.types import AnnotatedSet
from pipeline.evaluation.detections import DetectionTable, to_text
from pipeline.evaluation.ground_truth import EvaluationError, ImageMatch, Truth, check_categories, match_images
from pipeline.schema import OK

if TYPE_CHECKING:
    import pandas as pd

TruthSource = Truth | AnnotatedSet | Mapping[str, Any] | str
COLUMNS = ("image_id", "category_id", "category", "score", "x1", "y1", "x2", "y2")
MASK_COLUMNS = ("rle_counts", "image_height", "image_width")


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
        num_not_labelled: detections of classes that nobody looked for on their image; left out.
        num_truths_not_labelled: annotated objects of such classes; left out as well.
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
    num_truths_not_labelled: int = 0
    num_other_size: int = 0


def align(
    instances: pd.DataFrame | pa.Table,
    images: pd.DataFrame | None,
    truth: Truth,
    *,
    masks: bool = True,
    keypoints: bool = False,
) -> tuple[DetectionTable, Coverage]:
    """A run's instances as detections on the truth's images, and what was left out.

    Boxes become XYWH in float64 (x2 - x1 of the float32 values, exactly); the rows keep their order.

    Raises:
        EvaluationError: see `match_images` and `check_categories`.
        ValueError: a column is missing.
    """
    needed = [*COLUMNS, *(MASK_COLUMNS if masks else ()), *(["keypoints"] if keypoints else [])]
    there = instances.column_names if isinstance(instances, pa.Table) else instances.columns
    if missing := [name for name in needed if name not in there]:
        raise ValueError(f"the instances lack the column {missing[0]!r}; load them with it")
    rows = (
        instances if isinstance(instances, pa.Table) else pa.Table.from_pandas(instances[needed], preserve_index=False)
    )
    # Each image id once, then by place: Python strings are the slow part of large runs.
    encoded = rows["image_id"].dictionary_encode().combine_chunks()
    codes, unique = encoded.indices.to_numpy(), encoded.dictionary.to_pylist()
    matched = match_images(unique if images is None else images["image_id"], truth.images)
    _check_classes(rows, truth)

    def column(name: str, dtype: type) -> np.ndarray:
        return rows[name].to_numpy().astype(dtype, copy=False)

    on_truth = np.array([image_id in matched.truth_id for image_id in unique], bool)[codes]
    truth_ids = np.array([matched.truth_id.get(image_id, 0) for image_id in unique], np.int64)[codes]
    category_ids = column("category_id", np.int64)
    known = np.isin(category_ids, list(truth.names))
    labelled = _is_labelled(truth, truth_ids, category_ids)
    x1, y1, x2, y2 = (column(name, np.float64) for name in ("x1", "y1", "x2", "y2"))
    table = DetectionTable(
        image_ids=truth_ids,
        category_ids=category_ids,
        scores=column("score", np.float64),
        bboxes=np.stack([x1, y1, x2 - x1, y2 - y1], axis=1),
        counts=to_text(rows["rle_counts"]) if masks else None,
        sizes=np.stack([column(name, np.int64) for name in ("image_height", "image_width")], axis=1) if masks else None,
        keypoints=rows["keypoints"].to_pylist() if keypoints else None,
    )
    keep = on_truth & known & labelled
    if not keep.all():
        table = table.take(keep)
    num_other_size = 0
    if masks:
        table, num_other_size = _with_truth_sizes(table, truth)
    coverage = cover(images, truth, matched)
    return table, Coverage(
        **coverage,
        num_instances=len(table),
        num_other_category=int((on_truth & ~known).sum()),
        num_not_labelled=int((on_truth & known & ~labelled).sum()),
        num_other_size=num_other_size,
    )


def _check_classes(rows: pa.Table, truth: Truth) -> None:
    """Checks that each category id stands for one class, and the same in the run and in the truth.

    Raises:
        EvaluationError: it does not.
    """
    pairs = rows.group_by(["category_id", "category"], use_threads=False).aggregate([])
    names: dict[int, str] = {}
    for number, name in zip(pairs["category_id"].to_pylist(), pairs["category"].to_pylist(), strict=True):
        if number in names:
            listed = ", ".join(sorted((names[number], name)))
            raise EvaluationError(f"category id {number} stands for several categories in the run: {listed}")
        names[number] = name
    check_categories(names, truth.names)


def _with_truth_sizes(table: DetectionTable, truth: Truth) -> tuple[DetectionTable, int]:
    """Masks of another size than the truth's image become empty masks of its size: they are detections that found
    nothing, not an error that stops the evaluation of thousands of others."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth.images}
    numbers = np.array(sorted(sizes), np.int64)
    of_image = np.array([sizes[number] for number in numbers.tolist()], np.int64).reshape(-1, 2)
    wanted = of_image[np.searchsorted(numbers, table.image_ids)]
    wrong = np.flatnonzero((wanted != table.sizes).any(axis=1))
    if not len(wrong):
        return table, 0
    from pipeline.masks.rle import runs_to_rle

    counts = [rle["counts"] for rle in table.to_rles()]
    for row in wrong:
        height, width = wanted[row].tolist()
        counts[row] = runs_to_rle([height * width], height, width)
    return DetectionTable(
        table.image_ids, table.category_ids, table.scores, table.bboxes, counts, wanted, table.keypoints
    ), len(wrong)


def _is_labelled(truth: Truth, image_ids: np.ndarray, category_ids: np.ndarray) -> np.ndarray:
    """bool [N]: the detection's class was looked for on its image (always, unless the truth says otherwise)."""
    labelled = np.ones(len(image_ids), bool)
    if not truth.labelled:
        return labelled
    order = np.argsort(image_ids, kind="stable")
    numbers, starts = np.unique(image_ids[order], return_index=True)
    for number, rows in zip(numbers.tolist(), np.split(order, starts[1:]), strict=True):
        if (ids := truth.labelled.get(number)) is not None:
            labelled[rows] = np.isin(category_ids[rows], list(ids))
    return labelled


def cover(images: pd.DataFrame | None, truth: Truth, matched: ImageMatch) -> dict[str, Any]:
    """What `Coverage` counts of images and of the truth, by name."""
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
        "num_truths_not_labelled": truth.num_not_labelled,
    }
