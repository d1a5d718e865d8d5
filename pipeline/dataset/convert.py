"""Conversion of annotations from one format to another, with masks equal to the pixel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.dataset.formats.cityscapes import write_cityscapes
from pipeline.dataset.formats.coco import write_coco
from pipeline.dataset.formats.labelme import write_labelme
from pipeline.dataset.formats.reading import detect_format, load_annotations
from pipeline.dataset.formats.via import write_via
from pipeline.dataset.formats.voc import write_voc
from pipeline.dataset.types import FORMATS, AnnotationError
from pipeline.storage import files


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
    source: str,
    target: str,
    *,
    source_format: str = "auto",
    target_format: str,
    image_root: str | None = None,
    copy_photos: bool = True,
    overlap: str = "refuse",
    unknown: str = "refuse",
    default_category: str = "object",
) -> Conversion:
    """Reads annotations in one format and writes them in another; masks stay the same to the pixel.

    Args:
        source, target: URIs; a JSON file for COCO, a folder for the others. The target must not exist, or must be an
            empty folder.
        source_format: one of FORMATS, or "auto".
        target_format: one of FORMATS.
        image_root: folder of the source's photos, where it is not the format's usual one.
        copy_photos: False leaves the photos where they are and refers to them (COCO, VIA, LabelMe).
        overlap: objects that share pixels, which VOC and Cityscapes cannot hold: "refuse" them, or give the pixels to
            the smaller object ("smaller_on_top").
        unknown, default_category: see `load_annotations`.

    Raises:
        AnnotationError: a source of no known format, a target that exists, an unknown format, or a data set that the
            target format cannot hold.
    """
    if target_format not in FORMATS:
        raise AnnotationError(f"no annotation format {target_format!r}; allowed are {', '.join(FORMATS)}")
    if target_format == "coco" and not target.lower().endswith(".json"):
        raise AnnotationError(f"the target of a conversion to COCO is a file that ends in .json, not {target}")
    if not copy_photos and target_format in ("voc", "cityscapes"):
        raise AnnotationError(f"{target_format} keeps its photos in folders of its own, so they must be copied")
    if files.is_file(target) or next(files.iter_names(target, recursive=True), None) is not None:
        raise AnnotationError(f"the target {target} is there already; nothing is written over")
    if source_format == "auto":
        source_format = detect_format(source)
    annotated = load_annotations(
        source,
        format=source_format,
        image_root=image_root,
        unknown=unknown,
        default_category=default_category,
    )
    losses: Counter[str]
    if target_format == "coco":
        losses = write_coco(annotated, target, copy_photos=copy_photos)
    elif target_format == "via":
        losses = write_via(annotated, target, copy_photos=copy_photos)
    elif target_format == "labelme":
        losses = write_labelme(annotated, target, copy_photos=copy_photos)
    elif target_format == "voc":
        losses = write_voc(annotated, target, overlap=overlap)
    else:
        losses = write_cityscapes(annotated, target, overlap=overlap)
    return Conversion(
        source_format,
        target_format,
        len(annotated),
        annotated.num_instances,
        len(annotated.categories),
        annotated.notes,
        dict(losses),
    )
