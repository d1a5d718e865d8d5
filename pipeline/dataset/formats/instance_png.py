"""Instance-mask PNGs: reads and writes folders of images whose pixel values number the objects.

One file for each photo, of one class, as PennFudan has them (`PNGImages/`, `PedMasks/NAME_mask.png`); or one for each
photo and class, in a folder of the class's name (`images/`, `masks/CLASS/NAME.png`), as it is written here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from model.categories import Category
from pipeline.dataset.faults import FaultList
from pipeline.dataset.formats.common.class_names import check_distinct, check_writable, read_lines
from pipeline.dataset.formats.common.id_masks import draw_id_map, id_map_to_instances, read_id_map, write_id_map
from pipeline.dataset.formats.common.losses import count_losses
from pipeline.dataset.formats.common.photo_copy import (
    check_photo_choice,
    check_photo_endings,
    flat_names,
    place_photo,
)
from pipeline.dataset.types import IGNORE_NAME, AnnotatedImage, AnnotatedSet, AnnotationError, Instance
from pipeline.notes import NoteList
from pipeline.storage.files import Location
from pipeline.storage.uri import file_stem, is_photo

MASK_FOLDERS = ("PedMasks", "masks", "png")
PHOTO_FOLDERS = ("PNGImages", "images", "photos", "JPEGImages")
_MASK_ENDING = "_mask"
_CLASSES_FILE = "classes.txt"
_MOST_OBJECTS = 2**16 - 1


def load_png(place: str | Location, image_root: str | None = None, *, default_category: str = "object") -> AnnotatedSet:
    """Reads the photos of a folder that have instance masks.

    Args:
        place: the folder that holds one of MASK_FOLDERS, or that folder itself.
        image_root: folder of the photos; by default one of PHOTO_FOLDERS beside that of the masks.
        default_category: the class of masks that lie in no folder of a class.

    Returns:
        Images in order of file name, ids from 1. A mask is the photo's of the same name, with or without `_mask`; its
        folders are the photo's, or the first one is the class. Classes are in the order of `classes.txt` where the
        place has one, else in order of name; category ids from 1. Objects of the class `__ignore__` are regions that
        are neither positive nor negative. A photo without a mask, and a mask without a photo, are left out and counted
        in `notes`.

    Raises:
        AnnotationError: no masks, no photos, masks of colours or of two sizes for one photo, two photos of one name, or
            a class that `classes.txt` lacks.
    """
    place = Location.of(place)
    mask_folder = mask_folder_of(place)
    if mask_folder is None:
        raise AnnotationError(f"{place} holds no instance masks: looked for {', '.join(MASK_FOLDERS)}")
    photo_folder = place.at(image_root) if image_root else _photo_folder(mask_folder)
    photos = _photos_by_stem(photo_folder)
    faults, notes = FaultList(), NoteList()
    masks_of: dict[str, list[tuple[str, str]]] = {}
    for key in mask_folder.iter_names(recursive=True):
        if not is_photo(key):
            continue
        stem = key.rpartition(".")[0]
        found = next(((photo, name) for photo, name in _meanings(stem) if photo in photos), None)
        if found is None:
            notes.add("masks without a photo left out", key)
        else:
            masks_of.setdefault(found[0], []).append((key, found[1] or default_category))
    if not masks_of:
        raise AnnotationError(f"{place}: none of the masks in {mask_folder} is named like a photo in {photo_folder}")
    for stem in photos:
        if stem not in masks_of:
            notes.add("photos without a mask left out", photos[stem])
    used = {name for masks in masks_of.values() for _, name in masks} - {IGNORE_NAME}
    classes = _class_names(mask_folder, used)
    label_of = {name: index + 1 for index, name in enumerate(classes)} | {IGNORE_NAME: 0}
    images: list[AnnotatedImage] = []
    for stem in sorted(masks_of):
        instances: list[Instance] = []
        sizes: dict[tuple[int, int], str] = {}
        for key, name in masks_of[stem]:
            ids = read_id_map(mask_folder / key)
            sizes.setdefault((ids.shape[0], ids.shape[1]), key)
            values = [int(value) for value in np.unique(ids) if value]
            if values == [255]:
                notes.add("masks of the only value 255, which are one object each", key)
            if name not in label_of:
                faults.add(f"{mask_folder / key} is of class {name!r}; allowed are those of {_CLASSES_FILE}")
                continue
            found_objects = id_map_to_instances(ids, dict.fromkeys(values, label_of[name])).values()
            instances += [replace(instance, iscrowd=instance.label == 0) for instance in found_objects]
        if len(sizes) > 1:
            faults.add(f"the masks of {photos[stem]} are of the sizes {', '.join(map(str, sizes))} (H, W)")
        size = next(iter(sizes))
        path = photo_folder / photos[stem]
        images.append(AnnotatedImage(len(images) + 1, photos[stem], path, *size, tuple(instances)))
    faults.refuse_if_any(place.uri)
    categories = tuple(Category(index + 1, name) for index, name in enumerate(classes))
    return AnnotatedSet(tuple(images), categories, notes=notes.to_dict())


def write_png(
    annotated: AnnotatedSet, place: str | Location, *, photos: str = "copy", overlap: str = "refuse"
) -> Counter[str]:
    """Writes `images/`, `masks/CLASS/NAME.png` of 16 bits, and `classes.txt`.

    A photo has a mask for each class that it shows; without an object, one of zeros. Crowd regions become ignore
    regions.

    Returns:
        What the masks cannot hold: description -> count.

    Raises:
        AnnotationError: two photos of the same name, a class that no folder can be named by, more than 65,535 objects
            on an image, or objects of a class that share pixels (`overlap`, see `draw_id_map`).
    """
    check_writable(annotated.categories, "a folder of masks")
    for category in annotated.categories:
        if category.name.startswith(".") or set(category.name) & set("/\\") or len(category.name.encode()) > 200:
            raise AnnotationError(f"category {category.id} is named {category.name!r}, which cannot be a folder's name")
    folder = Location.of(place)
    check_photo_choice(photos, annotated, folder, can_refer=False, format="a folder of masks")
    names = flat_names(annotated)
    check_photo_endings(names, "a folder of masks")
    if overlap == "refuse":  # before anything is written
        for image in annotated.images:
            list(_class_maps(image, annotated, overlap))
    id_of = {name: number for number, name in enumerate(sorted(names, key=file_stem), start=1)}
    losses = count_losses(
        annotated,
        names,
        image_ids=[id_of[name] for name in names],
        category_ids=range(1, len(annotated.categories) + 1),
    )
    for image, name in zip(annotated.images, names, strict=True):
        num_drawn = 0
        for class_name, ids in _class_maps(image, annotated, overlap):
            write_id_map(folder / f"masks/{class_name}/{file_stem(name)}.png", ids, bits=16)
            num_drawn += len(set(np.unique(ids)) - {0})
        losses["objects without a pixel of their own"] += len(image.instances) - num_drawn
        losses["crowd regions that become ignore regions"] += sum(i.iscrowd and i.label > 0 for i in image.instances)
        place_photo(image.path, folder / f"images/{name}", photos, losses)
    lines = "".join(f"{category.name}\n" for category in annotated.categories)
    (folder / f"masks/{_CLASSES_FILE}").write_bytes(lines.encode())
    return +losses


def mask_folder_of(place: Location) -> Location | None:
    """The folder of the instance masks: in the place, or the place itself if it is named so; else None."""
    for name in MASK_FOLDERS:
        if (place / name).is_folder():
            return place / name
    return place if place.name in MASK_FOLDERS and place.is_folder() else None


def _class_maps(image: AnnotatedImage, annotated: AnnotatedSet, overlap: str) -> Iterator[tuple[str, np.ndarray]]:
    """The class and the id map of each class that an image shows; at least one of zeros."""
    if len(image.instances) > _MOST_OBJECTS:
        raise AnnotationError(
            f"image {image.file_name} has {len(image.instances)} objects; a PNG holds {_MOST_OBJECTS}"
        )
    names = [
        IGNORE_NAME if instance.iscrowd else annotated.categories[instance.label - 1].name
        for instance in image.instances
    ]
    for class_name in sorted(set(names)) or [annotated.categories[0].name]:
        ids = [number if name == class_name else 0 for number, name in enumerate(names, start=1)]
        yield class_name, draw_id_map(image, ids, overlap=overlap)


def _meanings(stem: str) -> Iterator[tuple[str, str]]:
    """What the key of a mask may mean, without its extension: the photo's key, and the class, "" for none."""
    first, _, rest = stem.partition("/")
    for photo, name in ((stem, ""), (rest, first)):
        yield photo, name
        yield photo.removesuffix(_MASK_ENDING), name


def _photo_folder(mask_folder: Location) -> Location:
    folders = [mask_folder.parent / name for name in PHOTO_FOLDERS]
    for folder in folders:
        if folder.is_folder():
            return folder
    raise AnnotationError(
        f"the photos of the masks in {mask_folder} were not found: looked for {', '.join(map(str, folders))}; say "
        "where they are with the image root"
    )


def _photos_by_stem(folder: Location) -> dict[str, str]:
    """The keys of the photos below a folder, by their keys without extension."""
    photos: dict[str, str] = {}
    for key in folder.iter_names(recursive=True):
        if is_photo(key) and (first := photos.setdefault(key.rpartition(".")[0], key)) != key:
            raise AnnotationError(
                f"{folder} has {first} and {key}; allowed is one photo of a name, which is its mask's"
            )
    if not photos:
        raise AnnotationError(f"{folder} holds no photo")
    return photos


def _class_names(mask_folder: Location, used: set[str]) -> list[str]:
    listing = mask_folder / _CLASSES_FILE
    if not listing.is_file():
        return sorted(used)
    names = [name for name in read_lines(listing) if name]
    check_distinct(names, listing.uri)
    return names
