"""A run's instances as annotations, to be corrected in an annotation tool and trained on: read, and exported.

Image ids of a run are keys of somebody's bucket and may hold anything, so names are made safe: nothing is written
outside of the target.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from model.categories import Category
from pipeline.dataset.convert import write_annotations
from pipeline.dataset.types import AnnotatedImage, AnnotatedSet, AnnotationError, Prediction, simplify_outlines
from pipeline.runs import RunSource, open_runs
from pipeline.schema import OK
from pipeline.storage.base import StorageSettings
from pipeline.storage.files import Location
from pipeline.storage.uri import base_name, file_stem
from pipeline.tables import categories_of, load_images, load_instances

MIN_SCORE = 0.5  # of labels to be corrected
_UNSAFE = set('<>:"|?*\\') | {chr(code) for code in range(32)}


@dataclass(frozen=True)
class Exported:
    """What an export wrote: images and instances, and what it left out or changed, description -> count."""

    num_images: int
    num_instances: int
    notes: Mapping[str, int]


def load_run_labels(
    run: RunSource, *, min_score: float = MIN_SCORE, storage: StorageSettings | None = None
) -> AnnotatedSet:
    """The segmented images of a run with its instances as `Prediction`s, best score first in each image.

    Args:
        run: the run, or its URI; or several, see `open_runs`.
        min_score: instances below it are left out.
        storage: how the photos are reached.

    Returns:
        Image ids from 1 in the order of the images table; file names are the run's image ids. Images that were not
        segmented are left out and counted in `notes`.
    """
    run = open_runs(run)
    names = categories_of(run)
    label_of = {category_id: label for label, category_id in enumerate(names, start=1)}
    table = load_images(run, ["image_id", "uri", "status", "height", "width"])
    failed = Counter({"images that were not segmented left out": int((table["status"] != OK).sum())})
    instances_of: dict[str, list[tuple[int, Prediction]]] = {}
    for row in load_instances(run, filters=[("score", ">=", min_score)]).itertuples():
        has_keypoints = row.keypoints is not None and np.ndim(row.keypoints) and np.size(row.keypoints)
        prediction = Prediction(
            label=label_of[row.category_id],
            box=(float(row.x1), float(row.y1), float(row.x2), float(row.y2)),
            segmentation={"size": [int(row.image_height), int(row.image_width)], "counts": row.rle_counts},
            area=float(row.area_px),
            keypoints=tuple(float(value) for value in row.keypoints) if has_keypoints else None,
            score=float(row.score),
        )
        instances_of.setdefault(row.image_id, []).append((int(row.instance), prediction))
    images: list[AnnotatedImage] = []
    for row in table[table["status"] == OK].itertuples():
        ranked = sorted(instances_of.get(row.image_id, ()), key=lambda pair: pair[0])
        predictions = tuple(prediction for _, prediction in ranked)
        photo = Location(row.uri, storage)
        images.append(
            AnnotatedImage(len(images) + 1, row.image_id, photo, int(row.height), int(row.width), predictions)
        )
    categories = tuple(Category(number, name) for number, name in names.items())
    return AnnotatedSet(tuple(images), categories, notes=dict(+failed))


def export_labels(
    run: RunSource,
    target: str | Location,
    to: str,
    *,
    min_score: float = MIN_SCORE,
    photos: str = "copy",
    tolerance_px: float = 0.0,
    storage: StorageSettings | None = None,
) -> Exported:
    """Writes a run in one of FORMATS; files that are there are replaced.

    COCO gives `coco.json` with a score in each annotation, and the photos in `coco/`; Label Studio predictions. Where
    masks share pixels and the format holds none such (VOC, Cityscapes, PNG), the better score has them.

    Args:
        run, min_score, storage: see `load_run_labels`.
        target: a folder or bucket prefix.
        photos, tolerance_px: see `convert_annotations`.

    Raises:
        AnnotationError: the run cannot be held by the format, or has no image.
    """
    annotated = load_run_labels(run, min_score=min_score, storage=storage)
    if not annotated.images or not annotated.categories:
        raise AnnotationError("the run has no segmented image, or no instance and no class map; there is no label")
    place = Location.of(target)
    if to != "coco":
        annotated = with_safe_names(annotated)
    losses = write_annotations(
        simplify_outlines(annotated, tolerance_px),
        place / "coco.json" if to == "coco" else place,
        to,
        photos=photos,
        overlap="first_on_top",
        as_predictions=True,
    )
    return Exported(len(annotated), annotated.num_instances, {**annotated.notes, **losses})


def with_safe_names(annotated: AnnotatedSet) -> AnnotatedSet:
    """The set with file names that any file system takes, and that stay below a folder.

    Parts that lead upwards (`..`), are empty or `.`, and characters that a file system refuses become underscores.
    Names that would differ in their extension, or in upper and lower case only get it as part of the name: `a_png.png`.
    """
    names = [_safe(image.file_name) for image in annotated.images]
    stems = Counter(file_stem(name.replace("/", "__")).lower() for name in names)
    images = []
    for image, name in zip(annotated.images, names, strict=True):
        stem = file_stem(name)
        ending = base_name(name).removeprefix(stem)
        if stems[file_stem(name.replace("/", "__")).lower()] > 1 and ending:
            name = f"{name.removesuffix(ending)}_{ending[1:]}{ending}"
        images.append(replace(image, file_name=name))
    return replace(annotated, images=tuple(images))


def _safe(key: str) -> str:
    """A key as a relative path that any file system takes."""
    parts = []
    for part in key.split("/"):
        text = "".join("_" if char in _UNSAFE else char for char in part).strip(" ").rstrip(".")
        parts.append(text if text.strip(".") else "_")
    return "/".join(parts)
