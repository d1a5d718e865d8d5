"""PASCAL VOC: reads and writes folders with instance masks.

http://host.robots.ox.ac.uk/pascal/VOC/voc2012/

Masks come from SegmentationObject (pixel value = number of the object). Classes come from SegmentationClass (pixel
value = index of the class), or else from the objects of the XML file, which are in the order of their numbers. Pixels
of value 255 (void, the border around each object) belong to no object.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from model.categories import Category
from pipeline.dataset.formats.class_names import (
    BACKGROUND_NAME,
    check_distinct,
    check_writable,
    is_one_line,
    read_lines,
)
from pipeline.dataset.formats.id_masks import (
    check_disjoint,
    draw_id_map,
    id_map_to_instances,
    read_id_map,
    write_id_map,
)
from pipeline.dataset.formats.losses import count_losses
from pipeline.dataset.formats.photo_copy import copy_photo, flat_names
from pipeline.dataset.types import IGNORE_NAME, AnnotatedImage, AnnotatedSet, AnnotationError
from pipeline.notes import NoteList
from pipeline.storage.files import Location
from pipeline.storage.uri import file_stem

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
_VOID = 255
_DIFFICULT = {"": False, "0": False, "Unspecified": False, "1": True}


@dataclass(frozen=True)
class _XmlObject:
    name: str
    difficult: bool


def load_voc(place: str | Location, image_root: str | None = None) -> AnnotatedSet:
    """Reads the images of a VOC folder that have instance masks.

    Args:
        place: the folder that holds SegmentationObject, for all its images, or one of its lists such as
            `ImageSets/Segmentation/train.txt`.
        image_root: folder of the photos; JPEGImages by default. Of several photos of one name the .jpg is used.

    Returns:
        Image ids are the names without extension. Classes are those of `class_names.txt` where there is one (first
        line `_background_`), VOC's twenty where the XML's names are among them, else the XML's names in order. A
        difficult object is a crowd region: neither positive nor negative. Images without an instance mask are left
        out and counted in `notes`.

    Raises:
        AnnotationError: no such folder, no instance masks, invalid XML, a list of classes that is no such list, or an
            object whose class is not stated or not listed.
    """
    place = Location.of(place)
    root, names = _names_of(place)
    notes = NoteList()
    objects = {name: _read_xml(root / f"Annotations/{name}.xml") for name in names}
    classes = _class_names(root, objects.values())
    photo_root = place.at(image_root) if image_root else root / "JPEGImages"
    photos: dict[str, list[str]] = {}
    for photo in photo_root.iter_names():
        photos.setdefault(file_stem(photo), []).append(photo)
    images = []
    for name in names:
        ids_path = root / f"SegmentationObject/{name}.png"
        if not ids_path.is_file():
            is_known = name in photos or objects[name] is not None
            notes.add("images without an instance mask left out" if is_known else "listed names without a file", name)
            continue
        ids = read_id_map(ids_path)
        numbers = [int(n) for n in np.unique(ids) if n not in (0, _VOID)]
        listed = objects[name] or []
        labels = _labels_by_class_map(root, name, ids, numbers, len(classes))
        if labels is None:
            labels = _labels_by_xml(root, name, listed, numbers, classes)
        # The XML's flags are those of the masks only where it lists an object for each of their numbers.
        flags = listed if len(listed) >= max(numbers, default=0) else None
        instances = tuple(
            replace(instance, iscrowd=instance.label == 0 or (flags is not None and flags[number - 1].difficult))
            for number, instance in id_map_to_instances(ids, labels).items()
        )
        found = sorted(photos.get(name, [f"{name}.jpg"]), key=lambda photo: not photo.lower().endswith(".jpg"))
        if len(found) > 1:
            notes.add("photos of one name, of which the .jpg or else the first is used", ", ".join(found))
        height, width = ids.shape
        images.append(AnnotatedImage(name, found[0], photo_root / found[0], height, width, instances))
    if not images:
        raise AnnotationError(f"{place}: none of the {len(names)} images has a mask in {root}/SegmentationObject")
    categories = tuple(Category(index + 1, name) for index, name in enumerate(classes))
    return AnnotatedSet(tuple(images), categories, notes=notes.to_dict())


def write_voc(annotated: AnnotatedSet, place: str | Location, *, overlap: str = "refuse") -> Counter[str]:
    """Writes a VOC folder: JPEGImages, SegmentationObject, SegmentationClass, Annotations, ImageSets, class_names.txt.

    Crowd regions become difficult objects.

    Returns:
        What VOC cannot hold: description -> count.

    Raises:
        AnnotationError: more than 254 objects on an image, more than 254 classes, names of photos or classes that a
            list of lines cannot hold, two photos of the same name, or objects that share pixels (`overlap`, see
            `draw_id_map`).
    """
    check_writable(annotated.categories, "VOC")
    folder = Location.of(place)
    names = flat_names(annotated)
    stems = [file_stem(name) for name in names]
    if odd := [stem for stem in stems if not is_one_line(stem)]:
        raise AnnotationError(f"a photo is named {odd[0]!r}, which VOC's lists of one name a line cannot hold")
    if len(annotated.categories) >= _VOID:
        raise AnnotationError(f"VOC holds at most 254 classes, not {len(annotated.categories)}")
    for image in annotated.images:
        if len(image.instances) >= _VOID:
            raise AnnotationError(f"image {image.file_name} has {len(image.instances)} objects; VOC holds at most 254")
    check_disjoint(annotated, overlap=overlap)
    losses = count_losses(annotated, names, image_ids=stems, category_ids=range(1, len(annotated.categories) + 1))
    for image, photo, name in zip(annotated.images, names, stems, strict=True):
        ids = draw_id_map(image, list(range(1, len(image.instances) + 1)), overlap=overlap)
        classes = np.array([0] + [i.label if i.label else _VOID for i in image.instances])[ids]
        write_id_map(folder / f"SegmentationObject/{name}.png", ids)
        write_id_map(folder / f"SegmentationClass/{name}.png", classes)
        (folder / f"Annotations/{name}.xml").write_bytes(_to_xml(image, photo, annotated.categories))
        copy_photo(image.path, folder / f"JPEGImages/{photo}", losses)
        losses["objects without a pixel of their own"] += len(image.instances) - len(set(np.unique(ids)) - {0})
    listing = "".join(f"{name}\n" for name in stems)
    (folder / "ImageSets/Segmentation/train.txt").write_bytes(listing.encode())
    lines = "".join(f"{line}\n" for line in [BACKGROUND_NAME, *(c.name for c in annotated.categories)])
    (folder / "class_names.txt").write_bytes(lines.encode())
    return +losses


def _names_of(place: Location) -> tuple[Location, list[str]]:
    """The VOC folder, and the names of the images to read.

    A line of a list is a name, which may have blanks; or, in the lists of one class, a name and a number behind it.
    """
    root = place.parent.parent.parent if place.uri.lower().endswith(".txt") else place
    masks = [file_stem(n) for n in (root / "SegmentationObject").iter_names() if n.endswith(".png")]
    if not masks:
        raise AnnotationError(f"{root} is no VOC folder with instance masks: SegmentationObject/*.png is empty")
    if root == place:
        return root, masks
    if not place.is_file():
        raise AnnotationError(f"there is no list {place}")
    known = set(masks)
    names = [line if line in known else line.split()[0] for line in read_lines(place) if line]
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise AnnotationError(f"{place}: the image {repeated[0]!r} stands there twice")
    return root, names


def _read_xml(path: Location) -> list[_XmlObject] | None:
    if not path.is_file():
        return None
    try:
        tree = ET.fromstring(path.read_bytes())
    except (ET.ParseError, ValueError, LookupError) as error:  # the last two: an encoding that is not supported
        raise AnnotationError(f"{path} is not valid XML: {error}") from None
    objects = []
    for number, entry in enumerate(tree.findall("object"), start=1):
        difficult = (entry.findtext("difficult") or "").strip()
        if difficult not in _DIFFICULT:
            raise AnnotationError(f"{path}: object {number} has <difficult> {difficult!r}; allowed are 0 and 1")
        objects.append(_XmlObject((entry.findtext("name") or "").strip(), _DIFFICULT[difficult]))
    return objects


def _class_names(root: Location, objects: Iterable[list[_XmlObject] | None]) -> tuple[str, ...]:
    listing = root / "class_names.txt"
    if not listing.is_file():
        used = {entry.name for entries in objects for entry in entries or ()} - {IGNORE_NAME, ""}
        return VOC_CLASSES if used <= set(VOC_CLASSES) else tuple(sorted(used))
    first, *names = read_lines(listing) or [""]
    if first != BACKGROUND_NAME or not names or "" in names:
        raise AnnotationError(
            f"{listing} must have {BACKGROUND_NAME} in its first line and a class in each further line, none blank"
        )
    check_distinct(names, listing.uri)
    return tuple(names)


def _labels_by_class_map(
    root: Location, name: str, ids: np.ndarray, numbers: list[int], num_classes: int
) -> dict[int, int] | None:
    """Each object's class: the most frequent value of SegmentationClass on its mask; None without such a file."""
    path = root / f"SegmentationClass/{name}.png"
    if not path.is_file():
        return None
    classes = read_id_map(path)
    if classes.shape != ids.shape:
        raise AnnotationError(f"{path} is of size {classes.shape}, its instance mask of {ids.shape} (H, W)")
    labels = {}
    for number in numbers:
        label = int(np.bincount(classes[ids == number]).argmax())
        if label != _VOID and not 1 <= label <= num_classes:
            raise AnnotationError(f"{path}: object {number} is of class {label}; allowed are 1 to {num_classes}")
        labels[number] = 0 if label == _VOID else label
    return labels


def _labels_by_xml(
    root: Location, name: str, listed: list[_XmlObject], numbers: list[int], classes: Sequence[str]
) -> dict[int, int]:
    """Each object's class by its entry in the XML file."""
    label_of = {name: index + 1 for index, name in enumerate(classes)} | {IGNORE_NAME: 0}
    labels = {}
    for number in numbers:
        if number > len(listed):
            raise AnnotationError(
                f"{root}/SegmentationObject/{name}.png: object {number} has no class: there is no "
                f"SegmentationClass/{name}.png, and Annotations/{name}.xml lists {len(listed)} objects"
            )
        if (class_name := listed[number - 1].name) not in label_of:
            raise AnnotationError(
                f"{root}/Annotations/{name}.xml: object {number} is of class {class_name!r}; allowed are "
                f"{', '.join(classes)}"
            )
        labels[number] = label_of[class_name]
    return labels


def _to_xml(image: AnnotatedImage, file_name: str, categories: Sequence[Category]) -> bytes:
    root = ET.Element("annotation")
    ET.SubElement(root, "filename").text = file_name
    size = ET.SubElement(root, "size")
    for key, side in (("width", image.width), ("height", image.height), ("depth", 3)):
        ET.SubElement(size, key).text = str(side)
    ET.SubElement(root, "segmented").text = "1"
    for instance in image.instances:
        entry = ET.SubElement(root, "object")
        ET.SubElement(entry, "name").text = categories[instance.label - 1].name if instance.label else IGNORE_NAME
        ET.SubElement(entry, "difficult").text = str(int(instance.iscrowd))
        bndbox = ET.SubElement(entry, "bndbox")
        x1, y1, x2, y2 = instance.box
        # VOC counts pixels from 1 and includes the last one.
        for key, value in (("xmin", x1 + 1), ("ymin", y1 + 1), ("xmax", x2), ("ymax", y2)):
            ET.SubElement(bndbox, key).text = str(round(value))
    ET.indent(root)
    return ET.tostring(root, encoding="utf-8")
