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
from pipeline.storage import files
from pipeline.storage.uri import folder_before, join_uri, plain_uri


def load_annotations(source: str | AnnotationSource, *, unknown: str = "refuse", **settings: Any) -> AnnotatedSet:
    """Reads a data set, of a detected format unless it is named.

    Args:
        source: the annotations and how they are read, or their URI alone.
        unknown: COCO annotations of a category that is not declared: "refuse", "ignore" (neither positive nor
            negative) or "drop".
        settings: further fields of `AnnotationSource`, where only the URI is given.

    Raises:
        AnnotationError: an unknown format, no annotations (the message says what was looked for), or annotations that
            the format's reader refuses.
    """
    if not isinstance(source, AnnotationSource):
        source = AnnotationSource(uri=str(source), **settings)
    uri, image_root = plain_uri(source.uri), source.image_root
    format = detect_format(uri) if source.format == "auto" else source.format
    if format == "coco":
        return load_coco(uri, image_root, unknown=unknown)
    if format == "via":
        return load_via(uri, image_root, default_category=source.default_category)
    if format == "voc":
        return load_voc(uri, image_root)
    if format == "cityscapes":
        return load_cityscapes(uri, image_root)
    if format == "labelme":
        return load_labelme(uri, image_root)
    raise AnnotationError(f"no annotation format {format!r}; allowed are auto, {', '.join(FORMATS)}")


def detect_format(uri: str) -> str:
    """The format (one of FORMATS) of a JSON file, a folder, or a list of VOC names.

    Raises:
        AnnotationError: neither a file nor a folder, or none with annotations of a known format.
    """
    if uri.lower().endswith((".json", ".txt")):
        if not files.is_file(uri):
            raise AnnotationError(f"there is no annotation file {uri}")
        return _format_of_json(uri) if uri.lower().endswith(".json") else "voc"
    if not files.is_folder(uri):
        raise AnnotationError(f"there is no annotation file or folder {uri}")
    if files.is_file(join_uri(uri, "via_region_data.json")):
        return "via"
    if files.is_folder(join_uri(uri, "SegmentationObject")):
        return "voc"
    if folder_before(uri, "gtFine") or files.is_folder(join_uri(uri, "gtFine")):
        return "cityscapes"
    if json_files := json_files_of(uri):
        return _format_of_json(json_files[0])
    nested = next((key for key in files.iter_names(uri, recursive=True) if key.lower().endswith(".json")), None)
    if nested is not None and b'"shapes"' in files.read_bytes(join_uri(uri, nested)):
        return "labelme"  # the only format whose JSON files may lie in sub-folders
    raise AnnotationError(
        f"{uri} holds no annotations that are understood: looked for via_region_data.json (VIA), "
        "*.json (COCO, LabelMe), SegmentationObject/ (VOC), gtFine/ (Cityscapes)"
    )


def _format_of_json(uri: str) -> str:
    content = files.read_bytes(uri)  # searched, not parsed: COCO's own file has half a gigabyte
    if b"\0" in content[:4]:  # UTF-16 or UTF-32
        content = files.decode_text(content, uri).encode()
    if b'"images"' in content and (b'"annotations"' in content or b'"categories"' in content):
        return "coco"
    if b'"shapes"' in content:
        return "labelme"
    if b'"regions"' in content or b'"_via_img_metadata"' in content:
        return "via"
    raise AnnotationError(
        f"{uri} is no annotation file that is understood: a COCO file has 'images' and 'annotations', "
        "a VIA file 'regions' for each photo, a LabelMe file 'shapes'"
    )
