"""COCO JSON: reads and writes polygons, RLE, crowds, keypoints, and LVIS's lists of checked classes.

RLE may be compressed or not, and category ids may have gaps. The format is COCO's
(https://cocodataset.org/#format-data), with two optional keys of our own in an image: `labelled_category_ids` and
`extra_file_names`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from model.categories import Category
from pipeline.dataset.formats.coco_file import CocoAnnotation, CocoFile, CocoImage, coco_box, read_coco
from pipeline.dataset.formats.photo_copy import copy_photo, names_below
from pipeline.dataset.types import (
    AnnotatedImage,
    AnnotatedSet,
    AnnotationError,
    Instance,
    Polygons,
    Rle,
    polygon_area,
)
from pipeline.masks.rle import polygons_to_rle, rle_areas
from pipeline.notes import NoteList
from pipeline.storage.files import Location, no_collection
from pipeline.storage.uri import relative_uri, scheme_of

# A smaller object may have no pixel, so that its mask is filled to see.
_SMALL_AREA_PX, _SMALL_SIDE_PX = 4.0, 2.0


def load_coco(place: str | Location, image_root: str | None = None, *, unknown: str = "refuse") -> AnnotatedSet:
    """Reads a COCO JSON file.

    Args:
        place: the file, or a folder with exactly one JSON file (or `annotations.json`).
        image_root: folder of the photos; by default they are searched beside the file and in folders named like the
            file or its split (`annotations/instances_train2017.json` -> `train2017`).
        unknown: annotations whose category_id is not declared: "refuse" raises, "ignore" makes them regions
            that are neither positive nor negative, "drop" leaves them out.

    Returns:
        Images in the file's order, labels in the order of category ids. Boxes are clipped to the image. What was
        decided is in `notes`: see `coco_file.CocoAnnotation` for objects that cannot be used as annotated.

    Raises:
        AnnotationError: see `coco_file.read_coco`; or no photo is found.
    """
    json_path = coco_file(Location.of(place))
    with no_collection():
        return _to_set(read_coco(json_path, unknown=unknown), json_path, image_root)


def _to_set(content: CocoFile, json_path: Location, image_root: str | None) -> AnnotatedSet:
    entries = sorted(content.categories, key=lambda category: category.id)
    categories = tuple(Category(entry.id, entry.name) for entry in entries)
    label_of = {category.id: index + 1 for index, category in enumerate(categories)}
    notes = NoteList()
    by_image: dict[int | str, list[CocoAnnotation]] = {image.id: [] for image in content.images}
    for annotation in content.annotations:
        by_image[annotation.image_id].append(annotation)
    file_names = [image.file_name for image in content.images[:5]]
    root = json_path.at(image_root) if image_root else find_image_root(json_path, file_names)
    images = []
    for image in content.images:
        file_name = _existing_name(root, image.file_name)
        instances = tuple(
            _to_instance(annotation, label_of.get(annotation.category_id, 0), image, content.keypoint_names, notes)
            for annotation in by_image[image.id]
        )
        images.append(
            AnnotatedImage(
                image_id=image.id,
                file_name=file_name,
                path=root / file_name,
                height=image.height,
                width=image.width,
                instances=instances,
                labelled_classes=_labelled_classes(image, instances, label_of),
                extra_paths=tuple(root / name for name in image.extra_file_names or ()),
            )
        )
    return AnnotatedSet(tuple(images), categories, content.keypoint_names, content.notes | notes.to_dict())


def to_coco(annotated: AnnotatedSet) -> dict[str, Any]:
    """The set as a COCO JSON object; annotation ids count from 1.

    Polygons stay polygons and RLE stays RLE, so masks are kept exactly. An ignore region of every class (label 0) is
    written as a crowd of each class, which is its meaning in evaluation.
    """
    categories: list[dict[str, object]] = [{"id": c.id, "name": c.name} for c in annotated.categories]
    if annotated.keypoint_names:
        for category in categories:
            category["keypoints"] = list(annotated.keypoint_names)
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for image in annotated.images:
        entry: dict[str, object] = {
            "id": image.image_id,
            "file_name": image.file_name,
            "height": image.height,
            "width": image.width,
        }
        if image.labelled_classes is not None:
            entry["labelled_category_ids"] = [annotated.categories[i - 1].id for i in image.labelled_classes]
        if image.extra_paths:
            entry["extra_file_names"] = [path.uri for path in image.extra_paths]
        images.append(entry)
        for instance in image.instances:
            labels = [instance.label] if instance.label else range(1, len(annotated.categories) + 1)
            for label in labels:
                annotation: dict[str, object] = {
                    "id": len(annotations) + 1,
                    "image_id": image.image_id,
                    "category_id": annotated.categories[label - 1].id,
                    "bbox": [round(value, 4) for value in instance.bbox],
                    "area": instance.area,
                    "iscrowd": int(instance.iscrowd),
                    "segmentation": instance.segmentation,
                }
                if instance.keypoints is not None:
                    annotation["keypoints"] = list(instance.keypoints)
                    annotation["num_keypoints"] = sum(1 for v in instance.keypoints[2::3] if v > 0)
                annotations.append(annotation)
    return {"images": images, "annotations": annotations, "categories": categories}


def write_coco(annotated: AnnotatedSet, place: str | Location, *, copy_photos: bool = True) -> Counter[str]:
    """Writes a COCO JSON file, and copies the photos to the folder beside it of the same name (`val.json` -> `val/`).

    Without copying, file names are relative to the JSON file's folder where photos and file are on the local disk,
    else full URIs. Copies of extra files have the photo's name, in the folders `extra_1/`, `extra_2/` ... beside it.

    Returns:
        What COCO cannot hold: description -> count. (An ignore region of every class becomes a crowd of each.)
    """
    losses: Counter[str] = Counter()
    json_path = Location.of(place)
    folder = json_path.parent
    images = []
    for image, name in zip(annotated.images, names_below(annotated), strict=True):
        extra_names: list[str] = []
        if copy_photos:
            losses["photos renamed"] += name != image.file_name
            for number, path in enumerate(image.extra_paths, start=1):
                ending = path.name.removeprefix(path.stem)
                extra_names.append(f"extra_{number}/{name.removesuffix(ending)}{ending}")
            for copy_name, path in zip([name, *extra_names], [image.path, *image.extra_paths], strict=True):
                copy_photo(path, folder / json_path.stem / copy_name, losses)
        else:
            name = relative_uri(image.path.uri, folder.uri)
            extra_names = [relative_uri(path.uri, folder.uri) for path in image.extra_paths]
        images.append(replace(image, file_name=name, extra_paths=tuple(map(Location, extra_names))))
        losses["ignore regions spread over all classes"] += sum(i.label == 0 for i in image.instances)
    json_path.write_json(to_coco(replace(annotated, images=tuple(images))))
    return +losses


def find_image_root(json_path: Location, file_names: Sequence[str]) -> Location:
    """The first of the folders where COCO's photos usually are that holds one of these files.

    The files are tried in order. Without file names it is the JSON file's own folder.

    Raises:
        AnnotationError: no folder holds any of them; the message names the folders tried.
    """
    folder, stem = json_path.parent, json_path.stem
    names = [stem, stem.partition("_")[2], stem.rpartition("_")[2], stem.partition("_")[0], "images"]
    names = list(dict.fromkeys(name for name in names if name))
    parent = folder.at("..") if folder.uri == "." else folder.parent
    roots = [root for above in (folder, parent) for root in (above, *(above / name for name in names))]
    for file_name in (name for name in file_names if scheme_of(name) not in ("http", "https")):
        for root in roots:
            if (root / _existing_name(root, file_name)).is_file():
                return root
    if not file_names:
        return folder
    raise AnnotationError(
        f"the photos of {json_path} were not found: looked for {file_names[0]} in {', '.join(map(str, roots))}; "
        "say where they are with the image root"
    )


def coco_file(path: Location) -> Location:
    """The JSON file itself, or the one in a folder. Raises AnnotationError when there is none or more than one."""
    if path.uri.lower().endswith(".json"):
        if not path.is_file():
            raise AnnotationError(f"there is no annotation file {path}")
        return path
    json_files = json_files_of(path)
    if len(json_files) != 1:
        names = ", ".join(each.name for each in json_files) or "none"
        raise AnnotationError(f"{path} should hold one COCO JSON file or annotations.json, but holds: {names}")
    return json_files[0]


def _existing_name(root: Location, file_name: str) -> str:
    """The file name, with slashes for Windows' backslashes where the photo is found so."""
    with_slashes = file_name.replace("\\", "/")
    if with_slashes == file_name or (root / file_name).is_file():
        return file_name
    return with_slashes if (root / with_slashes).is_file() else file_name


def _to_instance(
    annotation: CocoAnnotation, label: int, image: CocoImage, keypoint_names: tuple[str, ...], notes: NoteList
) -> Instance:
    segmentation = cast("Polygons | Rle", annotation.segmentation)
    height, width = image.height, image.width
    x, y, w, h = coco_box(annotation)
    right, bottom = float(width), float(height)
    x1, y1 = min(max(x, 0.0), right), min(max(y, 0.0), bottom)
    x2, y2 = min(max(x + w, 0.0), right), min(max(y + h, 0.0), bottom)
    area = annotation.area
    if area is None:
        is_rle = isinstance(segmentation, Mapping)
        area = _num_pixels(segmentation, height, width) if is_rle else polygon_area(cast("Polygons", segmentation))
    keypoints = annotation.keypoints
    if keypoints is not None and not keypoint_names:
        notes.add("annotations whose keypoints are left out, because no category names keypoints", _name(annotation))
        keypoints = None
    if x2 <= x1 or y2 <= y1:
        notes.add("annotations that lie outside their image, which are left out", _name(annotation))
    elif (area < _SMALL_AREA_PX or min(x2 - x1, y2 - y1) < _SMALL_SIDE_PX) and not annotation.iscrowd:
        if not _num_pixels(segmentation, height, width):
            notes.add("annotations without a pixel, whose box is neither positive nor negative", _name(annotation))
    return Instance(
        label=label,
        box=(x1, y1, x2, y2),
        segmentation=segmentation,
        iscrowd=bool(annotation.iscrowd) or label == 0,
        area=float(area),
        keypoints=tuple(keypoints) if keypoints else None,
    )


def _name(annotation: CocoAnnotation) -> str:
    return f"annotation {annotation.id!r}" if annotation.id is not None else f"one of image {annotation.image_id!r}"


def _num_pixels(segmentation: Polygons | Rle, height: int, width: int) -> float:
    counts = polygons_to_rle(segmentation, height, width) if isinstance(segmentation, list) else segmentation["counts"]
    return float(rle_areas([cast("str", counts)])[0])


def _labelled_classes(
    image: CocoImage, instances: Sequence[Instance], label_of: Mapping[int, int]
) -> tuple[int, ...] | None:
    if (ids := image.labelled_category_ids) is not None:
        return tuple(sorted(label_of[i] for i in ids if i in label_of))
    if (absent := image.neg_category_ids) is not None:  # LVIS: only present and checked classes are labelled
        incomplete = image.not_exhaustive_category_ids or ()
        labels = {label_of[i] for i in absent if i in label_of} | {i.label for i in instances}
        return tuple(sorted(labels - {label_of[i] for i in incomplete if i in label_of} - {0}))
    return None


def json_files_of(folder: Location) -> list[Location]:
    """The JSON files in a folder, or only `annotations.json` if it exists."""
    names = [name for name in folder.iter_names() if name.lower().endswith(".json")]
    return [folder / name for name in (["annotations.json"] if "annotations.json" in names else names)]
