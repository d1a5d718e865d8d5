"""Breakdowns of a run's figures: by class, confusion matrix, by size of object, by slice of the images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.evaluation.coco import evaluate_table, overlaps_for
from pipeline.evaluation.detections import DetectionTable
from pipeline.evaluation.ground_truth import Truth, match_images
from pipeline.evaluation.iou import Overlaps
from pipeline.evaluation.matching import Matches, greedy_match, iter_pairs, match
from pipeline.evaluation.run_detections import TruthSource, align

if TYPE_CHECKING:
    import pandas as pd

BACKGROUND = "background"
MISSING = "not in the run"
MAX_SLICES = 30  # of one column of the images table
SIZE_EDGES_PX = (0, 16**2, 32**2, 96**2, 288**2, float("inf"))
SIZE_NAMES = ("tiny (<16²)", "small (<32²)", "medium (<96²)", "large (<288²)", "huge")
CROWDING = {"no object": (0, 0), "1 object": (1, 1), "2-5": (2, 5), "6-15": (6, 15), "16 and more": (16, 10**9)}
OVERLAP = {"apart (<0.1)": (0.0, 0.1), "touching (<0.5)": (0.1, 0.5), "piled up": (0.5, 1.01)}


def threshold_figures(truth: Truth, category_ids: np.ndarray, matches: Matches) -> dict[int | None, dict[str, float]]:
    """Figures at one score threshold and one IoU threshold, from matches.

    Args:
        category_ids: int64 [N], of the table that `matches.rows` refer to.

    Returns:
        `precision`, `recall`, `F1`, `mean_iou` (over the true positives), `true_positives`, `false_positives` and
        `false_negatives` by category id, and over all classes under None; NaN for a ratio or mean of nothing.
    """
    row_classes = category_ids[matches.rows]
    figures: dict[int | None, dict[str, float]] = {}
    for number in (None, *truth.names):
        rows = np.ones(len(row_classes), bool) if number is None else row_classes == number
        truths = matches.counted if number is None else matches.counted & (truth.category_ids == number)
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
    truth: Truth,
    detections: DetectionTable,
    *,
    iou_type: str = "segm",
    iou_threshold: float = 0.5,
    score_threshold: float = 0.5,
) -> pd.DataFrame:
    """The confusion matrix: how many objects of each class were detected as which class.

    Pairs of one class are matched first, so the diagonal holds the true positives of `evaluate`. The detections and
    objects that remain are then matched whatever their classes. The last column counts objects that no detection
    matches, the last row detections that match no object. Crowd regions are left out, and so are detections on crowd
    regions of their class.

    Args:
        iou_type: bbox or segm.
        iou_threshold: the least IoU of a pair.
        score_threshold: detections below it are left out.

    Returns:
        int64 [K + 1, K + 1], rows by true class, columns by detected class, both by category name, then BACKGROUND.
    """
    import pandas as pd

    index_of = {category_id: index for index, category_id in enumerate(truth.names)}
    background = len(index_of)
    matrix = np.zeros((background + 1, background + 1), np.int64)
    category_of, crowd = truth.category_ids, truth.is_crowd
    settings: dict[str, Any] = {"score_threshold": score_threshold}
    same = match(truth, detections, iou_type, iou_threshold=iou_threshold, max_detections=None, **settings)
    truth_of = dict(zip(same.rows[same.is_true].tolist(), same.truths[same.is_true].tolist(), strict=True))
    left_out = set(same.rows[same.ignored].tolist())
    for pairs in iter_pairs(truth, detections, iou_type, **settings):
        rows = [row for row in pairs.rows.tolist() if row not in left_out]
        for row in rows:
            if row in truth_of:
                index = index_of[int(category_of[truth_of[row]])]
                matrix[index, index] += 1
        free_rows = np.array([row not in truth_of and row not in left_out for row in pairs.rows.tolist()], bool)
        free_columns = ~same.found[pairs.truths] & ~crowd[pairs.truths]
        truths = pairs.truths[free_columns]
        taken = greedy_match(pairs.ious[np.ix_(free_rows, free_columns)], np.zeros(len(truths), bool), iou_threshold)
        for row, column in zip(pairs.rows[free_rows].tolist(), taken.tolist(), strict=True):
            true_class = index_of[int(category_of[truths[column]])] if column >= 0 else background
            matrix[true_class, index_of[int(detections.category_ids[row])]] += 1
        for column in set(range(len(truths))) - set(taken.tolist()):
            matrix[index_of[int(category_of[truths[column]])], background] += 1
    names = [*truth.names.values(), BACKGROUND]
    return pd.DataFrame(matrix, index=pd.Index(names, name="truth"), columns=pd.Index(names, name="found"))


def size_figures(
    truth: Truth,
    detections: DetectionTable,
    *,
    iou_type: str = "segm",
    iou_threshold: float = 0.5,
    score_threshold: float = 0.5,
    overlaps: Overlaps | None = None,
) -> pd.DataFrame:
    """Recall and mean IoU by the size of the object.

    Args:
        overlaps: see `match`.

    Returns:
        One row for each bin of `SIZE_EDGES_PX` (the annotations' `area`, in square pixels): `size`, `objects`,
        `found`, `recall` and `mean_iou` (over those found); NaN for a ratio or mean of nothing.
    """
    import pandas as pd

    at: dict[str, Any] = {"iou_threshold": iou_threshold, "score_threshold": score_threshold}
    matches = match(truth, detections, iou_type, **at, overlaps=overlaps)
    area = np.array([entry["area"] for entry in truth.annotations], np.float64)
    bins = np.digitize(area, SIZE_EDGES_PX[1:-1])
    hits = matches.is_true
    rows = []
    for size_bin, name in enumerate(SIZE_NAMES):
        objects = matches.counted & (bins == size_bin)
        num_found, num_objects = int((objects & matches.found).sum()), int(objects.sum())
        ious = matches.ious[hits][bins[matches.truths[hits]] == size_bin]
        mean_iou = float(ious.mean()) if len(ious) else float("nan")
        rows.append((name, num_objects, num_found, _ratio(num_found, num_objects), mean_iou))
    return pd.DataFrame(rows, columns=["size", "objects", "found", "recall", "mean_iou"])


def slice_images(
    truth: Truth, by: str, images: pd.DataFrame | None = None, *, num_bins: int = 4
) -> dict[str, list[Any]]:
    """Slices of the truth's images, as image ids by name of the slice.

    Args:
        by: "crowding" (number of objects on the image), "overlap" (largest IoU of the boxes of two objects on it), or a
            column of the images table. A column gives a slice for each of its values, or for each quantile if it has
            more than 12 different numbers. `image_id` and `uri` are sliced by folder. Of more than `MAX_SLICES` values
            the rarest become one slice, "others". Images of the truth that the run does not have are the slice MISSING.
        images: the images table, for a column of it.
        num_bins: number of quantiles.

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

    truth_id = match_images(images["image_id"], truth.images).truth_id
    matched = images[images["image_id"].isin(list(truth_id))]
    values = matched[by]
    if by in ("image_id", "uri"):
        values = values.str.rpartition("/")[0]
    names: dict[Any, str] = {}
    if pd.api.types.is_numeric_dtype(values) and values.nunique() > 12:
        values, edges = pd.qcut(values, num_bins, duplicates="drop", retbins=True)
        pairs = zip(edges.tolist(), edges[1:].tolist())
        names = dict(zip(values.cat.categories, (f"{low:g} to {high:g}" for low, high in pairs), strict=True))
    counts = values.value_counts()
    if len(counts) > MAX_SLICES:
        values = values.where(values.isin(counts.index[: MAX_SLICES - 1]), "others")
    slices: dict[str, list[Any]] = {}
    for value, image_id in sorted(zip(values, matched["image_id"], strict=True), key=lambda pair: _sort_key(pair[0])):
        slices.setdefault("none" if pd.isna(value) else names.get(value, str(value)), []).append(truth_id[image_id])
    in_run = set(truth_id.values())
    if missing := [image["id"] for image in truth.images if image["id"] not in in_run]:
        slices[MISSING] = missing
    return slices


def evaluate_slices(
    instances: pd.DataFrame,
    images: pd.DataFrame | None,
    ground_truth: TruthSource,
    slices: str | Mapping[str, Sequence[Any]],
    *,
    iou_type: str = "segm",
    **settings: Any,
) -> pd.DataFrame:
    """`slice_figures` on a run's tables.

    Args:
        instances, images, ground_truth: as `evaluate` takes them.
        slices: the `by` of `slice_images`, or image ids of the truth by name of the slice.
        settings: of `slice_figures`.
    """
    truth = Truth.load(ground_truth)
    table, _ = align(instances, images, truth, masks=iou_type == "segm")
    image_ids = slice_images(truth, slices, images) if isinstance(slices, str) else slices
    return slice_figures(truth, table, image_ids, iou_type=iou_type, **settings)


def slice_figures(
    truth: Truth,
    detections: DetectionTable,
    slices: Mapping[str, Sequence[Any]],
    *,
    iou_type: str = "segm",
    score_threshold: float = 0.5,
    iou_threshold: float = 0.5,
    backend: str = "auto",
) -> pd.DataFrame:
    """Figures of each slice of the images, each evaluated by itself.

    Args:
        slices: image ids of the truth by name of the slice.
        iou_type: bbox or segm.
        score_threshold, iou_threshold: of `precision`, `recall` and `mean_iou`.
        backend: see `evaluate_table`.

    Returns:
        One row for each slice, after one for "all": `slice`, `images`, `objects`, `AP`, `AP50`, `AR100`, `precision`,
        `recall`, `mean_iou`; NaN where there are no objects to measure with.
    """
    import pandas as pd

    rows = []
    for name, image_ids in {"all": [image["id"] for image in truth.images], **slices}.items():
        kept_ids = set(image_ids)
        part = truth.only(kept_ids)
        table = detections.take(np.isin(detections.image_ids, list(kept_ids)))
        overlaps = overlaps_for(part, table, iou_type, backend=backend)
        result = evaluate_table(part, table, iou_type, backend=backend, overlaps=overlaps)
        stats = {key: float("nan") if value == -1 else value for key, value in zip(result.names, result.stats.tolist())}
        limits: dict[str, Any] = {"iou_threshold": iou_threshold, "score_threshold": score_threshold}
        matches = match(part, table, iou_type, **limits, overlaps=overlaps)
        at_threshold = threshold_figures(part, table.category_ids, matches)[None]
        rows.append(
            {
                "slice": name,
                "images": len(part.images),
                "objects": int(matches.counted.sum()),
                **{key: stats[key] for key in ("AP", "AP50", "AR100")},
                **{key: at_threshold[key] for key in ("precision", "recall", "mean_iou")},
            }
        )
    return pd.DataFrame(rows)


def _objects(truth: Truth) -> dict[Any, list[int]]:
    """Indices of the annotations that are no crowd regions, by image id."""
    return {
        image_id: [index for index in indices if not truth.annotations[index].get("iscrowd", 0)]
        for image_id, indices in truth.by_image.items()
    }


def _largest_overlap(truth: Truth, objects: Sequence[int]) -> float:
    """The largest IoU of the boxes of two of these annotations (indices), 0 for fewer than two."""
    if len(objects) < 2:
        return 0.0
    from pycocotools import mask as coco_mask

    boxes = np.array([truth.annotations[index]["bbox"] for index in objects], np.float64)
    ious = coco_mask.iou(boxes, boxes, [0] * len(boxes))
    return float((ious - 2 * np.eye(len(boxes))).max())


def _in_ranges(
    values: Mapping[Any, float], ranges: Mapping[str, tuple[float, float]], *, include_upper: bool = False
) -> dict[str, list[Any]]:
    """Keys by the name of the range that their value lies in, without empty ranges."""
    keys_of: dict[str, list[Any]] = {}
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
