"""A run's instances as detections on the images of a ground truth, and `Coverage`: what was measured, what left out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline.dataset.types import AnnotatedSet
from pipeline.evaluation.detections import DetectionTable, to_text
from pipeline.evaluation.ground_truth import EvaluationError, Truth
from pipeline.schema import INSTANCES_SCHEMA, OK

if TYPE_CHECKING:
    import pandas as pd

TruthSource = Truth | AnnotatedSet | Mapping[str, Any] | str
COLUMNS = ("image_id", "category_id", "category", "score", "x1", "y1", "x2", "y2")
MASK_COLUMNS = ("rle_counts", "image_height", "image_width")


@dataclass(frozen=True)
class Coverage:
    """Counts of what was measured and of what was left out.

    Objects on images that the run could not segment or does not have count as missed.

    Attributes:
        num_images: images of the ground truth.
        num_ok: images of the ground truth that the run segmented.
        failed: images of the ground truth that the run has but could not segment, by status.
        num_missing: images of the ground truth that the run does not have.
        num_extra_images: images of the run that the ground truth does not have; left out.
        num_truths: annotated objects, without crowd regions.
        num_truths_lost: annotated objects on images that failed or are missing.
        num_instances: detections that were measured.
        num_other_category: detections of categories that are not measured, since the ground truth does not have them or
            other classes were asked for; left out.
        num_not_labelled: detections of classes that were not annotated on their image; left out.
        num_truths_not_labelled: annotated objects of such classes; left out.
        num_other_size: detections whose image has another size in the ground truth; their masks match nothing.
    """

    num_images: int
    num_ok: int
    failed: dict[str, int]
    num_missing: int
    num_extra_images: int
    num_truths: int
    num_truths_lost: int
    num_instances: int = 0
    num_other_category: int = 0
    num_not_labelled: int = 0
    num_truths_not_labelled: int = 0
    num_other_size: int = 0


@dataclass(frozen=True)
class ImageMatch:
    """Images of a run matched with images of the truth.

    Attributes:
        truth_id: the truth's image id by the run's `image_id`, for each matched image.
        missing: file names of the truth that the run does not have.
        extra: number of images of the run that the truth does not have.
    """

    truth_id: dict[str, int]
    missing: tuple[str, ...]
    extra: int


def align(
    instances: pd.DataFrame | pa.Table,
    images: pd.DataFrame | None,
    truth: Truth,
    *,
    masks: bool = True,
    keypoints: bool = False,
) -> tuple[DetectionTable, Coverage]:
    """A run's instances as detections on the truth's images, and the counts of what was left out.

    Args:
        instances: the instances table (`COLUMNS`, with `masks` also `MASK_COLUMNS`); boxes are half-open, in pixels.
        images: the images table (`image_id`, `status`); None: every image of the truth counts as segmented.
        masks: also take masks along.
        keypoints: also take keypoints along.

    Returns:
        Detections in the order of the rows. Boxes become XYWH in float64 (x2 - x1 of the float32 values, exactly).

    Raises:
        EvaluationError: see `match_images` and `check_categories`; or an image that stands twice in `images`.
        ValueError: a column is missing.
    """
    needed = [*COLUMNS, *(MASK_COLUMNS if masks else ()), *(["keypoints"] if keypoints else [])]
    columns = instances.column_names if isinstance(instances, pa.Table) else instances.columns
    if missing := [name for name in needed if name not in columns]:
        raise ValueError(f"the instances lack the column {missing[0]!r}; load them with it")
    rows = (
        instances if isinstance(instances, pa.Table) else pa.Table.from_pandas(instances[needed], preserve_index=False)
    )
    if not rows.num_rows:  # a frame without rows does not know its types
        rows = INSTANCES_SCHEMA.empty_table().select(needed)
    # Each image id is matched once, and rows refer to it by number: Python strings are the slow part of large runs.
    encoded = rows["image_id"].dictionary_encode().combine_chunks()
    codes, image_ids = encoded.indices.to_numpy(), encoded.dictionary.to_pylist()
    _check_unique(images)
    matched = match_images(image_ids if images is None else images["image_id"], truth)
    _check_classes(rows, truth)

    def column(name: str, dtype: type) -> np.ndarray:
        return rows[name].to_numpy().astype(dtype, copy=False)

    on_truth = np.array([image_id in matched.truth_id for image_id in image_ids], bool)[codes]
    truth_ids = np.array([matched.truth_id.get(image_id, 0) for image_id in image_ids], np.int64)[codes]
    category_ids = column("category_id", np.int64)
    in_truth = np.isin(category_ids, list(truth.names))
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
    keep = on_truth & in_truth & labelled
    if not keep.all():
        table = table.take(keep)
    num_other_size = 0
    if masks:
        table, num_other_size = _with_truth_sizes(table, truth)
    return table, replace(
        cover(images, truth, matched),
        num_instances=len(table),
        num_other_category=int((on_truth & ~in_truth).sum()),
        num_not_labelled=int((on_truth & in_truth & ~labelled).sum()),
        num_other_size=num_other_size,
    )


def _check_unique(images: pd.DataFrame | None) -> None:
    """Checks that no two images of a run have one `image_id`.

    Raises:
        EvaluationError: two have; the message has their URIs where the table does.
    """
    if images is None or not (repeated := images["image_id"].duplicated(keep=False)).any():
        return
    image_id = images["image_id"][repeated].iloc[0]
    rows = images[images["image_id"] == image_id]
    uris = f", for {' and '.join(map(repr, rows['uri'][:5]))}" if "uri" in rows else ""
    raise EvaluationError(f"image_id {image_id!r} stands {len(rows)} times among the run's images{uris}")


def _check_classes(rows: pa.Table, truth: Truth) -> None:
    """Checks that each category id stands for one class, and for the same class in the run and in the truth.

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
    """The table with an empty mask in place of each mask of another size than the truth's image, and their number.

    Such masks count as detections that match nothing. They are no error, which would stop the evaluation of all others.
    """
    sizes = truth.image_sizes[truth.index_of(table.image_ids)]
    other_size = np.flatnonzero((sizes != table.sizes).any(axis=1))
    if not len(other_size):
        return table, 0
    from pipeline.masks.rle import runs_to_rle

    counts = to_text(table.counts).to_pylist()
    for row in other_size:
        height, width = sizes[row].tolist()
        counts[row] = runs_to_rle([height * width], height, width)
    return replace(table, counts=counts, sizes=sizes), len(other_size)


def _is_labelled(truth: Truth, image_ids: np.ndarray, category_ids: np.ndarray) -> np.ndarray:
    """bool [N]: whether the detection's class was annotated on its image (always, unless `truth.labelled` says no)."""
    labelled = np.ones(len(image_ids), bool)
    if not truth.labelled or not len(image_ids):
        return labelled
    order = np.argsort(image_ids, kind="stable")
    unique_ids, starts = np.unique(image_ids[order], return_index=True)
    for image_id, rows in zip(unique_ids.tolist(), np.split(order, starts[1:]), strict=True):
        if (ids := truth.labelled.get(image_id)) is not None:
            labelled[rows] = np.isin(category_ids[rows], list(ids))
    return labelled


def cover(images: pd.DataFrame | None, truth: Truth, matched: ImageMatch) -> Coverage:
    """The counts of images and annotated objects; those of detections are 0."""
    failed: Counter[str] = Counter()
    if images is None:
        ok = set(truth.image_ids.tolist())
    else:
        ok = set()
        for image_id, status in zip(images["image_id"], images["status"], strict=True):
            if (truth_id := matched.truth_id.get(image_id)) is not None:
                if status == OK:
                    ok.add(truth_id)
                else:
                    failed[status] += 1
    object_images = truth.annotations.image_ids[~truth.annotations.is_crowd]
    return Coverage(
        num_images=len(truth.image_ids),
        num_ok=len(ok),
        failed=dict(failed),
        num_missing=0 if images is None else len(matched.missing),
        num_extra_images=matched.extra,
        num_truths=len(object_images),
        num_truths_lost=int((~np.isin(object_images, list(ok))).sum()),
        num_truths_not_labelled=truth.num_not_labelled,
    )


def match_images(image_ids: Iterable[str], truth: Truth) -> ImageMatch:
    """Matches a run's `image_id` with the truth's file names: by the whole name, or else by the base name.

    A backslash in the truth's name is a slash where the run has no image of the name as it is.

    Args:
        image_ids: of the run; repetitions are ignored.

    Raises:
        EvaluationError: several images of one side share a base name and have no whole name in common with the other
            side (the message lists them), or the two sides have no image in common.
    """
    keys = list(dict.fromkeys(image_ids))
    run_keys = set(keys)
    truth_id: dict[str, int] = {}
    unmatched: dict[str, list[tuple[str, int]]] = defaultdict(list)  # of the truth, by base name
    for file_name, image_id in zip(truth.file_names, truth.image_ids.tolist(), strict=True):
        name = file_name if file_name in run_keys else file_name.replace("\\", "/")
        if name in run_keys:
            truth_id[name] = image_id
        else:
            unmatched[_base_name(name)].append((file_name, image_id))
    keys_of: dict[str, list[str]] = defaultdict(list)  # unmatched ones of the run, by base name
    for key in keys:
        if key not in truth_id:
            keys_of[_base_name(key)].append(key)
    missing = []
    for base, images in unmatched.items():
        names = [name for name, _ in images]
        candidates = keys_of.get(base, [])
        if not candidates:
            missing += names
        elif len(candidates) > 1 or len(images) > 1:
            raise EvaluationError(
                f"images cannot be matched by base name: {base!r} is {_listing(candidates)} in the run and "
                f"{_listing(names)} in the ground truth"
            )
        else:
            truth_id[candidates[0]] = images[0][1]
    if keys and truth.file_names and not truth_id:
        raise EvaluationError(
            f"the run and the ground truth have no image in common: the run has e.g. {keys[0]!r}, the ground truth "
            f"{truth.file_names[0]!r}"
        )
    return ImageMatch(truth_id, tuple(missing), len(keys) - len(truth_id))


def check_categories(run: Mapping[int, str], truth: Mapping[int, str]) -> None:
    """Checks that a category id means the same class in the run and in the truth.

    Args:
        run, truth: category names by id. Categories that only one side has are no clash.

    Raises:
        EvaluationError: an id has two names, or a name has two ids.
    """
    ids = {name: number for number, name in truth.items()}
    clashes = [
        f"{number} is {name!r} in the run and {truth[number]!r} in the ground truth"
        for number, name in run.items()
        if number in truth and name != truth[number]
    ]
    clashes += [
        f"{name!r} is {number} in the run and {ids[name]} in the ground truth"
        for number, name in run.items()
        if number not in truth and name in ids
    ]
    if clashes:
        raise EvaluationError("category ids do not agree: " + "; ".join(clashes[:10]))


def _base_name(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2]


def _listing(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
