"""Annotated data sets in memory, the form that every format is read into: set, image, instance, segmentation.

An `AnnotatedSet` has `AnnotatedImage`s, and these have `Instance`s. Coordinates are pixels of the image as annotated:
after its EXIF orientation is applied, unless the annotations fit only the photo as stored (see `photos.py`). Labels
are 1..K in the order of `AnnotatedSet.categories`; a category's `id` is the data set's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypedDict

import numpy as np

from model.categories import Category
from pipeline.masks.contours import mask_to_polygon
from pipeline.masks.rle import decode_rle, encode_mask, polygons_to_rle, runs_to_rle
from pipeline.storage.files import Location

Box = tuple[float, float, float, float]
Polygons = list[list[float]]

IGNORE_NAME = "__ignore__"  # the class name of an ignore region, in formats that have only names
FORMATS = ("coco", "via", "voc", "cityscapes", "labelme")


class Rle(TypedDict):
    """COCO's run-length encoding, column-major: size is [height, width], counts the string or the run lengths."""

    size: list[int]
    counts: str | bytes | list[int]


class AnnotationError(ValueError):
    """Annotations that cannot be used. The message names the file, the entry in it, and what is allowed.

    Attributes:
        faults: the first ten faults, one sentence each.
        count: number of all faults.
    """

    def __init__(self, message: str, faults: tuple[str, ...] = (), count: int = 1) -> None:
        super().__init__(message)
        self.faults = faults or (message,)
        self.count = count


@dataclass(frozen=True, slots=True)
class Instance:
    """One annotated object, or a region to be left out of the loss.

    Attributes:
        label: 1..K; 0 for an ignore region that stands for every class (then `iscrowd` is True).
        box: XYXY, half-open, float pixels. `bbox` is the same in COCO's XYWH.
        segmentation: polygons [[x, y, x, y, ...], ...] in pixels, of which the union counts, where pixel (0, 0) covers
            0..1; or a COCO RLE.
        iscrowd: a crowd or ignore region: neither positive nor negative in training.
        area: of the object in square pixels, as the data set states it, else that of the mask.
        keypoints: x, y, visibility triples (0 absent, 1 hidden, 2 visible), flat; None without keypoints.
    """

    label: int
    box: Box
    segmentation: Polygons | Rle
    iscrowd: bool = False
    area: float = 0.0
    keypoints: tuple[float, ...] | None = None

    @property
    def bbox(self) -> Box:
        """The box in COCO's XYWH."""
        x1, y1, x2, y2 = self.box
        return (x1, y1, x2 - x1, y2 - y1)

    def mask(self, height: int, width: int) -> np.ndarray:
        """The object's pixels: uint8 [height, width] of 0 and 1.

        Raises:
            ValueError: an RLE of another size or malformed, a polygon that is no list of points.
        """
        return segmentation_to_mask(self.segmentation, height, width)


@dataclass(frozen=True, slots=True)
class AnnotatedImage:
    """One photo and its annotations.

    Attributes:
        image_id: the data set's own id.
        file_name: as the data set names it.
        path: where the photo is read from.
        height, width: size in pixels that the annotations refer to.
        instances: empty for an image known to show none of the labelled classes (a negative).
        labelled_classes: labels that were looked for on this image; None means all of them. Predictions of other
            classes cost nothing in the loss.
        extra_paths: aligned files whose bands follow the photo's (depth, infrared).
    """

    image_id: int | str
    file_name: str
    path: Location
    height: int
    width: int
    instances: tuple[Instance, ...] = ()
    labelled_classes: tuple[int, ...] | None = None
    extra_paths: tuple[Location, ...] = ()


@dataclass(frozen=True)
class AnnotatedSet:
    """A whole data set.

    Attributes:
        images: in the order of the source.
        categories: the class map: label = index + 1.
        keypoint_names: one name for each keypoint; empty without keypoints.
        notes: how often the reader had to decide something: name of the decision -> count; for people to read.
    """

    images: tuple[AnnotatedImage, ...]
    categories: tuple[Category, ...]
    keypoint_names: tuple[str, ...] = ()
    notes: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_instances(self) -> int:
        """Instances on all images, crowd and ignore regions included."""
        return sum(len(image.instances) for image in self.images)


def segmentation_to_mask(segmentation: Polygons | Rle, height: int, width: int) -> np.ndarray:
    """The mask of a segmentation: uint8 [height, width] of 0 and 1; all zeros without a polygon.

    Raises:
        ValueError: an RLE of another size or malformed, a polygon that is no list of points.
    """
    if isinstance(segmentation, Mapping):
        if tuple(segmentation["size"]) != (height, width):
            raise AnnotationError(f"an RLE of size {list(segmentation['size'])} on an image of [{height}, {width}]")
        counts = segmentation["counts"]
        if not isinstance(counts, str | bytes):
            counts = runs_to_rle(counts, height, width)
    else:
        counts = polygons_to_rle([polygon for polygon in segmentation if len(polygon) >= 6], height, width)
    return np.ascontiguousarray(decode_rle(counts, height, width))


def mask_to_rle(mask: np.ndarray) -> Rle:
    """COCO RLE of a mask ([height, width], zero is outside), counts as str."""
    return {"size": [int(side) for side in mask.shape], "counts": encode_mask(mask != 0)}


def mask_to_box(mask: np.ndarray) -> Box:
    """XYXY, half-open, of a mask's pixels; (0, 0, 0, 0) for an empty mask."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not len(columns):
        return (0.0, 0.0, 0.0, 0.0)
    return (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))


def polygons_to_box(polygons: Polygons, height: int, width: int) -> Box:
    """XYXY of the points, clipped to the image; (0, 0, 0, 0) for no points."""
    points = np.array([value for polygon in polygons for value in polygon], dtype=np.float64).reshape(-1, 2)
    if not len(points):
        return (0.0, 0.0, 0.0, 0.0)
    corners = [*points.min(axis=0), *points.max(axis=0)]
    x1, y1, x2, y2 = np.clip(corners, 0.0, [width, height, width, height]).tolist()
    return (x1, y1, x2, y2)


def mask_to_instance(label: int, mask: np.ndarray, *, iscrowd: bool = False) -> Instance:
    """An instance with the exact RLE, box and area of a mask."""
    return Instance(label, mask_to_box(mask), mask_to_rle(mask), iscrowd, float(np.count_nonzero(mask)))


def segmentation_to_polygon(segmentation: Polygons | Rle, height: int, width: int) -> list[float]:
    """One flat polygon [x, y, ...] with the same pixels: the only one there is, else the mask's traced contour."""
    if isinstance(segmentation, list) and len(segmentation) == 1:
        return segmentation[0]
    return mask_to_polygon(segmentation_to_mask(segmentation, height, width))


def polygon_area(polygons: Polygons) -> float:
    """Area of the polygons in square pixels by the shoelace formula; overlaps count twice, no polygon gives 0."""
    total = 0.0
    for polygon in polygons:
        x, y = np.array(polygon, dtype=np.float64).reshape(-1, 2).T
        total += abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2
    return total
