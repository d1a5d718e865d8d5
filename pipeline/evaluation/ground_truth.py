"""Ground truth as columns (`Truth`): images, classes and annotations, read through the checks of `pipeline.dataset`."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np

from pipeline.dataset.formats.coco import to_coco
from pipeline.dataset.formats.coco_file import (
    IGNORED_NOTE,
    CocoAnnotation,
    CocoFile,
    CocoImage,
    check_coco,
    coco_box,
    read_coco,
)
from pipeline.dataset.types import AnnotatedSet, Polygons, Rle
from pipeline.evaluation.kernel_types import Rles
from pipeline.masks.rle import polygons_to_rle, rle_areas
from pipeline.storage.files import Location


class EvaluationError(ValueError):
    """A run and a ground truth that cannot be compared. The message says why."""


@dataclass(frozen=True)
class Annotations:
    """Annotations as columns, in the order of the file. Each has a box and a mask.

    Attributes:
        positions: int64 [G], the place of each among all that were read; those of a part of the images keep it.
        labels: what messages call each, such as "annotation 7".
        image_ids: int64 [G], see `Truth.image_ids`.
        category_ids: int64 [G].
        boxes: float64 [G, 4], XYWH in pixels of the image, neither clipped nor rounded.
        stated_areas: float64 [G], in square pixels; NaN where the file states none.
        is_crowd: bool [G], a crowd region, which counts neither as found nor as missed.
        has_mask, has_box: bool [G], False where the file has none that can be used. For masks (for boxes and
            keypoints) such an annotation is an ignore region: it counts as a crowd region does.
        mask_faults: why each has no mask; "" where it has one.
        segmentations: polygons of three points or more, or a compressed RLE of the image's size.
        keypoints: flat x, y, v triples, or None.
        num_keypoints: int64 [G], how many of them are labelled.
    """

    positions: np.ndarray
    labels: list[str]
    image_ids: np.ndarray
    category_ids: np.ndarray
    boxes: np.ndarray
    stated_areas: np.ndarray
    is_crowd: np.ndarray
    has_mask: np.ndarray
    has_box: np.ndarray
    mask_faults: list[str]
    segmentations: list[Polygons | Rle]
    keypoints: list[list[float] | None]
    num_keypoints: np.ndarray

    def __len__(self) -> int:
        return len(self.positions)

    @classmethod
    def from_records(cls, records: Sequence[CocoAnnotation], number_of: Mapping[int | str, int]) -> Annotations:
        """The columns of checked COCO annotations; `number_of` gives an image's number by its id."""

        def column(values: Iterable[Any], dtype: type) -> np.ndarray:
            return np.fromiter(values, dtype, len(records))

        areas = (np.nan if entry.area is None else entry.area for entry in records)
        boxes = itertools.chain.from_iterable(coco_box(entry) for entry in records)
        return cls(
            positions=np.arange(len(records)),
            labels=[f"annotations[{n}]" if e.id is None else f"annotation {e.id!r}" for n, e in enumerate(records)],
            image_ids=column((number_of[entry.image_id] for entry in records), np.int64),
            category_ids=column((entry.category_id for entry in records), np.int64),
            boxes=np.fromiter(boxes, np.float64, 4 * len(records)).reshape(-1, 4),
            stated_areas=column(areas, np.float64),
            is_crowd=column((bool(e.is_own_crowd if e.fault else e.iscrowd) for e in records), bool),
            has_mask=column((not entry.fault for entry in records), bool),
            has_box=column((not entry.fault or entry.has_own_box for entry in records), bool),
            mask_faults=[entry.fault for entry in records],
            segmentations=[entry.segmentation or [] for entry in records],  # type: ignore[misc]
            keypoints=[entry.keypoints for entry in records],
            num_keypoints=column((entry.num_keypoints or 0 for entry in records), np.int64),
        )

    def take(self, rows: np.ndarray) -> Annotations:
        """The annotations at these indices (int64) or where `rows` (bool [G]) is True."""
        indices = np.flatnonzero(rows) if rows.dtype == bool else rows
        index_list: list[int] = indices.tolist()

        def taken(values: Any) -> Any:
            return [values[index] for index in index_list] if isinstance(values, list) else values[indices]

        return Annotations(**{column.name: taken(getattr(self, column.name)) for column in fields(self)})


@dataclass(frozen=True)
class Truth:
    """Annotated images as COCO's own evaluation reads them: no value is rounded, clipped or reordered.

    Attributes:
        image_ids: int64 [I], the file's own ids where they are whole numbers, else counted from 1. COCO's evaluation
            goes through images in their order.
        file_names: of the images.
        image_sizes: int64 [I, 2], height and width.
        names: category names by id.
        annotations: of these images and categories.
        labelled: ids of the categories that were annotated on an image, by image id. On an image without an entry all
            were. They are the file's `labelled_category_ids`. For LVIS they are the categories of the image's
            annotations and its `neg_category_ids`, without its `not_exhaustive_category_ids`.
        num_not_labelled: annotations left out because their class was not annotated on their image. Some of those
            objects are annotated and some are not, so they count neither as found nor as missed.
        notes: what was decided in reading, for people to read; what has no mask is said by `Annotations` alone.
    """

    image_ids: np.ndarray
    file_names: tuple[str, ...]
    image_sizes: np.ndarray
    names: dict[int, str]
    annotations: Annotations
    labelled: dict[int, frozenset[int]]
    num_not_labelled: int = 0
    notes: tuple[str, ...] = ()

    @classmethod
    def from_coco(cls, content: Mapping[str, Any], where: str = "the ground truth") -> Truth:
        """The truth of a COCO JSON object; `where` is what error messages call it.

        Raises:
            AnnotationError: it breaks the schema, see `pipeline.dataset.formats.coco_file`.
        """
        return cls.from_file(check_coco(content, where, unknown="drop"))

    @classmethod
    def from_file(cls, file: CocoFile) -> Truth:
        """The truth of a checked COCO file."""
        ids = [image.id for image in file.images]
        has_numbers = all(isinstance(image_id, int) for image_id in ids)
        number_of = {image_id: image_id if has_numbers else index + 1 for index, image_id in enumerate(ids)}
        labelled = _labelled(file.images, file.annotations)
        records = file.annotations
        if labelled:
            records = [e for e in records if e.category_id in labelled.get(e.image_id, (e.category_id,))]
        return cls(
            image_ids=np.array(list(number_of.values()), np.int64),
            file_names=tuple(image.file_name for image in file.images),
            image_sizes=np.array([(image.height, image.width) for image in file.images], np.int64).reshape(-1, 2),
            names={category.id: category.name for category in file.categories},
            annotations=Annotations.from_records(records, number_of),  # type: ignore[arg-type]
            labelled={int(number_of[image_id]): categories for image_id, categories in labelled.items()},
            num_not_labelled=len(file.annotations) - len(records),
            notes=tuple(f"{n} {note}" for note, n in file.notes.items() if not note.startswith(IGNORED_NOTE)),
        )

    @classmethod
    def load(cls, source: Truth | AnnotatedSet | Mapping[str, Any] | str | Location) -> Truth:
        """The truth of a COCO JSON file (its URI or location) or object, or of any set that `pipeline.dataset` reads.

        A COCO file gives exactly the values it holds. An `AnnotatedSet` has its boxes clipped to the image, which can
        change a bbox AP in its last digits.

        Raises:
            AnnotationError: it is no COCO file, or breaks the schema.
            FileNotFoundError: there is no such file.
        """
        if isinstance(source, Truth):
            return source
        if isinstance(source, AnnotatedSet):
            return cls.from_coco(to_coco(source))
        if isinstance(source, Mapping):
            return cls.from_coco(source)
        return cls.from_file(read_coco(Location.of(source), unknown="drop"))

    def only(self, image_ids: np.ndarray) -> Truth:
        """The truth of these images alone (int64 ids), with all categories; its notes stay with the whole."""
        kept = np.flatnonzero(np.isin(self.image_ids, image_ids))
        return replace(
            self,
            image_ids=self.image_ids[kept],
            file_names=tuple(self.file_names[index] for index in kept.tolist()),
            image_sizes=self.image_sizes[kept],
            annotations=self.annotations.take(np.isin(self.annotations.image_ids, image_ids)),
            num_not_labelled=0,
            notes=(),
        )

    def of_classes(self, names: Sequence[str] | None) -> Truth:
        """The truth of the classes of these names alone; None means all.

        Raises:
            EvaluationError: a name that no class has; the message lists the names there are.
        """
        if names is None:
            return self
        if unknown := [name for name in names if name not in self.names.values()]:
            raise EvaluationError(f"classes has {unknown[0]!r}; the ground truth has {', '.join(self.names.values())}")
        kept = {number: name for number, name in self.names.items() if name in names}
        return replace(
            self,
            names=kept,
            annotations=self.annotations.take(np.isin(self.annotations.category_ids, list(kept))),
        )

    def with_ids_of(self, names: Mapping[int, str]) -> Truth:
        """The same truth with the category ids of a run's classes, matched by name.

        For formats in which a class has a name and no id of its own.

        Args:
            names: the run's class names by id. Categories that it lacks get ids that neither side uses.
        """
        ids = {name: number for number, name in names.items()}
        free = itertools.count(max([*names, *self.names, 0]) + 1)
        new = {number: ids[name] if name in ids else next(free) for number, name in self.names.items()}
        category_ids = np.array([new[number] for number in self.annotations.category_ids.tolist()], np.int64)
        return replace(
            self,
            names={new[number]: name for number, name in self.names.items()},
            annotations=replace(self.annotations, category_ids=category_ids),
            labelled={image_id: frozenset(new[i] for i in labelled) for image_id, labelled in self.labelled.items()},
        )

    def is_region(self, iou_type: str) -> np.ndarray:
        """bool [G]: crowd and ignore regions. Several detections may lie on one, and IoU is with their area alone."""
        is_usable = self.annotations.has_mask if iou_type == "segm" else self.annotations.has_box
        return self.annotations.is_crowd | ~is_usable

    def is_ignored(self, iou_type: str) -> np.ndarray:
        """bool [G]: what counts neither as found nor as missed: regions; for keypoints also objects without any."""
        regions = self.is_region(iou_type)
        return regions | (self.annotations.num_keypoints == 0) if iou_type == "keypoints" else regions

    def index_of(self, image_ids: np.ndarray) -> np.ndarray:
        """int64 [N], the index of each image, by ids (int64 [N]) that the truth has."""
        order = np.argsort(self.image_ids)
        return order[np.searchsorted(self.image_ids, image_ids, sorter=order)]

    @cached_property
    def image_index(self) -> np.ndarray:
        """int64 [G], the index of each annotation's image."""
        return self.index_of(self.annotations.image_ids)

    @cached_property
    def areas(self) -> np.ndarray:
        """float64 [G], in square pixels: as the file states them, else of the masks."""
        areas = self.annotations.stated_areas.copy()
        unstated = np.isnan(areas)
        if unstated.any():
            areas[unstated] = rle_areas([self.rles[index] for index in np.flatnonzero(unstated).tolist()])
        return areas

    @cached_property
    def rles(self) -> list[bytes]:
        """The RLE string of each annotation's mask; polygons filled as pycocotools fills them."""
        sizes = self.image_sizes[self.image_index]
        segmentations = self.annotations.segmentations
        is_one = np.fromiter((isinstance(s, list) and len(s) == 1 for s in segmentations), bool, len(segmentations))
        polygons = [s[0] for s in segmentations if isinstance(s, list) and len(s) == 1]
        filled = iter(_fill_polygons(polygons, sizes[is_one]))
        return [
            next(filled) if one else _to_counts(segmentation, *size)
            for one, segmentation, size in zip(is_one.tolist(), segmentations, sizes.tolist(), strict=True)
        ]

    @cached_property
    def masks(self) -> Rles:
        """`rles` in one piece, for the compiled kernels."""
        sizes = self.image_sizes[self.image_index]
        lengths = np.fromiter(map(len, self.rles), np.int64, len(self.rles))
        text = np.frombuffer(b"".join(self.rles), np.uint8)
        return Rles(text, np.append(0, np.cumsum(lengths)), sizes[:, 0].copy(), sizes[:, 1].copy())


def _labelled(images: Sequence[CocoImage], annotations: Sequence[CocoAnnotation]) -> dict[int | str, frozenset[int]]:
    """`Truth.labelled`, by the file's own image ids."""
    annotated: dict[int | str, set[int]] = {i.id: set() for i in images if i.neg_category_ids is not None}
    for entry in annotations if annotated else ():
        if entry.image_id in annotated:
            annotated[entry.image_id].add(entry.category_id)
    labelled: dict[int | str, frozenset[int]] = {}
    for image in images:
        if image.labelled_category_ids is not None:
            labelled[image.id] = frozenset(image.labelled_category_ids)
        elif image.neg_category_ids is not None:
            checked = annotated[image.id] | set(image.neg_category_ids)
            labelled[image.id] = frozenset(checked - set(image.not_exhaustive_category_ids or ()))
    return labelled


def _fill_polygons(polygons: list[list[float]], sizes: np.ndarray) -> Iterable[bytes]:
    """The RLE strings of polygons, each in an image of its own size (int64 [N, 2]), all in one call."""
    if not polygons:
        return
    from pipeline.masks import polygon_kernel

    lengths = np.fromiter(map(len, polygons), np.int64, len(polygons))
    corners = np.fromiter(itertools.chain.from_iterable(polygons), np.float64, int(lengths.sum()))
    starts = np.append(0, np.cumsum(lengths // 2))
    heights, widths = (np.ascontiguousarray(sizes[:, axis]) for axis in (0, 1))
    text, ends = polygon_kernel.fill(corners.reshape(-1, 2), starts, heights, widths)
    characters = text.tobytes()
    yield from (characters[start:end] for start, end in itertools.pairwise([0, *ends.tolist()]))


def _to_counts(segmentation: Polygons | Rle, height: int, width: int) -> bytes:
    """The RLE string of several polygons, or of an RLE."""
    if isinstance(segmentation, list):
        return polygons_to_rle(segmentation, height, width).encode()
    counts = segmentation["counts"]
    assert isinstance(counts, str | bytes), "checked on reading"
    return counts.encode() if isinstance(counts, str) else counts
