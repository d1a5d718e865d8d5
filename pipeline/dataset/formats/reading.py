"""Reads annotations of any format: detects the format of a file or folder and calls its reader."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from pipeline.dataset.class_map import drop_empty_categories
from pipeline.dataset.formats.cityscapes import load_cityscapes
from pipeline.dataset.formats.coco import json_files_of, load_coco
from pipeline.dataset.formats.cvat import is_cvat, load_cvat
from pipeline.dataset.formats.instance_png import PHOTO_FOLDERS, load_png, mask_folder_of
from pipeline.dataset.formats.label_studio import load_labelstudio
from pipeline.dataset.formats.labelme import load_labelme
from pipeline.dataset.formats.via import load_via
from pipeline.dataset.formats.voc import load_voc
from pipeline.dataset.formats.yolo import is_yolo, load_yolo
from pipeline.dataset.source import AnnotationSource
from pipeline.dataset.types import FORMATS, AnnotatedSet, AnnotationError
from pipeline.storage.base import StorageSettings
from pipeline.storage.files import Location, decode_text
from pipeline.storage.uri import folder_before, is_photo

_SUFFIXES = (".json", ".txt", ".xml", ".yaml", ".yml")
_LOOKED_FOR = (
    "looked for via_region_data.json (VIA), *.json (COCO, LabelMe, Label Studio), SegmentationObject/ (VOC), gtFine/ "
    "(Cityscapes), *.xml with <annotations> (CVAT), data.yaml or labels/*.txt (YOLO), PedMasks/ or masks/ "
    "(instance-mask PNGs)"
)


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
    format = format_of(source, storage)
    default = source.default_category
    readers: dict[str, Callable[[Location, str | None], AnnotatedSet]] = {
        "coco": partial(load_coco, unknown=unknown),
        "via": partial(load_via, default_category=default),
        "voc": load_voc,
        "cityscapes": load_cityscapes,
        "labelme": load_labelme,
        "yolo": partial(load_yolo, default_category=default, part=source.part),
        "png": partial(load_png, default_category=default),
        "cvat": load_cvat,
        "labelstudio": partial(load_labelstudio, default_category=default),
    }
    if format not in readers:
        raise AnnotationError(f"no annotation format {format!r}; allowed are auto, {', '.join(FORMATS)}")
    annotated = readers[format](Location(source.uri, storage), source.image_root)
    return drop_empty_categories(annotated) if source.drop_empty_categories else annotated


def format_of(source: AnnotationSource, storage: StorageSettings | None = None) -> str:
    """The stated format of annotations, or the detected one; otherwise as `detect_format`."""
    return detect_format(Location(source.uri, storage)) if source.format == "auto" else source.format


def detect_format(place: str | Location) -> str:
    """The format (one of FORMATS) of a file of annotations, a folder, or a list of names or photos.

    Raises:
        AnnotationError: neither a file nor a folder, or none with annotations of a known format; the message says what
            they look like and what is missing.
    """
    place = Location.of(place)
    if place.uri.lower().endswith(_SUFFIXES) and not place.is_folder():
        if not place.is_file():
            raise AnnotationError(f"there is no annotation file {place}")
        return _format_of_file(place)
    if not place.is_folder():
        raise AnnotationError(f"there is no annotation file or folder {place}")
    if (place / "via_region_data.json").is_file():
        return "via"
    if (place / "SegmentationObject").is_folder():
        return "voc"
    if folder_before(place.uri, "gtFine") or (place / "gtFine").is_folder():
        return "cityscapes"
    if any(is_cvat(place / name) for name in place.iter_names() if name.lower().endswith(".xml")):
        return "cvat"
    if is_yolo(place):
        return "yolo"
    if json_files := json_files_of(place):
        return _format_of_json(json_files[0])
    if mask_folder_of(place) is not None:
        return "png"
    nested = next((key for key in place.iter_names(recursive=True) if key.lower().endswith(".json")), None)
    if nested is not None and b'"shapes"' in (place / nested).read_bytes():
        return "labelme"  # the only format whose JSON files may lie in sub-folders
    raise AnnotationError(f"{place} holds no annotations that are understood: {_likeness(place)}{_LOOKED_FOR}")


def _likeness(place: Location) -> str:
    """What a folder looks like and what it lacks; "" where it looks like nothing known."""
    names = list(place.iter_names())
    if archive := next((name for name in names if name.lower().endswith((".zip", ".tar", ".tar.gz", ".tgz"))), None):
        return f"these look like a download that is not unpacked, {archive}; "
    if (place / "Annotations").is_folder():
        return "these look like VOC, but there is no SegmentationObject/, and boxes alone have no masks; "
    if (place / "labels").is_folder():
        return "these look like YOLO, but labels/ holds no .txt file; "
    if folder := next((name for name in PHOTO_FOLDERS if (place / name).is_folder()), None):
        return f"these look like photos ({folder}/), but there is neither labels/ nor masks/ beside them; "
    if any(name.lower().endswith(".xml") for name in names):
        return "these look like XML, but none of CVAT's, whose root is <annotations>; "
    if any(is_photo(name) for name in names):
        return "these look like photos, but there are no annotations beside them; "
    return ""


def _format_of_file(path: Location) -> str:
    suffix = path.uri.lower().rpartition(".")[2]
    if suffix == "json":
        return _format_of_json(path)
    if suffix == "xml":
        if is_cvat(path):
            return "cvat"
        raise AnnotationError(f"{path} is no annotation file that is understood: CVAT's XML has the root <annotations>")
    if suffix == "txt":
        first = path.read_text().partition("\n")[0].strip()
        return "yolo" if is_photo(first) else "voc"
    return "yolo"


def _format_of_json(path: Location) -> str:
    content = path.read_bytes()  # searched, not parsed: COCO's own file has half a gigabyte
    if b"\0" in content[:4]:  # UTF-16 or UTF-32
        content = decode_text(content, path.uri).encode()
    likeness = ""
    if content[:64].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
        if b'"data"' in content and (b'"annotations"' in content or b'"predictions"' in content):
            return "labelstudio"
        if b'"image_id"' in content:
            likeness = "these look like COCO results, but have no 'images' and 'categories'; "
    if b'"images"' in content and (b'"annotations"' in content or b'"categories"' in content):
        return "coco"
    if b'"shapes"' in content:
        return "labelme"
    if b'"regions"' in content or b'"_via_img_metadata"' in content:
        return "via"
    raise AnnotationError(
        f"{path} is no annotation file that is understood: {likeness}a COCO file has 'images' and 'annotations', "
        "a VIA file 'regions' for each photo, a LabelMe file 'shapes', a Label Studio file a list of tasks with 'data' "
        "and 'annotations'"
    )
