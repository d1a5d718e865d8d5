"""Conversion of annotations from one format to another, with masks equal to the pixel."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from pipeline.dataset.faults import FaultList, shown
from pipeline.dataset.formats.cityscapes import write_cityscapes
from pipeline.dataset.formats.coco import write_coco
from pipeline.dataset.formats.id_masks import OVERLAPS
from pipeline.dataset.formats.labelme import write_labelme
from pipeline.dataset.formats.reading import format_of, load_annotations
from pipeline.dataset.formats.records import MOST_PIXELS
from pipeline.dataset.formats.via import write_via
from pipeline.dataset.formats.voc import write_voc
from pipeline.dataset.source import AnnotationSource
from pipeline.dataset.types import FORMATS, AnnotatedSet, AnnotationError
from pipeline.storage.base import StorageSettings
from pipeline.storage.files import Location


@dataclass(frozen=True)
class Conversion:
    """Summary of a conversion.

    Attributes:
        source_format, target_format: of the annotations read and written.
        num_images, num_instances, num_categories: written.
        notes: how often the reader had to decide something: name of the decision -> count.
        losses: what the target format cannot hold: description -> count. Masks are never among them, except those of
            objects that share pixels where `overlap` allows that.
    """

    source_format: str
    target_format: str
    num_images: int
    num_instances: int
    num_categories: int
    notes: Mapping[str, int]
    losses: Mapping[str, int]


def convert_annotations(
    source: str | AnnotationSource,
    target: str | Location,
    *,
    storage: StorageSettings | None = None,
    target_format: str,
    copy_photos: bool = True,
    overlap: str = "refuse",
    unknown: str = "refuse",
) -> Conversion:
    """Reads annotations in one format and writes them in another; masks stay the same to the pixel.

    Args:
        source, storage: see `load_annotations`.
        target: a JSON file for COCO, a folder for the others. It must not exist, or must be an empty folder.
        target_format: one of FORMATS.
        copy_photos: False leaves the photos where they are and refers to them (COCO, VIA, LabelMe).
        overlap: objects that share pixels, which VOC and Cityscapes cannot hold: "refuse" them, or give the pixels to
            the smaller object ("smaller_on_top").
        unknown: see `load_annotations`.

    Raises:
        AnnotationError: a source of no known format, a target that exists, an unknown format, or a data set that the
            target format cannot hold.
    """
    if overlap not in OVERLAPS:
        raise AnnotationError(f"overlap: {overlap!r} is no choice; allowed are {', '.join(OVERLAPS)}")
    if target_format not in FORMATS:
        raise AnnotationError(f"no annotation format {target_format!r}; allowed are {', '.join(FORMATS)}")
    target = Location.of(target)
    if target_format == "coco" and not target.uri.lower().endswith(".json"):
        raise AnnotationError(f"the target of a conversion to COCO is a file that ends in .json, not {target}")
    if not copy_photos and target_format in ("voc", "cityscapes"):
        raise AnnotationError(f"{target_format} keeps its photos in folders of its own, so they must be copied")
    if target.is_file() or next(target.iter_names(recursive=True), None) is not None:
        raise AnnotationError(f"the target {target} is there already; nothing is written over")
    if isinstance(source, str):
        source = AnnotationSource(uri=source)
    source_format = format_of(source, storage)
    annotated = load_annotations(replace(source, format=source_format), storage, unknown=unknown)
    if unreadable := [image.file_name for image in annotated.images if not image.height]:
        raise AnnotationError(
            f"{len(unreadable)} photos cannot be read, so their size is not known: {', '.join(unreadable[:10])}; "
            f"{source_format} annotations do not state it"
        )
    if too_large := [image.file_name for image in annotated.images if image.height * image.width > MOST_PIXELS]:
        raise AnnotationError(f"{too_large[0]} is annotated as of more than {MOST_PIXELS:,} pixels, which is the most")
    for name, entries in (("image", annotated.images), ("category", annotated.categories)):
        if not entries:
            raise AnnotationError(f"{source.uri} has no {name}; allowed is at least one")
    if not any(_is_there(image.path) for image in annotated.images):
        raise AnnotationError(
            f"none of the {len(annotated)} photos of {source.uri} is there: looked for {annotated.images[0].path}; say "
            "where they are with the image root"
        )
    if copy_photos:
        _refuse_climbing_names(annotated, is_labelme=source_format == "labelme")
    losses = _write(annotated, target, target_format, copy_photos, overlap)
    return Conversion(
        source_format,
        target_format,
        len(annotated),
        annotated.num_instances,
        len(annotated.categories),
        annotated.notes,
        dict(losses),
    )


def _refuse_climbing_names(annotated: AnnotatedSet, *, is_labelme: bool) -> None:
    """Refuses file names that lead upwards, save LabelMe's usual `../images/a.jpg` where the photo is really there."""
    faults = FaultList()
    for image in annotated.images:
        is_climbing = posixpath.normpath(image.file_name.replace("\\", "/")).split("/")[0] == ".."
        if is_climbing and not (is_labelme and _is_there(image.path)):
            faults.add(
                f"image {image.image_id!r} has file_name {shown(image.file_name)}, which leads out of the folder of "
                "the photos; allowed are names inside, or a conversion that copies no photos"
            )
    faults.refuse_if_any("photos to copy")


def _is_there(photo: Location) -> bool:
    try:
        return photo.is_file()
    except (OSError, ValueError):  # ValueError: a URI of no store, a name that no file can have
        return False


def _write(annotated: AnnotatedSet, target: Location, format: str, copy_photos: bool, overlap: str) -> Counter[str]:
    """Writes the set; returns what the format cannot hold: description -> count."""
    if format in ("voc", "cityscapes"):
        return (write_voc if format == "voc" else write_cityscapes)(annotated, target, overlap=overlap)
    write = {"coco": write_coco, "via": write_via, "labelme": write_labelme}[format]
    return write(annotated, target, copy_photos=copy_photos)
