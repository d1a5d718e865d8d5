"""LabelMe: reads and writes its JSON, one file for each photo.

https://github.com/wkentaro/labelme
"""

from __future__ import annotations

import base64
import io
import math
from collections import Counter
from typing import Any

import numpy as np
from PIL import Image

from model.categories import Category
from pipeline.dataset.formats.photo_copy import copy_photo, flat_names, reference_to
from pipeline.dataset.types import (
    IGNORE_NAME,
    AnnotatedImage,
    AnnotatedSet,
    AnnotationError,
    Instance,
    Polygons,
    mask_to_instance,
    polygon_area,
    polygons_to_box,
    segmentation_to_mask,
)
from pipeline.masks.contours import mask_to_loops, mask_to_polygons
from pipeline.storage import files
from pipeline.storage.uri import base_name, file_stem, join_uri, parent_uri, plain_uri

_CIRCLE_POINTS = 64
_SHAPES_WITHOUT_AREA = ("point", "line", "linestrip", "points")
_BACKGROUND_NAME = "_background_"


def load_labelme(uri: str, image_root: str | None = None) -> AnnotatedSet:
    """Reads a folder of LabelMe files, or one file: polygons, rectangles, circles and masks.

    Shapes of one label with the same `group_id` are one object. Shapes labelled `__ignore__`, or with the flag
    `iscrowd`, are regions that are neither positive nor negative. Points and lines are left out and counted in `notes`.

    Args:
        uri: the folder, or one JSON file.
        image_root: folder of the photos; by default each file's `imagePath` is followed.

    Returns:
        Images in order of file name, ids from 1. Classes are in the order of `labels.txt` where the folder has one
        (LabelMe's own convention), else in order of name; category ids from 1.

    Raises:
        AnnotationError: no LabelMe file, an unknown shape type, a mask beyond the image, or a label that `labels.txt`
            lacks.
    """
    uri = plain_uri(str(uri)).rstrip("/")
    folder = parent_uri(uri) if uri.lower().endswith(".json") else uri
    names = [base_name(uri)] if folder != uri else [n for n in files.iter_names(uri) if n.endswith(".json")]
    contents = [(name, files.read_json(join_uri(folder, name))) for name in names]
    contents = [(name, content) for name, content in contents if isinstance(content, dict) and "shapes" in content]
    if not contents:
        raise AnnotationError(f"{uri} holds no LabelMe annotations: there is no JSON file with 'shapes'")
    classes = _class_names(folder, contents)
    label_of = {name: index + 1 for index, name in enumerate(classes)} | {IGNORE_NAME: 0}
    notes: Counter[str] = Counter()
    images = []
    for number, (name, entry) in enumerate(contents, start=1):
        where = join_uri(folder, name)
        height, width = int(entry["imageHeight"]), int(entry["imageWidth"])
        groups: dict[Any, list[dict[str, Any]]] = {}
        for index, shape in enumerate(entry["shapes"]):
            if shape["label"] not in label_of:
                raise AnnotationError(
                    f"{where}: the label {shape['label']!r} is not in labels.txt: {', '.join(classes)}"
                )
            if shape.get("shape_type", "polygon") in _SHAPES_WITHOUT_AREA:
                notes["points and lines left out"] += 1
                continue
            group = shape.get("group_id")
            groups.setdefault((shape["label"], index if group is None else f"group {group}"), []).append(shape)
        instances = tuple(
            _to_instance(shapes, label_of[label], height, width, where) for (label, _), shapes in groups.items()
        )
        file_name = str(entry["imagePath"]).replace("\\", "/")
        path = join_uri(image_root, base_name(file_name)) if image_root else join_uri(folder, file_name)
        images.append(AnnotatedImage(number, file_name, path, height, width, instances))
    categories = tuple(Category(index + 1, name) for index, name in enumerate(classes))
    return AnnotatedSet(tuple(images), categories, notes=dict(notes))


def write_labelme(annotated: AnnotatedSet, folder: str, *, copy_photos: bool = True) -> Counter[str]:
    """Writes one JSON file for each photo, and `labels.txt`.

    The parts of an object are polygons of one group. An object with holes is a shape of type `mask`.

    Returns:
        What LabelMe cannot hold: description -> count.

    Raises:
        AnnotationError: two photos of the same name.
    """
    losses: Counter[str] = Counter()
    names = flat_names(annotated)
    for index, image in enumerate(annotated.images):
        shapes: list[dict[str, Any]] = []
        for group, instance in enumerate(image.instances, start=1):
            label = annotated.categories[instance.label - 1].name if instance.label else IGNORE_NAME
            shapes += _to_shapes(instance, label, group, image.height, image.width)
            losses["keypoints"] += instance.keypoints is not None
        losses["lists of labelled classes"] += image.labelled_classes is not None
        losses["extra channels"] += len(image.extra_paths)
        if copy_photos:
            copy_photo(image, join_uri(folder, names[index]), losses)
        content: dict[str, Any] = {
            "version": "5.5.0",
            "flags": {},
            "shapes": shapes,
            "imagePath": names[index] if copy_photos else reference_to(image, folder),
            "imageData": None,
            "imageHeight": image.height,
            "imageWidth": image.width,
        }
        files.write_json(join_uri(folder, f"{file_stem(names[index])}.json"), content)
    if [c.id for c in annotated.categories] != list(range(1, len(annotated.categories) + 1)):
        losses["category ids numbered anew"] += len(annotated.categories)
    lines = [IGNORE_NAME, _BACKGROUND_NAME, *(category.name for category in annotated.categories)]
    files.write_bytes(join_uri(folder, "labels.txt"), "".join(f"{line}\n" for line in lines).encode())
    return +losses


def _class_names(folder: str, contents: list[tuple[str, dict[str, Any]]]) -> list[str]:
    listing = join_uri(folder, "labels.txt")
    if files.is_file(listing):
        names = [line.strip() for line in files.read_bytes(listing).decode().splitlines() if line.strip()]
    else:
        names = sorted({str(shape["label"]) for _, content in contents for shape in content["shapes"]})
    return [name for name in names if name not in (IGNORE_NAME, _BACKGROUND_NAME)]


def _to_instance(shapes: list[dict[str, Any]], label: int, height: int, width: int, where: str) -> Instance:
    iscrowd = label == 0 or any((shape.get("flags") or {}).get("iscrowd") for shape in shapes)
    if any(shape.get("shape_type") == "mask" for shape in shapes):
        mask = np.zeros((height, width), dtype=bool)
        for shape in shapes:
            mask |= _shape_pixels(shape, height, width, where)
        return mask_to_instance(label, mask, iscrowd=iscrowd)
    polygons = [_outline(shape, where) for shape in shapes]
    polygons = [polygon for polygon in polygons if len(polygon) >= 6]
    return Instance(label, polygons_to_box(polygons, height, width), polygons, iscrowd, polygon_area(polygons))


def _outline(shape: dict[str, Any], where: str) -> list[float]:
    kind, points = shape.get("shape_type", "polygon"), shape["points"]
    if kind == "polygon":
        points = points[:-1] if len(points) > 1 and points[0] == points[-1] else points
        return [float(value) for point in points for value in point]
    if kind == "rectangle":
        (x1, y1), (x2, y2) = points[0], points[-1] if len(points) == 2 else points[2]
        return [float(v) for v in (x1, y1, x2, y1, x2, y2, x1, y2)]
    if kind == "circle":
        (cx, cy), (px, py) = points
        radius = math.hypot(px - cx, py - cy)
        angles = [2 * math.pi * step / _CIRCLE_POINTS for step in range(_CIRCLE_POINTS)]
        return [v for a in angles for v in (cx + radius * math.cos(a), cy + radius * math.sin(a))]
    raise AnnotationError(f"{where}: a shape of type {kind!r}; allowed are polygon, rectangle, circle, mask")


def _shape_pixels(shape: dict[str, Any], height: int, width: int, where: str) -> np.ndarray:
    """A shape's mask: bool [H, W]. The two points of a shape of type `mask` are its first and its last pixel."""
    if shape.get("shape_type") != "mask":
        return segmentation_to_mask([_outline(shape, where)], height, width) != 0
    with Image.open(io.BytesIO(base64.b64decode(shape["mask"]))) as image:
        window = np.asarray(image.convert("L")) != 0
    x, y = (round(value) for value in shape["points"][0])
    if x < 0 or y < 0 or y + window.shape[0] > height or x + window.shape[1] > width:
        raise AnnotationError(
            f"{where}: a mask of {window.shape} pixels at ({x}, {y}) on an image of [{height}, {width}]"
        )
    pixels = np.zeros((height, width), dtype=bool)
    pixels[y : y + window.shape[0], x : x + window.shape[1]] = window
    return pixels


def _to_shapes(instance: Instance, label: str, group: int, height: int, width: int) -> list[dict[str, Any]]:
    common = {"label": label, "flags": {"iscrowd": True} if instance.iscrowd and instance.label else {}}
    polygons: Polygons
    if isinstance(instance.segmentation, list):
        polygons = instance.segmentation
    else:
        mask = instance.mask(height, width)
        if mask_to_loops(mask)[1]:
            return [{**common, "group_id": None, "shape_type": "mask", **_mask_fields(mask)}]
        polygons = mask_to_polygons(mask)
    return [
        {
            **common,
            "points": [list(point) for point in zip(polygon[0::2], polygon[1::2])],
            "group_id": group if len(polygons) > 1 else None,
            "shape_type": "polygon",
        }
        for polygon in polygons
    ]


def _mask_fields(mask: np.ndarray) -> dict[str, Any]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    y1, y2, x1, x2 = (int(v) for v in (rows[0], rows[-1], columns[0], columns[-1]))
    buffer = io.BytesIO()
    Image.fromarray(mask[y1 : y2 + 1, x1 : x2 + 1] * np.uint8(255)).convert("1").save(buffer, "PNG")
    return {"points": [[x1, y1], [x2, y2]], "mask": base64.b64encode(buffer.getvalue()).decode("ascii")}
