"""LabelMe: reads and writes its JSON, one file for each photo.

https://github.com/wkentaro/labelme
"""

from __future__ import annotations

import base64
import io
import math
import posixpath
from collections import Counter
from typing import Any

import msgspec
import numpy as np
from PIL import Image

from model.categories import Category
from pipeline.dataset.faults import FaultList, shown
from pipeline.dataset.formats.class_names import BACKGROUND_NAME, check_distinct, check_writable, read_lines
from pipeline.dataset.formats.losses import count_losses
from pipeline.dataset.formats.outlines import ellipse_outline, outlines_to_instance
from pipeline.dataset.formats.photo_copy import copy_photo, flat_names
from pipeline.dataset.formats.records import MOST_PIXELS, Coordinate, Length, Name, to_record
from pipeline.dataset.types import (
    IGNORE_NAME,
    AnnotatedImage,
    AnnotatedSet,
    AnnotationError,
    Instance,
    Polygons,
    mask_to_box,
    mask_to_instance,
    segmentation_to_mask,
)
from pipeline.masks.contours import mask_to_loops, mask_to_polygons
from pipeline.notes import NoteList
from pipeline.storage.files import Location
from pipeline.storage.uri import base_name, file_stem, is_full, relative_uri

_POLYGONS = ("polygon", "rotation", "oriented_rectangle")  # the last two: rectangles of four corners in other tools
_SHAPES_WITHOUT_AREA = ("point", "line", "linestrip", "points")
_SHAPES = (*_POLYGONS, "rectangle", "circle", "mask", *_SHAPES_WITHOUT_AREA)
_NUM_POINTS = {"rectangle": (0, 1, 2, 4), "circle": (0, 1, 2), "mask": (2,)}


class _Flags(msgspec.Struct):
    iscrowd: bool | None = None


class _Shape(msgspec.Struct):
    label: Name | int
    points: list[tuple[Coordinate, Coordinate]]
    shape_type: str | None = None
    group_id: int | str | None = None
    flags: _Flags | None = None
    mask: str | None = None


class _Photo(msgspec.Struct):
    shapes: list[Any]
    image_path: Name = msgspec.field(name="imagePath")
    height: Length = msgspec.field(name="imageHeight")
    width: Length = msgspec.field(name="imageWidth")


def load_labelme(place: str | Location, image_root: str | None = None) -> AnnotatedSet:
    """Reads a folder of LabelMe files and its sub-folders, or one file: polygons, rectangles, circles and masks.

    Shapes of one label with the same `group_id` are one object. Shapes labelled `__ignore__`, or with the flag
    `iscrowd`, are regions that are neither positive nor negative. A label that is a whole number is read as its digits.
    A shape without a type is a polygon. Points and lines are left out and counted in `notes`, as are JSON files without
    'shapes'.

    Args:
        place: the folder, or one JSON file.
        image_root: folder of the photos, each in the sub-folder of its file; by default each file's `imagePath` is
            followed.

    Returns:
        Images in order of file name, ids from 1. Classes are in the order of `labels.txt` where the folder has one
        (LabelMe's own convention), else in order of name; category ids from 1.

    Raises:
        AnnotationError: no LabelMe file, entries that break the format's schema, an unknown shape type, a mask beyond
            the image, a label that `labels.txt` lacks, or two files of one photo.
    """
    place = Location.of(place)
    folder = place.parent if place.uri.lower().endswith(".json") else place
    keys = [place.name] if folder != place else list(place.iter_names(recursive=True))
    faults, notes = FaultList(), NoteList()
    photos: dict[str, tuple[_Photo, list[_Shape]]] = {}
    for key in sorted(key for key in keys if key.lower().endswith(".json")):
        content = (folder / key).read_json()
        if not isinstance(content, dict) or "shapes" not in content:
            notes.add("JSON files without 'shapes' left out", key)
        elif (photo := to_record(content, _Photo, key, faults)) is not None:
            entries = enumerate(photo.shapes)
            records = (to_record(entry, _Shape, f"{key}: shape {index}", faults) for index, entry in entries)
            photos[key] = (photo, [record for record in records if record is not None])
            if photo.height * photo.width > MOST_PIXELS:
                faults.add(f"{key} is of {photo.height} x {photo.width} pixels; allowed are {MOST_PIXELS:,} in all")
    faults.refuse_if_any(place.uri)
    if not photos:
        raise AnnotationError(f"{place} holds no LabelMe annotations: there is no JSON file with 'shapes'")
    classes = _class_names(folder, {str(shape.label) for _, shapes in photos.values() for shape in shapes})
    label_of = {name: index + 1 for index, name in enumerate(classes)} | {IGNORE_NAME: 0}
    images: list[AnnotatedImage] = []
    key_of_path: dict[Location, str] = {}
    for key, (photo, shapes) in photos.items():
        size = (photo.height, photo.width)
        groups: dict[tuple[str, str], dict[int, _Shape]] = {}
        for index, shape in enumerate(shapes):
            name, kind, label = f"{key}: shape {index}", shape.shape_type or "polygon", str(shape.label)
            if label not in label_of:
                faults.add(f"{name} has the label {label!r}, which is not in labels.txt: {', '.join(classes)}")
            elif kind not in _SHAPES:
                faults.add(f"{name} has shape_type {shown(kind)}; allowed are {', '.join(_SHAPES)}")
            elif kind in _SHAPES_WITHOUT_AREA:
                notes.add("points and lines left out")
            elif len(shape.points) not in _NUM_POINTS.get(kind, (len(shape.points),)):
                faults.add(f"{name}, a {kind}, has {len(shape.points)} points; allowed are {_NUM_POINTS[kind][-1]}")
            else:
                group = f"shape {index}" if shape.group_id is None else f"group {shape.group_id!r}"
                groups.setdefault((label, group), {})[index] = shape
        instances = (
            _to_instance(members, label_of[label], size, f"{key}: ", faults, notes)
            for (label, _), members in groups.items()
        )
        name, sub_folder = photo.image_path.replace("\\", "/"), posixpath.dirname(key)
        file_name = name if is_full(name) else posixpath.normpath(posixpath.join(sub_folder, name))
        path = folder / file_name
        if image_root:
            path = folder.at(image_root) / posixpath.join(sub_folder, base_name(name))
        if (first_key := key_of_path.setdefault(path, key)) != key:
            faults.add(f"{first_key} and {key} are of one photo, {path}")
        present = tuple(instance for instance in instances if instance is not None)
        images.append(AnnotatedImage(len(images) + 1, file_name, path, *size, present))
    faults.refuse_if_any(place.uri)
    categories = tuple(Category(index + 1, name) for index, name in enumerate(classes))
    return AnnotatedSet(tuple(images), categories, notes=notes.to_dict())


def write_labelme(annotated: AnnotatedSet, place: str | Location, *, copy_photos: bool = True) -> Counter[str]:
    """Writes one JSON file for each photo, and `labels.txt`.

    The parts of an object are polygons of one group. An object with holes is a shape of type `mask`.

    Returns:
        What LabelMe cannot hold: description -> count.

    Raises:
        AnnotationError: two photos of the same name, or a class that a list of lines cannot hold.
    """
    check_writable(annotated.categories, "LabelMe")
    folder = Location.of(place)
    names = flat_names(annotated)
    keys = [f"{file_stem(name)}.json" for name in names]
    id_of = {key: index + 1 for index, key in enumerate(sorted(keys))}
    losses = count_losses(
        annotated,
        names,
        image_ids=[id_of[key] for key in keys],
        category_ids=range(1, len(annotated.categories) + 1),
    )
    for image, name, key in zip(annotated.images, names, keys, strict=True):
        shapes: list[dict[str, object]] = []
        for group, instance in enumerate(image.instances, start=1):
            label = annotated.categories[instance.label - 1].name if instance.label else IGNORE_NAME
            parts = _to_shapes(instance, label, group, image.height, image.width)
            losses["objects without a mask"] += not parts
            shapes += parts
        if copy_photos:
            copy_photo(image.path, folder / name, losses)
        content: dict[str, object] = {
            "version": "5.5.0",
            "flags": {},
            "shapes": shapes,
            "imagePath": name if copy_photos else relative_uri(image.path.uri, folder.uri),
            "imageData": None,
            "imageHeight": image.height,
            "imageWidth": image.width,
        }
        (folder / key).write_json(content)
    lines = [IGNORE_NAME, BACKGROUND_NAME, *(category.name for category in annotated.categories)]
    (folder / "labels.txt").write_bytes("".join(f"{line}\n" for line in lines).encode())
    return +losses


def _class_names(folder: Location, used: set[str]) -> list[str]:
    listing = folder / "labels.txt"
    names = [line for line in read_lines(listing) if line] if listing.is_file() else sorted(used)
    check_distinct(names, listing.uri)
    return [name for name in names if name not in (IGNORE_NAME, BACKGROUND_NAME)]


def _to_instance(
    shapes: dict[int, _Shape], label: int, size: tuple[int, int], where: str, faults: FaultList, notes: NoteList
) -> Instance | None:
    """The object of these shapes by index; None, and a fault or a note, where there is none."""
    iscrowd = label == 0 or any(shape.flags is not None and shape.flags.iscrowd for shape in shapes.values())
    if not any(shape.shape_type == "mask" for shape in shapes.values()):
        name = f"{where}shape {', '.join(map(str, shapes))}"
        outlines = [_outline(shape) for shape in shapes.values()]
        return outlines_to_instance(label, outlines, size, iscrowd=iscrowd, name=name, notes=notes)
    mask = np.zeros(size, dtype=bool)
    for index, shape in shapes.items():
        try:
            mask |= _shape_pixels(shape, *size)
        except ValueError as error:
            faults.add(f"{where}shape {index} {error}")
    if not mask.any():
        notes.add("objects without a pixel left out", f"{where}shape {', '.join(map(str, shapes))}")
        return None
    return mask_to_instance(label, mask, iscrowd=iscrowd)


def _outline(shape: _Shape) -> list[float]:
    """The outline as one flat polygon, without a closing point that repeats the first."""
    points = shape.points
    if shape.shape_type == "rectangle" and len(points) > 1:
        (x1, x2), (y1, y2) = ((min(values), max(values)) for values in zip(*points, strict=True))
        return [x1, y1, x2, y1, x2, y2, x1, y2]
    if shape.shape_type == "circle" and len(points) == 2:
        (cx, cy), (px, py) = points
        radius = math.hypot(px - cx, py - cy)
        return ellipse_outline(cx, cy, radius, radius)
    points = points[:-1] if len(points) > 1 and points[0] == points[-1] else points
    return [value for point in points for value in point]


def _shape_pixels(shape: _Shape, height: int, width: int) -> np.ndarray:
    """A shape's mask: bool [H, W]. The two points of a shape of type `mask` are its first and its last pixel.

    Raises:
        ValueError: a mask that is no image, or not within the photo; the message is the end of a sentence.
    """
    if shape.shape_type != "mask":
        return segmentation_to_mask([_outline(shape)], height, width) != 0
    try:
        with Image.open(io.BytesIO(base64.b64decode(shape.mask or "", validate=True))) as image:
            window = np.asarray(image.convert("L")) != 0
    except Exception:  # Pillow's plugins raise almost anything on broken files
        raise ValueError(f"has the mask {shown(shape.mask)}; allowed is a PNG in base64") from None
    (x, y), (x_last, y_last) = ((round(px), round(py)) for px, py in shape.points)
    if (y_last - y + 1, x_last - x + 1) != window.shape:
        raise ValueError(f"has a mask of {window.shape} pixels (H, W), but points {shown(shape.points)}")
    if x < 0 or y < 0 or y_last >= height or x_last >= width:
        raise ValueError(f"has a mask of {window.shape} pixels at ({x}, {y}) on an image of [{height}, {width}]")
    pixels = np.zeros((height, width), dtype=bool)
    pixels[y : y_last + 1, x : x_last + 1] = window
    return pixels


def _to_shapes(instance: Instance, label: str, group: int, height: int, width: int) -> list[dict[str, object]]:
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


def _mask_fields(mask: np.ndarray) -> dict[str, object]:
    x1, y1, x2, y2 = map(int, mask_to_box(mask))
    buffer = io.BytesIO()
    Image.fromarray(mask[y1:y2, x1:x2] * np.uint8(255)).convert("1").save(buffer, "PNG")
    return {"points": [[x1, y1], [x2 - 1, y2 - 1]], "mask": base64.b64encode(buffer.getvalue()).decode("ascii")}
