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
from pipeline.dataset.formats.id_masks import draw_id_map, id_map_to_instances, read_id_map, write_id_map
from pipeline.dataset.formats.photo_copy import copy_photo, flat_names
from pipeline.dataset.types import IGNORE_NAME, AnnotatedImage, AnnotatedSet, AnnotationError
from pipeline.storage import files
from pipeline.storage.uri import file_stem, join_uri, parent_uri, plain_uri

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
_VOID = 255


@dataclass(frozen=True)
class _XmlObject:
    name: str
    difficult: bool


def load_voc(uri: str, image_root: str | None = None) -> AnnotatedSet:
    """Reads the images of a VOC folder that have instance masks.

    Args:
        uri: the folder that holds SegmentationObject, for all its images, or one of its lists such as
            `ImageSets/Segmentation/train.txt`.
        image_root: folder of the photos; JPEGImages by default.

    Returns:
        Image ids are the names without extension. Classes are those of `class_names.txt` where there is one (first
        line `_background_`), VOC's twenty where the XML's names are among them, else the XML's names in order. A
        difficult object is a crowd region: neither positive nor negative. Images without an instance mask are left
        out and counted in `notes`.

    Raises:
        AnnotationError: no such folder, no instance masks, invalid XML, or an object without a class.
    """
    uri = plain_uri(str(uri)).rstrip("/")
    root, names = _names_of(uri)
    notes: Counter[str] = Counter()
    objects = {name: _read_xml(join_uri(root, f"Annotations/{name}.xml")) for name in names}
    classes = _class_names(root, objects.values())
    label_of = {name: index + 1 for index, name in enumerate(classes)}
    photo_root = image_root or join_uri(root, "JPEGImages")
    photos = {file_stem(name): name for name in files.iter_names(photo_root)}
    images = []
    for name in names:
        ids_uri = join_uri(root, f"SegmentationObject/{name}.png")
        if not files.is_file(ids_uri):
            notes["images without an instance mask left out"] += 1
            continue
        ids = read_id_map(ids_uri)
        numbers = [int(n) for n in np.unique(ids) if n not in (0, _VOID)]
        listed = objects[name]
        labels = _labels_by_class_map(root, name, ids, numbers, len(classes))
        if labels is None:
            labels = {}
            for number in numbers:
                if listed is None or not 1 <= number <= len(listed):
                    raise AnnotationError(
                        f"{ids_uri}: object {number} has no class: there is no "
                        f"SegmentationClass/{name}.png, and Annotations/{name}.xml lists "
                        f"{len(listed or ())} objects"
                    )
                labels[number] = label_of.get(listed[number - 1].name, 0)
        # The XML's flags are those of the masks only where it lists an object for each of their numbers.
        flags = listed if listed is not None and numbers and len(listed) >= max(numbers) else None
        instances = tuple(
            replace(instance, iscrowd=instance.label == 0 or (flags is not None and flags[number - 1].difficult))
            for number, instance in id_map_to_instances(ids, labels).items()
        )
        photo = photos.get(name, f"{name}.jpg")
        height, width = ids.shape
        images.append(AnnotatedImage(name, photo, join_uri(photo_root, photo), height, width, instances))
    if not images:
        raise AnnotationError(f"{uri}: none of the {len(names)} images has a mask in {root}/SegmentationObject")
    categories = tuple(Category(index + 1, name) for index, name in enumerate(classes))
    return AnnotatedSet(tuple(images), categories, notes=dict(notes))


def write_voc(annotated: AnnotatedSet, folder: str, *, overlap: str = "refuse", split: str = "train") -> Counter[str]:
    """Writes a VOC folder: JPEGImages, SegmentationObject, SegmentationClass, Annotations, ImageSets, class_names.txt.

    Crowd regions become difficult objects.

    Returns:
        What VOC cannot hold: description -> count.

    Raises:
        AnnotationError: more than 254 objects on an image, more than 254 classes, two photos of the same name, or
            objects that share pixels (`overlap`, see `draw_id_map`).
    """
    losses: Counter[str] = Counter()
    names = flat_names(annotated)
    if len(annotated.categories) >= _VOID:
        raise AnnotationError(f"VOC holds at most 254 classes, not {len(annotated.categories)}")
    for index, image in enumerate(annotated.images):
        if len(image.instances) >= _VOID:
            raise AnnotationError(f"image {image.file_name} has {len(image.instances)} objects; VOC holds at most 254")
        name = file_stem(names[index])
        ids = draw_id_map(image, list(range(1, len(image.instances) + 1)), overlap=overlap)
        classes = np.array([0] + [i.label if i.label else _VOID for i in image.instances])[ids]
        write_id_map(join_uri(folder, f"SegmentationObject/{name}.png"), ids)
        write_id_map(join_uri(folder, f"SegmentationClass/{name}.png"), classes)
        xml = _to_xml(image, names[index], annotated.categories)
        files.write_bytes(join_uri(folder, f"Annotations/{name}.xml"), xml)
        copy_photo(image, join_uri(folder, f"JPEGImages/{names[index]}"), losses)
        losses["keypoints"] += sum(i.keypoints is not None for i in image.instances)
        losses["lists of labelled classes"] += image.labelled_classes is not None
        losses["extra channels"] += len(image.extra_paths)
        losses["objects without a pixel of their own"] += len(image.instances) - len(set(np.unique(ids)) - {0})
    listing = "".join(f"{file_stem(name)}\n" for name in names.values())
    files.write_bytes(join_uri(folder, f"ImageSets/Segmentation/{split}.txt"), listing.encode())
    lines = "".join(f"{line}\n" for line in ["_background_", *(c.name for c in annotated.categories)])
    files.write_bytes(join_uri(folder, "class_names.txt"), lines.encode())
    return +losses


def _names_of(uri: str) -> tuple[str, list[str]]:
    """The VOC folder, and the names of the images to read."""
    if uri.lower().endswith(".txt"):
        if not files.is_file(uri):
            raise AnnotationError(f"there is no list {uri}")
        root = parent_uri(parent_uri(parent_uri(uri)))
        lines = files.read_bytes(uri).decode("utf-8", "replace").splitlines()
        return root, [line.split()[0] for line in lines if line.strip()]
    names = [file_stem(n) for n in files.iter_names(join_uri(uri, "SegmentationObject")) if n.endswith(".png")]
    if not names:
        raise AnnotationError(f"{uri} is no VOC folder with instance masks: SegmentationObject/*.png is empty")
    return uri, names


def _read_xml(uri: str) -> list[_XmlObject] | None:
    if not files.is_file(uri):
        return None
    try:
        tree = ET.fromstring(files.read_bytes(uri))
    except ET.ParseError as error:
        raise AnnotationError(f"{uri} is not valid XML: {error}") from None
    return [
        _XmlObject((entry.findtext("name") or "").strip(), (entry.findtext("difficult") or "0").strip() == "1")
        for entry in tree.findall("object")
    ]


def _class_names(root: str, objects: Iterable[list[_XmlObject] | None]) -> tuple[str, ...]:
    listing = join_uri(root, "class_names.txt")
    if files.is_file(listing):
        lines = files.read_bytes(listing).decode().split("\n")
        return tuple(line.strip() for line in lines[1:] if line.strip())
    used = {entry.name for entries in objects for entry in entries or ()} - {IGNORE_NAME}
    return VOC_CLASSES if used <= set(VOC_CLASSES) else tuple(sorted(used))


def _labels_by_class_map(
    root: str, name: str, ids: np.ndarray, numbers: list[int], num_classes: int
) -> dict[int, int] | None:
    """Each object's class: the most frequent value of SegmentationClass on its mask; None without such a file."""
    uri = join_uri(root, f"SegmentationClass/{name}.png")
    if not files.is_file(uri):
        return None
    classes = read_id_map(uri)
    if classes.shape != ids.shape:
        raise AnnotationError(f"{uri} is of size {classes.shape}, its instance mask of {ids.shape} (H, W)")
    labels = {}
    for number in numbers:
        label = int(np.bincount(classes[ids == number]).argmax())
        if label != _VOID and not 1 <= label <= num_classes:
            raise AnnotationError(f"{uri}: object {number} is of class {label}; allowed are 1 to {num_classes}")
        labels[number] = 0 if label == _VOID else label
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
