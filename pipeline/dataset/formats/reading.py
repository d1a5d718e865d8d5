"""Reads annotations of any format: detects the format of a file or folder and calls its reader."""

from __future__ import annotations

from typing import Any

from pipeline.dataset.formats.cityscapes import load_cityscapes
from pipeline.dataset.formats.coco import json_files_of, load_coco
from pipeline.dataset.formats.labelme import load_labelme
from pipeline.dataset.formats.via import load_via
from pipeline.dataset.formats.voc import load_voc
from pipeline.dataset.source import AnnotationSource
from pipeline.dataset.types import FORMATS, AnnotatedSet, AnnotationError
from pipeline.storage.base import StorageSettings
from pipeline.storage.files import Location, decode_text
from pipeline.storage.uri import folder_before


def load_annotations(
    source: str | AnnotationSource,
    storage: StorageSettings | None = None,
    *,
    unknown: str = "refuse",
    **settings: Any,
) -> AnnotatedSet:
    """Reads a data set, of a detected format unless it is named.

    Args:
        source: the annotations and how they are read, or their URI alone.
        storage: how buckets are reached, see `open_storage`; the photos' locations keep it.
        unknown: COCO annotations of a category that is not declared: "refuse", "ignore" (neither positive nor
            negative) or "drop".
        settings: further fields of `AnnotationSource`, where only the URI is given.

    Raises:
        AnnotationError: an unknown format, no annotations (the message says what was looked for), or annotations that
            the format's reader refuses.
    """
    if not isinstance(source, AnnotationSource):
        source = AnnotationSource(uri=str(source), **settings)
    place, image_root = Location(source.uri, storage), source.image_root
    format = format_of(source, storage)
    if format == "coco":
        return load_coco(place, image_root, unknown=unknown)
    if format == "via":
        return load_via(place, image_root, default_category=source.default_category)
    if format == "voc":
        return load_voc(place, image_root)
    if format == "cityscapes":
        return load_cityscapes(place, image_root)
    if format == "labelme":
        return load_labelme(place, image_root)
    raise AnnotationError(f"no annotation format {format!r}; allowed are auto, {', '.join(FORMATS)}")


def format_of(source: AnnotationSource, storage: StorageSettings | None = None) -> str:
    """The stated format of annotations, or the detected one; otherwise as `detect_format`."""
    return detect_format(Location(source.uri, storage)) if source.format == "auto" else source.format


def detect_format(place: str | Location) -> str:
    """The format (one of FORMATS) of a JSON file, a folder, or a list of VOC names.

    Raises:
        AnnotationError: neither a file nor a folder, or none with annotations of a known format.
    """
    place = Location.of(place)
    if place.uri.lower().endswith((".json", ".txt")):
        if not place.is_file():
            raise AnnotationError(f"there is no annotation file {place}")
        return _format_of_json(place) if place.uri.lower().endswith(".json") else "voc"
    if not place.is_folder():
        raise AnnotationError(f"there is no annotation file or folder {place}")
    if (place / "via_region_data.json").is_file():
        return "via"
    if (place / "SegmentationObject").is_folder():
        return "voc"
    if folder_before(place.uri, "gtFine") or (place / "gtFine").is_folder():
        return "cityscapes"
    if json_files := json_files_of(place):
        return _format_of_json(json_files[0])
    nested = next((key for key in place.iter_names(recursive=True) if key.lower().endswith(".json")), None)
    if nested is not None and b'"shapes"' in (place / nested).read_bytes():
        return "labelme"  # the only format whose JSON files may lie in sub-folders
    raise AnnotationError(
        f"{place} holds no annotations that are understood: looked for via_region_data.json (VIA), "
        "*.json (COCO, LabelMe), SegmentationObject/ (VOC), gtFine/ (Cityscapes)"
    )


def _format_of_json(path: Location) -> str:
    content = path.read_bytes()  # searched, not parsed: COCO's own file has half a gigabyte
    if b"\0" in content[:4]:  # UTF-16 or UTF-32
        content = decode_text(content, path.uri).encode()
    if b'"images"' in content and (b'"annotations"' in content or b'"categories"' in content):
        return "coco"
    if b'"shapes"' in content:
        return "labelme"
    if b'"regions"' in content or b'"_via_img_metadata"' in content:
        return "via"
    raise AnnotationError(
        f"{path} is no annotation file that is understood: a COCO file has 'images' and 'annotations', "
        "a VIA file 'regions' for each photo, a LabelMe file 'shapes'"
    )
