"""Breakdowns of a run's figures: by class, confusion matrix, by size of object, by slice of the images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.evaluation.coco import MAX_DETECTIONS, CocoMatches
from pipeline.evaluation.detections import DetectionTable
from pipeline.evaluation.ground_truth import Truth
from pipeline.evaluation.iou import find_overlaps
from pipeline.evaluation.matching import Matches, match
from pipeline.evaluation.run_detections import match_images

if TYPE_CHECKING:
    import pandas as pd

BACKGROUND = "background"
MISSING = "not in the run"
MAX_SLICES = 30  # of one column of the images table
SIZE_EDGES_PX = (0, 16**2, 32**2, 96**2, 288**2, float("inf"))
SIZE_NAMES = ("tiny (<16²)", "small (<32²)", "medium (<96²)", "large (<288²)", "huge")
CROWDING = {"no object": (0, 0), "1 object": (1, 1), "2-5": (2, 5), "6-15": (6, 15), "16 and more": (16, 10**9)}
OVERLAP = {"apart (<0.1)": (0.0, 0.1), "touching (<0.5)": (0.1, 0.5), "piled up": (0.5, 1.01)}


def threshold_figures(truth: Truth, matches: Matches) -> dict[int | None, dict[str, float]]:
    """Figures at one score threshold and one IoU threshold, from matches.

    Returns:
        `precision`, `recall`, `F1`, `mean_iou` (over the true positives), `true_positives`, `false_positives` and
        `false_negatives` by category id, and over all classes under None; NaN for a ratio or mean of nothing.
    """
    row_classes = matches.category_ids
    figures: dict[int | None, dict[str, float]] = {}
    for number in (None, *truth.names):
        rows = np.ones(len(row_classes), bool) if number is None else row_classes == number
        truths = matches.counted if number is None else matches.counted & (truth.annotations.category_ids == number)
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


def confusion_matrix(
    truth: Truth, detections: DetectionTable, matches: Matches, *, iou_type: str, iou_threshold: float
) -> pd.DataFrame:
    """The confusion matrix: how many objects of each class were detected as which class.

    Pairs of one class are matched first, so the diagonal holds the true positives of `evaluate`. The detections and
    objects that remain are then matched whatever their classes. The last column counts objects that no detection
    matches, the last row detections that match no object. Regions are left out, and so are detections on regions of
    their class.

    Args:
        matches: of detections with objects of their class.
        iou_type, iou_threshold: bbox or segm, and the least IoU of a pair.

    Returns:
        int64 [K + 1, K + 1], rows by true class, columns by detected class, both by category name, then BACKGROUND.
    """
    import pandas as pd

    index_of = {category_id: index for index, category_id in enumerate(truth.names)}
    background = len(index_of)

    def indices(category_ids: np.ndarray) -> np.ndarray:
        return np.array([index_of[number] for number in category_ids.tolist()], np.int64)

    true_classes, found_classes = indices(truth.annotations.category_ids), indices(detections.category_ids)
    hits = matches.truths[matches.is_true]
    rows = matches.rows[matches.is_false]
    missed = np.flatnonzero(matches.counted & ~matches.found)
    rest_truth = replace(truth, annotations=truth.annotations.take(missed))
    rest = detections.take(rows)
    overlaps = find_overlaps(rest_truth, rest, iou_type, by_class=False)
    others = match(rest_truth, rest, overlaps, iou_threshold=iou_threshold, score_threshold=0.0)
    confused = others.is_true
    matrix = np.zeros((background + 1, background + 1), np.int64)
    np.add.at(matrix, (true_classes[hits], true_classes[hits]), 1)
    confused_rows = rows[others.rows[confused]]
    np.add.at(matrix, (true_classes[missed[others.truths[confused]]], found_classes[confused_rows]), 1)
    np.add.at(matrix, (background, found_classes[rows[others.rows[~confused]]]), 1)
    np.add.at(matrix, (true_classes[missed[~others.found]], background), 1)
    names = [*truth.names.values(), BACKGROUND]
    return pd.DataFrame(matrix, index=pd.Index(names, name="truth"), columns=pd.Index(names, name="found"))


def size_figures(truth: Truth, matches: Matches) -> pd.DataFrame:
    """Recall and mean IoU by the size of the object.

    Returns:
        One row for each bin of `SIZE_EDGES_PX` (the annotations' `area`, in square pixels): `size`, `objects`,
        `found`, `recall` and `mean_iou` (over those found); NaN for a ratio or mean of nothing.
    """
    import pandas as pd

    bins = np.digitize(truth.areas, SIZE_EDGES_PX[1:-1])
    hits = matches.is_true
    rows = []
    for size_bin, name in enumerate(SIZE_NAMES):
        objects = matches.counted & (bins == size_bin)
        num_found, num_objects = int((objects & matches.found).sum()), int(objects.sum())
        ious = matches.ious[hits][bins[matches.truths[hits]] == size_bin]
        mean_iou = float(ious.mean()) if len(ious) else float("nan")
        rows.append((name, num_objects, num_found, _ratio(num_found, num_objects), mean_iou))
    return pd.DataFrame(rows, columns=["size", "objects", "found", "recall", "mean_iou"])


def slice_images(truth: Truth, by: str, images: pd.DataFrame | None = None) -> dict[str, list[int]]:
    """Slices of the truth's images, as image ids by name of the slice.

    Args:
        by: "crowding" (number of objects on the image), "overlap" (largest IoU of the boxes of two objects on it), or a
            column of the images table. A column gives a slice for each of its values, or for each quarter if it has
            more than 12 different numbers. `image_id` and `uri` are sliced by folder. Of more than `MAX_SLICES` values
            the rarest become one slice, "others". Images of the truth that the run does not have are the slice MISSING.
        images: the images table, for a column of it.

    Raises:
        ValueError: no such column.
    """
    if by == "crowding":
        num_objects = {image_id: len(objects) for image_id, objects in _objects(truth).items()}
        return _in_ranges(num_objects, CROWDING, include_upper=True)
    if by == "overlap":
        overlaps = {image_id: _largest_overlap(truth, objects) for image_id, objects in _objects(truth).items()}
        return _in_ranges(overlaps, OVERLAP)
    if images is None or by not in images.columns:
        columns = "" if images is None else f", {', '.join(images.columns)}"
        raise ValueError(f"images cannot be sliced by {by!r}; allowed are crowding, overlap{columns}")
    import pandas as pd

    truth_id = match_images(images["image_id"], truth).truth_id
    matched = images[images["image_id"].isin(list(truth_id))]
    values = matched[by]
    if by in ("image_id", "uri"):
        values = values.str.rpartition("/")[0]
    names: dict[Any, str] = {}
    if pd.api.types.is_numeric_dtype(values) and values.nunique() > 12:
        values, edges = pd.qcut(values, 4, duplicates="drop", retbins=True)
        pairs = zip(edges.tolist(), edges[1:].tolist())
        names = dict(zip(values.cat.categories, (f"{low:g} to {high:g}" for low, high in pairs), strict=True))
    counts = values.value_counts()
    if len(counts) > MAX_SLICES:
        values = values.where(values.isin(counts.index[: MAX_SLICES - 1]), "others")
    slices: dict[str, list[int]] = {}
    for value, image_id in sorted(zip(values, matched["image_id"], strict=True), key=lambda pair: _sort_key(pair[0])):
        slices.setdefault("none" if pd.isna(value) else names.get(value, str(value)), []).append(truth_id[image_id])
    in_run = set(truth_id.values())
    if missing := [image_id for image_id in truth.image_ids.tolist() if image_id not in in_run]:
        slices[MISSING] = missing
    return slices


def slice_figures(
    truth: Truth,
    coco: CocoMatches,
    matches: Matches,
    slices: Mapping[str, Sequence[int]],
    max_detections: int = MAX_DETECTIONS,
) -> pd.DataFrame:
    """Figures of each slice of the images, those of an evaluation of its images alone.

    Args:
        coco: the matches of all images at COCO's thresholds.
        matches: those at one score threshold and IoU threshold, for `precision`, `recall` and `mean_iou`.
        slices: image ids of the truth by name of the slice.
        max_detections: see `CocoMatches.result`.

    Returns:
        One row for each slice, after one for "all": `slice`, `images`, `objects`, `AP`, `AP50`, `AR100`, `precision`,
        `recall`, `mean_iou`; NaN where there are no objects to measure with.
    """
    import pandas as pd

    rows = []
    for name, image_ids in {"all": truth.image_ids.tolist(), **slices}.items():
        result = coco.result(max_detections, np.isin(coco.image_ids, image_ids).astype(np.int64))
        stats = {key: float("nan") if value == -1 else value for key, value in zip(result.names, result.stats.tolist())}
        part = matches.on_images(image_ids, truth)
        at_threshold = threshold_figures(truth, part)[None]
        rows.append(
            {
                "slice": name,
                "images": len(image_ids),
                "objects": int(part.counted.sum()),
                **{key: stats[key] for key in ("AP", "AP50", result.names[8])},
                **{key: at_threshold[key] for key in ("precision", "recall", "mean_iou")},
            }
        )
    return pd.DataFrame(rows)


def _objects(truth: Truth) -> dict[int, list[int]]:
    """Indices of the annotations that are no crowd regions, by image id; every image has an entry."""
    objects: dict[int, list[int]] = {image_id: [] for image_id in truth.image_ids.tolist()}
    for index in np.flatnonzero(~truth.annotations.is_crowd).tolist():
        objects[int(truth.annotations.image_ids[index])].append(index)
    return objects


def _largest_overlap(truth: Truth, objects: Sequence[int]) -> float:
    """The largest IoU of the boxes of two of these annotations (indices), 0 for fewer than two."""
    if len(objects) < 2:
        return 0.0
    boxes = truth.annotations.boxes[list(objects)]
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    low, high = np.maximum(corners[:, None, :2], corners[:, :2]), np.minimum(corners[:, None, 2:], corners[:, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=2)
    areas = np.prod(boxes[:, 2:], axis=1)
    ious = shared / np.maximum(areas[:, None] + areas - shared, np.finfo(float).tiny)
    np.fill_diagonal(ious, 0)
    return float(ious.max())


def _in_ranges(
    values: Mapping[int, float], ranges: Mapping[str, tuple[float, float]], *, include_upper: bool = False
) -> dict[str, list[int]]:
    """Keys by the name of the range that their value lies in, without empty ranges."""
    keys_of: dict[str, list[int]] = {}
    for name, (low, high) in ranges.items():
        for key, value in values.items():
            if low <= value and (value <= high if include_upper else value < high):
                keys_of.setdefault(name, []).append(key)
    return keys_of


def _sort_key(value: Any) -> tuple[int, Any]:
    """Orders numbers before text and intervals, and missing values last."""
    if value is None or value != value:
        return (2, "")
    return (0, value) if isinstance(value, int | float) else (1, getattr(value, "left", str(value)))


def _ratio(part: float, whole: float) -> float:
    """part / whole, or NaN for a whole of 0."""
    return part / whole if whole else float("nan")
