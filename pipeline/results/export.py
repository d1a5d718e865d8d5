"""Exports of a run in other tools' formats: COCO, YOLO-seg, LabelMe, PNG of instance numbers, crops of the photos.

Files are written through `Storage`, so the target may be a folder or a bucket. Image ids are keys of somebody's bucket
and may hold anything, so names are made safe (`file_names`): nothing is written outside of the target.
"""

from __future__ import annotations

import io
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from PIL import Image

from pipeline.manifest import Run, open_run
from pipeline.masks.contours import Polygon, join_polygons, mask_to_part_polygons
from pipeline.results import EXPORT_FORMATS
from pipeline.results.render import open_photo
from pipeline.schema import OK
from pipeline.storage.base import Storage
from pipeline.storage.stores import open_storage
from pipeline.storage.uri import parent_uri, relative_uri
from pipeline.tables import decode_mask, decode_masks, iter_shards, load_images, load_instances

if TYPE_CHECKING:
    import pandas as pd

_UNSAFE = set('<>:"|?*\\') | {chr(code) for code in range(32)}


class ExportError(ValueError):
    """A run that cannot be exported in a format. The message says why."""


@dataclass(frozen=True)
class Exported:
    """What an export wrote: the number of files, and what it left out, description -> count."""

    num_files: int
    notes: Mapping[str, int]


def export_run(
    run: str | Run,
    target: str | Storage,
    to: str,
    *,
    min_score: float = 0.0,
    image_ids: Mapping[str, int] | None = None,
    tolerance_px: float = 0.0,
) -> Exported:
    """Writes a run in one of EXPORT_FORMATS.

    COCO gives `coco.json`, COCO results `results.json`. The other formats give a file for each image, below `labels/`
    (YOLO, with `data.yaml`), `labelme/` or `png/`. Each file is written whole or not at all; an existing one is
    replaced.

    Args:
        run: the run, or its URI.
        target: folder or bucket prefix.
        to: the format.
        min_score: instances below it are left out.
        image_ids: for "coco-results" the ground truth's number of each image, by `image_id`; None: they count from 1
            in the order of the images table, as in "coco".
        tolerance_px: for YOLO and LabelMe, see `mask_to_part_polygons`.

    Raises:
        ExportError: an unknown format, or two images whose files would have one name.
    """
    if to not in EXPORT_FORMATS:
        raise ExportError(f"there is no format {to!r}; allowed are {', '.join(EXPORT_FORMATS)}")
    run = open_run(run) if isinstance(run, str) else run
    storage = open_storage(target) if isinstance(target, str) else target
    images = load_images(run)
    notes: Counter[str] = Counter({"images that were not segmented left out": int((images["status"] != OK).sum())})
    images = images[images["status"] == OK]
    if to in ("coco", "coco-results"):
        instances = load_instances(run, filters=[("score", ">=", min_score)])
        content: Any
        if to == "coco":
            name, content = "coco.json", to_coco(instances, images, categories_of(run))
        else:
            numbers = image_ids or {image_id: index + 1 for index, image_id in enumerate(images["image_id"])}
            name, content = "results.json", to_coco_results(instances, numbers)
        storage.write_bytes(name, json.dumps(content, ensure_ascii=False).encode())
        return Exported(1, +notes)
    photos = images.set_index("image_id")
    categories = categories_of(run)
    label_of = {category_id: label for label, category_id in enumerate(categories)}
    folder, ending = {"yolo": ("labels", ".txt"), "labelme": ("labelme", ".json"), "png": ("png", ".png")}[to]
    names = file_names(images["image_id"], ending)
    for image_id, rows in _by_image(run, min_score):
        key, photo = f"{folder}/{names[image_id]}", photos.loc[image_id]
        size = (int(photo["height"]), int(photo["width"]))
        if to == "png":
            pixels = to_index_image(rows, size)
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            data = buffer.getvalue()
            notes["instances without a pixel of their own left out"] += len(rows) - len(set(np.unique(pixels)) - {0})
        else:
            notes["instances without a polygon left out"] += to_polygons(rows, tolerance_px=tolerance_px).count([])
            if to == "yolo":
                data = to_yolo(rows, label_of, tolerance_px=tolerance_px).encode()
            else:
                image_path = relative_uri(photo["uri"], parent_uri(storage.uri_of(key)))
                content = to_labelme(rows, image_path, size, tolerance_px=tolerance_px)
                data = json.dumps(content, ensure_ascii=False).encode()
        storage.write_bytes(key, data)
    if to == "yolo":
        storage.write_bytes("data.yaml", _data_yaml(list(categories.values())).encode())
        notes["category ids numbered anew, from 0"] += sum(number != label for number, label in label_of.items())
    return Exported(len(images) + (to == "yolo"), +notes)


def to_coco(instances: pd.DataFrame, images: pd.DataFrame, categories: Mapping[int, str]) -> dict[str, Any]:
    """The instances as a COCO data set.

    Image ids count from 1 in the order of the table. Masks stay RLE, `bbox` is XYWH, `area` is that of the mask, and
    each annotation has its `score`. Images that failed have no size and are left out.

    Args:
        categories: names by id, see `categories_of`.

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


def to_labelme(
    rows: pd.DataFrame, image_path: str, image_size: tuple[int, int], *, tolerance_px: float = 0.0
) -> dict[str, Any]:
    """One image's LabelMe file, as a JSON object.

    It has a polygon for each part of a mask; parts of one instance share a `group_id`. The photo is named and not
    embedded.

    Args:
        rows: the image's rows of the instances table.
        image_path: of the photo, relative to the file, or its URI.
        image_size: (height, width) in pixels.
        tolerance_px: see `mask_to_part_polygons`.
    """
    shapes = []
    for row, polygons in zip(rows.itertuples(), to_polygons(rows, tolerance_px=tolerance_px), strict=True):
        for polygon in polygons:
            shapes.append(
                {
                    "label": row.category,
                    "points": np.array(polygon).reshape(-1, 2).tolist(),
                    "group_id": int(row.instance) if len(polygons) > 1 else None,
                    "description": f"score {row.score:.4f}",
                    "shape_type": "polygon",
                    "flags": {},
                }
            )
    return {
        "version": "5.5.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": image_path,
        "imageData": None,
        "imageHeight": image_size[0],
        "imageWidth": image_size[1],
    }


def to_index_image(rows: pd.DataFrame, image_size: tuple[int, int]) -> np.ndarray:
    """Which instance each pixel belongs to.

    Args:
        rows: the image's rows of the instances table.
        image_size: (height, width) in pixels.

    Returns:
        uint16 [H, W]: `instance` + 1, or 0 for none. Where masks overlap it is the one with the best score.

    Raises:
        ExportError: more than 65,534 instances.
    """
    if len(rows) and int(rows["instance"].max()) > 65_534:
        raise ExportError(f"a PNG holds 65,534 instances; {rows['image_id'].iloc[0]!r} has more")
    pixels = np.zeros(image_size, np.uint16)
    ordered = rows.sort_values("score", kind="stable")
    for row, mask in zip(ordered.itertuples(), decode_masks(ordered), strict=True):
        pixels[mask.astype(bool)] = row.instance + 1
    return pixels


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


def file_names(image_ids: Iterable[str], ending: str) -> dict[str, str]:
    """A safe relative file name for each image: the key with its folders, and `ending` instead of its extension.

    Parts of a key that lead upwards (`..`), are empty or `.`, and characters that a file system refuses become
    underscores. Keys that would then share a name keep their extension; upper and lower case are taken as the same.

    Raises:
        ExportError: two keys share a name even with their extensions.
    """
    keys = list(image_ids)
    safe = {key: _safe(key) for key in keys}
    stems: dict[str, list[str]] = defaultdict(list)
    for key in keys:
        stems[_stem(safe[key]).lower()].append(key)
    names = {}
    taken: dict[str, str] = {}
    for key in keys:
        alone = len(stems[_stem(safe[key]).lower()]) == 1
        name = (_stem(safe[key]) if alone else safe[key]) + ending
        if (first_key := taken.setdefault(name.lower(), key)) != key:
            raise ExportError(f"images {first_key!r} and {key!r} would both be written to {name!r}")
        names[key] = name
    return names


def categories_of(run: Run) -> dict[int, str]:
    """Category names by id, from the run's class map, or from its instances where it has none."""
    class_map = run.spec.model.categories
    if class_map:
        return {category.id: category.name for category in class_map}
    pairs = load_instances(run, ["category_id", "category"]).drop_duplicates().sort_values("category_id")
    return dict(zip(pairs["category_id"].tolist(), pairs["category"], strict=True))


def _by_image(run: Run, min_score: float) -> Iterator[tuple[str, pd.DataFrame]]:
    """Each segmented image with its rows, best score first (none for an image without instances); shard by shard."""
    for images, instances in iter_shards(run, [("score", ">=", min_score)]):
        rows_of = dict(tuple(instances.sort_values("instance").groupby("image_id")))
        for key in images.loc[images["status"] == OK, "image_id"]:
            yield key, rows_of.get(key, instances.iloc[:0])


def _safe(key: str) -> str:
    """A key as a relative path that any file system takes."""
    parts = []
    for part in key.split("/"):
        text = "".join("_" if char in _UNSAFE else char for char in part).rstrip(" .")
        parts.append(text[:200] if text.strip(".") else "_")
    return "/".join(parts)


def _stem(name: str) -> str:
    """A path without its extension."""
    folder, slash, last = name.rpartition("/")
    stem = last.rpartition(".")[0] or last
    return folder + slash + stem


def _data_yaml(names: Sequence[str]) -> str:
    """YOLO's description of a data set with these class names; class numbers are those of the label files."""
    content = {"path": ".", "train": "images", "val": "images", "names": dict(enumerate(names))}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
