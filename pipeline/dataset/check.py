"""Check of a data set before training: counts faults of annotations and photos by kind, with examples of each."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from pipeline.dataset.channels import with_extra_channels
from pipeline.dataset.formats.reading import format_of, load_annotations
from pipeline.dataset.photos import EXIF_KEPT, UnusablePhoto, WrongSize, load_photo
from pipeline.dataset.source import AnnotationSource
from pipeline.dataset.types import AnnotatedImage, AnnotatedSet, AnnotationError, Box, Instance, mask_to_box
from pipeline.notes import NoteList
from pipeline.storage.base import StorageSettings
from pipeline.storage.uri import base_name

ERROR, WARNING = "error", "warning"

# Kind -> (severity, meaning). Training refuses a set with an error; warnings are likely mistakes, used as is.
KINDS: Mapping[str, tuple[str, str]] = {
    "refused_annotations": (ERROR, "annotations that training refuses"),
    "nothing_to_learn": (ERROR, "no object that can be learnt on a photo that can be used; training refuses the set"),
    "unreadable_photo": (WARNING, "photo absent, broken or of other bands; skipped in training"),
    "size_disagrees": (WARNING, "photo of another size than annotated, turned or not; skipped in training"),
    "empty_box": (WARNING, "box without width or height inside the image; that of the mask is taken, if it has any"),
    "empty_mask": (WARNING, "object without a pixel; its box is neither positive nor negative"),
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

    def to_dict(self) -> dict[str, object]:
        """Plain values, for JSON."""
        return {
            **vars(self),
            "ok": self.ok,
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

    def add(self, kind: str, example: Example, *, count: int = 1) -> None:
        self.counts[kind] += count
        if len(self.examples[kind]) < self.max_examples:
            self.examples[kind].append(example)

    def findings(self) -> tuple[Finding, ...]:
        kinds = [kind for kind in KINDS if self.counts[kind]]
        return tuple(Finding(kind, KINDS[kind][0], self.counts[kind], tuple(self.examples[kind])) for kind in kinds)


def check_data(
    source: str | AnnotationSource,
    storage: StorageSettings | None = None,
    *,
    in_channels: int = 3,
    extra_channels: str | None = None,
    max_examples: int = 10,
    num_threads: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> DataReport:
    """Reads every annotation, decodes every photo, and reports their faults.

    Args:
        source, storage: see `load_annotations`.
        in_channels: bands of a photo, those of its extra file included.
        extra_channels: pattern of that file, see `channels.with_extra_channels`.
        max_examples: faults of each kind that are kept as examples.
        num_threads: photos decoded at a time.
        progress: called with (images done, images in all).

    Raises:
        AnnotationError: there is no annotation file. Every other fault is a finding.
    """
    if isinstance(source, str):
        source = AnnotationSource(uri=source)
    uri, format = source.uri, format_of(source, storage)
    faults = _FaultLog(max_examples)
    try:
        annotated = load_annotations(replace(source, format=format), storage)
        if extra_channels is not None:
            annotated = with_extra_channels(annotated, extra_channels)
    except ValueError as error:
        named, count = (error.faults, error.count) if isinstance(error, AnnotationError) else ((str(error),), 1)
        for fault in named:
            faults.add("refused_annotations", Example(None, base_name(uri), fault), count=0)
        faults.counts["refused_annotations"] = count
        return DataReport(uri, format, 0, 0, 0, {}, faults.findings(), {})
    return _check_set(annotated, faults, uri, format, in_channels, num_threads, progress)


def check_learnable(annotated: AnnotatedSet, where: str, *, in_channels: int = 3) -> None:
    """Checks that the set has an object that can be learnt, on a photo that can be used.

    Reads photos with such an object until one can be used.

    Raises:
        AnnotationError: there is none in `where`; the message says why, of the first photo, and has the reader's notes.
    """
    reason = ""
    for image in annotated.images:
        try:
            if not any(i.label and not i.iscrowd and i.mask(image.height, image.width).any() for i in image.instances):
                continue
            load_photo(image, in_channels=in_channels)
            return
        except ValueError as error:  # UnusablePhoto is one
            reason = reason or f"{image.path}: {error}"
    if reason:
        raise AnnotationError(f"{where}: none of the photos that have an object to learn can be used; {reason}")
    notes = "".join(f"; {note}: {count:,}" for note, count in annotated.notes.items())
    raise AnnotationError(
        f"{where} has no object to learn; allowed is one or more. It has {len(annotated):,} images and "
        f"{annotated.num_instances:,} crowds, ignore regions and objects without a pixel{notes}"
    )


def all_notes(annotated: AnnotatedSet) -> dict[str, int]:
    """What the reader decided, and what is odd about the classes: a sentence -> count."""
    notes = NoteList()
    used = {instance.label for image in annotated.images for instance in image.instances if not instance.iscrowd}
    similar: defaultdict[str, list[str]] = defaultdict(list)
    for label, category in enumerate(annotated.categories, start=1):
        similar[unicodedata.normalize("NFKC", category.name).strip().casefold()].append(repr(category.name))
        if label not in used:
            notes.add("classes without an object", repr(category.name))
    for names in similar.values():
        if len(names) > 1:
            notes.add("classes whose names differ only in capitals, blanks or Unicode forms", " and ".join(names))
    return {**annotated.notes, **notes.to_dict()}


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
    with ThreadPoolExecutor(max_workers=max(1, num_threads)) as pool:
        checks = pool.map(lambda image: list(_check_image(image, in_channels)), annotated.images)
        for num_done, (image, image_faults) in enumerate(zip(annotated.images, checks, strict=True), start=1):
            for kind, detail, instance in image_faults:
                faults.add(kind, Example(image.image_id, image.file_name, detail, image, instance))
            if image.path.uri in paths:
                faults.add("duplicate_photo", Example(image.image_id, image.file_name, image.path.uri, image))
            paths.add(image.path.uri)
            for instance in image.instances:
                if instance.label:
                    class_counts[annotated.categories[instance.label - 1].name] += 1
            if progress is not None:
                progress(num_done, len(annotated))
    try:
        check_learnable(annotated, uri, in_channels=in_channels)
    except AnnotationError as error:
        faults.add("nothing_to_learn", Example(None, base_name(uri), str(error)))
    num_negatives = sum(not image.instances for image in annotated.images)
    return DataReport(
        uri,
        format,
        len(annotated),
        annotated.num_instances,
        num_negatives,
        dict(class_counts),
        faults.findings(),
        all_notes(annotated),
    )


def _check_image(image: AnnotatedImage, in_channels: int) -> Iterator[tuple[str, str, Instance | None]]:
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
        yield from _check_instance(image, instance)


def _check_instance(image: AnnotatedImage, instance: Instance) -> Iterator[tuple[str, str, Instance | None]]:
    x1, y1, x2, y2 = instance.box
    if x2 <= x1 or y2 <= y1:
        yield "empty_box", f"box {_rounded(instance.box)} inside {image.height} x {image.width}", instance
    if isinstance(instance.segmentation, list):
        points = np.array([v for polygon in instance.segmentation for v in polygon], dtype=float).reshape(-1, 2)
        limit = np.array([image.width, image.height])
        distance = np.maximum(-points, points - limit).max(initial=0.0)
        if distance > _OUTSIDE_PX:
            yield "polygon_outside", f"a point lies {distance:.1f} px outside", instance
    if image.labelled_classes is not None and instance.label and instance.label not in image.labelled_classes:
        yield "class_not_looked_for", f"label {instance.label}", instance
    mask = instance.mask(image.height, image.width)
    if not mask.any():
        yield "empty_mask", f"box {_rounded(instance.box)}", instance
    elif not instance.iscrowd:
        difference = max(abs(a - b) for a, b in zip(instance.box, mask_to_box(mask)))
        if difference > max(_BOX_OFF_PX, _BOX_OFF_SHARE * max(x2 - x1, y2 - y1)):
            yield "box_off_mask", f"box {_rounded(instance.box)}, mask {_rounded(mask_to_box(mask))}", instance


def _rounded(box: Box) -> list[float]:
    return [round(value, 1) for value in box]
