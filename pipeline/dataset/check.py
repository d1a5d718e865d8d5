"""Check of a data set before training: counts faults of annotations and photos by kind, with examples of each."""

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

# Kind -> (severity, meaning). Errors lose data or train on something wrong; warnings are likely mistakes, used as is.
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
    """One fault: its photo, a sentence about it, and the object at fault where it can be drawn."""

    image_id: int | str | None
    file_name: str
    detail: str
    image: AnnotatedImage | None = None
    instance: Instance | None = None


@dataclass(frozen=True)
class Finding:
    """All faults of one kind: `kind` and `severity` from KINDS, their number, and the first few as examples."""

    kind: str
    severity: str
    count: int
    examples: tuple[Example, ...]

    @property
    def meaning(self) -> str:
        """What the kind means, in words."""
        return KINDS[self.kind][1]


@dataclass(frozen=True)
class DataReport:
    """Result of a check.

    Attributes:
        uri, format: of the annotations that were checked.
        num_images, num_instances: in the set, unusable ones included.
        num_negatives: images without an object.
        class_counts: objects of each class, crowd regions included; 0 for an unused class.
        findings: one for each kind of fault, errors first; empty for a clean set.
        notes: how often the reader had to decide something: name of the decision -> count.
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
        """Number of faults of a kind."""
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


class _FaultLog:
    """Counts faults by kind and keeps the first few of each as examples."""

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
    """Reads every annotation, decodes every photo, and reports their faults.

    Args:
        uri, format, image_root, default_category: see `load_annotations`.
        in_channels: bands of a photo, those of its extra file included.
        extra_channels: pattern of that file, see `channels.with_extra_channels`.
        max_examples: faults of each kind that are kept as examples.
        num_threads: photos decoded at a time.
        progress: called with (images done, images in all).

    Raises:
        AnnotationError: there is no annotation file. Every other fault is a finding.
    """
    if format == "auto":
        format = detect_format(str(uri))
    faults = _FaultLog(max_examples)
    try:
        if format == "coco":
            annotated = _load_coco_leniently(str(uri), image_root, faults)
        else:
            annotated = load_annotations(uri, format=format, image_root=image_root, default_category=default_category)
        if extra_channels is not None:
            annotated = with_extra_channels(annotated, extra_channels)
    except FileNotFoundError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        sentence = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        faults.add("unreadable_annotations", Example(None, base_name(str(uri)), sentence))
        return DataReport(str(uri), format, 0, 0, 0, {}, faults.findings(), {})
    return _check_set(annotated, faults, str(uri), format, in_channels, num_threads, progress)


def _check_set(
    annotated: AnnotatedSet,
    faults: _FaultLog,
    uri: str,
    format: str,
    in_channels: int,
    num_threads: int,
    progress: Callable[[int, int], None] | None,
) -> DataReport:
    class_counts = Counter({category.name: 0 for category in annotated.categories})
    paths: set[str] = set()
    num_keypoints = len(annotated.keypoint_names)
    with ThreadPoolExecutor(max_workers=max(1, num_threads)) as pool:
        checks = pool.map(lambda image: list(_check_image(image, in_channels, num_keypoints)), annotated.images)
        for num_done, (image, image_faults) in enumerate(zip(annotated.images, checks, strict=True), start=1):
            for kind, detail, instance in image_faults:
                faults.add(kind, Example(image.image_id, image.file_name, detail, image, instance))
            if image.path in paths:
                faults.add("duplicate_photo", Example(image.image_id, image.file_name, image.path, image))
            paths.add(image.path)
            for instance in image.instances:
                if instance.label:
                    class_counts[annotated.categories[instance.label - 1].name] += 1
            if progress is not None:
                progress(num_done, len(annotated))
    num_negatives = sum(not image.instances for image in annotated.images)
    return DataReport(
        uri,
        format,
        len(annotated),
        annotated.num_instances,
        num_negatives,
        dict(class_counts),
        faults.findings(),
        annotated.notes,
    )


def _check_image(
    image: AnnotatedImage, in_channels: int, num_keypoints: int
) -> Iterator[tuple[str, str, Instance | None]]:
    try:
        _, exif = load_photo(image, in_channels=in_channels)
        if exif == EXIF_KEPT:
            yield "exif_not_applied", f"annotated as {image.height} x {image.width}", None
    except WrongSize as error:
        yield "size_disagrees", str(error), None
    except UnusablePhoto as error:
        yield "unreadable_photo", str(error), None
    if not image.height or not image.width:  # a format without sizes, and a photo that cannot be read
        return
    repeats: Counter[tuple[int, Box]] = Counter()
    for instance in image.instances:
        repeats[(instance.label, instance.box)] += 1
        if repeats[(instance.label, instance.box)] == 2:
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
        distance = np.maximum(-points, points - limit).max(initial=0.0)
        if distance > _OUTSIDE_PX:
            yield "polygon_outside", f"a point lies {distance:.1f} px outside", instance
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
        difference = max(abs(a - b) for a, b in zip(instance.box, mask_to_box(mask)))
        if difference > max(_BOX_OFF_PX, _BOX_OFF_SHARE * max(x2 - x1, y2 - y1)):
            yield "box_off_mask", f"box {_rounded(instance.box)}, mask {_rounded(mask_to_box(mask))}", instance


def _load_coco_leniently(uri: str, image_root: str | None, faults: _FaultLog) -> AnnotatedSet:
    """The set without the images and annotations that `load_coco` would refuse, which are logged as faults."""
    json_path = coco_file(uri)
    content = files.read_json(json_path)
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in ("images", "categories")):
        raise AnnotationError(f"{json_path} has no lists 'images' and 'categories', so it is no COCO annotation file")
    images: dict[Any, dict[str, Any]] = {}
    for image in content["images"]:
        if image["id"] in images:
            detail = f"id {image['id']!r} is also that of {images[image['id']]['file_name']}"
            faults.add("duplicate_image_id", Example(image["id"], image["file_name"], detail))
        else:
            images[image["id"]] = image
    declared = {category["id"] for category in content["categories"]}
    ids: set[Any] = set()
    for annotation in content.get("annotations", []):
        name = images.get(annotation["image_id"], {}).get("file_name", "")
        if annotation["image_id"] not in images:
            detail = f"annotation {annotation.get('id')} of image id {annotation['image_id']!r}"
            faults.add("unlisted_image", Example(annotation["image_id"], name, detail))
        if annotation["category_id"] not in declared:
            detail = f"annotation {annotation.get('id')} has category_id {annotation['category_id']!r}"
            faults.add("unknown_category", Example(annotation["image_id"], name, detail))
        if (annotation_id := annotation.get("id")) is not None:
            if annotation_id in ids:
                detail = f"annotation id {annotation_id}"
                faults.add("duplicate_annotation_id", Example(annotation["image_id"], name, detail))
            ids.add(annotation_id)
    return from_coco({**content, "images": list(images.values())}, json_path, image_root, unknown="drop")


def _rounded(box: Box) -> list[float]:
    return [round(value, 1) for value in box]
