"""What in a data set would break or spoil training: found before it starts, counted, with examples and pictures."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.dataset.channels import with_extra_channels
from pipeline.dataset.formats.coco import coco_file, from_coco
from pipeline.dataset.formats.reading import detect_format, load_annotations
from pipeline.dataset.photos import EXIF_KEPT, UnusablePhoto, WrongSize, load_photo
from pipeline.dataset.types import AnnotatedImage, AnnotatedSet, AnnotationError, Box, Instance, mask_to_box
from pipeline.storage import files
from pipeline.storage.uri import base_name

ERROR, WARNING = "error", "warning"

# Errors lose data or teach something wrong; warnings look like mistakes but are used as they are.
KINDS: Mapping[str, tuple[str, str]] = {
    "unreadable_annotations": (ERROR, "the annotations as a whole cannot be read"),
    "unreadable_photo": (ERROR, "photo absent, broken or of other bands; skipped in training"),
    "size_disagrees": (ERROR, "photo of another size than annotated, turned or not; skipped in training"),
    "duplicate_image_id": (ERROR, "image id that stands there twice; training refuses the set"),
    "unknown_category": (ERROR, "annotation of a category that is not declared; training refuses it unless mapped"),
    "unlisted_image": (ERROR, "annotation of an image that is not listed; left out"),
    "unusable_mask": (ERROR, "mask that cannot be decoded; its photo is skipped in training"),
    "empty_box": (ERROR, "box without width or height inside the image; left out"),
    "empty_mask": (ERROR, "object without a pixel; its box is neither positive nor negative"),
    "wrong_keypoints": (ERROR, "another number of keypoints than the set has names for"),
    "duplicate_annotation_id": (WARNING, "annotation id that stands there twice"),
    "duplicate_photo": (WARNING, "photo that is listed twice"),
    "duplicate_object": (WARNING, "object of the same class and box as another on the same photo"),
    "polygon_outside": (WARNING, "polygon more than 1 px outside the image; cut off"),
    "box_off_mask": (WARNING, "box that does not fit its mask"),
    "class_not_looked_for": (WARNING, "object of a class that is not among the image's labelled classes"),
    "exif_not_applied": (WARNING, "annotations that fit the unturned photo only, which is used"),
}

_OUTSIDE_PX = 1.0
_BOX_OFF_PX, _BOX_OFF_SHARE = 3.0, 0.05


@dataclass(frozen=True)
class Example:
    """One offender: its photo, a sentence, and where it can be drawn the object."""

    image_id: int | str | None
    file_name: str
    detail: str
    image: AnnotatedImage | None = None
    instance: Instance | None = None


@dataclass(frozen=True)
class Finding:
    """All offenders of one kind: `kind` and `severity` from KINDS, how many, and the first few."""

    kind: str
    severity: str
    count: int
    examples: tuple[Example, ...]

    @property
    def meaning(self) -> str:
        """The kind in words."""
        return KINDS[self.kind][1]


@dataclass(frozen=True)
class DataReport:
    """What a check found.

    Attributes:
        uri, format: what was checked.
        num_images, num_instances: in the set, unusable ones included.
        num_negatives: images without an object.
        class_counts: objects of each class, crowd regions included; 0 for a class that is not used.
        findings: errors first, each kind once; none for a clean set.
        notes: what the reader had to decide: what -> how often.
    """

    uri: str
    format: str
    num_images: int
    num_instances: int
    num_negatives: int
    class_counts: Mapping[str, int]
    findings: tuple[Finding, ...]
    notes: Mapping[str, int]

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return all(finding.severity != ERROR for finding in self.findings)

    def count(self, kind: str) -> int:
        """Offenders of a kind."""
        return sum(finding.count for finding in self.findings if finding.kind == kind)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "uri": self.uri,
            "format": self.format,
            "ok": self.ok,
            "num_images": self.num_images,
            "num_instances": self.num_instances,
            "num_negatives": self.num_negatives,
            "class_counts": dict(self.class_counts),
            "notes": dict(self.notes),
            "findings": [
                {
                    "kind": finding.kind,
                    "severity": finding.severity,
                    "meaning": finding.meaning,
                    "count": finding.count,
                    "examples": [
                        {"image_id": e.image_id, "file_name": e.file_name, "detail": e.detail} for e in finding.examples
                    ],
                }
                for finding in self.findings
            ],
        }


class _Found:
    """Collects offenders, of which only the first few of each kind are kept."""

    def __init__(self, max_examples: int) -> None:
        self.max_examples = max_examples
        self.counts: Counter[str] = Counter()
        self.examples: defaultdict[str, list[Example]] = defaultdict(list)

    def add(self, kind: str, example: Example) -> None:
        self.counts[kind] += 1
        if len(self.examples[kind]) < self.max_examples:
            self.examples[kind].append(example)

    def findings(self) -> tuple[Finding, ...]:
        kinds = [kind for kind in KINDS if self.counts[kind]]
        return tuple(Finding(kind, KINDS[kind][0], self.counts[kind], tuple(self.examples[kind])) for kind in kinds)


def check_data(
    uri: str,
    *,
    format: str = "auto",
    image_root: str | None = None,
    default_category: str = "object",
    in_channels: int = 3,
    extra_channels: str | None = None,
    max_examples: int = 10,
    num_threads: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> DataReport:
    """Reads every annotation, decodes every photo, and reports what is wrong with them.

    Args:
        uri, format, image_root, default_category: see `load_annotations`.
        in_channels: bands of a photo, with those of its extra file.
        extra_channels: pattern of that file, see `channels.with_extra_channels`.
        max_examples: offenders of each kind that are kept.
        num_threads: photos decoded at a time.
        progress: called with (images done, images in all).

    Raises:
        AnnotationError: nothing there that is an annotation file. Everything else wrong is a finding.
    """
    if format == "auto":
        format = detect_format(str(uri))
    found = _Found(max_examples)
    try:
        if format == "coco":
            annotated = _load_coco_leniently(str(uri), image_root, found)
        else:
            annotated = load_annotations(uri, format=format, image_root=image_root, default_category=default_category)
        if extra_channels is not None:
            annotated = with_extra_channels(annotated, extra_channels)
    except FileNotFoundError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        sentence = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        found.add("unreadable_annotations", Example(None, base_name(str(uri)), sentence))
        return DataReport(str(uri), format, 0, 0, 0, {}, found.findings(), {})
    return _check_set(annotated, found, str(uri), format, in_channels, num_threads, progress)


def _check_set(
    annotated: AnnotatedSet,
    found: _Found,
    uri: str,
    format: str,
    in_channels: int,
    num_threads: int,
    progress: Callable[[int, int], None] | None,
) -> DataReport:
    class_counts = Counter({category.name: 0 for category in annotated.categories})
    seen: set[str] = set()
    num_keypoints = len(annotated.keypoint_names)
    with ThreadPoolExecutor(max_workers=max(1, num_threads)) as pool:
        checks = pool.map(lambda image: list(_check_image(image, in_channels, num_keypoints)), annotated.images)
        for place, (image, offenders) in enumerate(zip(annotated.images, checks, strict=True), start=1):
            for kind, detail, instance in offenders:
                found.add(kind, Example(image.image_id, image.file_name, detail, image, instance))
            if image.path in seen:
                found.add("duplicate_photo", Example(image.image_id, image.file_name, image.path, image))
            seen.add(image.path)
            for instance in image.instances:
                if instance.label:
                    class_counts[annotated.categories[instance.label - 1].name] += 1
            if progress is not None:
                progress(place, len(annotated))
    num_negatives = sum(not image.instances for image in annotated.images)
    return DataReport(
        uri,
        format,
        len(annotated),
        annotated.num_instances,
        num_negatives,
        dict(class_counts),
        found.findings(),
        annotated.notes,
    )


def _check_image(
    image: AnnotatedImage, in_channels: int, num_keypoints: int
) -> Iterator[tuple[str, str, Instance | None]]:
    try:
        _, turn = load_photo(image, in_channels=in_channels)
        if turn == EXIF_KEPT:
            yield "exif_not_applied", f"annotated as {image.height} x {image.width}", None
    except WrongSize as error:
        yield "size_disagrees", str(error), None
    except UnusablePhoto as error:
        yield "unreadable_photo", str(error), None
    if not image.height or not image.width:  # unknown without the photo
        return
    twins: Counter[tuple[int, Box]] = Counter()
    for instance in image.instances:
        twins[(instance.label, instance.box)] += 1
        if twins[(instance.label, instance.box)] == 2:
            yield "duplicate_object", f"box {_rounded(instance.box)}", instance
        yield from _check_instance(image, instance, num_keypoints)


def _check_instance(
    image: AnnotatedImage, instance: Instance, num_keypoints: int
) -> Iterator[tuple[str, str, Instance | None]]:
    x1, y1, x2, y2 = instance.box
    if x2 <= x1 or y2 <= y1:
        yield "empty_box", f"box {_rounded(instance.box)} inside {image.height} x {image.width}", instance
    if isinstance(instance.segmentation, list):
        points = np.array([v for polygon in instance.segmentation for v in polygon], dtype=float).reshape(-1, 2)
        limit = np.array([image.width, image.height])
        beyond = np.maximum(-points, points - limit).max(initial=0.0)
        if beyond > _OUTSIDE_PX:
            yield "polygon_outside", f"a point lies {beyond:.1f} px outside", instance
    if instance.keypoints is not None and len(instance.keypoints) != 3 * num_keypoints:
        yield "wrong_keypoints", f"{len(instance.keypoints) // 3} keypoints, {num_keypoints} names", instance
    if image.labelled_classes is not None and instance.label and instance.label not in image.labelled_classes:
        yield "class_not_looked_for", f"label {instance.label}", instance
    try:
        mask = instance.mask(image.height, image.width)
    except ValueError as error:
        yield "unusable_mask", str(error), instance
        return
    if not mask.any():
        yield "empty_mask", f"box {_rounded(instance.box)}", instance
    elif not instance.iscrowd:
        off = max(abs(a - b) for a, b in zip(instance.box, mask_to_box(mask)))
        if off > max(_BOX_OFF_PX, _BOX_OFF_SHARE * max(x2 - x1, y2 - y1)):
            yield "box_off_mask", f"box {_rounded(instance.box)}, mask {_rounded(mask_to_box(mask))}", instance


def _load_coco_leniently(uri: str, image_root: str | None, found: _Found) -> AnnotatedSet:
    """The set less what `load_coco` would refuse, which is added to what was found."""
    json_path = coco_file(uri)
    content = files.read_json(json_path)
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in ("images", "categories")):
        raise AnnotationError(f"{json_path} has no lists 'images' and 'categories', so it is no COCO annotation file")
    images: dict[Any, dict] = {}
    for image in content["images"]:
        if image["id"] in images:
            detail = f"id {image['id']!r} is also that of {images[image['id']]['file_name']}"
            found.add("duplicate_image_id", Example(image["id"], image["file_name"], detail))
        else:
            images[image["id"]] = image
    declared = {category["id"] for category in content["categories"]}
    ids: set[Any] = set()
    for annotation in content.get("annotations", []):
        name = images.get(annotation["image_id"], {}).get("file_name", "")
        if annotation["image_id"] not in images:
            detail = f"annotation {annotation.get('id')} of image id {annotation['image_id']!r}"
            found.add("unlisted_image", Example(annotation["image_id"], name, detail))
        if annotation["category_id"] not in declared:
            detail = f"annotation {annotation.get('id')} has category_id {annotation['category_id']!r}"
            found.add("unknown_category", Example(annotation["image_id"], name, detail))
        if (number := annotation.get("id")) is not None:
            if number in ids:
                found.add("duplicate_annotation_id", Example(annotation["image_id"], name, f"annotation id {number}"))
            ids.add(number)
    return from_coco({**content, "images": list(images.values())}, json_path, image_root, unknown="drop")


def _rounded(box: Box) -> list[float]:
    return [round(value, 1) for value in box]
