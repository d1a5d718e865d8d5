"""YOLO segmentation: reads and writes text files of polygons, one for each photo, and `data.yaml`.

A line is an object: the number of its class, then x and y of its outline as shares of the photo's width and height.
Label files lie in a folder `labels` where the photos lie in `images`, else beside the photos.
https://docs.ultralytics.com/datasets/segment/
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import yaml

from model.categories import Category
from pipeline.dataset.faults import FaultList, shown
from pipeline.dataset.formats.common.class_names import check_distinct, read_lines
from pipeline.dataset.formats.common.losses import count_losses
from pipeline.dataset.formats.common.outlines import box_outline, outlines_to_instance
from pipeline.dataset.formats.common.photo_copy import (
    check_photo_choice,
    check_photo_endings,
    flat_names,
    place_photo,
)
from pipeline.dataset.photos import UnusablePhoto, header_or_note, read_header
from pipeline.dataset.types import (
    AnnotatedImage,
    AnnotatedSet,
    AnnotationError,
    Instance,
    mask_to_instance,
    segmentation_to_mask,
    segmentation_to_polygon,
)
from pipeline.images.pixels import turn
from pipeline.masks.contours import mask_to_polygon
from pipeline.notes import NoteList
from pipeline.storage.files import Location
from pipeline.storage.uri import absolute_uri, file_stem, is_in_bucket, is_photo

_PARTS = ("train", "val", "test")
_NAME_LISTS = ("classes.txt", "obj.names")  # of Label Studio and of Darknet
_LEVELS_ABOVE = 3  # data.yaml is looked for in the folder and so many above it
_LEAST, _MOST = -1.0, 2.0  # of a share; what crosses the photo's border is cut off
_BOX_NOTE = "boxes without an outline, which are ignore regions, neither positive nor negative"


def load_yolo(
    place: str | Location, image_root: str | None = None, *, default_category: str = "object", part: str | None = None
) -> AnnotatedSet:
    """Reads a part of a YOLO data set.

    Args:
        place: the folder of the part, such as `images/train`, `labels/train` or `train` (which holds `images` and
            `labels`); or `data.yaml`, or its folder.
        image_root: folder of the photos, in the sub-folders of their label files.
        part: which of the parts that `data.yaml` names (train, val, test); None takes the only one.
        default_category: the name of the only class where neither `data.yaml` nor `classes.txt` names the classes.

    Returns:
        Images in order of file name, ids from 1; a category's id is its number. A photo without a label file shows no
        object. A line of four numbers is a box without a mask: an ignore region. An image whose photo cannot be read
        has size (0, 0), and the loader skips it.

    Raises:
        AnnotationError: no photo with a label file, several parts, lines that are none of YOLO's, or a class that has
            no name.
    """
    place = Location.of(place)
    faults, notes = FaultList(), NoteList()
    photos = _photos_of(place, image_root, part, notes)
    names = _names_of(place)
    images: list[AnnotatedImage] = []
    num_labels = 0
    for key, photo, label_file in photos:
        if label_file is None:
            notes.add("photos without a label file, which show no object", key)
            lines = []
        else:
            num_labels += 1
            lines = _read_lines(label_file, names, faults)
        header = header_or_note(photo, key, notes)
        size = header.turned_size if header is not None else (0, 0)
        instances = [_to_instance(*line, size, notes) for line in lines] if size[0] else []
        present = tuple(instance for instance in instances if instance is not None)
        images.append(AnnotatedImage(len(images) + 1, key, photo, *size, present))
    if not num_labels:
        raise AnnotationError(f"{place} holds no YOLO annotations: none of its {len(images)} photos has a label file")
    faults.refuse_if_any(place.uri)
    categories = [Category(number, name) for number, name in (names or {0: default_category}).items()]
    return AnnotatedSet(tuple(images), tuple(categories), notes=notes.to_dict())


def write_yolo(annotated: AnnotatedSet, place: str | Location, *, photos: str = "copy") -> Counter[str]:
    """Writes `images/`, `labels/` and `data.yaml`, whose parts `train` and `val` are both all of it.

    An object of several parts or with holes becomes one polygon that covers the same pixels. Labels are of the photo as
    it is shown, its EXIF orientation applied.

    Returns:
        What YOLO cannot hold: description -> count.

    Raises:
        AnnotationError: two photos of the same name, or a class without a name.
    """
    for category in annotated.categories:
        if not category.name or "\0" in category.name:
            raise AnnotationError(
                f"category {category.id} is named {category.name!r}; YOLO needs a text that is not empty"
            )
    folder = Location.of(place)
    check_photo_choice(photos, annotated, folder, can_refer=False, format="YOLO")
    names = flat_names(annotated)
    check_photo_endings(names, "YOLO")
    id_of = {name: number for number, name in enumerate(sorted(names), start=1)}
    losses = count_losses(
        annotated,
        names,
        image_ids=[id_of[name] for name in names],
        category_ids=range(len(annotated.categories)),
    )
    for stored, name in zip(annotated.images, names, strict=True):
        image = _as_shown(stored)
        losses["photos whose labels are turned as the photo is shown"] += image is not stored
        lines = []
        for instance in image.instances:
            if instance.iscrowd:
                losses["crowd and ignore regions left out, which YOLO takes for background"] += 1
            elif polygon := _exact_shares(instance, image.height, image.width):
                lines.append(f"{instance.label - 1} {polygon}\n")
            else:
                losses["objects without a mask"] += 1
        (folder / f"labels/{file_stem(name)}.txt").write_bytes("".join(lines).encode())
        place_photo(image.path, folder / f"images/{name}", photos, losses)
    class_names = {index: category.name for index, category in enumerate(annotated.categories)}
    # Without `path`, folders are relative to the file's own.
    content = {"train": "images", "val": "images", "names": class_names}
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    (folder / "data.yaml").write_bytes(text.encode())
    return +losses


def is_yolo(place: Location) -> bool:
    """Whether a YAML file or a folder is a YOLO data set, or a part of one, by the files that are there."""
    if place.uri.lower().endswith((".yaml", ".yml")) or _yaml_of(place) is not None:
        return True
    folder = _image_folder(place)
    labels = _label_folder(folder)
    is_apart = labels != folder
    label_keys = {key for key in labels.iter_names(recursive=is_apart) if key.endswith(".txt")}
    photo_keys = folder.iter_names(recursive=is_apart) if label_keys else ()
    return any(is_photo(key) and f"{key.rpartition('.')[0]}.txt" in label_keys for key in photo_keys)


def _as_shown(image: AnnotatedImage) -> AnnotatedImage:
    """The image with its objects turned as its photo is, where they were annotated on the photo as stored."""
    try:
        header = read_header(image.path)
    except UnusablePhoto:
        return image
    size = (image.height, image.width)
    if header.turned_size == size or (header.height, header.width) != size:
        return image
    turned = tuple(
        mask_to_instance(i.label, turn(i.mask(*size), header.exif_orientation), iscrowd=i.iscrowd)
        for i in image.instances
    )
    return replace(image, height=image.width, width=image.height, instances=turned)


def _exact_shares(instance: Instance, height: int, width: int) -> str:
    """The outline as text, whose numbers give the very mask back; "" for an empty mask."""
    mask = instance.mask(height, width)
    for polygon in (segmentation_to_polygon(instance.segmentation, height, width), mask_to_polygon(mask)):
        shares = (np.reshape(polygon, (-1, 2)) / [width, height]).ravel()
        text = " ".join(f"{share:.9g}" for share in shares.tolist())
        again = _to_pixels([float(word) for word in text.split()], (height, width))
        if np.array_equal(segmentation_to_mask([again], height, width), mask):
            return text
    return text


def _to_pixels(shares: list[float], size: tuple[int, int]) -> list[float]:
    return (np.reshape(shares, (-1, 2)) * [size[1], size[0]]).ravel().tolist()


def _to_instance(name: str, label: int, shares: list[float], size: tuple[int, int], notes: NoteList) -> Instance | None:
    is_box = len(shares) == 4
    if is_box:
        x, y, width, height = shares
        shares = box_outline(x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        notes.add(_BOX_NOTE, name)
    points = _to_pixels(shares, size)
    return outlines_to_instance(label, [points], size, iscrowd=is_box, name=name, notes=notes)


def _read_lines(path: Location, names: dict[int, str] | None, faults: FaultList) -> list[tuple[str, int, list[float]]]:
    """Name, label and shares of each object of a label file."""
    numbers = list(names or {0: ""})
    objects = []
    for number, line in enumerate(read_lines(path), start=1):
        name = f"{path}: line {number}"
        words = line.split()
        if not words:
            continue
        values = [_number(word) for word in words]
        wrong = next((word for word, value in zip(words, values) if value is None), None)
        if wrong is not None:
            faults.add(f"{name} has {shown(wrong)}; allowed are numbers")
            continue
        label, *shares = [value for value in values if value is not None]
        if label not in numbers:
            allowed = ", ".join(f"{number} ({name})" for number, name in (names or {}).items())
            allowed = allowed or "0, or a data.yaml or classes.txt that names the classes"
            faults.add(f"{name} is of class {shown(words[0])}; allowed are {allowed}")
        elif len(shares) < 4 or len(shares) % 2:
            faults.add(f"{name} has {len(shares)} numbers behind the class; allowed are x and y of 3 or more points")
        elif far := [share for share in shares if not _LEAST <= share <= _MOST]:
            faults.add(f"{name} has {far[0]:g}; allowed are shares of the photo's width and height, 0 to 1")
        else:
            objects.append((name, numbers.index(int(label)) + 1, shares))
    return objects


def _number(word: str) -> float | None:
    try:
        value = float(word)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _photos_of(
    place: Location, image_root: str | None, part_name: str | None, notes: NoteList
) -> list[tuple[str, Location, Location | None]]:
    """File name, place and label file (None where there is none) of each photo, in order of file name."""
    is_yaml = place.uri.lower().endswith((".yaml", ".yml"))
    source = place if is_yaml else _yaml_of(place)
    part = _part_of(source, part_name) if source is not None else place
    photos: list[tuple[str, Location, Location | None]] = []
    if part.uri.lower().endswith(".txt"):
        for line in read_lines(part):
            photo = part.parent / line
            labels = _label_folder(photo.parent) / f"{photo.stem}.txt"
            photos += [(photo.name, photo, labels if labels.is_file() else None)] if line else []
    else:
        folder = _image_folder(part)
        labels = _label_folder(folder)
        folder = place.at(image_root) if image_root else folder
        label_keys = {key for key in labels.iter_names(recursive=True) if key.endswith(".txt")}
        unused = label_keys - set(_NAME_LISTS)
        for key in folder.iter_names(recursive=True):
            if is_photo(key):
                label_key = f"{key.rpartition('.')[0]}.txt"
                unused.discard(label_key)
                photos.append((key, folder / key, labels / label_key if label_key in label_keys else None))
        for key in sorted(unused):
            notes.add("label files without a photo left out", key)
    if not photos:
        raise AnnotationError(f"{place} holds no YOLO photos: there is none in {part}")
    counts = Counter(labels.uri for _, _, labels in photos if labels is not None)
    if repeated := [uri for uri, count in counts.items() if count > 1]:
        raise AnnotationError(f"{place}: two photos have one label file, {repeated[0]}; allowed is one photo for each")
    return photos


def _yaml_of(place: Location) -> Location | None:
    """The file in a folder that describes a YOLO data set; None where there is none."""
    for name in place.iter_names():
        if name.lower().endswith((".yaml", ".yml")):
            content = _read_yaml(place / name)
            if "names" in content and any(part in content for part in _PARTS):
                return place / name
    return None


def _read_yaml(path: Location) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, RecursionError) as error:
        raise AnnotationError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    return content if isinstance(content, dict) else {}


def _part_of(path: Location, name: str | None) -> Location:
    """The folder or list of photos that a `data.yaml` names; of several, the part of this name."""
    content = _read_yaml(path)
    base = path.parent / content["path"] if isinstance(content.get("path"), str) else path.parent
    base = base if base.is_folder() else path.parent  # the path of another machine
    parts: dict[str, Location] = {}
    for part in _PARTS:
        entries = content.get(part)
        for index, entry in enumerate(entries if isinstance(entries, list) else [entries]):
            key = f"{part}[{index}]" if isinstance(entries, list) else part
            if entry is None:
                continue
            if not isinstance(entry, str):
                raise AnnotationError(f"{path} has {key} {shown(entry)}; allowed is a folder, a list file, or a list")
            tried = [base / entry, base / entry.removeprefix("../"), path.parent / entry]
            there = [each for each in tried if each.is_folder() or each.is_file()]
            parts[key] = there[0] if there else tried[0]
    wanted = {key: part for key, part in parts.items() if name is None or key.partition("[")[0] == name}
    if parts and not wanted:
        raise AnnotationError(f"{path} has no part {name!r}; allowed are {', '.join(parts)}")
    parts = wanted
    found = sorted({part.uri for part in parts.values() if part.is_folder() or part.is_file()})
    if not found:
        raise AnnotationError(f"{path} names no folder that is there: {', '.join(map(str, parts.values())) or 'none'}")
    if len(found) > 1:
        named = ", ".join(f"{key} ({part})" for key, part in parts.items())
        raise AnnotationError(f"{path} has several parts, {named}; give the part, or one of these folders")
    return path.at(found[0])


def _image_folder(place: Location) -> Location:
    """The folder of the photos: the place, its folder `images`, or for a folder of labels that beside it."""
    if (place / "images").is_folder():
        return place / "images"
    for above, rest in _above(place):
        if above.name == "labels" and (above.parent / "images").is_folder():
            return above.parent / "images" / rest if rest else above.parent / "images"
    return place


def _label_folder(folder: Location) -> Location:
    """The folder of the labels: `labels` in place of the last `images` of the path, else the photos' own."""
    for above, rest in _above(folder):
        if above.name == "images":
            return above.parent / "labels" / rest if rest else above.parent / "labels"
    return folder


def _above(folder: Location) -> Iterator[tuple[Location, str]]:
    """The folder and those above it, each with the way from it to the folder."""
    rest, folder = "", folder.at(absolute_uri(folder.uri))
    is_bucket = is_in_bucket(folder.uri)
    while folder.name and is_in_bucket(folder.uri) == is_bucket:
        yield folder, rest
        rest = f"{folder.name}/{rest}".rstrip("/")
        folder = folder.parent


def _names_of(place: Location) -> dict[int, str] | None:
    """Class names by number; None where no file names them."""
    if place.uri.lower().endswith((".yaml", ".yml")):
        return _yaml_names(place)
    for level, (folder, _) in enumerate(_above(place)):
        if level > _LEVELS_ABOVE:
            break
        if (path := _yaml_of(folder)) is not None:
            return _yaml_names(path)
        for name in _NAME_LISTS:
            if (folder / name).is_file():
                names = read_lines(folder / name)
                check_distinct(names, (folder / name).uri)
                return dict(enumerate(names))
    return None


def _yaml_names(path: Location) -> dict[int, str]:
    content = _read_yaml(path)
    names = content.get("names")
    entries = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(entries, dict) or not entries:
        raise AnnotationError(f"{path} has names {shown(names)}; allowed is a list, or an object of numbers and names")
    for number, name in entries.items():
        if type(number) is not int or number < 0:
            raise AnnotationError(f"{path} has the class {shown(number)}; allowed are whole numbers from 0")
        if type(name) not in (int, str) or not str(name):
            raise AnnotationError(
                f"{path}: class {number} is named {shown(name)}; allowed is a text (in quotation marks)"
            )
    if content.get("nc", len(entries)) != len(entries):
        raise AnnotationError(f"{path} has nc {shown(content['nc'])} and {len(entries)} names; allowed is the same")
    check_distinct(map(str, entries.values()), path.uri)
    return {number: str(entries[number]) for number in sorted(entries)}
