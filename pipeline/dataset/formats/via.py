"""VGG Image Annotator (VIA): reads JSON of versions 1 and 2 and of whole projects, and writes it.

VIA files have no image sizes: they are read from the photos. https://www.robots.ox.ac.uk/~vgg/software/via/
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from model.categories import Category
from pipeline.dataset.formats.photo_copy import copy_photo, flat_names, reference_to
from pipeline.dataset.photos import UnusablePhoto, read_header
from pipeline.dataset.types import (
    IGNORE_NAME,
    AnnotatedImage,
    AnnotatedSet,
    AnnotationError,
    Instance,
    polygon_area,
    polygons_to_box,
    segmentation_to_polygon,
)
from pipeline.storage import files
from pipeline.storage.uri import join_uri, parent_uri, plain_uri

_CLASS_ATTRIBUTES = ("class", "label", "category", "name", "type", "object")
_CROWD = "iscrowd"
_CIRCLE_POINTS = 64


def load_via(
    folder_or_json: str,
    image_root: str | None = None,
    *,
    default_category: str = "object",
    class_attribute: str | None = None,
) -> AnnotatedSet:
    """Reads VIA annotations: polygons, polylines (closed), rectangles, circles and ellipses.

    Points are left out and counted in `notes`.

    Args:
        folder_or_json: the JSON file, or a folder that holds `via_region_data.json`.
        image_root: folder of the photos; by default that of the JSON file.
        default_category: the name of the only class where regions have no attributes (balloon).
        class_attribute: the region attribute that names the class; by default the only attribute, or the first of
            class, label, category, name, type, object that there is.

    Returns:
        Images in the file's order, ids from 1; category ids from 1 in order of name. An image whose photo cannot be
        read has size (0, 0), and the loader skips it.

    Raises:
        AnnotationError: no VIA file, several attributes of which none is known to name the class, or a region without
            the class attribute.
    """
    json_path = plain_uri(str(folder_or_json))
    if not json_path.lower().endswith(".json"):
        json_path = join_uri(json_path, "via_region_data.json")
    if not files.is_file(json_path):
        raise AnnotationError(f"there is no annotation file {json_path}")
    root = image_root or parent_uri(json_path)
    content = files.read_json(json_path)
    content = content.get("_via_img_metadata", content) if isinstance(content, dict) else None
    if not content or not all(isinstance(entry, dict) and "filename" in entry for entry in content.values()):
        raise AnnotationError(f"{json_path} is no VIA annotation file: each entry must have a 'filename'")

    entries = [(entry["filename"], _regions_of(entry)) for entry in content.values()]
    attribute = class_attribute or _class_attribute([r for _, regions in entries for r in regions], json_path)
    names = [[_class_of(r, attribute, default_category, f) for r in regions] for f, regions in entries]
    used = sorted({name for image_names in names for name in image_names} - {IGNORE_NAME}) or [default_category]
    label_of = {name: index + 1 for index, name in enumerate(used)} | {IGNORE_NAME: 0}

    notes: Counter[str] = Counter()
    images = []
    for number, ((file_name, regions), image_names) in enumerate(zip(entries, names, strict=True), start=1):
        path = join_uri(root, file_name)
        outlines = [_polygon_of(region["shape_attributes"], file_name) for region in regions]
        height, width = _size_of(path, outlines, notes)
        instances = []
        for region, name, outline in zip(regions, image_names, outlines, strict=True):
            if outline is None:
                notes["points left out"] += 1
                continue
            polygons = [outline] if len(outline) >= 6 else []
            box = polygons_to_box([outline], height or 2**31, width or 2**31)
            iscrowd = name == IGNORE_NAME or str((region.get("region_attributes") or {}).get(_CROWD)) == "1"
            instances.append(Instance(label_of[name], box, polygons, iscrowd, polygon_area(polygons)))
        images.append(AnnotatedImage(number, file_name, path, height, width, tuple(instances)))
    categories = tuple(Category(index + 1, name) for index, name in enumerate(used))
    return AnnotatedSet(tuple(images), categories, notes=dict(notes))


def write_via(annotated: AnnotatedSet, folder: str, *, copy_photos: bool = True) -> Counter[str]:
    """Writes `via_region_data.json` and the photos: one polygon for each object, its class in the attribute `class`.

    An object of several parts or with holes becomes one polygon that covers the same pixels. Crowd regions have the
    attribute `iscrowd`.

    Returns:
        What VIA cannot hold: description -> count.

    Raises:
        AnnotationError: two photos of the same name.
    """
    losses: Counter[str] = Counter()
    names = flat_names(annotated)
    content = {}
    for index, image in enumerate(annotated.images):
        regions = []
        for instance in image.instances:
            polygon = segmentation_to_polygon(instance.segmentation, image.height, image.width)
            if not polygon:
                losses["objects without a mask"] += 1
                continue
            attributes = {"class": annotated.categories[instance.label - 1].name if instance.label else IGNORE_NAME}
            if instance.iscrowd and instance.label:
                attributes[_CROWD] = "1"
            shape = {"name": "polygon", "all_points_x": polygon[0::2], "all_points_y": polygon[1::2]}
            regions.append({"shape_attributes": shape, "region_attributes": attributes})
            losses["keypoints"] += instance.keypoints is not None
        losses["lists of labelled classes"] += image.labelled_classes is not None
        losses["extra channels"] += len(image.extra_paths)
        if copy_photos:
            copy_photo(image, join_uri(folder, names[index]), losses)
        name = names[index] if copy_photos else reference_to(image, folder)
        content[name] = {"filename": name, "size": -1, "regions": regions, "file_attributes": {}}
    used = {instance.label for image in annotated.images for instance in image.instances}
    losses["classes without an object"] += len(set(range(1, len(annotated.categories) + 1)) - used)
    if [(c.id, c.name) for c in annotated.categories] != list(
        enumerate(sorted(c.name for c in annotated.categories), start=1)
    ):
        losses["category ids numbered anew"] += len(annotated.categories)
    files.write_json(join_uri(folder, "via_region_data.json"), content)
    return +losses


def _regions_of(entry: dict[str, Any]) -> list[dict[str, Any]]:
    regions = entry.get("regions", [])
    return list(regions.values()) if isinstance(regions, dict) else list(regions)  # VIA 1 writes a dict, VIA 2 a list


def _class_attribute(regions: list[dict[str, Any]], where: str) -> str | None:
    keys = {key for region in regions for key in region.get("region_attributes") or {}} - {_CROWD}
    if len(keys) <= 1:
        return next(iter(keys), None)
    if known_keys := [key for key in _CLASS_ATTRIBUTES if key in keys]:
        return known_keys[0]
    raise AnnotationError(
        f"{where}: which of the region attributes {sorted(keys)} names the class? Say class_attribute"
    )


def _class_of(region: dict[str, Any], attribute: str | None, default: str, file_name: str) -> str:
    if attribute is None:
        return default
    value = (region.get("region_attributes") or {}).get(attribute)
    if isinstance(value, dict):  # check boxes: {"dog": true}
        chosen = [name for name, on in value.items() if on]
        value = chosen[0] if len(chosen) == 1 else None
    if value is None or value == "":
        raise AnnotationError(f"{file_name}: a region has no {attribute!r}, so that its category is unknown")
    return str(value)


def _polygon_of(shape: dict[str, Any], file_name: str) -> list[float] | None:
    """The outline as one flat polygon, without a closing point that repeats the first; None for a point."""
    kind = shape.get("name")
    if kind in ("polygon", "polyline"):
        points = list(zip(shape["all_points_x"], shape["all_points_y"], strict=True))
        if len(points) > 1 and points[0] == points[-1]:
            points.pop()
        return [float(value) for point in points for value in point]
    if kind == "rect":
        x, y, w, h = (float(shape[key]) for key in ("x", "y", "width", "height"))
        return [x, y, x + w, y, x + w, y + h, x, y + h]
    if kind in ("circle", "ellipse"):
        rx = float(shape["r"] if kind == "circle" else shape["rx"])
        ry = rx if kind == "circle" else float(shape["ry"])
        theta = float(shape.get("theta", 0.0))
        outline = []
        for step in range(_CIRCLE_POINTS):
            angle = 2 * math.pi * step / _CIRCLE_POINTS
            u, v = rx * math.cos(angle), ry * math.sin(angle)
            outline.append(float(shape["cx"]) + u * math.cos(theta) - v * math.sin(theta))
            outline.append(float(shape["cy"]) + u * math.sin(theta) + v * math.cos(theta))
        return outline
    if kind == "point":
        return None
    raise AnnotationError(
        f"{file_name}: a region of shape {kind!r}; allowed are polygon, polyline, rect, circle, ellipse"
    )


def _size_of(path: str, outlines: list[list[float] | None], notes: Counter[str]) -> tuple[int, int]:
    """(H, W) that the outlines refer to: the photo's turned size, or its stored one if they fit only that."""
    try:
        header = read_header(path)
    except UnusablePhoto:
        notes["photos that cannot be read"] += 1
        return (0, 0)
    max_x = max((max(outline[0::2]) for outline in outlines if outline), default=0)
    max_y = max((max(outline[1::2]) for outline in outlines if outline), default=0)

    def fits(size: tuple[int, int]) -> bool:
        return max_y <= size[0] + 1 and max_x <= size[1] + 1  # clicks on the border are up to a pixel outside

    stored = (header.height, header.width)
    if header.turned_size != stored and not fits(header.turned_size) and fits(stored):
        notes["photos annotated without their EXIF turn"] += 1
        return stored
    return header.turned_size
