"""CVAT: reads and writes its XML of images, version 1.1 (`CVAT for images`).

https://docs.cvat.ai/docs/manual/advanced/formats/format-cvat/
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np

from model.categories import Category
from pipeline.dataset.faults import FaultList, shown
from pipeline.dataset.formats.common.class_names import check_writable, is_one_line
from pipeline.dataset.formats.common.losses import count_losses
from pipeline.dataset.formats.common.outlines import box_outline, ellipse_outline, outlines_to_instance
from pipeline.dataset.formats.common.photo_copy import check_photo_choice, names_below, place_photo
from pipeline.dataset.formats.common.records import MOST_COORDINATE_PX, MOST_PIXELS, only_file
from pipeline.dataset.types import (
    IGNORE_NAME,
    AnnotatedImage,
    AnnotatedSet,
    AnnotationError,
    Instance,
    Prediction,
    mask_to_box,
    mask_to_instance,
)
from pipeline.masks.contours import mask_to_loops, mask_to_polygons
from pipeline.notes import NoteList
from pipeline.storage.files import Location
from pipeline.storage.uri import relative_uri

_FILE = "annotations.xml"
_WITHOUT_AREA = ("polyline", "points", "tag", "cuboid", "skeleton")
_SHAPES = ("polygon", "box", "mask", "ellipse", *_WITHOUT_AREA)
_CROWD, _SCORE = "iscrowd", "score"
_TRUTH = {"true": True, "1": True, "false": False, "0": False}


def load_cvat(place: str | Location, image_root: str | None = None) -> AnnotatedSet:
    """Reads CVAT's XML of images: polygons, boxes (turned or not), ellipses and masks.

    Shapes of one label with the same `group_id` other than 0 are one object. Shapes labelled `__ignore__`, or with an
    attribute `iscrowd` that is true, are regions that are neither positive nor negative. Boxes and ellipses are read as
    the pixels inside. Points, lines, cuboids, skeletons and tags are left out. Both are counted in `notes`.

    Args:
        place: the XML file, or a folder that holds `annotations.xml` or no other XML.
        image_root: folder of the photos; by default `images` beside the file where it is there, else the file's own.

    Returns:
        Images in the file's order, ids from 1. Classes are the labels of `meta` in their order, else those that are
        used, in order of name; category ids from 1.

    Raises:
        AnnotationError: no XML of CVAT's, tracks, entries that are none of CVAT's, or two images of one name.
    """
    path = cvat_file(Location.of(place))
    root = _parse(path)
    if root.find("track") is not None:
        raise AnnotationError(
            f"{path} has tracks, which are objects of a video; allowed are images: export it as 'CVAT for images 1.1'"
        )
    entries = root.findall("image")
    if not entries:
        raise AnnotationError(f"{path} has no <image>; allowed is at least one")
    classes = _class_names(root)
    label_of = {name: index + 1 for index, name in enumerate(classes)} | {IGNORE_NAME: 0}
    photo_root = _photo_root(path, image_root)
    faults, notes = FaultList(), NoteList()
    images: list[AnnotatedImage] = []
    known: set[str] = set()
    for index, entry in enumerate(entries):
        file_name = entry.get("name") or ""
        name = f"image {shown(file_name)}" if file_name else f"image {index}"
        size = tuple(_side(entry, key, name, faults) for key in ("height", "width"))
        if not file_name or "\0" in file_name:
            faults.add(f"{name} has name {shown(file_name)}; allowed is a text that is not empty")
        if file_name in known:
            faults.add(f"{name} stands there twice; allowed is once")
        known.add(file_name)
        if size[0] * size[1] > MOST_PIXELS:
            faults.add(f"{name} is of {size[0]} x {size[1]} pixels; allowed are {MOST_PIXELS:,} in all")
        elif size[0] and size[1]:
            instances = tuple(_instances_of(entry, (size[0], size[1]), label_of, name, faults, notes))
            photo = _photo_of(entry, photo_root)
            images.append(AnnotatedImage(index + 1, file_name, photo, size[0], size[1], instances))
    faults.refuse_if_any(path.uri)
    categories = tuple(Category(index + 1, name) for index, name in enumerate(classes))
    return AnnotatedSet(tuple(images), categories, notes=notes.to_dict())


def write_cvat(annotated: AnnotatedSet, place: str | Location, *, photos: str = "copy") -> Counter[str]:
    """Writes `annotations.xml`, and the photos in `images/`.

    The parts of an object are polygons of one group. An object with holes is a mask. Crowd regions have the attribute
    `iscrowd`, predictions the attribute `score`.

    Returns:
        What CVAT cannot hold: description -> count.

    Raises:
        AnnotationError: two photos of the same name, or a class name that is blank or reserved.
    """
    check_writable(annotated.categories, "CVAT")
    folder = Location.of(place)
    check_photo_choice(photos, annotated, folder, can_refer=True, format="CVAT")
    names = names_below(annotated)
    if photos == "refer":
        names = [relative_uri(image.path.uri, folder.uri) for image in annotated.images]
    if odd := [name for name in names if not is_one_line(name)]:
        raise AnnotationError(f"a photo is named {odd[0]!r}, which CVAT's XML cannot hold")
    numbers = range(1, len(names) + 1)
    losses = count_losses(annotated, names, image_ids=numbers, category_ids=range(1, len(annotated.categories) + 1))
    losses["photos renamed"] *= photos != "refer"
    root = ET.Element("annotations")
    ET.SubElement(root, "version").text = "1.1"
    task = ET.SubElement(ET.SubElement(root, "meta"), "task")
    ET.SubElement(task, "size").text = str(len(names))
    labels = ET.SubElement(task, "labels")
    has_ignored = any(instance.label == 0 for image in annotated.images for instance in image.instances)
    for class_name in [*(category.name for category in annotated.categories), *[IGNORE_NAME] * has_ignored]:
        label = ET.SubElement(labels, "label")
        ET.SubElement(label, "name").text = class_name
        attributes = ET.SubElement(label, "attributes")
        for name, kind, default in ((_CROWD, "checkbox", "false"), (_SCORE, "text", "")):
            attribute = ET.SubElement(attributes, "attribute")
            for key, text in (("name", name), ("mutable", "False"), ("input_type", kind), ("default_value", default)):
                ET.SubElement(attribute, key).text = text
    for number, (image, name) in enumerate(zip(annotated.images, names, strict=True)):
        entry = ET.SubElement(
            root, "image", id=str(number), name=name, width=str(image.width), height=str(image.height)
        )
        for group, instance in enumerate(image.instances, start=1):
            class_name = annotated.categories[instance.label - 1].name if instance.label else IGNORE_NAME
            losses["objects without a mask"] += not _add_shapes(entry, instance, class_name, group)
        place_photo(image.path, folder / f"images/{name}", photos, losses)
    ET.indent(root)
    (folder / _FILE).write_bytes(ET.tostring(root, encoding="utf-8", xml_declaration=True))
    return +losses


def cvat_file(place: Location) -> Location:
    """The XML file itself, or the one in a folder. Raises AnnotationError when there is none or more than one."""
    return only_file(place, _FILE)


def is_cvat(path: Location) -> bool:
    """Whether an XML file is CVAT's, by its first kilobytes."""
    return b"<annotations" in path.read_bytes()[:4096]


def decode_row_runs(runs: list[int], height: int, width: int) -> np.ndarray:
    """The mask of run lengths row by row, of which the first is outside: bool [H, W].

    Raises:
        ValueError: they do not describe all pixels; the message is the end of a sentence.
    """
    lengths = np.array(runs, dtype=np.int64)
    is_length = (lengths >= 0) & (lengths <= height * width)
    if not is_length.all() or int(lengths.sum()) != height * width:
        raise ValueError(f"has an rle of {sum(runs)} pixels; allowed is {height} x {width}")
    return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(height, width)


def encode_row_runs(mask: np.ndarray) -> list[int]:
    """Run lengths of a mask [H, W] row by row, of which the first is outside and may be 0."""
    flat = np.concatenate(([0], mask.ravel() != 0)).astype(np.int8)
    edges = np.flatnonzero(np.diff(flat))
    return np.diff(np.concatenate(([0], edges, [mask.size]))).tolist()


def _parse(path: Location) -> ET.Element:
    try:
        root = ET.fromstring(path.read_bytes())
    except (ET.ParseError, ValueError, LookupError) as error:  # the last two: an encoding that is not supported
        raise AnnotationError(f"{path} is not valid XML: {error}") from None
    if root.tag != "annotations":
        raise AnnotationError(f"{path} is no CVAT file: its root is <{root.tag}>; allowed is <annotations>")
    return root


def _class_names(root: ET.Element) -> list[str]:
    """The labels of the task, project or job; else those that are used."""
    declared = [(label.findtext("name") or "").strip() for label in root.findall("./meta//labels/label")]
    declared = [name for name in dict.fromkeys(declared) if name and name != IGNORE_NAME]
    if declared:
        return declared
    used = {shape.get("label") or "" for image in root.findall("image") for shape in image}
    return sorted(used - {IGNORE_NAME, ""})


def _photo_root(path: Location, image_root: str | None) -> Location:
    if image_root:
        return path.at(image_root)
    folder = path.parent / "images"
    return folder if folder.is_folder() else path.parent


def _photo_of(entry: ET.Element, photo_root: Location) -> Location:
    """The photo of an image; of a project's, in the folder of its subset."""
    name, subset = (entry.get("name") or "").replace("\\", "/"), entry.get("subset")
    if subset and not (photo_root / name).is_file():
        return photo_root / subset / name
    return photo_root / name


def _instances_of(
    image: ET.Element,
    size: tuple[int, int],
    label_of: Mapping[str, int],
    image_name: str,
    faults: FaultList,
    notes: NoteList,
) -> Iterator[Instance]:
    """The objects of an image: each shape by itself, shapes of one label and group together."""
    groups: dict[tuple[str, str], list[tuple[str, ET.Element]]] = {}
    for index, shape in enumerate(image):
        name, label = f"{image_name}: {shape.tag} {index}", shape.get("label") or ""
        if shape.tag not in _SHAPES:
            faults.add(f"{name} is of a kind that is not known; allowed are {', '.join(_SHAPES)}")
        elif label not in label_of:
            faults.add(f"{name} has label {shown(label)}; allowed are {', '.join(label_of)}")
        elif shape.tag in _WITHOUT_AREA:
            notes.add(f"shapes without an area left out ({shape.tag})")
        else:
            if shape.tag in ("box", "ellipse"):
                notes.add(f"{shape.tag} shapes that are read as the pixels inside")
            group = shape.get("group_id") or "0"
            key = f"shape {index}" if group == "0" else f"group {group}"
            groups.setdefault((label, key), []).append((name, shape))
    for (label, _), shapes in groups.items():
        try:
            instance = _to_instance(label_of[label], shapes, size, notes)
        except _WrongShape as error:
            faults.add(str(error))
            continue
        if instance is not None:
            yield instance


class _WrongShape(ValueError):
    """A shape that is none of CVAT's. The message names it, the attribute, its value and what is allowed."""


def _to_instance(
    label: int, shapes: list[tuple[str, ET.Element]], size: tuple[int, int], notes: NoteList
) -> Instance | None:
    names = ", ".join(name for name, _ in shapes)
    iscrowd = label == 0 or any(_is_crowd(shape, name) for name, shape in shapes)
    if not any(shape.tag == "mask" for _, shape in shapes):
        outlines = [_outline(shape, name) for name, shape in shapes]
        return outlines_to_instance(label, outlines, size, iscrowd=iscrowd, name=names, notes=notes)
    pixels = np.zeros(size, dtype=bool)
    for name, shape in shapes:
        if shape.tag == "mask":
            _add_mask(pixels, shape, name)
        else:
            part = outlines_to_instance(label, [_outline(shape, name)], size, iscrowd=False, name=name, notes=notes)
            if part is not None:
                pixels |= part.mask(*size) != 0
    if not pixels.any():
        notes.add("objects without a pixel left out", names)
        return None
    return mask_to_instance(label, pixels, iscrowd=iscrowd)


def _add_mask(pixels: np.ndarray, shape: ET.Element, name: str) -> None:
    left, top, width, height = (round(_number(shape, key, name)) for key in ("left", "top", "width", "height"))
    if min(left, top) < 0 or min(width, height) < 1 or top + height > pixels.shape[0] or left + width > pixels.shape[1]:
        raise _WrongShape(
            f"{name} is of {height} x {width} pixels (H, W) at ({left}, {top}); allowed is a place on the image, which "
            f"is of {pixels.shape[0]} x {pixels.shape[1]}"
        )
    text = shape.get("rle") or ""
    try:
        runs = [int(word) for word in text.split(",")]
    except ValueError:
        raise _WrongShape(f"{name} has rle {shown(text)}; allowed are whole numbers and commas") from None
    try:
        pixels[top : top + height, left : left + width] |= decode_row_runs(runs, height, width)
    except (ValueError, OverflowError) as error:
        raise _WrongShape(f"{name} {error}") from None


def _outline(shape: ET.Element, name: str) -> list[float]:
    if shape.tag == "polygon":
        return _points(shape, name)
    turn = math.radians(_number(shape, "rotation", name, default=0.0))
    if shape.tag == "ellipse":
        cx, cy, rx, ry = (_number(shape, key, name) for key in ("cx", "cy", "rx", "ry"))
        return ellipse_outline(cx, cy, rx, ry, turn)
    x1, y1, x2, y2 = (_number(shape, key, name) for key in ("xtl", "ytl", "xbr", "ybr"))
    return box_outline(x1, y1, x2, y2, turn)


def _points(shape: ET.Element, name: str) -> list[float]:
    text = shape.get("points") or ""
    values = []
    for pair in text.split(";") if text else ():
        words = pair.split(",")
        if len(words) != 2:
            raise _WrongShape(f"{name} has points {shown(pair)}; allowed is x,y")
        values += [_to_number(word, f"{name} has points") for word in words]
    return values


def _number(shape: ET.Element, key: str, name: str, *, default: float | None = None) -> float:
    text = shape.get(key)
    if text is None:
        if default is None:
            raise _WrongShape(f"{name} has no {key}")
        return default
    return _to_number(text, f"{name} has {key}")


def _to_number(text: str, words: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) <= MOST_COORDINATE_PX:  # written so that NaN fails too
        raise _WrongShape(f"{words} {shown(text)}; allowed is a number from -1000000 to 1000000")
    return value


def _side(entry: ET.Element, key: str, name: str, faults: FaultList) -> int:
    """Height or width of an image; 0, and a fault, for what is none."""
    text = entry.get(key) or ""
    if text.isascii() and text.isdigit() and 1 <= int(text[:12]) < 2**31:
        return int(text)
    faults.add(f"{name} has {key} {shown(entry.get(key))}; allowed is a whole number from 1")
    return 0


def _is_crowd(shape: ET.Element, name: str) -> bool:
    for attribute in shape.findall("attribute"):
        if attribute.get("name") == _CROWD:
            text = (attribute.text or "").strip().lower() or "false"
            if text not in _TRUTH:
                raise _WrongShape(f"{name} has {_CROWD} {shown(text)}; allowed are true and false")
            return _TRUTH[text]
    return False


def _add_shapes(entry: ET.Element, instance: Instance, class_name: str, group: int) -> int:
    """Adds the shapes of an object; returns their number, 0 for an object without a pixel."""
    height, width = int(entry.get("height", 0)), int(entry.get("width", 0))
    common = {"label": class_name, "source": "auto" if isinstance(instance, Prediction) else "manual", "occluded": "0"}
    shapes: list[ET.Element] = []
    if isinstance(instance.segmentation, list):
        polygons = instance.segmentation
    else:
        mask = instance.mask(height, width)
        has_holes = bool(mask_to_loops(mask)[1])
        polygons = [] if has_holes else mask_to_polygons(mask)
        if has_holes:
            x1, y1, x2, y2 = map(int, mask_to_box(mask))
            rle = ", ".join(map(str, encode_row_runs(mask[y1:y2, x1:x2])))
            place = {"left": str(x1), "top": str(y1), "width": str(x2 - x1), "height": str(y2 - y1)}
            shapes.append(ET.SubElement(entry, "mask", {**common, "rle": rle, **place, "z_order": "0"}))
    for polygon in polygons:
        points = ";".join(f"{_text(x)},{_text(y)}" for x, y in zip(polygon[0::2], polygon[1::2]))
        shape = ET.SubElement(entry, "polygon", {**common, "points": points, "z_order": "0"})
        if len(polygons) > 1:
            shape.set("group_id", str(group))
        shapes.append(shape)
    for shape in shapes:
        if instance.iscrowd and instance.label:
            ET.SubElement(shape, "attribute", name=_CROWD).text = "true"
        if isinstance(instance, Prediction):
            ET.SubElement(shape, "attribute", name=_SCORE).text = f"{instance.score:.4f}"
    return len(shapes)


def _text(value: float) -> str:
    """A coordinate in the fewest digits that give it back."""
    return str(int(value)) if value == int(value) else repr(float(value))
