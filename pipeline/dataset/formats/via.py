"""VGG Image Annotator (VIA): reads JSON of versions 1 and 2 and of whole projects, and writes it.

VIA files have no image sizes: they are read from the photos. Files that are written here state them as the attributes
`image_height` and `image_width` of the photo, so that masks stay in register with it. https://www.robots.ox.ac.uk/~vgg/software/via/
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec

from model.categories import Category
from pipeline.dataset.faults import FaultList, shown
from pipeline.dataset.formats.class_names import check_writable
from pipeline.dataset.formats.losses import count_losses
from pipeline.dataset.formats.outlines import ellipse_outline, outlines_to_instance
from pipeline.dataset.formats.photo_copy import copy_photo, flat_names
from pipeline.dataset.formats.records import Coordinate, Length, Name, to_record
from pipeline.dataset.photos import UnusablePhoto, read_header
from pipeline.dataset.types import (
    IGNORE_NAME,
    AnnotatedImage,
    AnnotatedSet,
    AnnotationError,
    segmentation_to_polygon,
)
from pipeline.notes import NoteList
from pipeline.storage.files import Location
from pipeline.storage.uri import relative_uri

_CLASS_ATTRIBUTES = ("class", "label", "category", "name", "type", "object")
_CROWD = "iscrowd"
_IS_CROWD = {"": False, "0": False, "1": True}


class _Points(msgspec.Struct):
    all_points_x: list[Coordinate]
    all_points_y: list[Coordinate]

    def outline(self) -> list[float]:
        points = list(zip(self.all_points_x, self.all_points_y, strict=True))
        if len(points) > 1 and points[0] == points[-1]:
            points.pop()
        return [value for point in points for value in point]


class _Rect(msgspec.Struct):
    x: Coordinate
    y: Coordinate
    width: Coordinate
    height: Coordinate

    def outline(self) -> list[float]:
        x1, y1, x2, y2 = self.x, self.y, self.x + self.width, self.y + self.height
        return [x1, y1, x2, y1, x2, y2, x1, y2]


class _Circle(msgspec.Struct):
    cx: Coordinate
    cy: Coordinate
    r: Coordinate

    def outline(self) -> list[float]:
        return ellipse_outline(self.cx, self.cy, self.r, self.r)


class _Ellipse(msgspec.Struct):
    cx: Coordinate
    cy: Coordinate
    rx: Coordinate
    ry: Coordinate
    theta: Coordinate = 0.0

    def outline(self) -> list[float]:
        return ellipse_outline(self.cx, self.cy, self.rx, self.ry, self.theta)


_Shape = _Points | _Rect | _Circle | _Ellipse
_SHAPES: dict[str, type[_Shape]] = {
    "polygon": _Points,
    "polyline": _Points,
    "rect": _Rect,
    "circle": _Circle,
    "ellipse": _Ellipse,
}


class _Region(msgspec.Struct):
    shape_attributes: dict[str, Any]
    region_attributes: dict[str, Any] | None = None

    @property
    def attributes(self) -> dict[str, Any]:
        return self.region_attributes or {}


class _Size(msgspec.Struct):
    image_height: Length
    image_width: Length


class _Photo(msgspec.Struct):
    filename: Name
    regions: list[Any] | dict[str, Any] | None = None  # VIA 1 writes a dict, VIA 2 a list
    file_attributes: Any = None


def load_via(place: str | Location, image_root: str | None = None, *, default_category: str = "object") -> AnnotatedSet:
    """Reads VIA annotations: polygons, polylines (closed), rectangles, circles and ellipses.

    Points are left out and counted in `notes`. A photo without 'regions' shows no object.

    Args:
        place: the JSON file, or a folder that holds `via_region_data.json`.
        image_root: folder of the photos; by default that of the JSON file.
        default_category: the name of the only class where regions have no attributes (balloon).

    Returns:
        Images in the file's order, ids from 1; category ids from 1 in order of name. The class is named by the only
        region attribute, or by the first of class, label, category, name, type, object that there is; a whole number
        is read as its digits. An image whose photo cannot be read has size (0, 0), and the loader skips it.

    Raises:
        AnnotationError: no VIA file, entries that break the format's schema, several attributes of which none is known
            to name the class, a region without the class attribute, or two entries of one photo.
    """
    json_path = Location.of(place)
    if not json_path.uri.lower().endswith(".json"):
        json_path /= "via_region_data.json"
    if not json_path.is_file():
        raise AnnotationError(f"there is no annotation file {json_path}")
    root = json_path.at(image_root) if image_root else json_path.parent
    content = json_path.read_json()
    content = content.get("_via_img_metadata", content) if isinstance(content, dict) else None
    if not isinstance(content, dict) or not content:
        raise AnnotationError(f"{json_path} is no VIA annotation file with photos: allowed is an object of one or more")

    faults, notes = FaultList(), NoteList()
    photos = [to_record(entry, _Photo, f"photo {key!r}", faults) for key, entry in content.items()]
    faults.refuse_if_any(f"{json_path} is no VIA annotation file")
    key_of_name: dict[str, str] = {}
    regions_of: list[tuple[_Photo, list[tuple[str, _Region, _Shape | None]]]] = []
    for key, photo in zip(content, photos, strict=True):
        if photo is None:
            continue
        if (first_key := key_of_name.setdefault(photo.filename, key)) != key:
            faults.add(f"photos {first_key!r} and {key!r} are of one file, {photo.filename!r}")
        if photo.regions is None:
            notes.add("photos without 'regions', which show no object", photo.filename)
        regions = photo.regions.values() if isinstance(photo.regions, dict) else photo.regions or ()
        records = [_read_region(e, f"{photo.filename}: region {i}", faults, notes) for i, e in enumerate(regions)]
        regions_of.append((photo, [record for record in records if record is not None]))
    attribute = _class_attribute([r for _, regions in regions_of for _, r, _ in regions], faults)
    names = [[_class_of(r, attribute, default_category, n, faults) for n, r, _ in regions] for _, regions in regions_of]
    faults.refuse_if_any(json_path.uri)
    used = sorted({name for image_names in names for name in image_names} - {IGNORE_NAME}) or [default_category]
    label_of = {name: index + 1 for index, name in enumerate(used)} | {IGNORE_NAME: 0}

    images = []
    for number, ((photo, regions), image_names) in enumerate(zip(regions_of, names, strict=True), start=1):
        path = root / photo.filename
        outlines = [shape.outline() for _, _, shape in regions if shape is not None]
        size = _size_of(photo, path, outlines, notes)
        instances = []
        for (name, region, shape), class_name in zip(regions, image_names, strict=True):
            if shape is None:
                notes.add("points left out")
                continue
            iscrowd = class_name == IGNORE_NAME or _IS_CROWD[str(region.attributes.get(_CROWD, ""))]
            instance = outlines_to_instance(
                label_of[class_name], [shape.outline()], size, iscrowd=iscrowd, name=name, notes=notes
            )
            instances += [] if instance is None else [instance]
        images.append(AnnotatedImage(number, photo.filename, path, *size, tuple(instances)))
    categories = tuple(Category(index + 1, name) for index, name in enumerate(used))
    return AnnotatedSet(tuple(images), categories, notes=notes.to_dict())


def write_via(annotated: AnnotatedSet, place: str | Location, *, copy_photos: bool = True) -> Counter[str]:
    """Writes `via_region_data.json` and the photos: one polygon for each object, its class in the attribute `class`.

    An object of several parts or with holes becomes one polygon that covers the same pixels. Crowd regions have the
    attribute `iscrowd`.

    Returns:
        What VIA cannot hold: description -> count.

    Raises:
        AnnotationError: two photos of the same name, or a class name that is blank or reserved.
    """
    check_writable(annotated.categories, "VIA")
    folder = Location.of(place)
    names = flat_names(annotated)
    used_labels = {instance.label for image in annotated.images for instance in image.instances}
    used = [category for label, category in enumerate(annotated.categories, start=1) if label in used_labels]
    ids_read = {category.name: i for i, category in enumerate(sorted(used, key=lambda c: c.name), start=1)}
    losses = count_losses(
        annotated,
        names,
        image_ids=range(1, len(names) + 1),
        category_ids=[ids_read.get(category.name, category.id) for category in annotated.categories],
    )
    losses["classes without an object"] += len(annotated.categories) - len(used)
    content = {}
    for image, photo in zip(annotated.images, names, strict=True):
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
        if copy_photos:
            copy_photo(image.path, folder / photo, losses)
        name = photo if copy_photos else relative_uri(image.path.uri, folder.uri)
        size = {"image_height": image.height, "image_width": image.width}
        if name in content:
            raise AnnotationError(f"two photos are at {image.path}, and VIA has one entry for a photo")
        content[name] = {"filename": name, "size": -1, "regions": regions, "file_attributes": size}
    (folder / "via_region_data.json").write_json(content)
    return +losses


def _read_region(
    entry: Any, name: str, faults: FaultList, notes: NoteList
) -> tuple[str, _Region, _Shape | None] | None:
    """The region's name, record and shape, which is None for a point; None, and a fault, for a wrong one."""
    region = to_record(entry, _Region, name, faults)
    if region is None:
        return None
    if str(region.attributes.get(_CROWD, "")) not in _IS_CROWD:
        faults.add(f"{name} has {_CROWD} {shown(region.attributes[_CROWD])}; allowed are 0 and 1")
    kind = region.shape_attributes.get("name")
    if kind == "point":
        return name, region, None
    if not isinstance(kind, str) or kind not in _SHAPES:
        faults.add(f"{name} is of shape {shown(kind)}; allowed are {', '.join(_SHAPES)}, point")
        return None
    shape = to_record(region.shape_attributes, _SHAPES[kind], name, faults)
    if isinstance(shape, _Points) and len(shape.all_points_x) != len(shape.all_points_y):
        faults.add(f"{name} has {len(shape.all_points_x)} all_points_x and {len(shape.all_points_y)} all_points_y")
        return None
    return None if shape is None else (name, region, shape)


def _class_attribute(regions: list[_Region], faults: FaultList) -> str | None:
    keys = {key for region in regions for key in region.attributes} - {_CROWD}
    known_keys = [key for key in _CLASS_ATTRIBUTES if key in keys]
    if len(keys) > 1 and not known_keys:
        faults.add(f"none of the region attributes {sorted(keys)} is one of {', '.join(_CLASS_ATTRIBUTES)}: the class")
    return known_keys[0] if known_keys else next(iter(keys), None)


def _class_of(region: _Region, attribute: str | None, default: str, name: str, faults: FaultList) -> str:
    if attribute is None:
        return default
    value = region.attributes.get(attribute)
    if isinstance(value, dict):  # check boxes: {"dog": true}
        chosen = [name for name, on in value.items() if on is True]
        value = chosen[0] if len(chosen) == 1 else value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value or "\0" in value:
        faults.add(f"{name} has {attribute!r} {shown(value)}; allowed is a text that is not empty, the class")
        return default
    return value


def _size_of(photo: _Photo, path: Location, outlines: list[list[float]], notes: NoteList) -> tuple[int, int]:
    """(H, W) that the outlines refer to: the stated one, else the photo's turned one, or its stored one if only that
    fits."""
    try:
        size = msgspec.convert(photo.file_attributes, _Size)
        return (size.image_height, size.image_width)
    except msgspec.ValidationError:
        pass  # a photo's attributes are its annotator's own
    try:
        header = read_header(path)
    except UnusablePhoto as error:
        notes.add("photos that cannot be read", f"{photo.filename}: {error}")
        return (0, 0)
    max_x = max((max(outline[0::2]) for outline in outlines if outline), default=0)
    max_y = max((max(outline[1::2]) for outline in outlines if outline), default=0)

    def fits(size: tuple[int, int]) -> bool:
        return max_y <= size[0] + 1 and max_x <= size[1] + 1  # clicks on the border are up to a pixel outside

    stored = (header.height, header.width)
    if header.turned_size != stored and not fits(header.turned_size) and fits(stored):
        notes.add("photos annotated without their EXIF turn")
        return stored
    return header.turned_size
