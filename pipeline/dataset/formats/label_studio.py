"""Label Studio: reads its JSON of tasks, and writes tasks with annotations, or with predictions to be corrected.

Coordinates are per cent of the photo's width and height. https://labelstud.io/guide/task_format
"""

from __future__ import annotations

import math
import posixpath
import re
import xml.etree.ElementTree as ET
from collections import Counter
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from model.categories import Category
from pipeline.dataset.faults import FaultList, shown
from pipeline.dataset.formats.brush_rle import decode_brush, encode_brush
from pipeline.dataset.formats.common.class_names import check_writable
from pipeline.dataset.formats.common.losses import count_losses
from pipeline.dataset.formats.common.outlines import box_outline, ellipse_outline, outlines_to_instance
from pipeline.dataset.formats.common.photo_copy import check_photo_choice, names_below, place_photo
from pipeline.dataset.formats.common.records import MOST_PIXELS, Length, only_file, to_record
from pipeline.dataset.photos import header_or_note
from pipeline.dataset.types import (
    IGNORE_NAME,
    AnnotatedImage,
    AnnotatedSet,
    AnnotationError,
    Instance,
    Prediction,
    mask_to_instance,
    segmentation_to_mask,
    segmentation_to_polygon,
)
from pipeline.masks.contours import mask_to_loops
from pipeline.notes import NoteList
from pipeline.storage.files import Location
from pipeline.storage.uri import base_name, is_full, is_in_bucket, relative_uri, scheme_of, web_path

_TASKS_FILE, _CONFIG_FILE = "tasks.json", "label_config.xml"
_PHOTO_KEYS = ("image", "img", "photo", "url")
_CROWD = "iscrowd"  # in a region's note
_SHAPES = ("polygon", "brush", "rectangle", "ellipse")
_WITHOUT_AREA = ("keypoint", "vector", "relation", "choices", "rating", "textarea", "taxonomy", "number", "labels")
_UPLOADED = re.compile(r"[0-9a-f]{8}-(.+)")  # what Label Studio puts before the name of an uploaded photo
_LOCAL_FILES = "/data/local-files/"

_Percent = Annotated[float, Meta(ge=-1e4, le=1e4)]


class _Region(msgspec.Struct):
    type: str
    value: dict[str, Any] | None = None
    id: str | int | None = None
    original_height: Length | None = None
    original_width: Length | None = None
    image_rotation: float | None = None
    meta: dict[str, Any] | None = None


class _Polygon(msgspec.Struct):
    points: list[tuple[_Percent, _Percent]]

    def outline(self, _: tuple[int, int]) -> list[float]:
        return [value for point in self.points for value in point]


class _Rectangle(msgspec.Struct):
    x: _Percent
    y: _Percent
    width: _Percent
    height: _Percent
    rotation: _Percent = 0.0

    def outline(self, size: tuple[int, int]) -> list[float]:
        return _turned(box_outline(0, 0, self.width, self.height), (self.x, self.y), self.rotation, size)


class _Ellipse(msgspec.Struct):
    x: _Percent
    y: _Percent
    radius_x: _Percent = msgspec.field(name="radiusX")
    radius_y: _Percent = msgspec.field(name="radiusY")
    rotation: _Percent = 0.0

    def outline(self, size: tuple[int, int]) -> list[float]:
        return _turned(ellipse_outline(0, 0, self.radius_x, self.radius_y), (self.x, self.y), self.rotation, size)


class _Brush(msgspec.Struct):
    rle: list[Annotated[int, Meta(ge=0, le=255)]]
    format: str = "rle"


_VALUES: dict[str, type[_Polygon | _Rectangle | _Ellipse | _Brush]] = {
    "polygon": _Polygon,
    "rectangle": _Rectangle,
    "ellipse": _Ellipse,
    "brush": _Brush,
}


class _Result(msgspec.Struct):
    result: list[Any]
    was_cancelled: bool = False


class _Task(msgspec.Struct):
    data: dict[str, Any]
    annotations: list[Any] | None = None
    predictions: list[Any] | None = None


def load_labelstudio(
    place: str | Location, image_root: str | None = None, *, default_category: str = "object"
) -> AnnotatedSet:
    """Reads Label Studio's JSON: polygons, brushes, rectangles and ellipses.

    A region whose note (`meta.text`) is `iscrowd`, and one labelled `__ignore__`, is neither positive nor negative.
    Rectangles and ellipses are read as the pixels inside. Key points and other results are left out. Both are counted
    in `notes`, as is what else is decided: of several annotations of a task the last is used; a task without one is
    left out, unless no task has one: then the predictions are read.

    Args:
        place: the JSON file, or a folder that holds `tasks.json` or no other JSON.
        image_root: folder of the photos; by default paths behind `/data/local-files/?d=`, and names of uploaded files,
            are those from the JSON file's folder, without its prefix where no such file is there.
        default_category: the class of regions in a file of which none has a label.

    Returns:
        Images in the file's order, ids from 1; classes in order of name, category ids from 1. An image without regions
        whose photo cannot be read has size (0, 0), and the loader skips it.

    Raises:
        AnnotationError: no such JSON, entries that break the format's schema, a region of several labels or of none,
            or two tasks of one photo.
    """
    path = labelstudio_file(Location.of(place))
    content = path.read_json()
    faults, notes = FaultList(), NoteList()
    if not isinstance(content, list) or not content:
        raise AnnotationError(f"{path} is no Label Studio file: allowed is a list of one or more tasks")
    tasks = [to_record(entry, _Task, f"task {index}", faults) for index, entry in enumerate(content)]
    faults.refuse_if_any(f"{path} is no Label Studio file")
    known_tasks = [(f"task {index}", task) for index, task in enumerate(tasks) if task is not None]
    use_predictions = not any(task.annotations for _, task in known_tasks)
    read_tasks: list[tuple[str, str, list[tuple[str, _Region, list[str]]]]] = []
    for name, task in known_tasks:
        photo = _photo_name(task, name, faults)
        regions = _regions_of(task, name, use_predictions, faults, notes)
        if photo is not None and regions is not None:
            read_tasks.append((name, photo, regions))
    faults.refuse_if_any(path.uri)
    if not read_tasks:
        raise AnnotationError(f"{path}: none of its {len(content)} tasks has an annotation or a prediction")
    used = sorted({label for _, _, regions in read_tasks for _, _, labels in regions for label in labels})
    classes = [name for name in used if name != IGNORE_NAME] or [default_category]
    label_of = {name: index + 1 for index, name in enumerate(classes)} | {IGNORE_NAME: 0}
    images: list[AnnotatedImage] = []
    task_of: dict[Location, str] = {}
    for name, photo, regions in read_tasks:
        file_name, location = _photo_place(photo, path, image_root)
        if (first := task_of.setdefault(location, name)) != name:
            faults.add(f"{first} and {name} are of one photo, {location}")
        size = _size_of(regions, location, file_name, name, faults, notes)
        instances = []
        for region_name, region, labels in regions:
            if len(labels) != 1 and (labels or used):
                faults.add(f"{region_name} has the labels {shown(labels)}; allowed is one")
                continue
            label = label_of[labels[0] if labels else default_category]
            instance = _to_instance(region, label, size, region_name, faults, notes)
            instances += [] if instance is None else [instance]
        images.append(AnnotatedImage(len(images) + 1, file_name, location, *size, tuple(instances)))
    faults.refuse_if_any(path.uri)
    categories = tuple(Category(index + 1, name) for index, name in enumerate(classes))
    return AnnotatedSet(tuple(images), categories, notes=notes.to_dict())


def write_labelstudio(
    annotated: AnnotatedSet, place: str | Location, *, photos: str = "copy", as_predictions: bool = False
) -> Counter[str]:
    """Writes `tasks.json`, `label_config.xml` (the project's labelling interface), and the photos in `images/`.

    An object of one part without holes is a polygon, another one a brush. Tasks name their photos as files below the
    document root of Label Studio's local storage; photos in a bucket that are referred to, by their URI.

    Args:
        as_predictions: write predictions, which annotators start from, rather than annotations.

    Returns:
        What Label Studio cannot hold: description -> count.

    Raises:
        AnnotationError: two photos of the same name, or a class name that is blank or reserved.
    """
    check_writable(annotated.categories, "Label Studio")
    folder = Location.of(place)
    check_photo_choice(photos, annotated, folder, can_refer=True, format="Label Studio")
    names = names_below(annotated)
    used_labels = {instance.label for image in annotated.images for instance in image.instances} - {0}
    used_names = sorted(annotated.categories[label - 1].name for label in used_labels)
    ids_read = {name: number for number, name in enumerate(used_names, start=1)}
    category_ids = [ids_read.get(category.name, category.id) for category in annotated.categories]
    losses = count_losses(
        annotated,
        [image.file_name for image in annotated.images] if photos == "refer" else names,
        image_ids=range(1, len(names) + 1),
        category_ids=category_ids,
    )
    losses["classes without an object"] += len(annotated.categories) - len(used_labels)
    tasks: list[dict[str, Any]] = []
    for image, name in zip(annotated.images, names, strict=True):
        regions = [
            _to_region(instance, f"{len(tasks)}-{index}", annotated, image)
            for index, instance in enumerate(image.instances)
        ]
        losses["objects without a mask"] += regions.count(None)
        place_photo(image.path, folder / f"images/{name}", photos, losses)
        uri = f"images/{name}"
        if photos == "refer":
            uri = image.path.uri if is_in_bucket(image.path.uri) else relative_uri(image.path.uri, folder.uri)
        result: dict[str, Any] = {"result": [region for region in regions if region is not None]}
        scores = [instance.score for instance in image.instances if isinstance(instance, Prediction)]
        if as_predictions:
            result |= {"model_version": "maskfleet", "score": round(sum(scores) / max(1, len(scores)), 4)}
        data = {"image": uri if is_in_bucket(uri) else f"{_LOCAL_FILES}?d={_quoted(uri)}"}
        tasks.append({"data": data, "predictions" if as_predictions else "annotations": [result]})
    (folder / _TASKS_FILE).write_json(tasks)
    (folder / _CONFIG_FILE).write_bytes(_label_config([c.name for c in annotated.categories]))
    return +losses


def labelstudio_file(place: Location) -> Location:
    """The JSON file itself, or the one in a folder. Raises AnnotationError when there is none or more than one."""
    return only_file(place, _TASKS_FILE)


def _photo_name(task: _Task, name: str, faults: FaultList) -> str | None:
    """The text in a task's data that names the photo: `image`, or the only text there is."""
    texts = {key: value for key, value in task.data.items() if isinstance(value, str) and value}
    key = next((key for key in _PHOTO_KEYS if key in texts), next(iter(texts), None) if len(texts) == 1 else None)
    if key is None or "\0" in texts[key]:
        faults.add(f"{name} has data {shown(task.data)}; allowed is the photo's place as `image`")
        return None
    return texts[key]


def _regions_of(
    task: _Task, name: str, use_predictions: bool, faults: FaultList, notes: NoteList
) -> list[tuple[str, _Region, list[str]]] | None:
    """Name, record and labels of each region of the result that counts; None for a task without one."""
    kind = "prediction" if use_predictions else "annotation"
    entries = (task.predictions if use_predictions else task.annotations) or []
    records = [to_record(entry, _Result, f"{name}: {kind} {index}", faults) for index, entry in enumerate(entries)]
    results = [(index, record) for index, record in enumerate(records) if record and not record.was_cancelled]
    if not results:
        notes.add("tasks without an annotation left out", name)
        return None
    if use_predictions:
        notes.add("tasks without an annotation, of which the prediction is read", name)
    if len(results) > 1:
        notes.add(f"tasks with several {kind}s, of which the last is read", name)
    index, record = results[-1]
    regions: list[tuple[str, _Region, list[str]]] = []
    labels_of: dict[object, list[str]] = {}  # given apart from the shape, under the same id
    for number, entry in enumerate(record.result):
        region_name = f"{name}: {kind} {index}: result {number}"
        region = to_record(entry, _Region, region_name, faults)
        if region is None:
            continue
        shape = region.type.removesuffix("labels") or "labels"
        value = region.value or {}
        labels = value.get(region.type, value.get("labels", []))
        if not isinstance(labels, list) or not all(isinstance(label, str) and label.strip("\0") for label in labels):
            faults.add(f"{region_name} has {region.type} {shown(labels)}; allowed is a list of one text")
        elif region.type == "labels":
            labels_of.setdefault(region.id, []).extend(labels)
        elif shape in _SHAPES:
            regions.append((region_name, region, labels))
        elif shape in _WITHOUT_AREA or region.type in _WITHOUT_AREA:
            notes.add(f"results without an area left out ({region.type})")
        else:
            allowed = ", ".join(f"{shape}labels" for shape in _SHAPES)
            faults.add(f"{region_name} has type {shown(region.type)}; allowed are {allowed}")
    return [(name, region, labels or labels_of.get(region.id, [])) for name, region, labels in regions]


def _photo_place(text: str, json_path: Location, image_root: str | None) -> tuple[str, Location]:
    """File name and place of a task's photo."""
    name = text
    if scheme_of(text) in ("http", "https") or text.startswith("/data/"):
        web_name, query = web_path(text)
        name = query.get("d") or base_name(web_name) if web_name.endswith(_LOCAL_FILES) else base_name(web_name)
    name = name.replace("\\", "/")
    root = json_path.at(image_root) if image_root else json_path.parent
    if image_root and is_full(name):
        name = base_name(name)
    shorter = _UPLOADED.fullmatch(base_name(name))
    candidates = [name, *([posixpath.join(posixpath.dirname(name), shorter[1])] if shorter else [])]
    candidates += [] if is_full(name) else [f"images/{each}" for each in candidates]
    if image_root:
        candidates += [base_name(each) for each in candidates]
    found = next((each for each in candidates if (root / each).is_file()), name) if len(candidates) > 1 else name
    return found, root / found


def _size_of(
    regions: list[tuple[str, _Region, list[str]]],
    photo: Location,
    file_name: str,
    name: str,
    faults: FaultList,
    notes: NoteList,
) -> tuple[int, int]:
    """(H, W) that the regions state, else the photo's."""
    stated = {
        (region.original_height, region.original_width)
        for _, region, _ in regions
        if region.original_height and region.original_width
    }
    if len(stated) > 1:
        faults.add(f"{name} has regions of photos of the sizes {sorted(map(str, stated))} (H, W); allowed is one")
    for height, width in stated:
        if height and width and height * width <= MOST_PIXELS:
            return (height, width)
        faults.add(f"{name} is of {height} x {width} pixels; allowed are {MOST_PIXELS:,} in all")
    header = header_or_note(photo, file_name, notes)
    return (0, 0) if header is None else header.turned_size


def _to_instance(
    region: _Region, label: int, size: tuple[int, int], name: str, faults: FaultList, notes: NoteList
) -> Instance | None:
    shape = region.type.removesuffix("labels")
    if region.image_rotation:
        faults.add(f"{name} has image_rotation {region.image_rotation:g}; allowed is 0: turn the photo itself")
        return None
    value = to_record(region.value, _VALUES[shape], f"{name}: value", faults)
    if value is None or not size[0]:
        return None
    iscrowd = label == 0 or _is_crowd(region)
    if isinstance(value, _Brush):
        try:
            mask = decode_brush(value.rle, *size)
        except ValueError as error:
            faults.add(f"{name} {error}")
            return None
        if not mask.any():
            notes.add("objects without a pixel left out", name)
            return None
        return mask_to_instance(label, mask, iscrowd=iscrowd)
    if shape != "polygon":
        notes.add(f"{shape} shapes that are read as the pixels inside")
    outline = _to_pixels(value.outline(size), size)
    return outlines_to_instance(label, [outline], size, iscrowd=iscrowd, name=name, notes=notes)


def _is_crowd(region: _Region) -> bool:
    text = (region.meta or {}).get("text")
    return _CROWD in text if isinstance(text, list) else text == _CROWD


def _turned(outline: list[float], at: tuple[float, float], degrees: float, size: tuple[int, int]) -> list[float]:
    """An outline in per cent, moved to a place and turned there clockwise, in the proportions of the photo."""
    height, width = size
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    points = []
    for x, y in zip(outline[0::2], outline[1::2]):
        points.append(at[0] + x * cosine - y * sine * height / width)
        points.append(at[1] + x * sine * width / height + y * cosine)
    return points


def _to_pixels(percent: list[float], size: tuple[int, int]) -> list[float]:
    return (np.reshape(percent, (-1, 2)) * [size[1] / 100, size[0] / 100]).ravel().tolist()


def _to_region(
    instance: Instance, region_id: str, annotated: AnnotatedSet, image: AnnotatedImage
) -> dict[str, Any] | None:
    """An object as a polygon where that gives the very mask back, else as a brush; None without a pixel."""
    mask = instance.mask(image.height, image.width)
    if not mask.any():
        return None
    outer, holes = mask_to_loops(mask)
    kind, value = "brush", {}
    if len(outer) == 1 and not holes:
        polygon = segmentation_to_polygon(instance.segmentation, image.height, image.width)
        percent = (np.reshape(polygon, (-1, 2)) * [100 / image.width, 100 / image.height]).ravel().tolist()
        again = _to_pixels(percent, (image.height, image.width))
        if np.array_equal(segmentation_to_mask([again], image.height, image.width), mask):
            kind, value = "polygon", {"points": np.reshape(percent, (-1, 2)).tolist(), "closed": True}
    if kind == "brush":
        value = {"format": "rle", "rle": encode_brush(mask)}
    class_name = annotated.categories[instance.label - 1].name if instance.label else IGNORE_NAME
    region: dict[str, Any] = {
        "id": region_id,
        "type": f"{kind}labels",
        "from_name": kind,
        "to_name": "image",
        "original_width": image.width,
        "original_height": image.height,
        "image_rotation": 0,
        "value": {**value, f"{kind}labels": [class_name]},
    }
    if instance.iscrowd and instance.label:
        region["meta"] = {"text": [_CROWD]}
    if isinstance(instance, Prediction):
        region["score"] = round(instance.score, 4)
    return region


def _quoted(path: str) -> str:
    """A path for a URL's query: `%`, `#`, `&`, `+` and `?` written as bytes, the rest as it is."""
    return "".join(f"%{ord(char):02X}" if char in "%#&+?;" else char for char in path)


def _label_config(class_names: list[str]) -> bytes:
    root = ET.Element("View")
    ET.SubElement(root, "Image", name="image", value="$image")
    for kind in ("polygon", "brush"):
        labels = ET.SubElement(root, f"{kind.capitalize()}Labels", name=kind, toName="image")
        for name in [*class_names, IGNORE_NAME]:
            ET.SubElement(labels, "Label", value=name)
    ET.indent(root)
    return ET.tostring(root, encoding="utf-8")
