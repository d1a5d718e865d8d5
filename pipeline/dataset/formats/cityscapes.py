"""Cityscapes: reads and writes instance maps (`*_instanceIds.png`).

A pixel's value is class * 1000 + number for one object. For a group of objects that are not told apart, which is a
crowd region, it is the class alone (below 1000). Values 0 to 23 are the classes that have no objects, such as road:
they are background unless declared. https://github.com/mcordts/cityscapesScripts (helpers/labels.py)
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta

from model.categories import Category
from pipeline.dataset.faults import FaultList, shown
from pipeline.dataset.formats.class_names import check_distinct
from pipeline.dataset.formats.id_masks import (
    check_disjoint,
    draw_id_map,
    id_map_to_instances,
    read_id_map,
    write_id_map,
)
from pipeline.dataset.formats.losses import count_losses
from pipeline.dataset.formats.photo_copy import copy_photo, flat_names
from pipeline.dataset.formats.records import Name, to_record
from pipeline.dataset.types import AnnotatedImage, AnnotatedSet, AnnotationError
from pipeline.notes import NoteList
from pipeline.storage.files import Location
from pipeline.storage.uri import file_stem, folder_before

CITYSCAPES_CATEGORIES = (
    Category(24, "person"),
    Category(25, "rider"),
    Category(26, "car"),
    Category(27, "truck"),
    Category(28, "bus"),
    Category(31, "train"),
    Category(32, "motorcycle"),
    Category(33, "bicycle"),
)
_MAX_CLASS_ID = 64
_NUM_STUFF_IDS = 24  # 0 to 23: void, ground, buildings, sky ...
_IGNORE_ID = 65  # what ignore regions are written as: no data set can declare it
_IDS_ENDING = "_instanceIds.png"
_CATEGORIES_FILE = "categories.json"


class _Category(msgspec.Struct):
    id: Annotated[int, Meta(ge=1, le=_MAX_CLASS_ID)]
    name: Name


def load_cityscapes(place: str | Location, image_root: str | None = None) -> AnnotatedSet:
    """Reads all instance maps below a folder.

    Args:
        place: the Cityscapes folder, or a folder in it such as `gtFine/train`.
        image_root: folder that holds the photos in `<split>/<city>`; by default `leftImg8bit` beside `gtFine`.

    Returns:
        Image ids are `city_sequence_frame`. The classes are the eight of the benchmark, or those of a
        `categories.json` ([{"id", "name"}, ...], ids 1 to 64) in the Cityscapes folder. Objects of other classes
        (caravans, trailers) are regions that are neither positive nor negative, counted in `notes`.

    Raises:
        AnnotationError: the folder has no instance map, or `categories.json` is no such list.
    """
    folder = Location.of(place)
    keys = [key for key in folder.iter_names(recursive=True) if key.endswith(_IDS_ENDING)]
    if not keys:
        raise AnnotationError(f"{folder} holds no Cityscapes annotations: there is no *{_IDS_ENDING} below it")
    root, categories = _find_root(folder)
    labels = {category.id: index + 1 for index, category in enumerate(categories)}
    notes = NoteList()
    images = []
    for key in keys:
        ids = read_id_map(folder / key)
        label_of_value = {}
        for value in np.unique(ids).tolist():
            class_id = value if value < 1000 else value // 1000
            if class_id in labels or value >= _NUM_STUFF_IDS:
                label_of_value[value] = labels.get(class_id, 0)
            if label_of_value.get(value) == 0 and class_id != _IGNORE_ID:
                notes.add(f"objects of class {class_id}, which is not declared, are ignore regions", key)
        instances = tuple(
            replace(instance, iscrowd=value < 1000 or instance.label == 0)
            for value, instance in id_map_to_instances(ids, label_of_value).items()
        )
        photo_folder = _photo_folder(folder / key, root, image_root)
        name = _frame_of((folder / key).name)
        height, width = ids.shape
        file_name = f"{name}_leftImg8bit.png"
        if not (photo_folder / file_name).is_file():
            names = (n for n in photo_folder.iter_names() if file_stem(n) == f"{name}_leftImg8bit")
            file_name = next(names, file_name)
        images.append(AnnotatedImage(name, file_name, photo_folder / file_name, height, width, instances))
    return AnnotatedSet(tuple(images), categories, notes=notes.to_dict())


def write_cityscapes(
    annotated: AnnotatedSet,
    place: str | Location,
    *,
    overlap: str = "refuse",
) -> Counter[str]:
    """Writes `gtFine/`, `leftImg8bit/` (all images in `train/all`) and `categories.json`.

    Category ids are kept where all are 1 to 64, else they are numbered from 1. Photos keep their file format. Crowd
    regions of one class and image become one group. Ignore regions are objects of class 65, which is never declared.

    Returns:
        What Cityscapes cannot hold: description -> count.

    Raises:
        AnnotationError: more than 64 classes, more than 1000 objects of a class on an image, two photos of the same
            name, or objects that share pixels (`overlap`, see `draw_id_map`).
    """
    folder, num_classes = Location.of(place), len(annotated.categories)
    if num_classes > _MAX_CLASS_ID:
        raise AnnotationError(f"Cityscapes' 16 bits hold at most {_MAX_CLASS_ID} classes, not {num_classes}")
    own_ids = [category.id for category in annotated.categories]
    class_ids = own_ids if all(1 <= i <= _MAX_CLASS_ID for i in own_ids) else list(range(1, num_classes + 1))
    names = flat_names(annotated)
    stems = [file_stem(name) for name in names]
    losses = count_losses(annotated, names, image_ids=stems, category_ids=class_ids)
    values_of_images = []
    for image in annotated.images:
        numbers: Counter[int] = Counter()
        values = []
        for instance in image.instances:
            class_id = class_ids[instance.label - 1] if instance.label else _IGNORE_ID
            is_group = instance.iscrowd and instance.label
            values.append(class_id if is_group else class_id * 1000 + numbers[class_id])
            numbers[class_id] += not is_group
        if numbers[_IGNORE_ID] > 2**16 - _IGNORE_ID * 1000 or max(numbers.values(), default=0) > 1000:
            raise AnnotationError(
                f"image {image.file_name} has too many objects; Cityscapes holds 1000 of a class and "
                f"{2**16 - _IGNORE_ID * 1000} ignore regions"
            )
        values_of_images.append(values)
    check_disjoint(annotated, overlap=overlap)
    for image, values, photo, stem in zip(annotated.images, values_of_images, names, stems, strict=True):
        ids = draw_id_map(image, values, overlap=overlap)
        write_id_map(folder / f"gtFine/train/all/{stem}_gtFine{_IDS_ENDING}", ids, bits=16)
        ending = photo.removeprefix(stem)
        copy_photo(image.path, folder / f"leftImg8bit/train/all/{stem}_leftImg8bit{ending}", losses)
        losses["crowd regions of one class joined"] += len(values) - len(set(values))
        losses["objects without a pixel of their own"] += len(set(values) - set(np.unique(ids).tolist()))
    categories = [{"id": i, "name": c.name} for i, c in zip(class_ids, annotated.categories, strict=True)]
    (folder / _CATEGORIES_FILE).write_json(categories)
    return +losses


def _find_root(folder: Location) -> tuple[Location, tuple[Category, ...]]:
    """The Cityscapes folder above a folder, or the folder itself; and its class map."""
    root = folder.at(folder_before(folder.uri, "gtFine") or folder.uri)
    listing = root / _CATEGORIES_FILE
    if not listing.is_file():
        return root, CITYSCAPES_CATEGORIES
    faults = FaultList()
    entries = listing.read_json()
    if not isinstance(entries, list) or not entries:
        raise AnnotationError(f"{listing} is {shown(entries)}; allowed is a list of one or more categories")
    records = [
        to_record(entry, _Category, f"{_CATEGORIES_FILE}: category {index}", faults)
        for index, entry in enumerate(entries)
    ]
    faults.refuse_if_any(root.uri)
    categories = tuple(Category(record.id, record.name) for record in records if record is not None)
    check_distinct((category.name for category in categories), listing.uri)
    check_distinct((category.id for category in categories), listing.uri)
    return root, categories


def _photo_folder(ids_path: Location, root: Location, image_root: str | None) -> Location:
    folder = ids_path.parent
    split_and_city = folder.uri.removeprefix(root.uri).lstrip("/").removeprefix("gtFine").lstrip("/")
    photo_root = root.at(image_root) if image_root else root / "leftImg8bit"
    return photo_root / split_and_city if split_and_city else folder


def _frame_of(name: str) -> str:
    stem = name.removesuffix(_IDS_ENDING)
    ending = next((ending for ending in ("_gtFine", "_gtCoarse") if stem.endswith(ending)), "")
    return stem.removesuffix(ending)
