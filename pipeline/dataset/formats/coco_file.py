"""COCO JSON as typed records: read, checked against one schema, and made usable, for training and evaluation alike.

Numbers: a whole number may also be written as 1.0, and is never a text ("1") or true. Coordinates are finite and at
most 10**6 px from the origin. A key that is null counts as absent. An image id is a whole number or a text; a text is
never the same id as a number. Other keys than those of the records are not read.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import posixpath
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict, cast

import msgspec
from msgspec import Meta

from pipeline.dataset.faults import FaultList, shown
from pipeline.dataset.formats.records import MOST_PIXELS, Coordinate, Length, Name, to_record
from pipeline.dataset.types import AnnotationError
from pipeline.masks.rle import counts_to_runs, rle_bbox, runs_to_rle
from pipeline.notes import NoteList
from pipeline.storage.files import Location, no_collection, parse_json

IGNORED_NOTE = "annotations that are ignore regions, neither positive nor negative"  # begins notes, before the fault
UNKNOWN_CHOICES = ("refuse", "ignore", "drop")

_ImageId = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | Annotated[str, Meta(min_length=1)]
_CategoryId = Annotated[int, Meta(ge=0, le=2**31 - 1)]


class _CocoRle(TypedDict):
    size: list[Length]
    counts: str | list[int]


class CocoImage(msgspec.Struct, gc=False):
    """An image entry: `height` and `width` in pixels; the lists say which categories were looked for on it."""

    id: _ImageId
    file_name: Name
    height: Length
    width: Length
    labelled_category_ids: list[_CategoryId] | None = None
    neg_category_ids: list[_CategoryId] | None = None
    not_exhaustive_category_ids: list[_CategoryId] | None = None
    extra_file_names: list[Name] | None = None


class CocoCategory(msgspec.Struct, gc=False):
    """A category entry: its id, name, and names of keypoints."""

    id: _CategoryId
    name: Name
    keypoints: list[Name] | None = None


class CocoAnnotation(msgspec.Struct, gc=False):
    """An annotation entry.

    As `read_coco` gives it, everything is usable: `bbox` is XYWH in pixels of the image, as annotated (it may cross the
    image's border); `segmentation` is polygons of three points or more, or an RLE of the image's size with a string;
    `iscrowd` is 0 or 1; `keypoints` are triples, or None. An object that cannot be used as annotated is an ignore
    region: then `fault` says why, `iscrowd` is 1, and `segmentation` is the rectangle of `bbox` inside the image.
    `has_own_box` says whether only its mask is at fault; by its box it is then what `is_own_crowd` says.
    """

    image_id: _ImageId
    category_id: _CategoryId
    id: int | str | None = None
    bbox: list[Coordinate] | None = None
    segmentation: list[list[Coordinate]] | _CocoRle | None = None
    area: Annotated[float, Meta(ge=0, le=1e12)] | None = None
    iscrowd: bool | Annotated[int, Meta(ge=0, le=1)] | None = None
    keypoints: list[Coordinate] | None = None
    num_keypoints: Annotated[int, Meta(ge=0)] | None = None
    fault: str = msgspec.field(default="", name="_fault_of_reader")
    has_own_box: bool = msgspec.field(default=False, name="_has_own_box_of_reader")
    is_own_crowd: bool = msgspec.field(default=False, name="_is_own_crowd_of_reader")


class _Content(msgspec.Struct, gc=False):
    images: list[CocoImage]
    categories: list[CocoCategory]
    annotations: list[CocoAnnotation] | None = None


_RECORDS: Mapping[str, type[CocoImage | CocoCategory | CocoAnnotation]] = {
    "images": CocoImage,
    "categories": CocoCategory,
    "annotations": CocoAnnotation,
}
_KIND = {"images": "image", "categories": "category", "annotations": "annotation"}
_WHOLE_KEYS = ("id", "image_id", "category_id", "height", "width", "iscrowd", "num_keypoints")


@dataclass(frozen=True)
class CocoFile:
    """A checked COCO file.

    Attributes:
        images, categories: in the file's order; ids, category names and file names are unique.
        annotations: in the file's order, those of listed images only.
        keypoint_names: of all categories that have keypoints; empty without keypoints.
        notes: what was decided in reading: a sentence that names the first ten entries -> count.
    """

    images: list[CocoImage]
    categories: list[CocoCategory]
    annotations: list[CocoAnnotation]
    keypoint_names: tuple[str, ...]
    notes: dict[str, int]


def read_coco(path: Location, *, unknown: str = "refuse") -> CocoFile:
    """Reads and checks a COCO JSON file.

    Args:
        path: the file.
        unknown: annotations whose category_id is not declared: "refuse" raises, "ignore" keeps them with that
            category_id, "drop" leaves them out.

    Raises:
        AnnotationError: no COCO file, or one that breaks the schema; the message has the first ten faults.
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON; the message has line and column.
    """
    data = path.read_bytes()
    if any(data.count(b'"%b"' % key.encode()) > 1 for key in _RECORDS):
        _refuse_repeated_keys(data, path.uri)
    try:
        with no_collection():
            content = msgspec.json.decode(data, type=_Content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # The exact path finds what is wrong, or that all is well (a byte-order mark, NaN).
        return check_coco(parse_json(data, path.uri), path.uri, unknown=unknown)
    del data
    with no_collection():
        return _checked(content, path.uri, unknown)


def _refuse_repeated_keys(data: bytes, where: str) -> None:
    """Refuses a file that has one of its lists twice, of which JSON readers drop all but the last."""

    def checked(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        counts = Counter(key for key, value in pairs if isinstance(value, list)) if len(values) < len(pairs) else {}
        if twice := [key for key in _RECORDS if counts.get(key, 0) > 1]:
            raise AnnotationError(f"{where} has the list {twice[0]!r} twice; allowed is once")
        return values

    with contextlib.suppress(json.JSONDecodeError, RecursionError, UnicodeError):  # named by the reader
        json.loads(data, object_pairs_hook=checked)


def check_coco(content: Any, where: str, *, unknown: str = "refuse") -> CocoFile:
    """Checks a parsed COCO JSON object, which is not changed; otherwise as `read_coco`.

    Args:
        where: what messages call the object.
    """
    for key in ("images", "categories"):
        if not isinstance(content, Mapping) or not isinstance(content.get(key), list):
            raise AnnotationError(f"{where} has no list {key!r}, so it is no COCO annotation file")
    if not isinstance(content.get("annotations"), list | None):
        raise AnnotationError(f"{where}: 'annotations' is {shown(content['annotations'])}; allowed is a list")
    faults = FaultList()
    records: dict[str, list[Any]] = {}
    with no_collection():
        for key, record in _RECORDS.items():
            records[key] = []
            for index, entry in enumerate(content.get(key) or ()):
                has_id = isinstance(entry, Mapping) and type(entry.get("id")) in (int, str)
                name = f"{_KIND[key]} {entry['id']!r}" if has_id else f"{key}[{index}]"
                records[key].append(to_record(_with_whole_numbers(entry), record, name, faults))
        faults.refuse_if_any(where)
        annotations = records["annotations"] if content.get("annotations") is not None else None
        return _checked(_Content(records["images"], records["categories"], annotations), where, unknown)


def coco_box(annotation: CocoAnnotation) -> list[float]:
    """The `bbox` of a checked annotation, which is never None."""
    return cast("list[float]", annotation.bbox)


def _with_whole_numbers(entry: Any) -> Any:
    """The entry with 1.0 as 1 where a whole number belongs."""
    if not isinstance(entry, Mapping):
        return entry
    whole = {
        key: int(entry[key]) for key in _WHOLE_KEYS if isinstance(entry.get(key), float) and entry[key].is_integer()
    }
    return {**entry, **whole} if whole or not isinstance(entry, dict) else entry


def _checked(content: _Content, where: str, unknown: str) -> CocoFile:
    if unknown not in UNKNOWN_CHOICES:
        raise AnnotationError(f"unknown categories: {unknown!r} is no choice; allowed are {', '.join(UNKNOWN_CHOICES)}")
    faults, notes = FaultList(), NoteList()
    _check_unique(content, faults)
    keypoint_names = _keypoint_names(content.categories, faults)
    declared = {category.id for category in content.categories}
    images = {image.id: image for image in content.images}
    for image in content.images:
        if image.height * image.width > MOST_PIXELS:
            faults.add(
                f"image {image.id!r} is of {image.height} x {image.width} pixels; allowed are {MOST_PIXELS:,} in all"
            )
        _check_labelled(image, declared, unknown, faults, notes)
    if content.annotations is None:
        notes.add("no key 'annotations': no image has an object")
    annotations = []
    annotation_ids: set[int | str] = set()
    num_unlisted = 0
    for index, annotation in enumerate(content.annotations or ()):
        name = f"annotations[{index}]" if annotation.id is None else f"annotation {annotation.id!r}"
        if annotation.id is not None:
            if annotation.id in annotation_ids:
                notes.add("annotation ids that stand there twice", name)
            annotation_ids.add(annotation.id)
        if annotation.category_id not in declared and unknown != "ignore":
            if unknown == "refuse":
                faults.add(
                    f"{name} has category_id {annotation.category_id}, which is not declared; "
                    f"declared are {sorted(declared)[:100]}"
                )
            else:
                notes.add("annotations of unknown categories dropped", name)
                continue
        image_or_none = images.get(annotation.image_id)
        if image_or_none is None:
            num_unlisted += 1
            notes.add("annotations of images that are not listed", name)
            continue
        _make_usable(annotation, image_or_none, name, faults, notes)
        _check_keypoints(annotation, name, len(keypoint_names), faults)
        annotations.append(annotation)
    if num_unlisted and not annotations and images:
        first = (content.annotations or [])[0]
        faults.add(
            f"no annotation is of an image that is listed: annotations have e.g. image_id {first.image_id!r}, images "
            f"have e.g. id {content.images[0].id!r}"
        )
    faults.refuse_if_any(where)
    return CocoFile(content.images, content.categories, annotations, keypoint_names, notes.to_dict())


def _check_unique(content: _Content, faults: FaultList) -> None:
    """Faults of ids, category names and files that stand there twice."""
    by_id: dict[int | str, CocoImage] = {}
    by_file: dict[str, CocoImage] = {}
    for image in content.images:
        if (other := by_id.setdefault(image.id, image)) is not image:
            faults.add(f"image id {image.id!r} stands there twice, for {other.file_name!r} and {image.file_name!r}")
        elif (other := by_file.setdefault(_file_key(image.file_name), image)) is not image:
            faults.add(f"images {other.id!r} and {image.id!r} have one file_name {shown(image.file_name)}")
    keys: tuple[tuple[str, Callable[[CocoCategory], object]], ...] = (
        ("id", lambda c: c.id),
        ("name", lambda c: c.name),
    )
    for key, value_of in keys:
        for value, count in Counter(map(value_of, content.categories)).items():
            if count > 1:
                faults.add(f"category {key} {value!r} stands there twice")


def _file_key(file_name: str) -> str:
    """The file name in the one form in which equal files are equal."""
    return posixpath.normpath(file_name.replace("\\", "/"))


def _keypoint_names(categories: list[CocoCategory], faults: FaultList) -> tuple[str, ...]:
    for category in categories:
        if category.keypoints and len(set(category.keypoints)) < len(category.keypoints):
            faults.add(f"category {category.id} names a keypoint twice: {shown(category.keypoints)}")
    layouts = {tuple(category.keypoints) for category in categories if category.keypoints}
    if len(layouts) > 1:
        faults.add("its categories have different keypoints; one layout for a set is allowed")
    return layouts.pop() if layouts else ()


def _check_labelled(image: CocoImage, declared: set[int], unknown: str, faults: FaultList, notes: NoteList) -> None:
    for key in ("labelled_category_ids", "neg_category_ids", "not_exhaustive_category_ids"):
        for category_id in getattr(image, key) or ():
            if category_id not in declared:
                if unknown == "refuse":
                    faults.add(f"image {image.id!r} has {key} {category_id}, which is not declared")
                else:
                    notes.add(f"{key} that are not declared", f"image {image.id!r}")


def _make_usable(annotation: CocoAnnotation, image: CocoImage, name: str, faults: FaultList, notes: NoteList) -> None:
    """Gives an annotation a mask and a box that can be used; see `CocoAnnotation`."""
    annotation.iscrowd, annotation.fault = int(bool(annotation.iscrowd)), ""
    points = annotation.segmentation
    fault = _clean_mask(annotation, image, name, notes)
    bbox = annotation.bbox
    has_box = bbox is not None and len(bbox) == 4 and bbox[2] > 0 and bbox[3] > 0
    if not fault and has_box and _touches(bbox, image):
        return
    if not fault:
        extent = _extent(annotation.segmentation)
        if extent[2] > 0 and extent[3] > 0:
            if has_box and not _touches(extent, image):  # the whole object is outside
                return
            notes.add("annotations without a bbox that can be used, which take that of the mask", name)
            annotation.bbox = extent
            return
        fault = "its mask has no area"
    if not has_box:
        if bbox is not None and len(bbox) == 4 and bbox[2] >= 0 and bbox[3] >= 0:
            annotation.bbox = _whole_pixels(bbox)
        elif isinstance(points, list) and any(len(polygon) >= 2 for polygon in points):
            annotation.bbox = _whole_pixels(_extent(points))
        else:
            faults.add(f"{name} has neither a mask ({fault}) nor a bbox ({shown(bbox)}) that can be used")
            return
    x, y, width, height = coco_box(annotation)
    x1, x2 = (min(max(value, 0.0), float(image.width)) for value in (x, x + width))
    y1, y2 = (min(max(value, 0.0), float(image.height)) for value in (y, y + height))
    annotation.segmentation = [[x1, y1, x2, y1, x2, y2, x1, y2]]
    annotation.has_own_box, annotation.is_own_crowd = has_box, bool(annotation.iscrowd)
    annotation.iscrowd = 1
    annotation.fault = fault
    notes.add(f"{IGNORED_NOTE}: {fault}", name)


def _clean_mask(annotation: CocoAnnotation, image: CocoImage, name: str, notes: NoteList) -> str:
    """Leaves of a segmentation what can be used; returns why nothing can, or ""."""
    segmentation = annotation.segmentation
    if segmentation is None:
        return "it has no segmentation"
    if isinstance(segmentation, dict):
        size, counts = segmentation["size"], segmentation["counts"]
        if size != [image.height, image.width]:
            return "its RLE is of another size than its image"
        try:
            if isinstance(counts, str):
                if int(counts_to_runs(counts).sum()) != image.height * image.width:
                    return "its RLE does not describe all pixels of its image"
            else:  # the string takes a tenth of the memory
                annotation.segmentation = {"size": size, "counts": runs_to_rle(counts, image.height, image.width)}
        except (ValueError, OverflowError):  # a run of more pixels than a number of 32 bits holds
            return "its RLE cannot be read"
        return ""
    # pycocotools takes a "polygon" of four numbers for a box.
    if all(len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in segmentation) and segmentation:
        return ""
    polygons = [polygon for polygon in segmentation if len(polygon) >= 6 and len(polygon) % 2 == 0]
    if not polygons:
        return "it has no polygon of three points"
    notes.add("annotations of which polygons of fewer than three points, or half a point, are left out", name)
    annotation.segmentation = polygons
    return ""


def _touches(bbox: list[float] | None, image: CocoImage) -> bool:
    """Whether an XYWH box covers any of the image."""
    assert bbox is not None
    x, y, width, height = bbox
    return x < image.width and y < image.height and x + width > 0 and y + height > 0


def _extent(segmentation: list[list[float]] | _CocoRle | None) -> list[float]:
    """XYWH around all points of polygons, or the pixels of an RLE."""
    if isinstance(segmentation, dict):
        height, width = segmentation["size"]
        return [float(value) for value in rle_bbox([cast("str", segmentation["counts"])], height, width)[0]]
    polygons = segmentation or []
    xs = list(itertools.chain.from_iterable(polygon[: len(polygon) // 2 * 2 : 2] for polygon in polygons))
    ys = list(itertools.chain.from_iterable(polygon[1::2] for polygon in polygons))
    x, y = min(xs), min(ys)
    return [x, y, max(xs) - x, max(ys) - y]


def _whole_pixels(bbox: list[float]) -> list[float]:
    """The smallest XYWH box of whole pixels, one or more each way, around another box."""
    x, y = (float(value // 1) for value in bbox[:2])
    return [x, y, *(max(1.0, -(-(start + side) // 1) - low) for start, side, low in zip(bbox, bbox[2:], (x, y)))]


def _check_keypoints(annotation: CocoAnnotation, name: str, num_names: int, faults: FaultList) -> None:
    triples = annotation.keypoints or None
    annotation.keypoints = triples
    if triples is None:
        return
    if len(triples) % 3 or (num_names and len(triples) != 3 * num_names):
        wanted = f"{3 * num_names}, three for each of {num_names} names" if num_names else "a multiple of three"
        faults.add(f"{name} has {len(triples)} numbers in keypoints; allowed are {wanted}")
    elif any(visibility not in (0, 1, 2) for visibility in triples[2::3]):
        faults.add(f"{name} has the visibilities {shown(triples[2::3])} in keypoints; allowed are 0, 1 and 2")
    elif annotation.num_keypoints is None:
        annotation.num_keypoints = sum(visibility > 0 for visibility in triples[2::3])
