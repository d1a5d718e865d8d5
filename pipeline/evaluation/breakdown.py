"""Where a run is good and where it is not: by class, the confusion matrix, by kind of image, by size of object."""

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
MAX_SLICES = 30  # of one column
SIZE_EDGES_PX = (0, 16**2, 32**2, 96**2, 288**2, float("inf"))
SIZE_NAMES = ("tiny (<16²)", "small (<32²)", "medium (<96²)", "large (<288²)", "huge")
CROWDING = {"no object": (0, 0), "1 object": (1, 1), "2-5": (2, 5), "6-15": (6, 15), "16 and more": (16, 10**9)}
OVERLAP = {"apart (<0.1)": (0.0, 0.1), "touching (<0.5)": (0.1, 0.5), "piled up": (0.5, 1.01)}


def threshold_figures(truth: Truth, category_ids: np.ndarray, matches: Matches) -> dict[int | None, dict[str, float]]:
    """precision, recall, F1, mean_iou (over the true positives), true_positives, false_positives and
    false_negatives; by category id, and over all under None. NaN for a figure without anything to measure by.

    Args:
        category_ids: int64 [N], of the detections that were matched.
    """
    of_row = category_ids[matches.rows]
    figures: dict[int | None, dict[str, float]] = {}
    for number in (None, *truth.names):
        rows = np.ones(len(of_row), bool) if number is None else of_row == number
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
    """What each kind of object was taken for.

    Pairs of one class are matched first, so the diagonal holds the true positives of `evaluate`; then what is left,
    whatever its class. The last column counts objects nothing was found on, the last row detections on nothing.
    Detections on crowd regions of their class are left out, and so are the regions.

    Returns:
        int64 [K + 1, K + 1], rows the truth, columns the prediction, both by category name, then BACKGROUND.
    """
    import pandas as pd

    numbers = list(truth.names)
    place_of = {number: place for place, number in enumerate(numbers)}
    nothing = len(numbers)
    matrix = np.zeros((nothing + 1, nothing + 1), np.int64)
    category_of, crowd = truth.category_ids, truth.is_crowd
    settings: dict[str, Any] = {"score_threshold": score_threshold}
    same = match(truth, detections, iou_type, iou_threshold=iou_threshold, max_detections=None, **settings)
    truth_of = dict(zip(same.rows[same.is_true].tolist(), same.truths[same.is_true].tolist(), strict=True))
    left_out = set(same.rows[same.ignored].tolist())
    for pairs in iter_pairs(truth, detections, iou_type, **settings):
        rows = [row for row in pairs.rows.tolist() if row not in left_out]
        for row in rows:
            if row in truth_of:
                place = place_of[int(category_of[truth_of[row]])]
                matrix[place, place] += 1
        free_rows = np.array([row not in truth_of and row not in left_out for row in pairs.rows.tolist()], bool)
        free_truths = ~same.found[pairs.places] & ~crowd[pairs.places]
        places = pairs.places[free_truths]
        took = greedy_match(pairs.ious[np.ix_(free_rows, free_truths)], np.zeros(len(places), bool), iou_threshold)
        for row, column in zip(pairs.rows[free_rows].tolist(), took.tolist(), strict=True):
            real = place_of[int(category_of[places[column]])] if column >= 0 else nothing
            matrix[real, place_of[int(detections.category_ids[row])]] += 1
        for column in set(range(len(places))) - set(took.tolist()):
            matrix[place_of[int(category_of[places[column]])], nothing] += 1
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
    """Recall and mean IoU by the size of the object: one row a bin of `SIZE_EDGES_PX` (the truth's `area`, square
    pixels), with `objects`, `found`, `recall`, `mean_iou`; NaN where there is nothing. For `overlaps` see `match`."""
    import pandas as pd

    at: dict[str, Any] = {"iou_threshold": iou_threshold, "score_threshold": score_threshold}
    matches = match(truth, detections, iou_type, **at, overlaps=overlaps)
    area = np.array([entry["area"] for entry in truth.annotations], np.float64)
    bins = np.digitize(area, SIZE_EDGES_PX[1:-1])
    hits = matches.is_true
    rows = []
    for place, name in enumerate(SIZE_NAMES):
        objects = matches.counted & (bins == place)
        found = int((objects & matches.found).sum())
        ious = matches.ious[hits][bins[matches.truths[hits]] == place]
        total = int(objects.sum())
        nan = float("nan")
        rows.append((name, total, found, found / total if total else nan, float(ious.mean()) if len(ious) else nan))
    return pd.DataFrame(rows, columns=["size", "objects", "found", "recall", "mean_iou"])


def slice_images(
    truth: Truth, by: str, images: pd.DataFrame | None = None, *, num_bins: int = 4
) -> dict[str, list[Any]]:
    """Image ids of the truth by kind of image.

    Args:
        by: "crowding" (objects on the image), "overlap" (largest IoU of two objects' boxes on it), or any column of the
            images table: each of its values, or quarters of a column of more than 12 different numbers. Of `image_id`
            and `uri` the folder is taken; of more than `MAX_SLICES` values the rarest become one. Images of the truth
            that the run does not have are a slice of their own.
        images: the images table, for a column of it.

    Raises:
        ValueError: no such column.
    """
    if by == "crowding":
        return _in_ranges({image: len(places) for image, places in _objects(truth).items()}, CROWDING, last=True)
    if by == "overlap":
        return _in_ranges(
            {image: _largest_overlap(truth, places) for image, places in _objects(truth).items()}, OVERLAP
        )
    if images is None or by not in images.columns:
        columns = "" if images is None else f", {', '.join(images.columns)}"
        raise ValueError(f"images cannot be sliced by {by!r}; allowed are crowding, overlap{columns}")
    import pandas as pd

    truth_id = match_images(images["image_id"], truth.images).truth_id
    known = images[images["image_id"].isin(list(truth_id))]
    values = known[by]
    if by in ("image_id", "uri"):
        values = values.str.rpartition("/")[0]
    names: dict[Any, str] = {}
    if pd.api.types.is_numeric_dtype(values) and values.nunique() > 12:
        values, edges = pd.qcut(values, num_bins, duplicates="drop", retbins=True)
        pairs = zip(edges.tolist(), edges[1:].tolist())
        names = dict(zip(values.cat.categories, (f"{low:g} to {high:g}" for low, high in pairs), strict=True))
    counted = values.value_counts()
    if len(counted) > MAX_SLICES:
        values = values.where(values.isin(counted.index[: MAX_SLICES - 1]), "others")
    slices: dict[str, list[Any]] = {}
    for value, image_id in sorted(zip(values, known["image_id"], strict=True), key=lambda pair: _sort_key(pair[0])):
        slices.setdefault("none" if pd.isna(value) else names.get(value, str(value)), []).append(truth_id[image_id])
    there = set(truth_id.values())
    if missing := [image["id"] for image in truth.images if image["id"] not in there]:
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
        slices: what `slice_images` takes, or image ids of the truth by name of the slice.
        settings: of `slice_figures`.
    """
    truth = Truth.load(ground_truth)
    table, _ = align(instances, images, truth, masks=iou_type == "segm")
    named = slice_images(truth, slices, images) if isinstance(slices, str) else slices
    return slice_figures(truth, table, named, iou_type=iou_type, **settings)


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
    """COCO's figures of each slice alone, as if the others were not there.

    Args:
        slices: image ids of the truth by name of the slice.

    Returns:
        One row a slice, and "all" first: `slice`, `images`, `objects`, `AP`, `AP50`, `AR100`, `precision`, `recall`,
        `mean_iou`; NaN where there is no truth to measure by.
    """
    import pandas as pd

    rows = []
    for name, image_ids in {"all": [image["id"] for image in truth.images], **slices}.items():
        wanted = set(image_ids)
        part = truth.only(wanted)
        found = detections.take(np.isin(detections.image_ids, list(wanted)))
        overlaps = overlaps_for(part, found, iou_type, backend=backend)
        result = evaluate_table(part, found, iou_type, backend=backend, overlaps=overlaps)
        stats = {key: float("nan") if value == -1 else value for key, value in zip(result.names, result.stats.tolist())}
        limits: dict[str, Any] = {"iou_threshold": iou_threshold, "score_threshold": score_threshold}
        matches = match(part, found, iou_type, **limits, overlaps=overlaps)
        at = threshold_figures(part, found.category_ids, matches)[None]
        rows.append(
            {
                "slice": name,
                "images": len(part.images),
                "objects": int(matches.counted.sum()),
                **{key: stats[key] for key in ("AP", "AP50", "AR100")},
                **{key: at[key] for key in ("precision", "recall", "mean_iou")},
            }
        )
    return pd.DataFrame(rows)


def _objects(truth: Truth) -> dict[Any, list[int]]:
    """Places of the annotations that are no crowd regions, by image."""
    return {
        image: [place for place in places if not truth.annotations[place].get("iscrowd", 0)]
        for image, places in truth.by_image.items()
    }


def _largest_overlap(truth: Truth, places: Sequence[int]) -> float:
    if len(places) < 2:
        return 0.0
    from pycocotools import mask as coco_mask

    boxes = np.array([truth.annotations[place]["bbox"] for place in places], np.float64)
    ious = coco_mask.iou(boxes, boxes, [0] * len(boxes))
    return float((ious - 2 * np.eye(len(boxes))).max())


def _in_ranges(
    values: Mapping[Any, float], ranges: Mapping[str, tuple[float, float]], *, last: bool = False
) -> dict[str, list[Any]]:
    found = {
        name: [key for key, value in values.items() if low <= value and (value <= high if last else value < high)]
        for name, (low, high) in ranges.items()
    }
    return {name: keys for name, keys in found.items() if keys}


def _sort_key(value: Any) -> tuple[int, Any]:
    if value is None or value != value:
        return (2, "")
    return (0, value) if isinstance(value, int | float) else (1, getattr(value, "left", str(value)))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
