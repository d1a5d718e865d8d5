"""Rows of a run in other forms: COCO results and data sets, polygons, YOLO's lines, crops of the photos.

`pipeline.dataset.run_labels` exports a run as annotations with their photos.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from pipeline.masks.contours import Polygon, join_polygons, mask_to_part_polygons
from pipeline.results.render import open_photo
from pipeline.runs import RunSource, open_runs
from pipeline.schema import OK
from pipeline.storage.base import Storage
from pipeline.tables import decode_mask, decode_masks, load_images, load_instances

if TYPE_CHECKING:
    import pandas as pd


class ExportError(ValueError):
    """A run that cannot be exported in a format. The message says why."""


def export_results(
    run: RunSource, target: Storage, *, min_score: float = 0.0, image_ids: Mapping[str, int] | None = None
) -> tuple[int, int]:
    """Writes the run as `results.json`, a list of COCO results; an existing one is replaced.

    Args:
        min_score: instances below it are left out.
        image_ids: the ground truth's number of each image, by `image_id`; None: they count from 1 in the order of the
            images table that were segmented, as in an export of labels.

    Returns:
        Number of images and of results.

    Raises:
        ExportError: an instance of an image without a number.
    """
    run = open_runs(run)
    images = load_images(run, ["image_id", "status"])
    images = images[images["status"] == OK]
    numbers = image_ids or {image_id: index + 1 for index, image_id in enumerate(images["image_id"])}
    content = to_coco_results(load_instances(run, filters=[("score", ">=", min_score)]), numbers)
    target.write_bytes("results.json", json.dumps(content, ensure_ascii=False).encode())
    return len(images), len(content)


def to_coco(instances: pd.DataFrame, images: pd.DataFrame, categories: Mapping[int, str]) -> dict[str, Any]:
    """The instances as a COCO data set.

    Image ids count from 1 in the order of the table. Masks stay RLE, `bbox` is XYWH, `area` is that of the mask, and
    each annotation has its `score`. Images that failed have no size and are left out.

    Args:
        categories: names by id, see `pipeline.tables.categories_of`.

    Raises:
        ExportError: an instance of an image that `images` lacks.
    """
    images = images[images["height"].notna()]
    numbers = {image_id: index + 1 for index, image_id in enumerate(images["image_id"])}
    annotations = to_coco_results(instances, numbers)
    for index, (annotation, area) in enumerate(zip(annotations, instances["area_px"].tolist(), strict=True)):
        annotation.update(id=index + 1, area=area, iscrowd=0)
    return {
        "images": [
            {"id": numbers[row.image_id], "file_name": row.image_id, "height": int(row.height), "width": int(row.width)}
            for row in images.itertuples()
        ],
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in categories.items()],
    }


def to_coco_results(instances: pd.DataFrame, image_ids: Mapping[str, int]) -> list[dict[str, Any]]:
    """The instances as a list of COCO results, as COCO's evaluation server and pycocotools' `loadRes` take it.

    `bbox` is XYWH, `segmentation` RLE; `keypoints` are there if the table has them. Scores are exactly the table's
    float32 values.

    Args:
        image_ids: the ground truth's number of each image, by `image_id`.

    Raises:
        ExportError: an instance of an image without a number.
    """
    if unknown := sorted(set(instances["image_id"].unique()) - set(image_ids)):
        raise ExportError(f"image {unknown[0]!r} has no number in the ground truth ({len(unknown)} such images)")
    entries = []
    for row in instances.itertuples():
        x1, y1, x2, y2 = (float(value) for value in (row.x1, row.y1, row.x2, row.y2))
        entry: dict[str, object] = {
            "image_id": image_ids[row.image_id],
            "category_id": int(row.category_id),
            "score": float(row.score),
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "segmentation": {"size": [int(row.image_height), int(row.image_width)], "counts": row.rle_counts},
        }
        keypoints = getattr(row, "keypoints", None)
        if keypoints is not None and np.size(keypoints) and np.ndim(keypoints):
            entry["keypoints"] = [float(value) for value in keypoints]
        entries.append(entry)
    return entries


def to_polygons(instances: pd.DataFrame, *, tolerance_px: float = 0.0) -> list[list[Polygon]]:
    """The outlines of each row's mask, see `mask_to_part_polygons`: a list for each row, empty for an empty mask."""
    return [mask_to_part_polygons(mask, tolerance_px=tolerance_px) for mask in decode_masks(instances)]


def to_yolo(rows: pd.DataFrame, label_of: Mapping[int, int], *, tolerance_px: float = 0.0) -> str:
    """One image's label file for YOLO segmentation.

    It has a line for each instance: its class number, then x and y of its outline as shares of the image's width and
    height. Parts of one object are joined by seams. Instances with an empty mask have no line.

    Args:
        rows: the image's rows of the instances table.
        label_of: class numbers from 0, by category id.
        tolerance_px: see `mask_to_part_polygons`.
    """
    lines = []
    for row, polygons in zip(rows.itertuples(), to_polygons(rows, tolerance_px=tolerance_px), strict=True):
        if polygons:
            points = np.array(join_polygons(polygons)).reshape(-1, 2) / [row.image_width, row.image_height]
            coordinates = " ".join(f"{value:.6f}" for value in points.ravel().tolist())
            lines.append(f"{label_of[row.category_id]} {coordinates}\n")
    return "".join(lines)


def crops(
    instances: pd.DataFrame,
    photo_of: Mapping[str, str] | Callable[[str], Image.Image],
    *,
    margin: float = 0.0,
    cut_out: bool = False,
) -> Iterator[tuple[Any, Image.Image]]:
    """Crops: the part of its photo that each instance's box covers.

    Instances come grouped by image, so that each photo is opened once. Empty boxes are left out.

    Args:
        photo_of: URI by `image_id` (from the images table), or a function that opens a photo at the size that was
            segmented.
        margin: share of the box that is added on each side, within the photo.
        cut_out: make the pixels outside of the mask transparent.

    Returns:
        Pairs of the row and its image: RGB, or RGBA with `cut_out`.
    """
    for image_id, rows in instances.groupby("image_id", sort=False):
        photo = photo_of(image_id) if callable(photo_of) else open_photo(photo_of[image_id])
        for row in rows.itertuples():
            extra_x, extra_y = (row.x2 - row.x1) * margin, (row.y2 - row.y1) * margin
            box = (
                max(0, int(np.floor(row.x1 - extra_x))),
                max(0, int(np.floor(row.y1 - extra_y))),
                min(photo.width, int(np.ceil(row.x2 + extra_x))),
                min(photo.height, int(np.ceil(row.y2 + extra_y))),
            )
            if box[0] >= box[2] or box[1] >= box[3]:
                continue
            piece = photo.crop(box)
            if cut_out:
                piece = piece.convert("RGBA")
                inside = decode_mask(row)[box[1] : box[3], box[0] : box[2]]
                piece.putalpha(Image.fromarray(inside * np.uint8(255)))
            yield row, piece
