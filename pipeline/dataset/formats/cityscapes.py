"""Cityscapes: reads and writes instance maps (`*_instanceIds.png`).

A pixel's value is class * 1000 + number for one object. For a group of objects that are not told apart, which is a
crowd region, it is the class alone (below 1000). https://github.com/mcordts/cityscapesScripts (helpers/labels.py)
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np

from model.categories import Category
from pipeline.dataset.formats.id_masks import draw_id_map, id_map_to_instances, read_id_map, write_id_map
from pipeline.dataset.formats.photo_copy import copy_photo, flat_names
from pipeline.dataset.types import AnnotatedImage, AnnotatedSet, AnnotationError
from pipeline.storage import files
from pipeline.storage.uri import base_name, file_stem, join_uri, parent_uri, plain_uri

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
_NOT_EVALUATED = (29, 30)  # caravan and trailer: annotated as objects, but not in the benchmark
_IDS_ENDING = "_instanceIds.png"
_CATEGORIES_FILE = "categories.json"


def load_cityscapes(uri: str, image_root: str | None = None) -> AnnotatedSet:
    """Reads all instance maps below a folder.

    Args:
        uri: the Cityscapes folder, or a folder in it such as `gtFine/train`.
        image_root: folder that holds the photos in `<split>/<city>`; by default `leftImg8bit` beside `gtFine`.

    Returns:
        Image ids are `city_sequence_frame`. The classes are the eight of the benchmark, or those of a
        `categories.json` ([{"id", "name"}, ...], ids 1 to 64) in the Cityscapes folder. Caravans and trailers are
        regions that are neither positive nor negative.

    Raises:
        AnnotationError: the folder has no instance map, or `categories.json` has an id out of range.
    """
    uri = plain_uri(str(uri)).rstrip("/")
    keys = [key for key in files.iter_names(uri, recursive=True) if key.endswith(_IDS_ENDING)]
    if not keys:
        raise AnnotationError(f"{uri} holds no Cityscapes annotations: there is no *{_IDS_ENDING} below it")
    root, categories = _find_root(uri)
    labels: dict[int, int] = {}
    for index, category in enumerate(categories):
        labels[category.id] = index + 1
    ignored = set(_NOT_EVALUATED) - set(labels)
    images = []
    for key in keys:
        ids_uri = join_uri(uri, key)
        ids = read_id_map(ids_uri)
        label_of_value = {}
        for value in np.unique(ids).tolist():
            class_id = value if value < 1000 else value // 1000
            if class_id in labels or class_id in ignored:
                label_of_value[value] = labels.get(class_id, 0)
        instances = tuple(
            replace(instance, iscrowd=value < 1000 or instance.label == 0)
            for value, instance in id_map_to_instances(ids, label_of_value).items()
        )
        photo_folder = _photo_folder(ids_uri, root, image_root)
        name = _frame_of(base_name(ids_uri))
        height, width = ids.shape
        file_name = f"{name}_leftImg8bit.png"
        if not files.is_file(join_uri(photo_folder, file_name)):
            file_name = next(
                (n for n in files.iter_names(photo_folder) if file_stem(n) == f"{name}_leftImg8bit"),
                file_name,
            )
        images.append(AnnotatedImage(name, file_name, join_uri(photo_folder, file_name), height, width, instances))
    return AnnotatedSet(tuple(images), categories)


def write_cityscapes(
    annotated: AnnotatedSet, folder: str, *, overlap: str = "refuse", split: str = "train", city: str = "all"
) -> Counter[str]:
    """Writes `gtFine/`, `leftImg8bit/` and `categories.json`.

    Category ids are kept where all are 1 to 64, else they are numbered from 1. Photos keep their file format. Crowd
    regions of one class and image become one group.

    Returns:
        What Cityscapes cannot hold: description -> count.

    Raises:
        AnnotationError: more than 64 classes, more than 1000 objects of a class on an image, two photos of the same
            name, or objects that share pixels (`overlap`, see `draw_id_map`).
    """
    losses: Counter[str] = Counter()
    ids_kept = all(1 <= category.id <= 64 for category in annotated.categories)
    if len(annotated.categories) > 64:
        raise AnnotationError(f"Cityscapes' 16 bits hold at most 64 classes, not {len(annotated.categories)}")
    class_ids = [category.id if ids_kept else index + 1 for index, category in enumerate(annotated.categories)]
    if not ids_kept:
        losses["category ids numbered anew"] += len(class_ids)
    names = flat_names(annotated)
    for index, image in enumerate(annotated.images):
        numbers: Counter[int] = Counter()
        values = []
        for instance in image.instances:
            if instance.label == 0:
                losses["ignore regions without a class"] += 1
                values.append(0)
                continue
            class_id = class_ids[instance.label - 1]
            values.append(class_id if instance.iscrowd else class_id * 1000 + numbers[class_id])
            numbers[class_id] += not instance.iscrowd
        if numbers and max(numbers.values()) > 1000:
            raise AnnotationError(f"image {image.file_name} has over 1000 objects of a class; Cityscapes holds no more")
        ids = draw_id_map(image, values, overlap=overlap)
        name, ending = file_stem(names[index]), names[index].rpartition(".")[2]
        target = join_uri(folder, f"gtFine/{split}/{city}/{name}_gtFine{_IDS_ENDING}")
        write_id_map(target, ids, bits=16)
        copy_photo(image, join_uri(folder, f"leftImg8bit/{split}/{city}/{name}_leftImg8bit.{ending}"), losses)
        losses["keypoints"] += sum(i.keypoints is not None for i in image.instances)
        losses["lists of labelled classes"] += image.labelled_classes is not None
        losses["extra channels"] += len(image.extra_paths)
        losses["objects without a pixel of their own"] += len(set(values) - {0} - set(np.unique(ids).tolist()))
    categories = [{"id": i, "name": c.name} for i, c in zip(class_ids, annotated.categories, strict=True)]
    files.write_json(join_uri(folder, _CATEGORIES_FILE), categories)
    return +losses


def _find_root(uri: str) -> tuple[str, tuple[Category, ...]]:
    """The Cityscapes folder above (or at) `uri`, and its class map."""
    parts = uri.split("/")
    root = "/".join(parts[: parts.index("gtFine")]) or "." if "gtFine" in parts else uri
    listing = join_uri(root, _CATEGORIES_FILE)
    if not files.is_file(listing):
        return root, CITYSCAPES_CATEGORIES
    categories = tuple(Category(int(entry["id"]), str(entry["name"])) for entry in files.read_json(listing))
    if out_of_range := [category.id for category in categories if not 1 <= category.id <= 64]:
        raise AnnotationError(f"{listing}: category id {out_of_range[0]} does not fit; allowed are 1 to 64")
    return root, categories


def _photo_folder(ids_uri: str, root: str, image_root: str | None) -> str:
    folder = parent_uri(ids_uri)
    split_and_city = folder.removeprefix(root).lstrip("/").removeprefix("gtFine").lstrip("/")
    return join_uri(image_root or join_uri(root, "leftImg8bit"), split_and_city) if split_and_city else folder


def _frame_of(name: str) -> str:
    stem = name.removesuffix(_IDS_ENDING)
    return stem.removesuffix("_gtFine").removesuffix("_gtCoarse")
